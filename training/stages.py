"""The stages of a fit: functions from one frozen value to the next, each of use alone.

    survey_source -> read_samples -> partition_samples -> (new_family) fit, fuse -> export_family -> calibrate_export

`vaegis.training.pipeline.run` walks through all of them and writes a bundle. What a stage decided without being asked
is in the `notes` of the value that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaegis.models import inputs, sources
from vaegis.models.blocks import Samples, conditions_of, parts_of
from vaegis.models.bundle import SCORE
from vaegis.models.calibration import ALL, Calibration, Decision, decide, smallest_alpha
from vaegis.models.derived.calibrating import calibrate_graph, usable_alpha
from vaegis.models.derived.copies import Copies, copies_of, remarks
from vaegis.models.errors import Refusal
from vaegis.models.families import FAMILIES, Family, make
from vaegis.models.inputs import InputOptions
from vaegis.models.inputs.images import fitted_roi
from vaegis.models.runtime.graph import Graph
from vaegis.models.sources import Source, SourceOptions
from vaegis.models.spec import ImageSpec, InputSpec
from vaegis.training.export import Gate, doubled, export, export_score, gate
from vaegis.training.fit import looks
from vaegis.training.generation import Generation, measure, unwritten
from vaegis.training.splits import Split, split

FEW_OF_CONDITION = 50  # clean samples of one condition, of which fewer are worth a note

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Survey:
    """What the clean data are, before they are read whole."""

    source: Source
    spec: InputSpec
    roi: NDArray[np.bool_] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Clean samples, ready to be taken at random."""

    samples: Samples
    roi: NDArray[np.bool_] | None = None  # what was inspected of them
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Clean samples, and which of them the model learns from, is chosen by, and is calibrated on."""

    samples: Samples
    split: Split
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Export:
    """The graphs of a fitted family, proven to say what torch says."""

    graphs: Mapping[str, bytes]  # file name -> ONNX
    gate: Gate
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibratedExport:
    """Graphs whose evidence has thresholds."""

    graphs: Mapping[str, bytes]
    gate: Gate
    calibration: Calibration
    evidence: Mapping[str, Floats]  # term -> (n,) of `split.calibrate`, what the calibration was made from
    alpha: float  # the rate used when none is asked for
    decision: Decision  # at that rate
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """How good generated samples are; None where the model makes none, or they could not be judged."""

    generation: Generation | None = None
    notes: tuple[str, ...] = ()


def survey_source(source: Path | Source, reading: SourceOptions, shaping: InputOptions) -> Survey:
    """Looks at the clean data's form, and decides the shape of a model's input.

    Args:
        reading: how a path is opened; a source has been.

    Raises:
        Refusal: nothing there that is read here, or options that do not apply to it.
    """
    opened = sources.open_source(source, reading) if isinstance(source, Path) else source
    spec, notes = inputs.infer_spec(opened, shaping)
    return Survey(opened, spec, roi_of(spec, shaping), tuple(notes))


def roi_of(spec: InputSpec, shaping: InputOptions) -> NDArray[np.bool_] | None:
    """The region of interest that a spec names, as a mask of the whole image.

    Raises:
        Refusal: there is one and the options name none, another, or one although there is none.
    """
    roi = inputs.read_roi(shaping.roi) if shaping.roi is not None else None
    if isinstance(spec, ImageSpec):
        fitted_roi(spec, roi)
    return roi


def read_samples(
    survey: Survey, folder: Path, progress: Callable[[int, int | None], None] = lambda done, total: None
) -> Reading:
    """Spools every readable sample to a folder, which must outlive the reading.

    Raises:
        Refusal: nothing readable, or values that no model learns from.
    """
    samples = inputs.load(survey.source, survey.spec, folder, roi=survey.roi, progress=progress)
    notes = [f"Left out {item}: {why}" for item, why in samples.skipped[:3]]
    if len(samples.skipped) > 3:
        notes.append(f"{len(samples.skipped)} items were left out in all.")
    return Reading(samples, survey.roi, tuple(notes))


def partition_samples(samples: Samples, seed: int) -> Partition:
    """Splits clean samples.

    Raises:
        Refusal: too few samples, groups, or samples of a condition.
    """
    copies = copies_of(samples)
    if len(samples) > 1 and copies.distinct == 1:
        raise Refusal(
            f"Nothing varies in the clean data: all {len(samples)} samples are equal, so nothing can be learned of "
            "them. Give clean samples that vary as good product does."
        )
    sides = split(samples, seed, copies)
    notes = [*remarks(samples, copies), *_rare_states(samples, copies, sides), *_lots(samples, sides)]
    return Partition(samples, sides, (*notes, *_few(samples, sides)))


def new_family(name: str, arguments: Mapping[str, Any], spec: InputSpec, seed: int) -> Family:
    """A family that has not learned yet, its first weights drawn under the seed.

    Raises:
        Refusal: no such family, or an argument that it does not take.
    """
    check_family(name)
    torch.manual_seed(seed)
    return make(FAMILIES, name, spec, arguments)


def check_family(name: str) -> None:
    """Refuses a name that no family has."""
    if name not in FAMILIES:
        raise Refusal(f"There is no family {name!r}; the families are {', '.join(FAMILIES)}.")


def fuse(family: Family, samples: Samples, split: Split, seed: int) -> None:
    """Fits the fused score on the validate split, varied as clean product may vary."""
    family.eval()
    columns: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for batch in looks(samples, parts_of(samples, split.validate), seed)():
            for term, values in family.evidence(batch).terms.items():
                columns.setdefault(term, []).append(values)
    family.fusion.fit({t: torch.cat(v) for t, v in columns.items()})


def export_family(family: Family, clean: Partition) -> Export:
    """Exports a fused family, and proves over the calibrate split that the score graph says what torch says.

    Raises:
        Refusal: it does not, not even in double precision.
    """
    samples = clean.samples
    parts = parts_of(samples, clean.split.calibrate)
    conditions = conditions_of(samples, parts)
    graphs = export(family)
    try:
        return Export(graphs, gate(family, graphs[SCORE], samples.take, parts, conditions))
    except Refusal:
        finer = doubled(family)
        if finer is None:
            raise
    score = export_score(finer)
    proof = gate(finer, score, samples.take, parts, conditions)
    note = (
        "Beside the little that this model leaves unexplained, what single precision rounds away is too much, so its "
        "score graph computes in double precision; scoring takes longer."
    )
    return Export({**graphs, SCORE: score}, proof, (note,))


def calibrate_export(export: Export, clean: Partition, alpha: float) -> CalibratedExport:
    """Calibrates the score graph on the calibrate split.

    Args:
        alpha: the rate used when none is asked for, where the clean samples can support it.

    Raises:
        Refusal: evidence of a clean sample that is no finite number.
    """
    graph = Graph(export.graphs[SCORE], clean.samples.spec, "cpu")
    calibration, evidence = calibrate_graph(graph, clean.samples, clean.split.calibrate, clean.split.effective)
    rate = usable_alpha(calibration, alpha)
    decision = decide(calibration, rate)
    notes = tuple(_thresholds(calibration, alpha, decision))
    return CalibratedExport(export.graphs, export.gate, calibration, evidence, rate, decision, notes)


def judge_generation(
    family: Family, name: str, graphs: Mapping[str, bytes], clean: Partition, seed: int, network: Path | None
) -> Judgement:
    """Holds what the model generates against clean samples. That decides no verdict, so it never costs the model.

    Args:
        name: of the family.
        network: whose features it is judged by; None fits a small VAE for it.
    """
    model = unwritten(name, family.arguments(), family.spec, graphs)
    try:
        return Judgement(measure(model, clean.samples, clean.split, seed, network))
    except Refusal as refusal:
        return Judgement(None, (f"What the model generates could not be judged: {refusal}",))


def meaning(family: Family) -> dict[str, str]:
    """Evidence term -> what it says, `score` first."""
    terms = ", ".join(family.fusion.terms)
    return {"score": f"{terms} together, in clean standard deviations above the clean mean", **family.meaning}


def _thresholds(calibration: Calibration, alpha: float, decision: Decision) -> Iterator[str]:
    """Sentences on a rate asked for that the clean samples do not support, or hardly."""
    rate, independent = decision.alpha, calibration.groups[ALL].effective
    assert rate is not None
    if rate > alpha:
        yield (
            f"A false-alarm rate of {alpha:g} needs more than the {independent} independent clean samples held out "
            f"for calibration; this model's own rate is {rate:g}. Add clean samples for a lower one."
        )
    if decision.extrapolated:
        yield (
            f"At a false-alarm rate of {rate:g} the threshold is extrapolated beyond the {independent} independent "
            "clean samples held out for calibration, and verdicts say so. Add clean samples to measure it."
        )
    for name, group in calibration.groups.items():
        if name != ALL and rate < smallest_alpha(group):
            few = f"Group {name!r} has only {group.effective} calibration samples"
            yield f"{few}; asking for it at {rate:g} is refused."


def _rare_states(samples: Samples, copies: Copies, split: Split) -> Iterator[str]:
    """A sentence on states of a table of codes that came up too seldom to lie on every side."""
    if not copies.draws:
        return
    sides = (split.fit, split.validate, split.calibrate)
    states, sizes = np.unique(copies.original[copies.counted], return_counts=True)
    everywhere = np.logical_and.reduce([np.isin(states, copies.original[side]) for side in sides])
    rare = np.flatnonzero(~everywhere)
    if not len(rare):
        return
    columns, names = getattr(samples.spec, "columns", ()), []
    for values, size in zip(samples.take(samples.first[states[rare[:3]]]), sizes[rare[:3]].tolist(), strict=True):
        names.append(", ".join(f"{c} {v:g}" for c, v in zip(columns, values, strict=True)) + f" (rows: {size})")
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    yield (
        f"Too few rows to lie on every side of the split: {'; '.join(names)}{more}. What was not learned of them "
        "may be taken for strange. Add clean rows of them."
    )


def _lots(samples: Samples, split: Split) -> Iterator[str]:
    """A sentence on what counts where lots were declared."""
    if samples.groups is not None:
        yield (
            f"Calibration holds {len(split.calibrate)} samples of {split.effective} lots (--group-by): the lots count "
            "as independent, for samples of a lot are not."
        )


def _few(samples: Samples, split: Split) -> Iterator[str]:
    """Sentences on conditions with few clean samples.

    Raises:
        Refusal: one has none among those that are fitted.
    """
    if samples.conditions is None:
        return
    names = samples.spec.conditions
    learned, read = (
        np.bincount(samples.conditions[samples.first[side]], minlength=len(names))
        for side in (split.fit, np.arange(len(samples)))
    )
    for name, count, total in zip(names, learned.tolist(), read.tolist(), strict=True):
        if not count:
            raise Refusal(
                f"Condition {name!r} has {total} clean samples, and none of them is left to learn from. Add clean "
                "samples of it, or leave it out."
            )
        if total < FEW_OF_CONDITION:
            yield f"Condition {name!r} has only {total} clean samples; its verdicts will be poor. Add some."
