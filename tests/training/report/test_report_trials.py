"""Trials: what a fresh model finds among synthetic defects, against cases that can be counted by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.metrics import roc_auc_score
from test_report import VECTOR, report_of, toy_facts

from vaegis.models.calibration import decide
from vaegis.models.spec import ImageSpec
from vaegis.training.defects import DEFECTS, make_defects
from vaegis.training.report import build
from vaegis.training.report.judgement import warnings
from vaegis.training.report.trials import _within, area, trials

RNG = np.random.default_rng(9)
PLAIN = RNG.standard_normal((900, 3)).astype(np.float32)


def test_the_area_is_that_of_scikit_learn_with_ties():
    clean, bad = RNG.integers(0, 20, 300).astype(float), RNG.integers(5, 25, 200).astype(float)
    expected = roc_auc_score(np.repeat([0, 1], [300, 200]), np.concatenate([clean, bad]))
    assert area(clean, bad) == pytest.approx(expected, abs=1e-12)


def test_found_is_the_share_above_the_models_own_threshold():
    # The toy's score is the mean square, so of `local` defects, which have five times the clean variance, a known share
    # lies above: a chi-squared law of three values scaled by five.
    facts = toy_facts(PLAIN, {})
    found = {t.name: t for t in trials(facts)}
    expected = chi2.sf(3 * facts.decision.threshold / 5, 3)
    assert found["local"].detection_rate == pytest.approx(expected, abs=0.1)
    assert found["local"].samples == 200
    # Columns of independent noise that change places stay what they were.
    assert found["dependency"].detection_rate <= 0.12 and abs(found["dependency"].auroc - 0.5) < 0.1


def test_the_report_lists_the_least_found_first():
    read, html = report_of(toy_facts(PLAIN, {}))
    shares = [t["found"] for t in read["trials"]]
    assert shares == sorted(shares) and len(shares) == len(DEFECTS["vector"])
    assert "What it would find" in html
    first = re.search(r"<h2>What it would find</h2>.*?<tbody><tr><td>(\w+)</td>", html, re.S)
    assert first is not None and first[1] == read["trials"][0]["defect"]


def test_a_threshold_that_nothing_passes_is_a_warning():
    facts = replace(toy_facts(PLAIN, {}), decision=decide(toy_facts(PLAIN, {}).calibration, threshold=1e6))
    read, html = report_of(facts)
    assert max(t["found"] for t in read["trials"]) == 0
    assert any(w["code"] == "blind" for w in read["warnings"])
    assert "a threshold of" in html


def test_no_warning_where_one_kind_is_found():
    report = build(toy_facts(PLAIN, {})).report
    assert not [w for w in warnings(report, 0.0) if w.code == "blind"]


def test_incomplete_samples_are_left_out_and_too_few_are_not_tried():
    gaps = PLAIN.copy()
    gaps[:, 0] = np.nan
    assert trials(toy_facts(PLAIN[:57], {}, VECTOR)) == ()
    facts = toy_facts(PLAIN, {})
    facts.samples.parts[:] = gaps
    assert trials(facts) == ()


def test_declared_invariances_are_no_defects():
    spec = ImageSpec(height=16, width=16, channels=1, invariances=("rotation",))
    images = RNG.integers(0, 255, (120, 16, 16, 1)).astype(np.uint8)
    assert "turned" not in make_defects("image", images, 0, spec.invariances)
    assert "turned" in make_defects("image", images, 0)


def test_defects_stay_inside_the_region_of_interest():
    clean, raw = np.zeros((2, 4, 4, 1), np.uint8), np.full((2, 4, 4, 1), 9, np.uint8)
    roi = np.zeros((4, 4), bool)
    roi[1:3, 1:3] = True
    assert _within(raw, clean, roi).sum() == 2 * 4 * 9
    np.testing.assert_array_equal(_within(raw, clean, None), raw)
