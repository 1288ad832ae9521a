"""Choosing evidence by synthetic defects: the ranking against cases whose answer is known."""

import numpy as np
import pytest
from scipy.stats import norm
from tests.bench.choose import fused, ranked, worth

RNG = np.random.default_rng(3)
N = 4000


def part(shift_a, shift_b):
    """Two log-normal terms; the defect moves them by so many clean standard deviations of their logarithm."""
    clean = {"a": np.exp(RNG.normal(size=N)), "b": np.exp(RNG.normal(size=N))}
    bad = {"a": np.exp(RNG.normal(shift_a, 1, N)), "b": np.exp(RNG.normal(shift_b, 1, N))}
    return {"clean": clean, "defect": bad}


def test_the_area_of_a_shifted_normal_term_is_known():
    assert worth(part(1.0, 0.0), ["a"])["defect"] == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.01)


def test_two_terms_that_both_tell_beat_either_by_the_root_of_two():
    found = part(1.0, 1.0)
    assert worth(found, ["a", "b"])["defect"] == pytest.approx(norm.cdf(1.0), abs=0.01)
    assert ranked([found])[0][1] == ("a", "b")


def test_a_term_that_tells_nothing_is_left_out():
    assert ranked([part(1.0, 0.0), part(1.2, 0.0)])[0][1] == ("a",)


def test_a_fused_score_is_in_clean_standard_deviations():
    scores = fused(part(3.0, 0.0), ["a"])
    assert scores["clean"].mean() == pytest.approx(0, abs=1e-3) and scores["clean"].std() == pytest.approx(1, abs=1e-3)
    assert scores["defect"].mean() == pytest.approx(3.0, abs=0.1)
