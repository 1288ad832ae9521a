"""The benchmark's own arithmetic against hand-worked cases."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tests.bench import figures, pages, published, study, summary
from tests.bench.figures import Counts, areas, counts, oracle, pooled
from tests.bench.results import Results, Wish
from tests.bench.sets import TEP_FAULTS, tep_label

from vaegis.models.calibration import calibrate


def row(name, part, family="vae", seed=0, **more):
    held = {"set": name, "part": part, "family": family, "options": {}, "asked_steps": None, "seed": seed, "code": "c"}
    return {**held, "auroc": {"score": 0.5}, **more}


def test_files_are_pooled_before_rates_are_taken():
    first = counts(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], np.int8))
    second = counts(np.array([0, 0, 0, 0, 0, 1], bool), np.array([1, 1, 1, 1, 0, 1], np.int8))
    assert first == Counts(hit=1, missed=1, false=1, quiet=1)
    assert second == Counts(hit=1, missed=4, false=0, quiet=1)
    total = first + second
    assert total.f1 == pytest.approx(2 * 2 / (2 * 2 + 5 + 1))
    assert total.far == pytest.approx(1 / 3)
    assert total.mar == pytest.approx(5 / 7)


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    label, flagged = rng.integers(0, 2, 500).astype(np.int8), rng.random(500) < 0.3
    assert counts(flagged, label).f1 == pytest.approx(f1_score(label, flagged))


def test_everything_anomalous_scores_what_the_leaderboard_says_of_it():
    # SKAB's anomaly share gives F1 = 2 p / (1 + p) = .698 for p = .536, at FAR 100 % and MAR 0 %.
    label = np.r_[np.ones(536), np.zeros(464)].astype(np.int8)
    total = counts(np.ones(1000, bool), label)
    assert (round(total.f1, 3), total.far, total.mar) == (0.698, 1.0, 0.0)
    assert published.SKAB["(everything anomalous)"] == (0.698, 100.0, 0.0)


def test_pooled_reads_the_counts_of_rows():
    some = [
        {"hit": 1, "missed": 2, "false": 3, "quiet": 4, "used": 0.1},
        {"hit": 1, "missed": 0, "false": 0, "quiet": 9},
    ]
    assert pooled(some) == Counts(2, 2, 3, 13)
    assert pooled([]).f1 == 0.0


def test_areas_leave_unjudged_samples_out():
    evidence = {"score": np.array([0.0, 2.0, 1.0, np.nan]), "kl": np.array([3.0, 1.0, 2.0, np.nan])}
    label = np.array([0, 1, 0, 1], np.int8)
    auroc, ap = areas(evidence, label)
    assert auroc == {"score": 1.0, "kl": 0.0}
    assert ap["score"] == 1.0
    assert areas(evidence, np.zeros(4, np.int8)) == ({}, {})


def test_an_oracle_threshold_lets_through_what_it_may():
    clean = np.arange(200.0)
    for rate, above in ((0.01, 2), (0.023, 4), (0.0, 0)):
        assert (clean > oracle(clean, rate)).sum() == above


def test_fault_detection_counts_rows_after_the_onset_only():
    score = tep_label().astype(float)
    score[:960] = np.linspace(0, 0.5, 960)  # d00_te
    score[960 : 960 + 160] = 9.0  # the first fault's clean rows do not count
    score[960 + 160 : 960 + 560] = 0.0  # half of its faulty rows pass
    found = figures.faults(calibrate({"score": np.linspace(0, 0.5, 500)}, None, None, (0.0, 1.0)), score)
    assert found["detected"][str(TEP_FAULTS[0])]["oracle_0.01"] == 0.5
    assert {v["honest"] for k, v in found["detected"].items() if k != "1"} == {1.0}
    assert found["false_alarms"]["oracle_0.01"] == pytest.approx(9 / 960, abs=1e-5)


def test_false_alarms_stand_beside_their_interval():
    clean = np.arange(999.0)
    made = calibrate({"score": clean}, None, None, (0.0, 1.0))
    score, label = np.r_[clean, 2000.0], np.r_[np.zeros(999), 1].astype(np.int8)
    found = figures.false_alarms(made, score, label, independent=True)
    # At 1 % of 999 the threshold is the tenth largest, which nine exceed.
    assert found["0.01"]["realised"] == pytest.approx(9 / 999, abs=1e-5)
    assert found["0.01"]["inside"] is True
    assert found["0.05"]["calibrated_on"] == 999
    assert figures.false_alarms(made, score, label, independent=False)["0.01"]["interval"] is None
    assert figures.false_alarms(made, np.r_[clean + 500, 2000.0], label, True)["0.05"]["inside"] is False


def test_a_rate_too_low_for_the_samples_becomes_the_lowest_they_support():
    made = calibrate({"score": np.arange(9.0)}, None, None, (0.0, 1.0))
    found = figures.by_rate(made, np.array([8.5, 7.5]), np.array([1, 0], np.int8))
    assert found["0.001"]["used"] == pytest.approx(0.1)
    assert found["0.001"]["hit"] == 1 and found["0.001"]["false"] == 0
    assert found["0.2"]["used"] == 0.2 and found["0.2"]["false"] == 1


def test_a_set_is_the_mean_of_its_parts_and_a_part_of_its_seeds():
    rows = [row("fashion", "1", auroc={"score": 0.9}), row("fashion", "2", auroc={"score": 0.6})]
    rows += [row("fashion", "2", seed=1, auroc={"score": 0.8})]
    assert summary.figures(rows) == {"fashion": {"vae": 0.8}}
    one = {"hit": 3, "missed": 1, "false": 1, "quiet": 5}
    pair = [row("skab", p, counts=one) for p in ("other/1", "other/2")]
    assert summary.figures(pair) == {"skab": {"vae": 0.75}, "skab_far": {"vae": 0.1667}}


def test_p_values_of_like_samples_are_uniform_and_of_others_not():
    rng = np.random.default_rng(1)
    calibration, like, unlike = rng.normal(size=500), rng.normal(size=2000), rng.normal(1.0, size=2000)
    assert study.uniformity(calibration, like).p > 0.01
    assert study.uniformity(calibration, unlike).p < 1e-6
    assert study.uniformity(calibration, unlike).distance > 0.3
    # The calibration values themselves are as uniform as n values can be.
    assert study.uniformity(calibration, calibration).distance <= 1 / 500


def test_few_calibration_samples_keep_the_promise_within_its_law():
    rng = np.random.default_rng(2)
    kept = study.realised(rng.normal(size=4000), rng.normal(size=4000), 200, 0.05, repeats=100)
    assert kept.expected == pytest.approx(10 / 201)
    assert kept.mean == pytest.approx(0.05, abs=0.01)
    assert kept.inside is not None and kept.inside > 0.95
    assert study.realised(rng.normal(size=100), rng.normal(size=100), 10, 0.001, repeats=2).refused


def test_the_tail_of_an_exponential_is_found():
    pool = np.random.default_rng(3).exponential(size=5000)
    found = study.tail(pool, 1000, (0.001, 1e-6), repeats=50)
    assert np.mean(found[0.001]) == pytest.approx(0.001, rel=0.5)
    assert 1e-6 not in found  # beyond what 1000 samples may claim


def test_groups_of_unlike_spread_need_their_own_thresholds():
    rng = np.random.default_rng(4)
    calibration = {"narrow": rng.normal(size=500), "wide": 5 * rng.normal(size=500)}
    score = np.r_[rng.normal(size=2000), 5 * rng.normal(size=2000)]
    group = ["narrow"] * 2000 + ["wide"] * 2000
    narrow, wide = study.by_group(calibration, score, group, np.zeros(4000, np.int8), 0.05)
    assert narrow["shared"] < 0.005 and wide["shared"] > 0.08
    for one in (narrow, wide):
        low, high = one["interval"]
        assert low <= one["own"] <= high


def test_results_are_found_again_and_a_torn_line_is_passed_over(tmp_path):
    results = Results(tmp_path / "r.jsonl")
    wish = Wish("fashion", "1", "vae", {}, None, 0)
    assert results.find(wish, "c") is None
    results.add(row("fashion", "1", key="k"), {"label": np.zeros(2)})
    results.path.write_text(results.path.read_text() + '{"set": "fash')
    results.add(row("fashion", "2", key="l"))
    assert results.find(wish, "c")["part"] == "1"
    assert results.find(wish, "other code") is None and results.find(wish, None) is not None
    assert results.find(Wish("fashion", "1", "vae", {"latent": 8}, None, 0), "c") is None
    assert results.find(Wish("fashion", "2", "vae", {}, None, 0), "c") is not None
    assert set(results.evidence(results.rows()[0])) == {"label"}
    results.add(row("fashion", "3", error="Refusal: no"))
    assert results.find(Wish("fashion", "3", "vae", {}, None, 0), "c") is None


def test_sections_of_the_page_are_replaced_between_their_markers():
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    once = pages.replaced(page, {"x": "new"})
    assert once == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    assert pages.replaced(once, {"x": "new"}) == once
    with pytest.raises(ValueError, match="<!-- y -->"):
        pages.replaced(page, {"y": "new"})
