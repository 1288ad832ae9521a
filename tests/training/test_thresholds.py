"""Thresholds for a recall or a false-alarm rate, by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from vaegis.models.calibration import Decision
from vaegis.models.errors import Refusal
from vaegis.training.evaluate import evaluate_clean
from vaegis.training.thresholds import clopper_pearson, for_false_alarms, for_recall, shortest

CLEAN, ANOMALIES = np.arange(1.0, 100.0), np.array([50.5, 90.5, 120.0, 130.0, 140.0])


def test_a_recall_of_four_in_five_takes_the_highest_threshold_that_finds_four():
    proposal = for_recall(CLEAN, ANOMALIES, 0.8)
    assert 90 <= proposal.threshold < 90.5
    assert proposal.recall.value == 0.8
    assert proposal.false_alarms.value == 9 / 99  # 91 to 99
    assert for_recall(CLEAN, ANOMALIES, 1.0).recall.value == 1.0
    assert for_recall(CLEAN, ANOMALIES, 0.61).recall.value == 0.8


def test_a_false_alarm_rate_takes_the_rank_that_calibration_takes():
    proposal = for_false_alarms(CLEAN, ANOMALIES, 0.05)  # the fifth largest of 99: 95
    assert 95 <= proposal.threshold < 96
    assert proposal.false_alarms.value == 4 / 99
    assert proposal.recall.value == 3 / 5
    assert for_false_alarms(CLEAN, np.empty(0), 0.01).threshold == 99
    assert for_false_alarms(CLEAN, np.empty(0), 0.01).recall is None


def test_the_interval_is_that_of_clopper_and_pearson():
    share = clopper_pearson(4, 99)
    assert binom.sf(3, 99, share.low) == pytest.approx(0.005)
    assert binom.cdf(4, 99, share.high) == pytest.approx(0.005)
    assert clopper_pearson(0, 50).low == 0.0
    assert clopper_pearson(0, 50).high == pytest.approx(1 - 0.005 ** (1 / 50))
    assert clopper_pearson(50, 50).high == 1.0


def test_equal_scores_are_not_parted():
    proposal = for_recall(np.array([1.0, 2.0]), np.array([3.0, 3.0, 3.0]), 0.3)
    assert (proposal.recall.value, proposal.false_alarms.value) == (1.0, 0.0)
    assert for_recall(np.empty(0), np.array([3.0]), 1.0).recall.value == 1.0


@pytest.mark.parametrize(
    ("low", "high", "known"), [(1.0, 2.0, 1.5), (0.1234561, 0.1234569, 0.1234565), (5.0, 5.5, 5.2)]
)
def test_the_shortest_number_between(low, high, known):
    assert shortest(low, high) == known


@pytest.mark.parametrize(
    ("propose", "clean", "anomalies", "rate", "sentence"),
    [
        (for_recall, CLEAN, ANOMALIES, 1.2, "recall is 1.2"),
        (for_recall, CLEAN, ANOMALIES, float("nan"), "recall is nan"),
        (for_recall, CLEAN, np.empty(0), 0.9, "takes anomalies"),
        (for_false_alarms, CLEAN, ANOMALIES, 0.0, "rate is 0"),
        (for_false_alarms, CLEAN, ANOMALIES, 0.001, "of 0.001 takes 999 clean samples; 99 were judged"),
    ],
)
def test_what_cannot_be_proposed_is_refused(propose, clean, anomalies, rate, sentence):
    with pytest.raises(Refusal, match=sentence):
        propose(clean, anomalies, rate)


def test_samples_that_are_all_clean_give_a_rate_with_its_interval():
    scores = np.array([1.0, 2.0, 3.0, np.nan, 4.0])
    result = evaluate_clean({"score": scores}, scores > 3.5, Decision("score", 0.25, 3.5, False), 99)
    assert (result.clean, result.unjudged, result.false_alarms, result.false_alarm_rate) == (4, 1, 1, 0.25)
    share = clopper_pearson(1, 4)
    assert result.interval == (share.low, share.high)
    assert result.expected is not None
    with pytest.raises(Refusal, match="None of the clean samples"):
        evaluate_clean({"score": np.full(3, np.nan)}, np.zeros(3, bool), Decision("score", 0.25, 3.5, False), 99)
