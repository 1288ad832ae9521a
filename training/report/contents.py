"""What a report says, as values: `report.json` renders them field by field, and `report.html` is drawn from them.

The fields are described in the docstring of `vaegis.training.report`. None where there is no such thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np

from vaegis.models.manifest import Training
from vaegis.training.generation import Generation

FORMAT = 1


@dataclass(frozen=True)
class Counts:
    """Samples that were read, and where they went."""

    read: int
    skipped: int
    fit: int
    validate: int
    calibrate: int
    independent: int  # of calibrate, without overlap


@dataclass(frozen=True)
class DecisionFacts:
    """What the model calls anomalous unless something else is asked for."""

    decide_by: str
    alpha: float | None
    threshold: float
    extrapolated: bool
    interval: tuple[float, float] | None  # of the long-run rate, 99 %
    lowest_alpha: float
    lowest_measured_alpha: float
    threshold_5_percent: float | None
    groups: Mapping[str, int]  # calibration group -> samples


@dataclass(frozen=True)
class Summary:
    """Some values of one term. Empty sets have no statistics."""

    samples: int
    mean: float | None = None
    sd: float | None = None
    minimum: float | None = None
    q05: float | None = None
    median: float | None = None
    q95: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class TermFacts:
    """One evidence term over the clean splits."""

    threshold: float | None  # at the model's own rate, were it to decide by this term
    fit: Summary
    validate: Summary
    calibrate: Summary


@dataclass(frozen=True)
class TailFacts:
    """The generalised Pareto tail of clean scores."""

    start: float
    shape: float
    scale: float
    share: float


@dataclass(frozen=True)
class GateAgreement:
    """Kolmogorov and Smirnov's test of validate against calibrate scores."""

    distance: float
    p_value: float
    validate: int
    calibrate: int


@dataclass(frozen=True)
class Unit:
    """One latent unit."""

    unit: int
    kl: float
    variance: float
    active: bool


@dataclass(frozen=True)
class Latent:
    """What the encoder's latent holds of clean samples."""

    size: int
    active: int
    collapsed: bool
    samples: int
    kl: float  # nats
    explained: tuple[float, float]  # variance shares of the first two principal axes
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Reconstruction:
    """What reconstructions repeat of unseen clean samples."""

    explained: float  # share of what makes clean samples differ
    linear: float  # share that five principal components repeat
    samples: int
    exact: bool  # the latent holds all of any sample, clean or not, so that all of it comes back


@dataclass(frozen=True)
class SplitLikelihood:
    """Means over the samples of one split."""

    elbo: float
    nats_per_dimension: float
    bits_per_dimension: float | None


@dataclass(frozen=True)
class LikelihoodFigures:
    """Likelihoods, or bounds of them, of the clean splits."""

    term: str
    dimensions: int
    per: str
    log_jacobian: float | None
    kind: Literal["discrete", "differential"]
    fit: SplitLikelihood
    validate: SplitLikelihood
    calibrate: SplitLikelihood


@dataclass(frozen=True)
class CleanSample:
    """One clean sample to look at."""

    item: str
    index: int  # among the samples read, from 0
    row: int | None  # a window's first
    score: float
    p_value: float
    worst_term: str
    worst_side: Literal["high", "low"]


@dataclass(frozen=True)
class TrialFacts:
    """One kind of synthetic defect."""

    defect: str
    says: str  # what was done to a clean sample
    samples: int
    found: float  # share flagged at the model's own rate
    auroc: float


@dataclass(frozen=True)
class Caution:
    """One thing to know."""

    code: str  # stable, for programs
    level: Literal["alarm", "warning", "note"]  # do not use; look first; good to know
    text: str


@dataclass(frozen=True)
class Report:
    """All that `report.json` says, in its order."""

    name: str
    family: str
    arguments: Mapping[str, Any]
    input: Mapping[str, Any]  # the spec as JSON, and `description`
    evidence: Mapping[str, str]
    samples: Counts
    decision: DecisionFacts
    training: Training
    history: tuple[Mapping[str, float], ...]
    terms: Mapping[str, TermFacts]
    tail: TailFacts | None
    agreement: GateAgreement
    latent: Latent | None
    reconstruction: Reconstruction | None
    likelihood: LikelihoodFigures | None
    strangest: tuple[CleanSample, ...]
    typical: tuple[CleanSample, ...]
    notes: tuple[str, ...]
    trials: tuple[TrialFacts, ...] | None
    generation: Generation | None
    warnings: tuple[Caution, ...] = ()


def to_json(report: Report) -> dict[str, Any]:
    """The report as `report.json` has it."""
    return {"format": FORMAT, **plain(report)}


def plain(value: Any) -> Any:
    """The value as JSON has it: text, whole and finite numbers, lists, objects; what is not finite as null."""
    match value:
        case None | bool() | str():
            return value
        case np.bool_():
            return bool(value)
        case int() | np.integer():
            return int(value)
        case float() | np.floating():
            return float(value) if math.isfinite(value) else None
        case np.ndarray():
            return plain(value.tolist())
        case Summary(samples=0):
            return {"samples": 0}
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return str(value)
