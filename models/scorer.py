"""Runs a bundle on onnxruntime: blocks of samples in, verdicts out.

The graph gives raw evidence; calibration turns it into p-values; a `Decision` into verdicts. Nothing is clamped or
normalised per sample, and a sample whose evidence is not finite is `unjudged`, never clean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Block, Floats, sample_maps, strongest
from vaegis.models.bundle import SCORE, Bundle
from vaegis.models.calibration import ALL, Decision, decide
from vaegis.models.errors import Refusal
from vaegis.models.runtime.fixed_buffers import open_graph
from vaegis.models.runtime.sessions import Cuda, Device
from vaegis.models.spec import InputSpec

CUDA = Cuda()

BATCH_VALUES = 2**18  # values per graph call: enough to fill a core, small enough to stay in its cache
BATCH_MOST = 1024
CUDA_VALUES = 2**24  # a GPU is filled by more
# See `Pace`.
SOON_SECONDS, QUICK_SECONDS, SLOW_SECONDS, PAYS, WORTH, TURNS = 0.0005, 0.006, 0.05, 1.2, 8, 4

OK, ANOMALOUS, UNJUDGED = "ok", "anomalous", "unjudged"


@dataclass(frozen=True)
class Found:
    """What the graph says of parts, which may be those of several blocks."""

    values: Floats  # (terms, m) raw evidence, `score` first
    p_values: Floats  # (terms, m) conformal, against all calibration samples; meaningless where evidence is not finite
    p_tail: Floats  # (m,) of `score`, as `Reference.p_tail`
    finite: bool  # every value is
    maps: NDArray[np.float32] | None  # (m, *spec.map_shape)

    def __len__(self) -> int:
        return len(self.p_tail)

    def cut(self, start: int, stop: int, maps: bool) -> Found:
        """Parts start to stop, with their maps or without."""
        return Found(
            self.values[:, start:stop],
            self.p_values[:, start:stop],
            self.p_tail[start:stop],
            self.finite,
            self.maps[start:stop] if maps and self.maps is not None else None,
        )


def join(found: Sequence[Found]) -> Found:
    """Of parts that follow one another."""
    return Found(
        np.concatenate([f.values for f in found], axis=1),
        np.concatenate([f.p_values for f in found], axis=1),
        np.concatenate([f.p_tail for f in found]),
        all(f.finite for f in found),
        np.concatenate([f.maps for f in found if f.maps is not None]) if found[0].maps is not None else None,
    )


@dataclass(frozen=True)
class Evidence:
    """What the graph says of a block's samples, NaN where a sample has no part."""

    values: dict[str, Floats]  # term -> (n,), `score` first
    maps: Sequence[NDArray[np.float32] | None] | None  # per sample: (H, W), (C,) of a time step, or (D,)


@dataclass(frozen=True)
class Verdicts:
    """Of one block, column by column; every array has length n."""

    block: Block
    decision: Decision
    status: list[str]  # ok, anomalous or unjudged
    evidence: dict[str, Floats]  # term -> raw values, `score` included; NaN where unjudged
    p_values: dict[str, Floats]  # term -> conformal p-values
    p_tail: Floats  # of the deciding term; NaN where there is none
    anomalous: NDArray[np.bool_]
    errors: dict[int, str] = field(default_factory=dict)  # position -> why it is unjudged
    maps: Sequence[NDArray[np.float32] | None] | None = None

    def __len__(self) -> int:
        return len(self.status)


@dataclass(frozen=True)
class Pace:
    """How many parts a graph is best called with."""

    best: int  # the most that are done within a few milliseconds, or up to which doubling made more of each second
    soon: int  # so few that they are done sooner than a thread could be told to do them; may be 0
    enough: int  # the fewest that cost eight times what a call costs beside them: larger calls hardly do more a second


class Graph:
    """A score graph, open on a device. Safe to call from several threads."""

    def __init__(
        self,
        raw: bytes,
        spec: InputSpec,
        device: Device = "auto",
        threads: int = 0,
        spin: bool = True,
        cuda: Cuda = CUDA,
    ) -> None:
        """Opens the graph.

        Args:
            device: `cuda` is strict; `auto` takes CUDA where it works and says when it does not.
            threads: of onnxruntime within one call; 0 leaves it to onnxruntime.
            spin: whether its idle threads wait by spinning: a call starts sooner, other work on the cores gets less.
            cuda: what is done on a GPU beyond running there.

        Raises:
            Refusal: `cuda` was asked for and cannot be had.
        """
        self.spec = spec
        session, self.device, self._run = open_graph(raw, device, threads, spin, cuda, spec.shape)
        names = [o.name for o in session.get_outputs() if o.name != "map"]
        self.terms = ["score", *(n for n in names if n != "score")]
        taken = {i.name for i in session.get_inputs()}
        self._masked, self._conditional = "mask" in taken, "condition" in taken
        values = CUDA_VALUES if self.device == "cuda" else BATCH_VALUES
        self._most = max(1, min(BATCH_MOST, values // int(np.prod(spec.shape))))
        self._batch = self._most  # parts of a call

    @property
    def batch(self) -> int:
        """Parts of a call where none are named."""
        return self._batch

    def run(
        self, parts: NDArray[Any], maps: bool = False, batch: int = 0, conditions: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs for (m, *spec.shape) parts: every term (m,), and `map` if asked for.

        Args:
            batch: parts per call; 0 chooses.
            conditions: (m,) numbers of the parts' conditions, for a graph that takes them.
        """
        assert self._conditional == (conditions is not None)
        names = [*self.terms, "map"] if maps else self.terms
        size = batch or self._batch
        runs = []
        for i in range(0, len(parts), size):
            feed = self._feed(parts[i : i + size])
            if conditions is not None:
                feed["condition"] = conditions[i : i + size]
            runs.append(self._run(names, feed))
        if not runs:
            shape = (0, *self.spec.map_shape)
            return {n: np.empty(shape if n == "map" else 0, np.float32) for n in names}
        return {n: np.concatenate([r[i] for r in runs]) if len(runs) > 1 else runs[0][i] for i, n in enumerate(names)}

    def warm(self) -> Pace:
        """Runs every batch size 1, 2, 4, ..., so that no request waits for what a first run allocates, and finds out
        what suits this machine.

        From now on larger batches are run as several calls of `Pace.enough`, whose values stay in the core's cache.
        """
        seconds: dict[int, float] = {}  # of a call, by its size
        size = 1
        while True:
            parts = np.zeros((size, *self.spec.shape), self.spec.dtype)
            self._timed(parts, True)
            seconds[size] = min(self._timed(parts) for _ in range(3))
            paid = size == 1 or 2 * seconds[size // 2] >= PAYS * seconds[size]
            # The next size is not tried to be found wanting: its memory would be kept.
            if 2 * size > self._most or 2 * seconds[size] > (SLOW_SECONDS if paid else QUICK_SECONDS):
                break
            size *= 2
        # By turns, so that what else the machine does for a moment does not fall on one size alone.
        for _ in range(TURNS):
            for n in seconds:
                seconds[n] = min(seconds[n], self._timed(np.zeros((n, *self.spec.shape), self.spec.dtype)))
        # What one more sample costs, and a call beside its samples: far steadier than one size's time over another's.
        each = min(s / n for n, s in seconds.items())
        beside = max(seconds[1] - each, 0.0)
        self._batch = next((n for n in seconds if n * each >= WORTH * beside), size)
        return Pace(size, max((n for n, s in seconds.items() if s <= SOON_SECONDS), default=0), self._batch)

    def _timed(self, parts: NDArray[Any], maps: bool = False) -> float:
        conditions = np.zeros(len(parts), np.int64) if self._conditional else None
        began = time.perf_counter()
        self.run(parts, maps, len(parts), conditions)
        return max(time.perf_counter() - began, 1e-9)

    def _feed(self, parts: NDArray[Any]) -> dict[str, NDArray[Any]]:
        parts = np.ascontiguousarray(parts)
        if not self._masked:
            return {"input": parts}
        seen = ~np.isnan(parts)
        return {"input": np.where(seen, parts, np.float32(0)), "mask": seen.astype(np.float32)}


class Scorer:
    """A bundle open for scoring. Safe to call from several threads."""

    def __init__(
        self, bundle: Bundle, device: Device = "auto", threads: int = 0, spin: bool = True, cuda: Cuda = CUDA
    ) -> None:
        """Opens the bundle's graph; see `Graph` for the arguments."""
        self.bundle = bundle
        self.calibration = bundle.calibration
        self.graph = Graph(bundle.read(SCORE), bundle.spec, device, threads, spin, cuda)
        self._row = {t: i for i, t in enumerate(self.terms)}
        terms = self.calibration.groups[ALL].terms
        self._clean = [terms[t] for t in self.terms]
        self._counts = np.array([[1.0 + len(c.values)] for c in self._clean])

    @property
    def spec(self) -> InputSpec:
        return self.bundle.spec

    @property
    def device(self) -> str:
        """Where the graph really runs: cuda or cpu."""
        return self.graph.device

    @property
    def terms(self) -> list[str]:
        """Every evidence term, `score` first."""
        return self.graph.terms

    def evidence(self, block: Block, maps: bool = False) -> Evidence:
        """Raw evidence of a block's samples; a sample is as strange as its strangest part."""
        return self._gathered(block, self.find(block.parts, maps, block.conditions))

    def verdicts(self, block: Block, decision: Decision, maps: bool = False) -> Verdicts:
        """Verdicts on a block's samples; see `judged`."""
        return self.judged(block, decision, self.find(block.parts, maps, block.conditions))

    def find(self, parts: NDArray[Any], maps: bool = False, conditions: NDArray[np.int64] | None = None) -> Found:
        """Runs the graph over (m, *spec.shape) parts and looks their evidence up in the calibration."""
        out = self.graph.run(parts, maps, conditions=conditions)
        values = np.array([out[t] for t in self.terms], np.float64)
        below = np.array([c.values.searchsorted(v) for c, v in zip(self._clean, values, strict=True)], np.float64)
        p_values = (self._counts - below) / self._counts
        finite = bool(np.isfinite(values).all())
        return Found(values, p_values, self._tail(values[0], p_values[0]), finite, out.get("map"))

    def _tail(self, score: Floats, p_values: Floats) -> Floats:
        """As `Reference.p_tail`, of scores whose conformal p-values are known."""
        tail = self._clean[0].tail
        if tail is None:
            return np.full(len(score), np.nan)
        beyond = score > tail.start
        return np.where(beyond, tail.p(score), p_values) if beyond.any() else p_values

    def judged(self, block: Block, decision: Decision, found: Found) -> Verdicts:
        """Verdicts on a block's samples from what the graph says of its parts.

        Where the block names calibration groups and the decision none, each sample is held against its own group's
        calibration at the decision's rate; `Verdicts.decision` stays the one for all.
        """
        one_each = len(block.parts) == len(block) and block.place is None and not block.errors
        if one_each and found.finite and block.groups is None and not decision.group:
            return self._plain(block, decision, found)
        return self._judged(block, decision, self._gathered(block, found))

    def _plain(self, block: Block, decision: Decision, found: Found) -> Verdicts:
        """The same where every sample is one part, is finite and is held against all calibration samples."""
        deciding = found.values[self._row[decision.decide_by]]
        if decision.decide_by == "score":
            p_tail = found.p_tail
        else:
            p_tail = self.calibration.groups[ALL].terms[decision.decide_by].p_tail(deciding)
        anomalous = deciding > decision.threshold
        return Verdicts(
            block=block,
            decision=decision,
            status=[ANOMALOUS if a else OK for a in anomalous.tolist()],
            evidence=dict(zip(self.terms, found.values, strict=True)),
            p_values=dict(zip(self.terms, found.p_values, strict=True)),
            p_tail=p_tail,
            anomalous=anomalous,
            maps=None if found.maps is None else list(found.maps),
        )

    def _gathered(self, block: Block, found: Found) -> Evidence:
        n = len(block)
        judged = np.flatnonzero(block.count > 0)
        values: dict[str, Floats] = {}
        for term, parts in zip(self.terms, found.values, strict=True):
            column = np.full(n, np.nan)
            column[judged] = strongest(parts, block.first[judged], block.count[judged])
            values[term] = column
        return Evidence(values=values, maps=None if found.maps is None else sample_maps(block, found.maps))

    def _judged(self, block: Block, decision: Decision, found: Evidence) -> Verdicts:
        n = len(block)
        errors = dict(block.errors)
        finite = np.ones(n, bool)
        for term, values in found.values.items():
            for i in np.flatnonzero(~np.isfinite(values) & (block.count > 0) & finite):
                errors[int(i)] = f"Its {term} is not a finite number, so it cannot be judged; look at the sample."
            finite &= np.isfinite(values)
        p_values = {t: np.full(n, np.nan) for t in found.values}
        p_tail, anomalous = np.full(n, np.nan), np.zeros(n, bool)
        for one, chosen in self._by_group(block, decision, finite, errors):
            reference = self.calibration.group(one.group)
            for term, values in found.values.items():
                p_values[term][chosen] = reference.terms[term].p_value(values[chosen])
            deciding = found.values[one.decide_by][chosen]
            p_tail[chosen] = reference.terms[one.decide_by].p_tail(deciding)
            anomalous[chosen] = deciding > one.threshold
        judged = ~np.isnan(p_values[decision.decide_by])
        return Verdicts(
            block=block,
            decision=decision,
            status=[UNJUDGED if not f else ANOMALOUS if a else OK for f, a in zip(judged, anomalous, strict=True)],
            evidence={t: np.where(judged, v, np.nan) for t, v in found.values.items()},
            p_values=p_values,
            p_tail=p_tail,
            anomalous=anomalous,
            errors={i: errors.get(i, "It could not be read.") for i in np.flatnonzero(~judged).tolist()},
            maps=found.maps,
        )

    def _by_group(
        self, block: Block, decision: Decision, finite: NDArray[np.bool_], errors: dict[int, str]
    ) -> Iterator[tuple[Decision, NDArray[np.intp]]]:
        """The decision that holds for each of the finite samples; an unknown group becomes its samples' error."""
        if block.groups is None or decision.group is not None:
            yield decision, np.flatnonzero(finite)
            return
        groups = np.array([g or ALL for g in block.groups])
        for name in sorted(set(groups[finite].tolist())):
            chosen = np.flatnonzero(finite & (groups == name))
            given = decision.threshold if decision.alpha is None else None
            try:
                yield decide(self.calibration, decision.alpha, given, decision.decide_by, name or None), chosen
            except Refusal as refusal:
                errors.update(dict.fromkeys(chosen.tolist(), str(refusal)))
