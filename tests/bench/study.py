"""The arithmetic of the calibration study: clean evidence held against the promises made from other clean evidence.

Thresholds and p-values come from `vaegis.models.calibration`, as a user gets them; here they are only asked often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from vaegis.models.calibration import Calibration, Reference, calibrate, decide, fit_tail
from vaegis.models.errors import Refusal
from vaegis.training.evaluate import interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Uniformity:
    """Of the p-values of clean test samples."""

    distance: float  # Kolmogorov-Smirnov, of their distribution from the uniform one
    p: float  # probability of such a difference between calibration and test if both are alike (two-sample KS)


@dataclass(frozen=True)
class Kept:
    """Realised false alarms over repeated draws of the calibration samples."""

    refused: bool  # the rate cannot be asked of so few samples
    extrapolated: bool
    mean: float
    low: float  # 5 % of draws lie below
    high: float  # 5 % of draws lie above
    expected: float | None  # mean of the beta-binomial law; None where extrapolated
    inside: float | None  # share of draws within its 99 % interval


def calibrated(values: Floats, groups: list[str] | None = None) -> Calibration:
    """A calibration from values of `score` alone."""
    return calibrate({"score": values}, groups, None, (0.0, 1.0))


def uniformity(calibration: Floats, clean: Floats) -> Uniformity:
    """How uniform the p-values of clean test samples are.

    The distance counts the luck of the calibration draw too; the two-sample test allows for both.
    """
    ordered = np.sort(calibration)
    p = np.sort(Reference(ordered, fit_tail(ordered)).p_value(clean))
    # p is uniform on 1/(n+1), 2/(n+1), ..., 1, so it is held against that, at its steps.
    n = len(calibration)
    steps = np.arange(1, n + 2) / (n + 1)
    share = np.searchsorted(p, steps + 1e-12, side="right") / len(p)
    return Uniformity(float(np.abs(share - steps).max()), float(ks_2samp(calibration, clean).pvalue))


def realised(calibration: Floats, clean: Floats, n: int, alpha: float, repeats: int, seed: int = 0) -> Kept:
    """False alarms on the clean test samples when only n calibration samples, drawn at random, are there."""
    rng = np.random.default_rng(seed)
    rates, inside = [], []
    extrapolated, law = False, None
    ordered = np.sort(clean)
    for i in range(repeats):
        drawn = calibrated(rng.choice(calibration, n, replace=False))
        try:
            decision = decide(drawn, alpha)
        except Refusal:
            return Kept(True, False, float("nan"), float("nan"), float("nan"), None, None)
        rates.append(_above(ordered, decision.threshold))
        if i == 0:
            extrapolated, law = decision.extrapolated, interval(decision, n, len(clean))
        if law is not None:
            inside.append(law[0] <= rates[-1] <= law[1])
    expected = int(alpha * (n + 1) + 1e-9) / (n + 1) if law is not None else None
    low, high = np.quantile(rates, [0.05, 0.95])
    share = float(np.mean(inside)) if inside else None
    return Kept(False, extrapolated, float(np.mean(rates)), float(low), float(high), expected, share)


def tail(pool: Floats, n: int, alphas: Sequence[float], repeats: int, seed: int = 0) -> dict[float, list[float]]:
    """Claimed rate -> realised rates: n of the pool calibrate, the others are judged; refused rates are left out."""
    rng = np.random.default_rng(seed)
    found: dict[float, list[float]] = {alpha: [] for alpha in alphas}
    for _ in range(repeats):
        order = rng.permutation(len(pool))
        drawn, others = calibrated(pool[order[:n]]), np.sort(pool[order[n:]])
        for alpha in alphas:
            try:
                found[alpha].append(_above(others, decide(drawn, alpha).threshold))
            except Refusal:
                continue
    return {alpha: rates for alpha, rates in found.items() if rates}


def by_group(
    calibration: dict[str, Floats], score: Floats, group: Sequence[str], label: NDArray[np.int8], alpha: float
) -> list[dict[str, Any]]:
    """Per group, false alarms and detections by one threshold for all and by the group's own, with its interval."""
    names = sorted(calibration)
    groups = [name for name in names for _ in calibration[name]]
    made = calibrated(np.concatenate([calibration[name] for name in names]), groups)
    shared = decide(made, alpha).threshold
    found = []
    for name in names:
        here = np.array([g == name for g in group])
        clean, bad = score[here & (label == 0)], score[here & (label != 0)]
        own = decide(made, alpha, group=name)
        law = interval(own, len(calibration[name]), len(clean))
        found.append(
            {
                "group": name,
                "calibrated_on": len(calibration[name]),
                "clean": len(clean),
                "shared": float((clean > shared).mean()),
                "own": float((clean > own.threshold).mean()),
                "interval": law,
                "found_shared": float((bad > shared).mean()) if len(bad) else None,
                "found_own": float((bad > own.threshold).mean()) if len(bad) else None,
            }
        )
    return found


def _above(ordered: Floats, threshold: float) -> float:
    return 1.0 - float(np.searchsorted(ordered, threshold, side="right")) / len(ordered)
