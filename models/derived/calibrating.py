"""Calibrates an exported graph on clean samples: the one place where that is done, for a fit, an ensemble and a half.

Evidence is computed through the graph as it will score, so that p-values are exact for it. Windows of a series overlap
and are not independent: calibration counts all of them, and refusals by those that fit side by side. Copies of a sample
count once, see `vaegis.models.derived.copies`; where a user declared lots, the lots are what is independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Floats, Samples, conditions_of, parts_of, strongest
from vaegis.models.calibration import ALL, Calibration, calibrate, smallest_alpha
from vaegis.models.derived.copies import Copies, copies_of, overlapping
from vaegis.models.errors import Refusal
from vaegis.models.runtime.graph import Graph
from vaegis.models.spec import SeriesSpec

LEAST = 20  # clean samples to calibrate on, where a user chooses them
MAPS = 256  # samples whose maps set the colour scale; at most four parts of each on average
STEP, VECTOR_STEP = 512, 4096  # samples in memory at once
VALUES = 2**26  # values of parts in memory at once, however many parts a sample has

Ints = NDArray[np.int64]


def calibrate_graph(
    graph: Graph, samples: Samples, chosen: Ints | None = None, effective: int | None = None
) -> tuple[Calibration, dict[str, Floats]]:
    """The calibration of a graph on clean samples, and the evidence that it was made from.

    Args:
        chosen: numbers of the samples, ascending; None takes every one that counts.
        effective: how many of them are independent; None counts, see `independent`.

    Raises:
        Refusal: evidence that is no finite number, naming the sample.
    """
    if chosen is None:
        copies = copies_of(samples)
        chosen = copies.counted
        effective = independent(samples, chosen, copies) if effective is None else effective
    evidence = evidence_of(graph, samples, chosen)
    _refuse_unsound(evidence, samples, chosen)
    return calibrate_evidence(evidence, samples, chosen, colour_scale(graph, samples, chosen), effective), evidence


def calibrate_evidence(
    evidence: dict[str, Floats],
    samples: Samples,
    chosen: Ints,
    map_range: tuple[float, float],
    effective: int | None = None,
) -> Calibration:
    """As `calibrate_graph`, where the evidence and the maps' colour scale are known.

    Raises:
        Refusal: evidence that is no finite number, naming the sample.
    """
    _refuse_unsound(evidence, samples, chosen)
    groups = None if samples.calibration_groups is None else [samples.calibration_groups[i] for i in chosen]
    count = independent(samples, chosen) if effective is None else effective
    return calibrate(evidence, groups, independent_by_group(groups, len(chosen), count), map_range)


def evidence_of(graph: Graph, samples: Samples, chosen: Ints, values: int = VALUES) -> dict[str, Floats]:
    """Term -> (n,) raw evidence of the chosen samples, each as strange as its strangest part.

    Args:
        values: of parts in memory at once, or as many as one call of the graph takes.
    """
    columns: dict[str, list[Floats]] = {t: [] for t in graph.terms}
    step = VECTOR_STEP if samples.spec.kind == "vector" else STEP
    for i in range(0, len(chosen), step):
        some = chosen[i : i + step]
        out = _outputs(graph, samples, parts_of(samples, some), values)
        count = samples.count[some]
        first = np.cumsum(count) - count
        for term in graph.terms:
            columns[term].append(strongest(out[term].astype(np.float64), first, count))
    return {t: np.concatenate(v) if v else np.empty(0) for t, v in columns.items()}


def colour_scale(graph: Graph, samples: Samples, chosen: Ints) -> tuple[float, float]:
    """Median and 99.9 % quantile of the chosen samples' map values, over samples evenly spread among them.

    Raises:
        Refusal: maps that hold no finite number somewhere.
    """
    some = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), MAPS)).astype(np.int64)]
    parts = parts_of(samples, some)[: 4 * MAPS]
    maps = graph.run(samples.take(parts), maps=True, conditions=conditions_of(samples, parts))["map"]
    if not np.isfinite(maps).all():
        raise Refusal(
            "The maps of clean samples hold values that are no finite numbers. Leave out samples with extreme values, "
            "or fit with a smaller learning rate."
        )
    low, high = (float(q) for q in np.quantile(maps, [0.5, 0.999]))
    return low, high


def every(samples: Samples) -> Ints:
    """The numbers of all samples."""
    return np.arange(len(samples), dtype=np.int64)


def independent(samples: Samples, chosen: Ints | None = None, copies: Copies | None = None) -> int:
    """How many of the chosen samples are independent.

    Where lots were declared, the lots. Of a series, the windows that fit side by side without overlap; windows that all
    start their item were given as such: samples of their own, with nothing between them. Copies count once.

    Args:
        chosen: ascending; None takes all.
        copies: those among all samples, where they are known.
    """
    chosen = every(samples) if chosen is None else chosen
    if samples.groups is not None:
        return len({samples.groups[i] for i in chosen.tolist()})
    copies = copies_of(samples) if copies is None else copies
    if copies.draws:
        return len(chosen)
    original = copies.original[chosen]
    if samples.row is None or not overlapping(samples) or not isinstance(samples.spec, SeriesSpec):
        return len(np.unique(original))
    # A copy is none whether or not the first was counted: it may overlap another that was.
    new = np.zeros(len(chosen), np.bool_)
    new[np.unique(original, return_index=True)[1]] = True
    count, item, free = 0, None, -1
    for i, row, fresh in zip(chosen.tolist(), samples.row[chosen].tolist(), new.tolist(), strict=True):
        if fresh and (samples.items[i] != item or row >= free):
            item, free = samples.items[i], row + samples.spec.window
            count += 1
    return count


def independent_by_group(groups: Sequence[str] | None, n: int, effective: int) -> int | dict[str, int]:
    """Of n samples, `effective` of them independent: how many are so in each group, in proportion to its size."""
    if groups is None or effective >= n:
        return effective
    return {ALL: effective, **{g: max(1, count * effective // n) for g, count in Counter(groups).items()}}


def usable_alpha(calibration: Calibration, alpha: float) -> float:
    """The rate asked for, or the lowest that the clean samples support, rounded up to a tenth of a per cent."""
    lowest = smallest_alpha(calibration.groups[ALL])
    return alpha if alpha >= lowest else min(0.5, float(np.ceil(lowest * 1000) / 1000))


def _refuse_unsound(evidence: dict[str, Floats], samples: Samples, chosen: Ints) -> None:
    """Refuses evidence that is no finite number.

    Raises:
        Refusal: naming the term, the sample and the value.
    """
    for term, values in evidence.items():
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            i = int(chosen[at])
            raise Refusal(
                f"The {term} of clean sample {i} ({samples.items[i]}) is {values[at]}, which is no finite number. Look "
                "at that sample: leave it out, or fit with a smaller learning rate."
            )


def _outputs(graph: Graph, samples: Samples, parts: Ints, values: int) -> dict[str, NDArray[np.float32]]:
    """Every term of the parts, with no more than so many of their values in memory.

    Cut where the graph's own calls begin, so that the numbers are those of one run over all.
    """
    size = graph.batch * max(1, values // (graph.batch * int(np.prod(samples.spec.shape))))
    cuts = [parts[i : i + size] for i in range(0, len(parts), size)] or [parts]
    runs = [graph.run(samples.take(cut), conditions=conditions_of(samples, cut)) for cut in cuts]
    return runs[0] if len(runs) == 1 else {t: np.concatenate([r[t] for r in runs]) for t in graph.terms}
