"""The numbers of a report, plain and finite: what `report.json` holds and `report.html` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from vaegis.models import spec as specs
from vaegis.models.calibration import ALL, Calibration, decide, smallest_alpha
from vaegis.models.errors import Refusal
from vaegis.models.spec import ImageSpec
from vaegis.training.report.facts import Facts
from vaegis.training.report.measurements import Floats, Latents, Seen, Shown, active_units, kl_per_unit

FORMAT = 1
NATS = ("negative_elbo", "negative_iwae", "negative_log_likelihood")  # terms that are -log p(x) or bound it from above
USUAL_ALPHA = 0.05


def numbers(facts: Facts, seen: Seen) -> dict[str, Any]:
    """Everything but the warnings; see the package's docstring for the schema."""
    return {
        "format": FORMAT,
        "name": facts.name,
        "family": facts.family,
        "arguments": facts.arguments,
        "input": {**specs.to_json(facts.spec), "description": specs.describe(facts.spec)},
        "evidence": facts.meaning,
        "samples": _counts(facts),
        "decision": _decision(facts),
        "training": asdict(facts.training),
        "history": facts.history,
        "terms": {t: _term(facts, seen, t) for t in seen.splits["calibrate"].values},
        "tail": _tail(facts.calibration),
        "agreement": agreement(facts, seen),
        "latent": _latent(seen.latents),
        "reconstruction": None
        if seen.explained is None
        else {
            "explained": seen.explained.model,
            "linear": seen.explained.linear,
            "samples": seen.explained.samples,
            "exact": seen.exact,
        },
        "likelihood": likelihood(facts, seen),
        "strangest": [_sample(facts, s) for s in seen.strangest],
        "typical": [_sample(facts, s) for s in seen.typical],
        "notes": list(facts.notes),
    }


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
        case Mapping():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
    return str(value)


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


def agreement(facts: Facts, seen: Seen) -> dict[str, Any]:
    """Kolmogorov and Smirnov's two-sample test of validate against calibrate scores.

    Overlapping windows are no independent samples: both counts are cut by the share that is independent.
    """
    a, b = (np.sort(seen.splits[s].values["score"]) for s in ("validate", "calibrate"))
    every = np.concatenate([a, b])
    gap = np.searchsorted(a, every, side="right") / max(len(a), 1) - np.searchsorted(b, every, side="right") / max(
        len(b), 1
    )
    distance = float(np.abs(gap).max()) if len(every) else 0.0
    share = min(1.0, facts.split.effective / max(len(facts.split.calibrate), 1))
    m, n = max(len(a) * share, 1.0), max(len(b) * share, 1.0)
    root = math.sqrt(m * n / (m + n))
    return {
        "distance": distance,
        "p_value": float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance)),
        "validate": len(a),
        "calibrate": len(b),
    }


def likelihood(facts: Facts, seen: Seen) -> dict[str, Any] | None:
    """ELBO and bits per dimension of the clean splits, or None for a family without nats."""
    calibrate = seen.splits["calibrate"].values
    term = next((t for t in NATS if t in calibrate), None)
    if term is None:
        return None
    dimensions = int(np.prod(facts.spec.shape))
    image = isinstance(facts.spec, ImageSpec)
    found: dict[str, Any] = {
        "term": term,
        "dimensions": dimensions,
        "per": "strangest tile" if isinstance(facts.spec, ImageSpec) and facts.spec.tile else "sample",
        "log_jacobian": facts.log_jacobian,
        "kind": "discrete" if image else "differential",
    }
    for name, scored in seen.splits.items():
        nats = float(scored.values[term].mean()) if len(scored.values[term]) else math.nan
        found[name] = {
            "elbo": -nats,
            "nats_per_dimension": nats / dimensions,
            "bits_per_dimension": bits_per_dimension(nats, facts.log_jacobian, dimensions),
        }
    return found


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


def _counts(facts: Facts) -> dict[str, Any]:
    return {
        "read": len(facts.samples),
        "skipped": len(facts.samples.skipped),
        **facts.split.counts(),
        "independent": facts.split.effective,
    }


def _decision(facts: Facts) -> dict[str, Any]:
    group, decision = facts.calibration.groups[ALL], facts.decision
    alpha = decision.alpha
    return {
        "decide_by": decision.decide_by,
        "alpha": alpha,
        "threshold": decision.threshold,
        "extrapolated": decision.extrapolated,
        "interval": None if alpha is None else list(false_alarm_interval(facts.calibration, alpha)),
        "lowest_alpha": smallest_alpha(group, decision.decide_by),
        "lowest_measured_alpha": 1.0 / (group.effective + 1),
        "threshold_5_percent": threshold_at(facts.calibration, USUAL_ALPHA, decision.decide_by),
        "groups": {name: len(g.terms["score"].values) for name, g in facts.calibration.groups.items() if name != ALL},
    }


def _term(facts: Facts, seen: Seen, term: str) -> dict[str, Any]:
    alpha = facts.decision.alpha
    found: dict[str, Any] = {"threshold": None if alpha is None else threshold_at(facts.calibration, alpha, term)}
    for name, scored in seen.splits.items():
        values = scored.values[term]
        found[name] = _summary(values)
    return found


def _summary(values: Floats) -> dict[str, Any]:
    if not len(values):
        return {"samples": 0}
    low, middle, high = (float(q) for q in np.quantile(values, [0.05, 0.5, 0.95]))
    return {
        "samples": len(values),
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "minimum": float(values.min()),
        "q05": low,
        "median": middle,
        "q95": high,
        "maximum": float(values.max()),
    }


def _tail(calibration: Calibration) -> dict[str, float] | None:
    tail = calibration.groups[ALL].terms["score"].tail
    if tail is None:
        return None
    return {"start": tail.start, "shape": tail.shape, "scale": tail.scale, "share": tail.share}


def _latent(latents: Latents | None) -> dict[str, Any] | None:
    if latents is None:
        return None
    active, nats = active_units(latents.mean), kl_per_unit(latents)
    variance = latents.mean.var(axis=0)
    return {
        "size": latents.mean.shape[1],
        "active": int(active.sum()),
        "collapsed": not active.any(),
        "samples": len(latents.mean),
        "kl": float(nats.sum()),
        "explained": explained(latents.mean).tolist(),
        "units": [
            {"unit": i, "kl": float(nats[i]), "variance": float(variance[i]), "active": bool(active[i])}
            for i in range(len(nats))
        ],
    }


def explained(mean: Floats) -> NDArray[np.float64]:
    """(2,): share of the latents' variance on each of the first two principal axes."""
    squares = np.linalg.svd(mean - mean.mean(axis=0), compute_uv=False) ** 2
    shares = squares / max(float(squares.sum()), 1e-30)
    return np.asarray(np.pad(shares, (0, 2))[:2])


def _sample(facts: Facts, shown: Shown) -> dict[str, Any]:
    row = facts.samples.row
    return {
        "item": facts.samples.items[shown.sample],
        "index": shown.sample,
        "row": int(row[shown.sample]) if row is not None else None,
        "score": shown.score,
        "p_value": shown.p_value,
        "worst_term": shown.worst_term,
        "worst_side": shown.worst_side,
    }
