"""Runs a bundle on onnxruntime: blocks of samples in, verdicts out.

The graph gives raw evidence; calibration turns it into p-values; a `Decision` into verdicts. Nothing is clamped or
normalised per sample, and a sample whose evidence is not finite is `unjudged`, never clean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaegis.models.blocks import Block, Floats, sample_maps, strongest
from vaegis.models.bundle import SCORE, Bundle
from vaegis.models.calibration import ALL, Decision, decide
from vaegis.models.errors import Refusal
from vaegis.models.inputs import from_array
from vaegis.models.inputs.options import Limits
from vaegis.models.runtime.graph import CUDA, Graph
from vaegis.models.runtime.sessions import Cuda, Device
from vaegis.models.spec import InputSpec

OK, ANOMALOUS, UNJUDGED = "ok", "anomalous", "unjudged"
WIDEST = 2**20  # bytes that a sample's value may become, as a row becomes a window: no limit in practice


@dataclass(frozen=True)
class GraphOutput:
    """What the graph says of parts, which may be those of several blocks."""

    values: Floats  # (terms, m) raw evidence, `score` first
    p_values: Floats  # (terms, m) conformal, against all calibration samples; meaningless where evidence is not finite
    p_tail: Floats  # (m,) of `score`, as `Reference.p_tail`
    finite: bool  # every value is
    maps: NDArray[np.float32] | None  # (m, *spec.map_shape)

    def __len__(self) -> int:
        return len(self.p_tail)

    def cut(self, start: int, stop: int, maps: bool) -> GraphOutput:
        """Parts start to stop, with their maps or without."""
        return GraphOutput(
            self.values[:, start:stop],
            self.p_values[:, start:stop],
            self.p_tail[start:stop],
            self.finite,
            self.maps[start:stop] if maps and self.maps is not None else None,
        )


def join(outputs: Sequence[GraphOutput]) -> GraphOutput:
    """Of parts that follow one another."""
    return GraphOutput(
        np.concatenate([o.values for o in outputs], axis=1),
        np.concatenate([o.p_values for o in outputs], axis=1),
        np.concatenate([o.p_tail for o in outputs]),
        all(o.finite for o in outputs),
        np.concatenate([o.maps for o in outputs if o.maps is not None]) if outputs[0].maps is not None else None,
    )


@dataclass(frozen=True)
class SampleEvidence:
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

    def score(
        self, values: ArrayLike, alpha: float | None = None, *, decide_by: str = "score", maps: bool = False
    ) -> Verdicts:
        """Verdicts on samples in memory, for whoever uses the library by itself.

        Args:
            values: images (N, H, W[, C]), one series (T, C) or windows (N, T, C), vectors (N, D), in raw units.
            alpha: the false-alarm rate; None takes the bundle's own.
            decide_by: the evidence term that decides.
            maps: whether the verdicts hold maps.

        Raises:
            Refusal: values that the model does not take, or a rate that its clean samples cannot support.
        """
        rate = self.bundle.manifest.alpha if alpha is None else alpha
        decision = decide(self.calibration, rate, decide_by=decide_by)
        array = np.asarray(values)
        limits = Limits(samples=max(1, len(array)) if array.ndim else 1, bytes=max(1, WIDEST * array.size))
        block = from_array(self.spec, array, roi=self.bundle.roi, limits=limits)  # it is in memory already
        return self.verdicts(block, decision, maps)

    def evidence(self, block: Block, maps: bool = False) -> SampleEvidence:
        """Raw evidence of a block's samples; a sample is as strange as its strangest part."""
        return self._gather(block, self.find(block.parts, maps, block.conditions))

    def verdicts(self, block: Block, decision: Decision, maps: bool = False) -> Verdicts:
        """Verdicts on a block's samples; see `judge`."""
        return self.judge(block, decision, self.find(block.parts, maps, block.conditions))

    def find(self, parts: NDArray[Any], maps: bool = False, conditions: NDArray[np.int64] | None = None) -> GraphOutput:
        """Runs the graph over (m, *spec.shape) parts and looks their evidence up in the calibration."""
        out = self.graph.run(parts, maps, conditions=conditions)
        values = np.array([out[t] for t in self.terms], np.float64)
        below = np.array([c.values.searchsorted(v) for c, v in zip(self._clean, values, strict=True)], np.float64)
        p_values = (self._counts - below) / self._counts
        finite = bool(np.isfinite(values).all())
        return GraphOutput(values, p_values, self._tail(values[0], p_values[0]), finite, out.get("map"))

    def _tail(self, score: Floats, p_values: Floats) -> Floats:
        """As `Reference.p_tail`, of scores whose conformal p-values are known."""
        tail = self._clean[0].tail
        if tail is None:
            return np.full(len(score), np.nan)
        beyond = score > tail.start
        return np.where(beyond, tail.p(score), p_values) if beyond.any() else p_values

    def judge(self, block: Block, decision: Decision, output: GraphOutput) -> Verdicts:
        """Verdicts on a block's samples from what the graph says of its parts.

        Where the block names calibration groups and the decision none, each sample is held against its own group's
        calibration at the decision's rate; `Verdicts.decision` stays the one for all.
        """
        one_part_each = len(block.parts) == len(block) and block.place is None and not block.errors
        if one_part_each and output.finite and block.groups is None and not decision.group:
            return self._plain(block, decision, output)
        return self._judge(block, decision, self._gather(block, output))

    def _plain(self, block: Block, decision: Decision, output: GraphOutput) -> Verdicts:
        """The same where every sample is one part, is finite and is held against all calibration samples."""
        deciding = output.values[self._row[decision.decide_by]]
        if decision.decide_by == "score":
            p_tail = output.p_tail
        else:
            p_tail = self.calibration.groups[ALL].terms[decision.decide_by].p_tail(deciding)
        anomalous = deciding > decision.threshold
        return Verdicts(
            block=block,
            decision=decision,
            status=[ANOMALOUS if a else OK for a in anomalous.tolist()],
            evidence=dict(zip(self.terms, output.values, strict=True)),
            p_values=dict(zip(self.terms, output.p_values, strict=True)),
            p_tail=p_tail,
            anomalous=anomalous,
            maps=None if output.maps is None else list(output.maps),
        )

    def _gather(self, block: Block, output: GraphOutput) -> SampleEvidence:
        n = len(block)
        judged = np.flatnonzero(block.count > 0)
        values: dict[str, Floats] = {}
        for term, parts in zip(self.terms, output.values, strict=True):
            column = np.full(n, np.nan)
            column[judged] = strongest(parts, block.first[judged], block.count[judged])
            values[term] = column
        return SampleEvidence(values=values, maps=None if output.maps is None else sample_maps(block, output.maps))

    def _judge(self, block: Block, decision: Decision, evidence: SampleEvidence) -> Verdicts:
        n = len(block)
        errors = dict(block.errors)
        finite = np.ones(n, bool)
        for term, values in evidence.values.items():
            for i in np.flatnonzero(~np.isfinite(values) & (block.count > 0) & finite):
                errors[int(i)] = f"Its {term} is not a finite number, so it cannot be judged; look at the sample."
            finite &= np.isfinite(values)
        p_values = {t: np.full(n, np.nan) for t in evidence.values}
        p_tail, anomalous = np.full(n, np.nan), np.zeros(n, bool)
        for own, chosen in self._by_group(block, decision, finite, errors):
            reference = self.calibration.group(own.group)
            for term, values in evidence.values.items():
                p_values[term][chosen] = reference.terms[term].p_value(values[chosen])
            deciding = evidence.values[own.decide_by][chosen]
            p_tail[chosen] = reference.terms[own.decide_by].p_tail(deciding)
            anomalous[chosen] = deciding > own.threshold
        judged = ~np.isnan(p_values[decision.decide_by])
        return Verdicts(
            block=block,
            decision=decision,
            status=[UNJUDGED if not f else ANOMALOUS if a else OK for f, a in zip(judged, anomalous, strict=True)],
            evidence={t: np.where(judged, v, np.nan) for t, v in evidence.values.items()},
            p_values=p_values,
            p_tail=p_tail,
            anomalous=anomalous,
            errors={i: errors.get(i, "It could not be read.") for i in np.flatnonzero(~judged).tolist()},
            maps=evidence.maps,
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
