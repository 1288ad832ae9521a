"""The arithmetic of the benchmark: areas, pooled rates, detection at a threshold, false alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.bench.sets import TEP_FAULTS, TEP_ONSET, TEP_ROWS

from vaegis.models.calibration import Calibration, decide, smallest_alpha
from vaegis.models.errors import Refusal
from vaegis.training.evaluate import interval

RATES = (0.01, 0.05)  # false-alarm rates whose promise is checked
SKAB_RATES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ORACLE_RATES = (0.01, 0.023)

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """Verdicts against labels; counts of several files are added before any rate is taken."""

    hit: int = 0  # anomalous, flagged
    missed: int = 0  # anomalous, passed
    false: int = 0  # clean, flagged
    quiet: int = 0  # clean, passed

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hit + other.hit, self.missed + other.missed, self.false + other.false, self.quiet + other.quiet
        )

    @property
    def f1(self) -> float:
        return 2 * self.hit / max(1, 2 * self.hit + self.missed + self.false)

    @property
    def far(self) -> float:
        """Of the clean samples, the share flagged."""
        return self.false / max(1, self.false + self.quiet)

    @property
    def mar(self) -> float:
        """Of the anomalous samples, the share missed."""
        return self.missed / max(1, self.hit + self.missed)


def counts(flagged: Flags, label: NDArray[np.int8]) -> Counts:
    """Of one file, (n,) verdicts against (n,) labels."""
    bad = label != 0
    return Counts(
        int((flagged & bad).sum()),
        int((~flagged & bad).sum()),
        int((flagged & ~bad).sum()),
        int((~flagged & ~bad).sum()),
    )


def pooled(many: Iterable[Mapping[str, int]]) -> Counts:
    """Of counts as result rows hold them."""
    return sum((Counts(c["hit"], c["missed"], c["false"], c["quiet"]) for c in many), Counts())


def areas(evidence: Mapping[str, Floats], label: NDArray[np.int8]) -> tuple[dict[str, float], dict[str, float]]:
    """AUROC and average precision of every term over the judged samples; empty where only one kind is there."""
    judged = np.isfinite(evidence["score"])
    truth = label[judged]
    if len(truth) == 0 or truth.min() == truth.max():
        return {}, {}
    return (
        {t: round(float(roc_auc_score(truth, v[judged])), 5) for t, v in evidence.items()},
        {t: round(float(average_precision_score(truth, v[judged])), 5) for t, v in evidence.items()},
    )


def false_alarms(
    calibration: Calibration, score: Floats, label: NDArray[np.int8], independent: bool
) -> dict[str, dict[str, Any]]:
    """Asked rate -> realised rate on the clean test samples, with the interval that luck explains (99 %).

    A rate the calibration samples cannot support is left out; where samples are not independent (windows of a series
    that overlap), or the threshold is extrapolated, there is no interval.
    """
    clean = score[np.isfinite(score) & (label == 0)]
    n = calibration.group(None).effective
    found: dict[str, dict[str, Any]] = {}
    for alpha in RATES:
        try:
            decision = decide(calibration, alpha)
        except Refusal:
            continue
        realised = float((clean > decision.threshold).mean())
        law = interval(decision, n, len(clean)) if independent else None
        found[f"{alpha:g}"] = {
            "realised": round(realised, 5),
            "interval": [round(law[0], 5), round(law[1], 5)] if law else None,
            "inside": law[0] <= realised <= law[1] if law else None,
            "extrapolated": decision.extrapolated,
            "clean": len(clean),
            "calibrated_on": n,
        }
    return found


def by_rate(calibration: Calibration, score: Floats, label: NDArray[np.int8]) -> dict[str, dict[str, Any]]:
    """Asked rate -> counts, by the thresholds that a user gets.

    Where the calibration samples cannot support a rate, the lowest they do is used, as `fit` chooses it.
    """
    lowest = smallest_alpha(calibration.group(None))
    judged = np.isfinite(score)
    found = {}
    for asked in SKAB_RATES:
        alpha = asked if asked >= lowest else min(0.5, float(np.ceil(lowest * 1000) / 1000))
        threshold = decide(calibration, alpha).threshold
        found[f"{asked:g}"] = {"used": alpha, **asdict(counts(score[judged] > threshold, label[judged]))}
    return found


def oracle(clean: Floats, rate: float) -> float:
    """The lowest threshold which at most a share `rate` of these clean values exceeds."""
    ordered = np.sort(clean)
    return float(ordered[len(ordered) - 1 - int(rate * len(ordered) + 1e-9)])


def faults(calibration: Calibration, score: Floats) -> dict[str, Any]:
    """Tennessee Eastman: per fault the detection rate over the rows after its onset.

    `oracle_r`: at the threshold that gives the rate r on d00_te, as published tables have it. `honest`: at the
    threshold the calibration gives for 1 %, beside the false alarms that makes on d00_te.
    """
    rows = score.reshape(1 + len(TEP_FAULTS), TEP_ROWS)
    thresholds = {f"oracle_{rate:g}": oracle(rows[0], rate) for rate in ORACLE_RATES}
    thresholds["honest"] = decide(calibration, 0.01).threshold
    detected = {
        str(fault): {name: round(float((late > t).mean()), 5) for name, t in thresholds.items()}
        for fault, late in zip(TEP_FAULTS, rows[1:, TEP_ONSET:], strict=True)
    }
    return {
        "detected": detected,
        "false_alarms": {name: round(float((rows[0] > t).mean()), 5) for name, t in thresholds.items()},
    }
