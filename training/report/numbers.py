"""The numbers of a report: what is computed from the facts of a fit and the measurements of its graphs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from vaegis.models import spec as specs
from vaegis.models.calibration import ALL, Calibration, decide, smallest_alpha
from vaegis.models.errors import Refusal
from vaegis.models.spec import ImageSpec
from vaegis.training.report.contents import (
    CleanSample,
    Counts,
    DecisionFacts,
    GateAgreement,
    Latent,
    LikelihoodFigures,
    Reconstruction,
    Report,
    SplitLikelihood,
    Summary,
    TailFacts,
    TermFacts,
    TrialFacts,
    Unit,
)
from vaegis.training.report.facts import Facts
from vaegis.training.report.measurements import Floats, Latents, Measurements, Shown, active_units, kl_per_unit
from vaegis.training.report.trials import Trial

NATS = ("negative_elbo", "negative_iwae", "negative_log_likelihood")  # terms that are -log p(x) or bound it from above
USUAL_ALPHA = 0.05


def numbers(facts: Facts, measurements: Measurements, tried: Sequence[Trial]) -> Report:
    """Everything but the warnings."""
    return Report(
        name=facts.name,
        family=facts.family,
        arguments=facts.arguments,
        input={**specs.to_json(facts.spec), "description": specs.describe(facts.spec)},
        evidence=facts.meaning,
        samples=_counts(facts),
        decision=_decision(facts),
        training=facts.training,
        history=tuple(facts.history),
        terms={t: _term(facts, measurements, t) for t in measurements.splits["calibrate"].values},
        tail=_tail(facts.calibration),
        agreement=agreement(facts, measurements),
        latent=_latent(measurements.latents),
        reconstruction=_reconstruction(measurements),
        likelihood=likelihood(facts, measurements),
        strangest=tuple(_sample(facts, s) for s in measurements.strangest),
        typical=tuple(_sample(facts, s) for s in measurements.typical),
        notes=facts.notes,
        trials=tuple(TrialFacts(t.name, t.says, t.samples, t.detection_rate, t.auroc) for t in tried) or None,
        generation=facts.generation,
    )


def false_alarm_interval(calibration: Calibration, alpha: float) -> tuple[float, float]:
    """The central 99 % interval of the long-run false-alarm rate at a threshold asked for as alpha.

    The threshold is the k-th largest of n clean scores, k = alpha (n + 1); the share of clean product beyond it is
    then distributed as Beta(k, n + 1 - k), whatever the model. For a series n counts windows that do not overlap.
    """
    n = calibration.groups[ALL].effective
    k = min(max(alpha * (n + 1), 1e-9), n + 1 - 1e-9)
    low, high = (float(special.betaincinv(k, n + 1 - k, q)) for q in (0.005, 0.995))
    return low, high


def threshold_at(calibration: Calibration, alpha: float, term: str = "score") -> float | None:
    """The threshold for a rate, or None where it would be refused."""
    try:
        return decide(calibration, alpha, decide_by=term).threshold
    except Refusal:
        return None


def agreement(facts: Facts, measurements: Measurements) -> GateAgreement:
    """Kolmogorov and Smirnov's two-sample test of validate against calibrate scores.

    Overlapping windows are no independent samples: both counts are cut by the share that is independent.
    """
    a, b = (np.sort(measurements.splits[s].values["score"]) for s in ("validate", "calibrate"))
    every = np.concatenate([a, b])
    gap = np.searchsorted(a, every, side="right") / max(len(a), 1) - np.searchsorted(b, every, side="right") / max(
        len(b), 1
    )
    distance = float(np.abs(gap).max()) if len(every) else 0.0
    share = min(1.0, facts.split.effective / max(len(facts.split.calibrate), 1))
    m, n = max(len(a) * share, 1.0), max(len(b) * share, 1.0)
    root = math.sqrt(m * n / (m + n))
    return GateAgreement(
        distance=distance,
        p_value=float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance)),
        validate=len(a),
        calibrate=len(b),
    )


def likelihood(facts: Facts, measurements: Measurements) -> LikelihoodFigures | None:
    """ELBO and bits per dimension of the clean splits, or None for a family without nats."""
    terms = measurements.splits["calibrate"].values
    term = next((t for t in NATS if t in terms), None)
    if term is None:
        return None
    spec = facts.spec
    dimensions = int(np.prod(spec.shape))
    fit, validate, calibrate = (
        _split_likelihood(measurements.splits[side].values[term], facts.log_jacobian, dimensions)
        for side in ("fit", "validate", "calibrate")
    )
    return LikelihoodFigures(
        term=term,
        dimensions=dimensions,
        per="strangest tile" if isinstance(spec, ImageSpec) and spec.tile else "sample",
        log_jacobian=facts.log_jacobian,
        kind="discrete" if isinstance(spec, ImageSpec) else "differential",
        fit=fit,
        validate=validate,
        calibrate=calibrate,
    )


def _split_likelihood(values: Floats, log_jacobian: float | None, dimensions: int) -> SplitLikelihood:
    nats = float(values.mean()) if len(values) else math.nan
    return SplitLikelihood(
        elbo=-nats,
        nats_per_dimension=nats / dimensions,
        bits_per_dimension=bits_per_dimension(nats, log_jacobian, dimensions),
    )


def bits_per_dimension(nats: float, log_jacobian: float | None, dimensions: int) -> float | None:
    """(nats + log-Jacobian) / (D ln 2): the raw value's density is that of y over the scale it was divided by, and a
    whole number x has the mass of [x - 1/2, x + 1/2), a bin of width 1."""
    return None if log_jacobian is None else (nats + log_jacobian) / (dimensions * math.log(2))


def settled(facts: Facts) -> float:
    """Share of the whole fall of the validation loss that fell in the last quarter of the epochs; 0 if it rose."""
    losses = [h["validate"] for h in facts.history if "validate" in h]
    if len(losses) < 8:
        return 0.0
    early = min(losses[: len(losses) * 3 // 4])
    best = min(losses)
    return (early - best) / max(losses[0] - best, 1e-12)


def _counts(facts: Facts) -> Counts:
    split = facts.split
    return Counts(
        read=len(facts.samples),
        skipped=len(facts.samples.skipped),
        fit=len(split.fit),
        validate=len(split.validate),
        calibrate=len(split.calibrate),
        independent=split.effective,
    )


def _decision(facts: Facts) -> DecisionFacts:
    group, decision = facts.calibration.groups[ALL], facts.decision
    alpha = decision.alpha
    return DecisionFacts(
        decide_by=decision.decide_by,
        alpha=alpha,
        threshold=decision.threshold,
        extrapolated=decision.extrapolated,
        interval=None if alpha is None else false_alarm_interval(facts.calibration, alpha),
        lowest_alpha=smallest_alpha(group, decision.decide_by),
        lowest_measured_alpha=1.0 / (group.effective + 1),
        threshold_5_percent=threshold_at(facts.calibration, USUAL_ALPHA, decision.decide_by),
        groups={name: len(g.terms["score"].values) for name, g in facts.calibration.groups.items() if name != ALL},
    )


def _term(facts: Facts, measurements: Measurements, term: str) -> TermFacts:
    alpha = facts.decision.alpha
    fit, validate, calibrate = (
        _summary(measurements.splits[side].values[term]) for side in ("fit", "validate", "calibrate")
    )
    return TermFacts(
        threshold=None if alpha is None else threshold_at(facts.calibration, alpha, term),
        fit=fit,
        validate=validate,
        calibrate=calibrate,
    )


def _summary(values: Floats) -> Summary:
    if not len(values):
        return Summary(0)
    low, middle, high = (float(q) for q in np.quantile(values, [0.05, 0.5, 0.95]))
    return Summary(
        samples=len(values),
        mean=float(values.mean()),
        sd=float(values.std()),
        minimum=float(values.min()),
        q05=low,
        median=middle,
        q95=high,
        maximum=float(values.max()),
    )


def _tail(calibration: Calibration) -> TailFacts | None:
    tail = calibration.groups[ALL].terms["score"].tail
    return None if tail is None else TailFacts(tail.start, tail.shape, tail.scale, tail.share)


def _reconstruction(measurements: Measurements) -> Reconstruction | None:
    share = measurements.explained
    return None if share is None else Reconstruction(share.model, share.linear, share.samples, measurements.exact)


def _latent(latents: Latents | None) -> Latent | None:
    if latents is None:
        return None
    active, nats = active_units(latents.mean), kl_per_unit(latents)
    variance = latents.mean.var(axis=0)
    first, second = explained(latents.mean).tolist()
    return Latent(
        size=latents.mean.shape[1],
        active=int(active.sum()),
        collapsed=not active.any(),
        samples=len(latents.mean),
        kl=float(nats.sum()),
        explained=(first, second),
        units=tuple(Unit(i, float(nats[i]), float(variance[i]), bool(active[i])) for i in range(len(nats))),
    )


def explained(mean: Floats) -> NDArray[np.float64]:
    """(2,): share of the latents' variance on each of the first two principal axes."""
    squares = np.linalg.svd(mean - mean.mean(axis=0), compute_uv=False) ** 2
    shares = squares / max(float(squares.sum()), 1e-30)
    return np.asarray(np.pad(shares, (0, 2))[:2])


def _sample(facts: Facts, shown: Shown) -> CleanSample:
    row = facts.samples.row
    return CleanSample(
        item=facts.samples.items[shown.sample],
        index=shown.sample,
        row=int(row[shown.sample]) if row is not None else None,
        score=shown.score,
        p_value=shown.p_value,
        worst_term=shown.worst_term,
        worst_side=shown.worst_side,
    )
