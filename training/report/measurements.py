"""What the exported graphs say of the clean samples: evidence per split, latents, and the few samples to look at.

Everything here runs the graphs that are shipped, never the torch family, and no more of them than a person would wait
for: the limits below bound both the samples and the values that pass through a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import conditions_of, parts_of
from vaegis.models.bundle import DECODER, ENCODER, SCORE
from vaegis.models.calibration import ALL
from vaegis.models.derived.calibrating import evidence_of
from vaegis.models.latent import Coder
from vaegis.models.runtime.graph import Graph
from vaegis.models.spec import SeriesSpec
from vaegis.training.generation import unwritten
from vaegis.training.report.facts import Facts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CALIBRATE_MOST, OTHERS_MOST = 4000, 1000  # samples scored per split
LATENTS_MOST = {"fit": 800, "validate": 400, "calibrate": 800}  # parts encoded per split
VALUES_MOST, VALUES_OTHERS = 2**24, 2**22  # values through a graph: of calibrate, and of each other split and use
STRANGEST, TYPICAL = 6, 8
EXPLAINED_MOST, COMPONENTS = 128, 5
STEP = 512  # parts in memory at once
EXACT = 0.999  # share repeated, from which a latent that is as large as a sample is said to give all of it back


@dataclass(frozen=True)
class Scored:
    """Evidence of some samples of one split."""

    chosen: Ints  # (n,) sample numbers
    values: dict[str, Floats]  # term -> (n,)
    of: int  # samples that the split holds


@dataclass(frozen=True)
class Latents:
    """Posteriors of clean parts."""

    mean: Floats  # (m, L)
    log_variance: Floats  # (m, L)
    score: Floats  # (m,)
    split: NDArray[np.int8]  # (m,) 0 fit, 1 validate, 2 calibrate
    sample: Ints  # (m,)


@dataclass(frozen=True)
class Shown:
    """One clean sample to look at; of a tiled image its strangest tile."""

    sample: int  # number among the samples read
    score: float
    p_value: float  # against the other calibration samples
    worst_term: str  # the evidence that is least usual
    worst_side: Literal["high", "low"]  # than is usual
    raw: NDArray[Any]
    rebuilt: NDArray[np.float32] | None  # through encoder and decoder, from the posterior mean
    map: NDArray[np.float32]


@dataclass(frozen=True)
class Explained:
    """How much of what makes clean samples differ the reconstructions repeat."""

    model: float  # share of each channel's or column's variance about the mean sample, at least 0, mean over them
    linear: float  # share that the first five principal components of these samples have beyond chance
    samples: int


@dataclass(frozen=True)
class Measurements:
    """All that the graphs say."""

    splits: dict[str, Scored]  # fit, validate, calibrate
    latents: Latents | None  # None where the family has no encoder
    explained: Explained | None  # None without a decoder
    exact: bool  # the latent holds all of a sample, clean or not, and the decoder gives it back
    strangest: tuple[Shown, ...]  # strangest first
    typical: tuple[Shown, ...]  # by rising score
    walk: NDArray[np.float32] | None  # (2, steps, *shape): along each of the two most active units
    walked: tuple[int, ...]  # their numbers
    generated: NDArray[np.float32] | None  # (n, *shape), decoded from the prior


def measure(facts: Facts) -> Measurements:
    """Runs the graphs."""
    graph = Graph(facts.graphs[SCORE], facts.spec, "cpu")
    sides = {"fit": facts.split.fit, "validate": facts.split.validate, "calibrate": facts.split.calibrate}
    splits = {}
    for name, side in sides.items():
        if name == "calibrate" and facts.evidence is not None:
            splits[name] = Scored(side, dict(facts.evidence), len(side))
        else:
            most, values = (CALIBRATE_MOST, VALUES_MOST) if name == "calibrate" else (OTHERS_MOST, VALUES_OTHERS)
            splits[name] = _scored(facts, graph, side, most, values)
    coder = _coder(facts)
    latents = _latents(facts, graph, coder, splits) if coder is not None else None
    strangest, typical = _to_show(facts, splits["calibrate"])
    walk, walked, generated = _decoded(coder, latents, len(facts.spec.conditions))
    explained = _explained(facts, coder) if coder is not None else None
    whole = latents is not None and latents.mean.shape[1] >= math.prod(facts.spec.shape)
    exact = whole and explained is not None and explained.model > EXACT
    rebuilding = None if exact else coder
    return Measurements(
        splits=splits,
        latents=latents,
        explained=explained,
        exact=exact,
        strangest=_shown(facts, graph, rebuilding, splits["calibrate"], strangest),
        typical=_shown(facts, graph, rebuilding, splits["calibrate"], typical),
        walk=walk,
        walked=walked,
        generated=generated,
    )


def _coder(facts: Facts) -> Coder | None:
    """The graphs that encode and decode, of a family that has an encoder."""
    if ENCODER not in facts.graphs:
        return None
    return Coder(unwritten(facts.family, facts.arguments, facts.spec, facts.graphs), "cpu")


def rebuild(coder: Coder, parts: NDArray[Any], conditions: Ints | None) -> NDArray[np.float32] | None:
    """Reconstructions of (m, *shape) parts from their posterior means, in raw units; None without a decoder."""
    return coder.decode(coder.encode(parts, conditions)[0], conditions) if coder.has(DECODER) else None


def active_units(mean: Floats) -> NDArray[np.bool_]:
    """(L,): units whose posterior mean varies over the clean samples by more than 0.01 (Burda, Grosse and
    Salakhutdinov 2016, arXiv:1509.00519)."""
    return np.asarray(mean.var(axis=0) > 0.01)


def kl_per_unit(latents: Latents) -> Floats:
    """(L,) nats, the mean over the samples."""
    mean, log_variance = latents.mean, latents.log_variance
    return np.asarray(0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).mean(axis=0))


def evenly(chosen: Ints, most: int) -> Ints:
    """At most so many of them, from first to last."""
    if len(chosen) <= most:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, most).astype(np.int64)]


def _afford(facts: Facts, most: int, values: int) -> int:
    """Samples for a budget of values; never fewer than 50."""
    parts = float(np.mean(facts.samples.count)) if len(facts.samples) else 1.0
    return min(most, max(50, int(values / (np.prod(facts.spec.shape) * max(parts, 1.0)))))


def _scored(facts: Facts, graph: Graph, side: Ints, most: int, values: int) -> Scored:
    chosen = evenly(side, _afford(facts, most, values))
    return Scored(chosen, evidence_of(graph, facts.samples, chosen), len(side))


def _latents(facts: Facts, graph: Graph, coder: Coder, splits: dict[str, Scored]) -> Latents:
    plain = bool((facts.samples.count == 1).all())
    means, logs, scores, sides, numbers = [], [], [], [], []
    for side, (name, scored) in enumerate(splits.items()):
        at = evenly(np.arange(len(scored.chosen)), _afford(facts, LATENTS_MOST[name], VALUES_OTHERS))
        samples = scored.chosen[at]
        parts = facts.samples.first[samples]
        if not plain:  # a tile of each image, not always the first
            parts = parts + np.arange(len(parts)) % facts.samples.count[samples]
        score = [scored.values["score"][at]] if plain else []
        for i in range(0, len(parts), STEP):
            raw = facts.samples.take(parts[i : i + STEP])
            conditions = conditions_of(facts.samples, parts[i : i + STEP])
            for j in range(0, len(raw), 64):
                some = conditions[j : j + 64] if conditions is not None else None
                mean, log_variance = coder.encode(raw[j : j + 64], some)
                means.append(mean.astype(np.float64))
                logs.append(log_variance.astype(np.float64))
            if not plain:
                score.append(graph.run(raw, conditions=conditions)["score"].astype(np.float64))
        scores += score
        sides.append(np.full(len(parts), side, np.int8))
        numbers.append(samples)
    return Latents(
        np.concatenate(means),
        np.concatenate(logs),
        np.concatenate(scores),
        np.concatenate(sides),
        np.concatenate(numbers),
    )


def _explained(facts: Facts, coder: Coder) -> Explained | None:
    """Over unseen samples. Without it, a model that answers every image with the mean one would look well: its scores
    are calibrated all the same."""
    chosen = evenly(facts.split.calibrate, _afford(facts, EXPLAINED_MOST, VALUES_OTHERS))
    raw = facts.samples.take(facts.samples.first[chosen])
    conditions = conditions_of(facts.samples, facts.samples.first[chosen])
    outputs = []
    for i in range(0, len(raw), 64):
        some = conditions[i : i + 64] if conditions is not None else None
        outputs.append(rebuild(coder, raw[i : i + 64], some))
    rebuilt = [r for r in outputs if r is not None]
    n = len(raw)
    if not rebuilt or n <= 2 * COMPONENTS:
        return None
    x, y = raw.astype(np.float64), np.concatenate(rebuilt).astype(np.float64)
    present = ~np.isnan(x)
    centre = np.where(present, x, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    x = np.where(present, x - centre, 0.0)
    y = np.where(present, y - centre, 0.0)
    across = tuple(range(x.ndim - 1))
    variance = (x**2).mean(axis=across) * n / (n - 1)
    vary = variance > 1e-12 * max(float(variance.max()), 1e-300)
    if not vary.any():
        return None
    left = ((x - y) ** 2).mean(axis=across)[vary] / variance[vary]
    flat = (x[..., vary] / np.sqrt(variance[vary])).reshape(n, -1)
    powers = np.linalg.eigvalsh(flat @ flat.T)[::-1]
    chance = COMPONENTS / (n - 1)
    share = float(powers[:COMPONENTS].sum() / powers.sum())
    return Explained(float(np.maximum(1 - left, 0).mean()), max(0.0, (share - chance) / (1 - chance)), n)


def _to_show(facts: Facts, scored: Scored) -> tuple[list[int], list[int]]:
    """Positions among the calibration samples: the strangest, and typical ones from low to high scores."""
    order = np.argsort(-scored.values["score"], kind="stable").tolist()
    strangest: list[int] = []
    for position in order:
        if len(strangest) == STRANGEST:
            break
        if not any(_overlap(facts, int(scored.chosen[position]), int(scored.chosen[s])) for s in strangest):
            strangest.append(position)
    rest = [p for p in reversed(order) if p not in strangest]
    at = np.linspace(0.05, 0.8, TYPICAL) * max(len(rest) - 1, 0)
    return strangest, list(dict.fromkeys(rest[int(i)] for i in at)) if rest else []


def _overlap(facts: Facts, a: int, b: int) -> bool:
    """Whether two windows share rows: neighbours of one strange event are one thing to look at."""
    rows, items = facts.samples.row, facts.samples.items
    if rows is None or not isinstance(facts.spec, SeriesSpec) or items[a] != items[b]:
        return False
    return abs(int(rows[a]) - int(rows[b])) < facts.spec.window


def _shown(
    facts: Facts, graph: Graph, coder: Coder | None, scored: Scored, positions: Sequence[int]
) -> tuple[Shown, ...]:
    outputs = []
    for position in positions:
        sample = int(scored.chosen[position])
        parts = parts_of(facts.samples, np.array([sample]))
        raw = facts.samples.take(parts)
        conditions = conditions_of(facts.samples, parts)
        out = graph.run(raw, maps=True, conditions=conditions)
        tile = int(np.argmax(out["score"]))
        part = raw[tile : tile + 1]
        condition = conditions[tile : tile + 1] if conditions is not None else None
        rebuilt = rebuild(coder, part, condition) if coder is not None else None
        score = float(scored.values["score"][position])
        term, side = _worst_term(facts, {t: float(v[position]) for t, v in scored.values.items()})
        outputs.append(
            Shown(
                sample=sample,
                score=score,
                p_value=_among_others(facts.calibration.groups[ALL].terms["score"].values, score),
                worst_term=term,
                worst_side=side,
                raw=part[0],
                rebuilt=rebuilt[0] if rebuilt is not None else None,
                map=out["map"][tile],
            )
        )
    return tuple(outputs)


def _among_others(ascending: Floats, value: float) -> float:
    """The conformal p-value of one of n calibration samples against the n - 1 others: its rank over n."""
    n = len(ascending)
    return max(1, n - int(np.searchsorted(ascending, value, side="left"))) / max(n, 1)


def _worst_term(facts: Facts, values: dict[str, float]) -> tuple[str, Literal["high", "low"]]:
    """The term furthest out among the calibration samples, and on which side. Of terms equally far out, the one
    furthest from the clean median in its own spread."""
    best: tuple[float, float] | None = None
    outputs: tuple[str, Literal["high", "low"]] = ("score", "high")
    for term, value in values.items():
        if term == "score":
            continue
        ascending = facts.calibration.groups[ALL].terms[term].values
        low, middle, high = np.quantile(ascending, [0.25, 0.5, 0.75])
        below = float(np.searchsorted(ascending, value, side="right")) / max(len(ascending), 1)
        above = _among_others(ascending, value)
        unusual = -min(above, below), abs(value - middle) / max(high - low, 1e-12)
        if best is None or unusual > best:
            best, outputs = unusual, (term, "high" if above <= below else "low")
    return outputs


def _decoded(
    coder: Coder | None, latents: Latents | None, count: int
) -> tuple[NDArray[np.float32] | None, tuple[int, ...], NDArray[np.float32] | None]:
    """Walks along the two most active units from the clean mean, under the first condition, and draws from the prior,
    under each condition in turn."""
    if coder is None or latents is None:
        return None, (), None
    conditions = np.arange(12) % count if count else None
    if not coder.has(DECODER):
        return None, (), None
    generated = coder.decode(np.random.default_rng(0).standard_normal((12, latents.mean.shape[1])), conditions)
    variance = latents.mean.var(axis=0)
    units = [int(u) for u in np.argsort(-variance, kind="stable")[:2] if active_units(latents.mean)[u]]
    if not units:
        return None, (), generated
    steps = np.linspace(-2.5, 2.5, 7)
    rows = []
    for unit in units:
        z = np.tile(latents.mean.mean(axis=0), (len(steps), 1))
        z[:, unit] += steps * float(np.sqrt(variance[unit]))
        walked = coder.decode(z, np.zeros(len(z), np.int64) if count else None)
        rows.append(walked)
    return np.stack(rows), tuple(units), generated
