import io
import re
import zipfile

import numpy as np
import pytest
from scipy.stats import beta, binom, genpareto

from vaegis.models.calibration import (
    ALL,
    Reference,
    Tail,
    calibrate,
    decide,
    fit_tail,
    from_bytes,
    smallest_alpha,
    to_bytes,
)
from vaegis.models.errors import Damaged, Refusal


def calibrated(values, groups=None, effective=None):
    return calibrate({"score": np.asarray(values, float)}, groups, effective, (0.0, 1.0))


def reference(values, **more):
    return calibrated(values, **more).group(None).terms["score"]


def test_p_values_by_hand_with_ties():
    # n = 4: p = (1 + #{c >= s}) / 5.
    found = reference([3.0, 1.0, 2.0, 2.0]).p_value(np.array([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.1]))
    assert found.tolist() == [5 / 5, 5 / 5, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


def test_extremes_have_the_extreme_p_values():
    one = reference([1.0, 2.0, 3.0])
    found = one.p_value(np.array([-np.inf, np.inf, np.nan]))
    assert found[:2].tolist() == [1.0, 0.25]
    assert np.isnan(found[2])


def test_the_threshold_is_the_kth_largest():
    calibration = calibrated(range(1, 100))  # n = 99: alpha = k / 100 has rank k
    assert decide(calibration, 0.01).threshold == 99
    assert decide(calibration, 0.05).threshold == 95
    assert decide(calibration, 0.055).threshold == 95
    assert decide(calibration, 0.99).threshold == 1


@pytest.mark.parametrize("n", [19, 40, 99, 157])
def test_a_verdict_says_what_the_p_value_says(n):
    """s > threshold exactly when p(s) <= alpha, for every alpha, with many ties."""
    rng = np.random.default_rng(n)
    clean = rng.integers(0, 12, n).astype(float)
    calibration = calibrated(clean)
    values = np.concatenate([np.arange(-1.0, 14.0, 0.5), clean])
    p = calibration.group(None).terms["score"].p_value(values)
    grid = np.arange(1, n + 1) / (n + 1)
    for alpha in [*grid, *(grid * (1 - 1e-6))[1:], *rng.uniform(1 / (n + 1), 1, 200)]:
        decision = decide(calibration, float(alpha))
        assert not decision.extrapolated
        assert ((values > decision.threshold) == (p <= alpha + 1e-10)).all(), alpha


def test_every_alpha_below_one_spares_the_least_strange():
    # p = 1 exceeds every alpha below 1, however near.
    assert decide(calibrated(range(9)), 1 - 1e-12).threshold == 0.0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf"), None])
def test_an_alpha_out_of_range_is_named(alpha):
    with pytest.raises(Refusal, match=f"alpha is {re.escape(str(alpha))}"):
        decide(calibrated(range(50)), alpha)


def test_rates_below_the_clean_samples_extrapolate_for_one_decade():
    calibration = calibrated(np.random.default_rng(0).normal(size=199))
    assert not decide(calibration, 1 / 200).extrapolated
    for alpha in (1 / 200 * (1 - 1e-6), 0.1 / 200):
        decision = decide(calibration, alpha)
        assert decision.extrapolated
        tail = calibration.group(None).terms["score"].p_tail(np.array([decision.threshold]))
        assert tail[0] == pytest.approx(alpha)
    assert decide(calibration, 0.1 / 200).threshold > decide(calibration, 1 / 200 * (1 - 1e-6)).threshold
    assert smallest_alpha(calibration.group(None)) == pytest.approx(0.1 / 200)
    with pytest.raises(Refusal, match=r"needs 2010 independent .* this model has 199.*alpha 0\.0005 or more"):
        decide(calibration, 0.1 / 201.1)


def test_without_a_tail_the_clean_samples_are_the_limit():
    calibration = calibrated(np.random.default_rng(0).normal(size=30))
    assert calibration.group(None).terms["score"].tail is None
    assert not decide(calibration, 1 / 31).extrapolated
    assert smallest_alpha(calibration.group(None)) == pytest.approx(1 / 31)
    with pytest.raises(Refusal, match=r"needs 99 independent clean calibration samples; this model has 30\."):
        decide(calibration, 0.01)


@pytest.mark.parametrize("n", [25, 77, 199, 240, 1234])
def test_the_refusal_names_a_rate_that_works(n):
    calibration = calibrated(np.random.default_rng(n).gumbel(size=n))
    with pytest.raises(Refusal) as refused:
        decide(calibration, 1e-9)
    named = float(re.search(r"ask for alpha ([\d.e-]+) or more", str(refused.value))[1])
    decide(calibration, named)
    assert named < 1.2 * smallest_alpha(calibration.group(None))


def test_the_refusal_names_a_count_that_works():
    with pytest.raises(Refusal) as refused:
        decide(calibrated(range(30)), 0.013)
    needed = int(re.search(r"needs (\d+)", str(refused.value))[1])
    assert needed == 76
    assert not decide(calibrated(range(needed)), 0.013).extrapolated
    with pytest.raises(Refusal):
        decide(calibrated([0.0] * (needed - 1)), 0.013)


def test_overlapping_windows_count_as_what_they_are_worth():
    values = np.random.default_rng(3).gumbel(size=400)
    calibration = calibrated(values, effective=24)
    assert not decide(calibration, 0.04).extrapolated
    assert decide(calibration, 0.04).threshold == np.sort(values)[400 - 16]
    assert decide(calibration, 0.039).extrapolated
    with pytest.raises(Refusal, match="this model has 24"):
        decide(calibration, 0.0039)


def test_an_extrapolated_rate_above_the_tail_share_is_that_of_the_values():
    """With few independent windows a rate can be extrapolated and yet lie within the body of the values."""
    values = np.random.default_rng(3).gumbel(size=400)
    calibration = calibrated(values, effective=4)
    decision = decide(calibration, 0.15)
    assert decision.extrapolated
    assert decision.threshold == np.sort(values)[400 - 60]
    one = calibration.group(None).terms["score"]
    everywhere = np.linspace(-3, 9, 500)
    for alpha in (0.19, 0.15, 0.11, 0.1, 0.09, 0.05, 0.03):
        flagged = everywhere > decide(calibration, alpha).threshold
        assert (flagged == (one.p_tail(everywhere) <= alpha)).all(), alpha


def test_the_tail_falls_and_meets_the_p_values_at_its_start():
    one = reference(np.random.default_rng(5).standard_gamma(2.0, 500))
    s = np.linspace(0, 40, 4000)
    p = one.p_tail(s)
    assert (np.diff(p) <= 0).all()
    assert (p > 0).all()
    below = s <= one.tail.start
    assert (p[below] == one.p_value(s[below])).all()
    just_above = np.nextafter(one.tail.start, np.inf)
    assert one.p_tail(np.array([just_above]))[0] == pytest.approx(one.p_value(np.array([just_above]))[0])


@pytest.mark.parametrize("shape", [0.0, 1e-12, 0.2, 0.9])
def test_quantile_inverts_p(shape):
    tail = Tail(start=3.0, shape=shape, scale=2.0, share=0.1)
    for alpha in (0.1, 0.05, 1e-3, 1e-6):
        assert tail.p(np.array([tail.quantile(alpha)]))[0] == pytest.approx(alpha, rel=1e-9)
    s = np.array([3.0, 4.0, 10.0, 80.0])
    assert tail.p(s) == pytest.approx(0.1 * genpareto.sf(s - 3.0, shape, scale=2.0), rel=1e-6)


@pytest.mark.parametrize(("shape", "scale"), [(0.2, 1.0), (0.2, 30.0), (0.05, 0.01)])
def test_the_tail_of_a_known_pareto_is_found(shape, scale):
    values = np.sort(genpareto.rvs(shape, scale=scale, size=200_000, random_state=1))
    tail = fit_tail(values)
    # Above u the excess is again a generalised Pareto, of the same shape and scale + shape u.
    assert tail.shape == pytest.approx(shape, abs=0.04)
    assert tail.scale == pytest.approx(scale + shape * tail.start, rel=0.05)
    assert tail.share == pytest.approx(0.1, rel=0.01)
    assert tail.quantile(1e-4) == pytest.approx(genpareto.isf(1e-4, shape, scale=scale), rel=0.1)


def test_a_bounded_tail_is_taken_as_exponential():
    values = np.sort(np.random.default_rng(0).uniform(size=2000))
    tail = fit_tail(values)
    assert tail.shape == 0.0
    assert tail.scale == pytest.approx(values[values > tail.start].mean() - tail.start)


@pytest.mark.parametrize("values", [np.zeros(500), np.arange(39.0), np.repeat([0.0, 1.0], [490, 10]), np.arange(3.0)])
def test_too_few_or_equal_values_have_no_tail(values):
    assert fit_tail(np.sort(values)) is None
    assert np.isnan(Reference(values, None).p_tail(np.array([5.0]))).all()


def test_the_false_alarm_rate_is_the_one_promised():
    """Over 2000 draws of calibration and test, at the granted rate: binomial, whatever the distribution."""
    rng = np.random.default_rng(11)
    repeats, n, alpha = 2000, 59, 0.05  # rank 3 of 60: exactly 5 %
    alarms = 0
    for _ in range(repeats):
        draws = rng.normal(size=n + 1)
        alarms += draws[0] > decide(calibrated(draws[1:]), alpha).threshold
    low, high = binom.ppf([0.0005, 0.9995], repeats, alpha)
    assert low <= alarms <= high


def test_the_realised_rate_of_a_threshold_has_its_beta_law():
    # The share of clean product above the k-th largest of n is Beta(k, n + 1 - k).
    rng = np.random.default_rng(12)
    rates = [1 - decide(calibrated(rng.uniform(size=99)), 0.05).threshold for _ in range(2000)]
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(rates, q) == pytest.approx(beta.ppf(q, 5, 95), rel=0.06)


def test_groups_are_calibrated_apart():
    values = np.concatenate([np.arange(50.0), np.arange(50.0) + 100])
    calibration = calibrated(values, groups=["left"] * 50 + ["right"] * 50)
    assert decide(calibration, 0.1, group="left").threshold == 45.0
    assert decide(calibration, 0.1, group="right").threshold == 145.0
    assert decide(calibration, 0.1).threshold == 140.0
    assert calibration.group("left").effective == 50
    assert calibration.group(None) is calibration.groups[ALL]
    with pytest.raises(Refusal, match="no calibration for group 'up'. It knows left, right"):
        decide(calibration, 0.1, group="up")
    with pytest.raises(Refusal, match="without groups"):
        decide(calibrated(range(50)), 0.1, group="up")


def test_groups_can_have_counts_of_their_own():
    calibration = calibrated(range(100), groups=["a", "b"] * 50, effective={ALL: 20, "a": 10})
    assert [calibration.group(g).effective for g in (None, "a", "b")] == [20, 10, 50]


def test_a_threshold_can_be_given_instead_of_a_rate():
    calibration = calibrate({"score": np.arange(50.0), "kl": np.arange(50.0) * 2}, None, None, (0.0, 1.0))
    decision = decide(calibration, threshold=7.5, decide_by="kl")
    assert (decision.threshold, decision.alpha, decision.extrapolated) == (7.5, None, False)
    assert decide(calibration, 0.1, decide_by="kl").threshold == 90.0
    with pytest.raises(Refusal, match="Both alpha 0.1 and threshold 3"):
        decide(calibration, 0.1, threshold=3.0)
    with pytest.raises(Refusal, match="inf is not a finite number"):
        decide(calibration, threshold=float("inf"))
    with pytest.raises(Refusal, match="no evidence 'luck' to decide by; the model gives score, kl"):
        decide(calibration, 0.1, decide_by="luck")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_refuses_what_is_not_finite(bad):
    with pytest.raises(Refusal, match="Evidence kl of clean calibration sample 3"):
        calibrate({"score": np.arange(5.0), "kl": np.array([0, 1, 2, bad, 4])}, None, None, (0.0, 1.0))


def test_bytes_round_trip_exactly():
    rng = np.random.default_rng(0)
    evidence = {"score": rng.gumbel(size=300), "kl": rng.normal(size=300).astype(np.float32)}
    made = calibrate(evidence, ["x", "y", "y"] * 100, {ALL: 7, "x": 3}, (0.25, 1 / 3))
    raw = to_bytes(made)
    assert to_bytes(made) == raw
    read = from_bytes(raw)
    assert to_bytes(read) == raw
    assert read.map_range == made.map_range
    assert list(read.groups) == [ALL, "x", "y"]
    for name, group in made.groups.items():
        assert read.groups[name].effective == group.effective
        for term, one in group.terms.items():
            assert (read.groups[name].terms[term].values == one.values).all()
            assert read.groups[name].terms[term].tail == one.tail


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK\x03\x04 torn",
        npz(groups=np.array([{}], object), terms=np.array(["score"])),
        npz(groups=np.array([""]), terms=np.array(["score"]), effective=np.array([3])),
        to_bytes(calibrated(range(60)))[:-40],
    ],
    ids=["empty", "torn", "pickled", "lacking", "truncated"],
)
def test_other_bytes_are_refused(raw):
    with pytest.raises(Damaged, match="calibration.npz cannot be read"):
        from_bytes(raw)


def members(count=60, **changed):
    """The arrays of a whole calibration file, some of them others."""
    with np.load(io.BytesIO(to_bytes(calibrated(range(count))))) as data:
        return {**data, **changed}


def test_what_members_make_is_whole():
    assert from_bytes(npz(**members())).group(None).effective == 60


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"values_0_0": np.full(60, np.nan)}, "values_0_0 holds nan"),
        ({"values_0_0": np.append(np.arange(59.0), np.inf)}, "values_0_0 holds inf"),
        ({"values_0_0": np.arange(60.0)[::-1].copy()}, "values_0_0 do not ascend"),
        ({"values_0_0": np.arange(60.0).reshape(60, 1)}, "values_0_0 is no list of numbers"),
        ({"values_0_0": np.arange(60)}, "values_0_0 is no list of numbers in double"),
        ({"values_0_0": np.array(["1", "2"])}, "values_0_0 is no list of numbers"),
        ({"values_0_0": np.empty(0)}, r"states 60 independent samples, and its terms hold \[0\]"),
        ({"effective": np.array([61])}, r"states 61 independent samples, and its terms hold \[60\]"),
        ({"effective": np.array([0])}, "states 0 independent"),
        ({"effective": np.array([-5])}, "states -5 independent"),
        ({"effective": np.array([60.0])}, "effective does not hold a whole number"),
        ({"effective": np.array([60, 60])}, "effective does not hold a whole number for every group"),
        ({"groups": np.array(["a"])}, "no group of all samples"),
        ({"groups": np.array(["", ""]), "effective": np.array([60, 60])}, "groups is named twice"),
        ({"terms": np.array(["kl"])}, "holds no score"),
        ({"map_range": np.array([0.0, np.nan])}, "map_range holds nan"),
        ({"map_range": np.array([2.0, 1.0])}, "map_range goes from 2 down to 1"),
        ({"map_range": np.array([1.0])}, "map_range is no list of 2 numbers"),
        ({"tail_0_0": np.array([50.0, 0.1, np.nan, 0.1])}, "tail_0_0 holds nan"),
        ({"tail_0_0": np.array([50.0, 0.1, 0.0, 0.1])}, "scale 0"),
        ({"tail_0_0": np.array([50.0, -0.1, 1.0, 0.1])}, "shape -0.1"),
        ({"tail_0_0": np.array([50.0, 0.1, 1.0, 1.5])}, "share 1.5"),
    ],
)
def test_a_calibration_is_whole_or_refused(changed, words):
    with pytest.raises(Damaged, match=words):
        from_bytes(npz(**members(**changed)))


def test_arrays_that_claim_more_than_they_hold_are_refused():
    """A packed member, and a head that states terabytes."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **members(values_0_0=np.zeros(1_000_000)))
    with pytest.raises(Damaged, match="is packed"):
        from_bytes(packed.getvalue())
    with pytest.raises(Damaged, match="states the shape"):
        from_bytes(lying())


def lying():
    """A file whose first array of 60 numbers states 60 billion of them."""
    head = npz(**members())
    raw = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(head)) as source, zipfile.ZipFile(raw, "w") as target:
        for member in source.infolist():
            body = source.read(member)
            if member.filename == "values_0_0.npy":
                body = body.replace(b"(60,), }" + b" " * 9, b"(60000000000,), }")
            target.writestr(member.filename, body)
    return raw.getvalue()
