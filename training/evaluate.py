"""How well a bundle's verdicts agree with labels, and whether its false-alarm promise held.

The false alarms of m exchangeable clean samples at rate alpha, judged by a threshold that is the k-th largest of n
calibration values, k = floor(alpha (n + 1)), follow a beta-binomial distribution BB(m, k, n + 1 - k): the interval
given takes the luck of the calibration draw into account, not only that of the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom
from sklearn.metrics import average_precision_score, roc_auc_score

from vaegis.models.calibration import Decision
from vaegis.models.errors import Refusal
from vaegis.models.scorer import Verdicts
from vaegis.models.sources import LabelTable
from vaegis.training.thresholds import (
    CONFIDENCE,
    Floats,
    clopper_pearson,
    for_false_alarms,
    for_recall,
)
from vaegis.training.thresholds import Proposal as Proposal


@dataclass(frozen=True)
class Evaluation:
    """Of one scored, labelled source. Rates and areas lie in [0, 1]."""

    clean: int
    anomalies: int
    unjudged: int  # left out of every figure
    auroc: dict[str, float]  # term -> area under the ROC curve, `score` first
    average_precision: float  # of the deciding term
    detection_rate: float  # anomalies flagged
    false_alarm_rate: float  # clean samples flagged
    expected: tuple[float, float] | None  # false-alarm rates that luck explains (99 %), where the rate was asked for
    f1: float
    by_class: dict[str, tuple[int, float, float]]  # anomaly class -> count, AUROC against all clean, share flagged


@dataclass(frozen=True)
class CleanEvaluation:
    """Of one scored source that is all clean: whether the false-alarm promise holds. Rates lie in [0, 1]."""

    clean: int
    unjudged: int  # left out of every figure
    false_alarms: int
    false_alarm_rate: float
    interval: tuple[float, float]  # 99 % Clopper-Pearson interval of the rate
    expected: tuple[float, float] | None  # rates that luck explains (99 %, beta-binomial), where one was asked for


@dataclass(frozen=True, eq=False)
class LabelledEvidence:
    """Of the samples of one source, in order."""

    evidence: Mapping[str, Floats]  # term -> (n,), NaN where unjudged
    flagged: NDArray[np.bool_]  # (n,)
    label: NDArray[np.int64]  # (n,) 0 = clean, anything else = anomaly
    classes: tuple[str | None, ...]  # (n,) what kind of anomaly, where known

    @property
    def all_clean(self) -> bool:
        return not self.label.any()

    def judged(self, term: str) -> tuple[Floats, Floats]:
        """A term of the clean samples and of the anomalies that were judged."""
        values = self.evidence[term]
        judged = np.isfinite(values)
        return values[judged & (self.label == 0)], values[judged & (self.label != 0)]


def evaluate(
    evidence: Mapping[str, Floats],
    flagged: NDArray[np.bool_],
    label: NDArray[np.int64],
    classes: Sequence[str | None] | None,
    decision: Decision,
    calibration_samples: int,
) -> Evaluation:
    """Compares verdicts with labels.

    Args:
        evidence: term -> (n,), NaN where unjudged; `score` among them.
        flagged: (n,) the verdicts.
        label: (n,) 0 = clean, anything else = anomaly.
        classes: (n,) what kind of anomaly, where known.
        calibration_samples: independent samples the threshold was calibrated on.

    Raises:
        Refusal: no judged clean sample, or no judged anomaly.
    """
    judged, anomaly = np.isfinite(evidence["score"]), label != 0
    clean, bad = judged & ~anomaly, judged & anomaly
    for chosen, what in ((clean, "clean sample (label 0)"), (bad, "anomaly (label 1)")):
        if not chosen.any():
            raise Refusal(f"The labels hold no judged {what}; evaluation needs both kinds. Check --labels.")
    auroc = {t: float(roc_auc_score(anomaly[judged], v[judged])) for t, v in evidence.items()}
    deciding = evidence[decision.decide_by]
    true, false = int((flagged & bad).sum()), int((flagged & clean).sum())
    by_class: dict[str, tuple[int, float, float]] = {}
    for name in sorted({c for c, b in zip(classes or [], bad, strict=False) if b and c}):
        chosen = bad & np.array([c == name for c in classes or []])
        both = clean | chosen
        area = float(roc_auc_score(anomaly[both], deciding[both]))
        by_class[name] = (int(chosen.sum()), area, float(flagged[chosen].mean()))
    return Evaluation(
        clean=int(clean.sum()),
        anomalies=int(bad.sum()),
        unjudged=int((~judged).sum()),
        auroc=auroc,
        average_precision=float(average_precision_score(anomaly[judged], deciding[judged])),
        detection_rate=true / int(bad.sum()),
        false_alarm_rate=false / int(clean.sum()),
        expected=interval(decision, calibration_samples, int(clean.sum())),
        f1=2 * true / max(1, true + false + int(bad.sum())),
        by_class=by_class,
    )


def evaluate_clean(
    evidence: Mapping[str, Floats], flagged: NDArray[np.bool_], decision: Decision, calibration_samples: int
) -> CleanEvaluation:
    """Counts the false alarms among samples that are all clean.

    Raises:
        Refusal: none of them could be judged.
    """
    judged = np.isfinite(evidence["score"])
    n, false = int(judged.sum()), int((flagged & judged).sum())
    if not n:
        raise Refusal("None of the clean samples could be judged; name a source that the model reads.")
    share = clopper_pearson(false, n)
    return CleanEvaluation(
        n, int((~judged).sum()), false, share.value, (share.low, share.high), interval(decision, calibration_samples, n)
    )


def evaluate_verdicts(
    verdicts: Iterable[Verdicts],
    table: LabelTable,
    decision: Decision,
    calibration_samples: int,
    labels: str,
    title: str = "",
) -> Evaluation:
    """Compares the verdicts of a source, block by block, with its labels.

    Args:
        calibration_samples: independent samples the threshold was calibrated on.
        labels: where the labels are, for messages.
        title: what the source is called in messages, beside its samples.

    Raises:
        Refusal: a sample without a label, no sample at all, or labels of one sort only.
    """
    gathered = gather(verdicts, table, labels, title)
    return evaluate(
        gathered.evidence, gathered.flagged, gathered.label, gathered.classes, decision, calibration_samples
    )


def gather(
    verdicts: Iterable[Verdicts], table: LabelTable | None, labels: str = "", title: str = ""
) -> LabelledEvidence:
    """The verdicts of a source, block by block, with its labels; without a table every sample is clean.

    Raises:
        Refusal: a sample without a label, or no sample at all.
    """
    evidence: dict[str, list[Floats]] = {}
    flagged, label, classes = [], [], []
    for block in verdicts:
        items, index = block.block.items, block.block.index
        kinds: list[str | None]
        if table is None:
            numbers, kinds = np.zeros(len(index), np.int8), [None] * len(index)
        else:
            numbers, kinds = table.find(items, index)
        if (numbers < 0).any():
            i, of = int((numbers < 0).argmax()), f" of {title}" if title else ""
            raise Refusal(f"{items[i]} [{index[i]}]{of} has no label in {labels}; label every sample.")
        label.append(numbers)
        classes += kinds
        flagged.append(block.anomalous)
        for term, values in block.evidence.items():
            evidence.setdefault(term, []).append(values)
    if not label:
        raise Refusal("The source holds no samples to evaluate; name one that does.")
    return LabelledEvidence(
        {t: np.concatenate(v) for t, v in evidence.items()},
        np.concatenate(flagged),
        np.concatenate(label).astype(np.int64),
        tuple(classes),
    )


def propose(
    labelled: LabelledEvidence, decide_by: str, recall: float | None, false_alarms: float | None
) -> tuple[Proposal, ...]:
    """Thresholds for what is wanted of these samples.

    Raises:
        Refusal: see `for_recall` and `for_false_alarms`.
    """
    clean, anomalies = labelled.judged(decide_by)
    proposals = [] if recall is None else [for_recall(clean, anomalies, recall)]
    if false_alarms is not None:
        proposals.append(for_false_alarms(clean, anomalies, false_alarms))
    return tuple(proposals)


def interval(decision: Decision, n: int, m: int) -> tuple[float, float] | None:
    """The 99 % beta-binomial interval of the false-alarm rate among m exchangeable clean samples, n calibrated on.

    None where no rate was asked for, or where the tail was extrapolated and no such law holds.
    """
    if decision.alpha is None or decision.extrapolated:
        return None
    k = min(n, math.floor(decision.alpha * (n + 1) + 1e-9))
    law = betabinom(m, k, n + 1 - k)
    outside = (1 - CONFIDENCE) / 2
    return float(law.ppf(outside)) / m, float(law.ppf(1 - outside)) / m
