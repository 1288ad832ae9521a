import numpy as np
import pytest
from scipy.stats import betabinom

from vaegis.models.calibration import Decision, calibrate, decide
from vaegis.models.errors import Refusal
from vaegis.training.evaluate import evaluate, interval

BY_SCORE = Decision("score", 0.25, 2.5, False)


def evaluated(scores, labels, decision=BY_SCORE, classes=None, n=99, **terms):
    scores = np.array(scores, float)
    flagged = np.nan_to_num(scores, nan=-np.inf) > decision.threshold
    evidence = {"score": scores, **{k: np.array(v, float) for k, v in terms.items()}}
    return evaluate(evidence, flagged, np.array(labels), classes, decision, n)


def test_every_figure_by_hand():
    #                  clean: 1 2 3 4, anomalies: 2 5 6; above 2.5: clean 3 and 4, anomalies 5 and 6
    found = evaluated([1, 2, 3, 4, 2, 5, 6], [0, 0, 0, 0, 1, 1, 1], error=[0, 0, 0, 0, 1, 1, 1])
    assert (found.clean, found.anomalies, found.unjudged) == (4, 3, 0)
    # Of twelve pairs the anomaly leads in 4 + 4, and of those with the anomaly at 2 in one and a half.
    assert found.auroc["score"] == pytest.approx(9.5 / 12)
    assert found.auroc["error"] == 1.0
    assert found.detection_rate == pytest.approx(2 / 3)
    assert found.false_alarm_rate == pytest.approx(2 / 4)
    assert found.f1 == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    # Precision at the ranks of the anomalies: 1/1, 2/2, then 3 of the 6 at or above 2.
    assert found.average_precision == pytest.approx((1 + 1 + 3 / 6) / 3)


def test_what_was_not_judged_is_counted_apart():
    found = evaluated([1, np.nan, 3, 4, np.nan], [0, 0, 1, 1, 1])
    assert (found.clean, found.anomalies, found.unjudged) == (1, 2, 2)
    assert found.auroc["score"] == 1.0
    assert found.detection_rate == 1.0


def test_kinds_of_anomaly_are_told_apart():
    classes = [None, None, "dent", "dent", "scratch", None]
    found = evaluated([1, 2, 3, 1.5, 9, 0], [0, 0, 1, 1, 1, 1], classes=classes)
    assert list(found.by_class) == ["dent", "scratch"]
    assert found.by_class["dent"] == (2, pytest.approx(3 / 4), 0.5)
    assert found.by_class["scratch"] == (1, 1.0, 1.0)


def test_any_label_but_zero_is_an_anomaly():
    one, other = ([0, 0, 0, 0, k, k, k] for k in (1, 3))
    scores = [1, 2, 3, 4, 2, 5, 6]
    assert evaluated(scores, one) == evaluated(scores, other)


@pytest.mark.parametrize(("labels", "said"), [([0, 0, 0], "label 1"), ([1, 1, 1], "label 0"), ([0, 0, 1], "label 1")])
def test_both_kinds_are_needed(labels, said):
    with pytest.raises(Refusal, match=f"no judged .*{said}"):
        evaluated([1, 2, np.nan], labels)


def test_the_interval_holds_ninety_nine_of_a_hundred():
    """By simulation: calibrate on n, count alarms among m more of the same kind."""
    rng = np.random.default_rng(0)
    n, m, alpha = 199, 300, 0.03
    low, high = interval(Decision("score", alpha, 0.0, False), n, m)
    inside = 0
    for _ in range(1500):
        draws = rng.normal(size=n + m)
        threshold = decide(calibrate({"score": draws[:n]}, None, None, (0, 1)), alpha).threshold
        inside += low <= (draws[n:] > threshold).mean() <= high
    assert 0.985 <= inside / 1500 <= 1.0
    law = betabinom(m, 6, 194)  # the sixth largest of 199
    assert law.cdf(low * m - 1) < 0.005 <= law.cdf(low * m)
    assert law.sf(high * m) <= 0.005 < law.sf(high * m - 1)


def test_the_luck_of_calibration_counts_too():
    """Were the threshold exact, the interval of the test's own luck would be narrower."""
    few, many = (interval(Decision("score", 0.05, 0.0, False), n, 2000) for n in (99, 99_999))
    assert many[0] > few[0]
    assert many[1] < few[1]
    assert many == pytest.approx(
        (0.05 - 2.576 * (0.05 * 0.95 / 2000) ** 0.5, 0.05 + 2.576 * (0.05 * 0.95 / 2000) ** 0.5), abs=2e-3
    )


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1 - 1e-12])
def test_the_interval_is_a_range_of_rates(alpha):
    low, high = interval(Decision("score", alpha, 0.0, False), 99, 50)
    assert 0 <= low < high <= 1


def test_no_interval_is_claimed_where_no_law_holds():
    assert interval(Decision("score", None, 1.0, False), 99, 50) is None
    assert interval(Decision("score", 0.001, 1.0, True), 99, 50) is None
    assert evaluated([1, 2, 3], [0, 0, 1]).expected == interval(BY_SCORE, 99, 2)
