"""Thresholds from labelled samples: for a wanted recall, or a wanted false-alarm rate among clean ones held out.

With scores v_1 >= v_2 >= ... of m anomalies, a threshold just below v_k finds k of them, and k = ceil(R m) gives the
recall R. With scores of n clean samples, the threshold v_k, k = floor(A (n + 1)), is exceeded by a fresh one with
probability A at most. Of all thresholds that decide these samples alike the shortest number is given.

Either comes with the shares of these samples that it flags and their 99 % Clopper-Pearson intervals (1934), which
hold for a threshold that is an order statistic of the samples too: the share beyond v_k is Beta(k, m + 1 - k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from vaegis.models.errors import Refusal

CONFIDENCE = 0.99

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A share of samples that are flagged, and its Clopper-Pearson interval. All lie in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Proposal:
    """A threshold for what was asked for."""

    goal: Literal["recall", "false_alarms"]
    rate: float  # that was asked for
    threshold: float  # in units of the deciding term: what exceeds it is flagged
    recall: Share | None  # of these anomalies; None where there are none
    false_alarms: Share | None  # of these clean samples


def clopper_pearson(count: int, of: int) -> Share:
    """The share count / of and its interval at 99 %."""
    outside = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(outside, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - outside, count + 1, of - count)) if count < of else 1.0
    return Share(count / of, low, high)


def for_recall(clean: Floats, anomalies: Floats, recall: float) -> Proposal:
    """The highest threshold that finds a share of the anomalies.

    Args:
        clean, anomalies: the deciding term of those that were judged.

    Raises:
        Refusal: a recall out of range, or no anomaly.
    """
    if not 0.0 < recall <= 1.0:
        raise Refusal(f"The recall is {recall}; give a number above 0 and up to 1, such as 0.95.")
    if not len(anomalies):
        raise Refusal("A threshold for a recall takes anomalies, and the labels hold none that is judged.")
    k = math.ceil(recall * len(anomalies) - 1e-9)
    lowest = float(np.sort(anomalies)[len(anomalies) - k])
    every = np.concatenate([clean, anomalies])
    below = every[every < lowest]
    threshold = shortest(float(below.max()) if len(below) else math.nextafter(lowest, -math.inf), lowest)
    return _proposal("recall", recall, threshold, clean, anomalies)


def for_false_alarms(clean: Floats, anomalies: Floats, rate: float) -> Proposal:
    """The lowest threshold that a fresh clean sample exceeds with no more than a probability.

    Raises:
        Refusal: a rate out of range, or fewer clean samples than it takes.
    """
    if not 0.0 < rate < 1.0:
        raise Refusal(f"The false-alarm rate is {rate}; give a number between 0 and 1, such as 0.01.")
    n = len(clean)
    k = math.floor(rate * (n + 1) + 1e-9)
    if not k:
        raise Refusal(
            f"A threshold for a false-alarm rate of {rate:g} takes {math.ceil(1 / rate - 1e-9) - 1} clean samples; {n} "
            "were judged. Add clean samples or ask for a higher rate."
        )
    highest = float(np.sort(clean)[n - k])
    every = np.concatenate([clean, anomalies])
    above = every[every > highest]
    threshold = shortest(highest, float(above.min())) if len(above) else highest
    return _proposal("false_alarms", rate, threshold, clean, anomalies)


def shortest(low: float, high: float) -> float:
    """The number of fewest digits in [low, high), near the middle."""
    middle = low + (high - low) / 2
    for digits in range(2, 18):
        number = float(f"{middle:.{digits}g}")
        if low <= number < high:
            return number
    return low


def _proposal(
    goal: Literal["recall", "false_alarms"], rate: float, threshold: float, clean: Floats, anomalies: Floats
) -> Proposal:
    recall, false_alarms = (
        clopper_pearson(int((values > threshold).sum()), len(values)) if len(values) else None
        for values in (anomalies, clean)
    )
    return Proposal(goal, rate, threshold, recall, false_alarms)
