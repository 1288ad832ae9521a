"""Several families on the same clean data, or one family with several arguments.

Every fit goes through the same pipeline, on the same split (it follows from the data and the seed alone) and with the
same step budget; each leaves an ordinary bundle. What cannot take the data is named with its reason and left out.

A sweep chooses by clean evidence of the validate split alone. No anomaly is looked at, or the detection rate that is
measured on them later would be a promise already broken; nor the calibrate split, or thresholds would be set on the
very samples that the model was chosen for. Where there is a likelihood (or a bound of it) its mean decides: it charges
both for what a model cannot describe and for what it describes without need, so that held-out samples tell too large a
model from a good one. Else the standardised reconstruction error does. That falls as long as more latent numbers still
describe clean product, whether or not they describe defects too; it is the best that clean samples can say. In both
cases the first candidate that lies within one standard error of the best is taken, so that whoever lists the plainest
first is not given a larger model for a difference that is luck (Breiman et al. 1984).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models import inputs, sources
from vaegis.models.bundle import SCORE, Bundle
from vaegis.models.calibration import decide
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import FAMILIES, make
from vaegis.models.families.family import keywords
from vaegis.models.runtime.graph import Graph
from vaegis.models.scorer import Scorer
from vaegis.models.sources import SourceOptions
from vaegis.models.spec import InputSpec
from vaegis.training.evaluate import Evaluation, evaluate
from vaegis.training.fit import Fitted
from vaegis.training.pipeline import Made, Request, Watch, run

TIMED = 64  # samples per call when scoring is timed, as a service batches them
TIMED_LEAST = 0.2  # seconds
EXAMPLES = 6  # samples that every family's reconstructions are shown of
NOT_COMPARABLE = ("resolution", "likelihood")  # arguments that change what is measured, not how well
EXACT = "negative_log_likelihood"


@dataclass(frozen=True)
class Labelled:
    """Labelled samples to hold every family against."""

    source: Path
    labels: str
    reading: SourceOptions


@dataclass(frozen=True)
class Figures:
    """What a bundle is worth; None where there is no such figure."""

    seconds: float  # of the fit
    steps: int
    milliseconds: float  # a sample, scored in full batches on the CPU
    megabytes: float  # of all graphs
    alpha: float  # false-alarm rate of its verdicts
    expected: tuple[float, float] | None  # the long-run rate that its calibration warrants, 99 %
    bits: float | None  # per dimension of held-out clean samples, where the likelihood is exact
    repeated: float | None  # share of what makes clean samples differ that come back through a smaller latent
    auroc: float | None = None  # of `score`, with labels
    found: float | None = None  # share of anomalies flagged
    false_alarms: float | None = None  # share of clean test samples flagged


@dataclass(frozen=True)
class Entry:
    """One fit among several."""

    name: str  # the family, or the arguments that were swept
    made: Made | None
    figures: Figures | None
    why: str | None = None  # a sentence on what went wrong


@dataclass(frozen=True)
class Examples:
    """A few samples that all families are shown."""

    parts: NDArray[Any]  # (n, *shape)
    names: tuple[str, ...]
    conditions: NDArray[np.int64] | None = None


def named(text: str) -> tuple[str, ...]:
    """`all`, or names with commas, in order.

    Raises:
        Refusal: an unknown family, listing the right ones; none, or one twice.
    """
    if text.strip() == "all":
        return tuple(FAMILIES)
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in FAMILIES:
            raise Refusal(f"There is no family {name!r}; the families are {', '.join(FAMILIES)}, or all.")
        if names.count(name) > 1:
            raise Refusal(f"Family {name} is named twice; name each once.")
    return names


def compare(
    request: Request,
    names: Sequence[str],
    test: Labelled | None,
    watch: Watch,
    begun: Callable[[str], None] = lambda _: None,
) -> tuple[InputSpec, list[Entry]]:
    """Fits every named family into a folder of its own under `request.out`.

    Args:
        request: its family is left aside; its arguments go to every family that has such.
        begun: told each family that is begun.

    Raises:
        Refusal: nothing could be fitted, or an argument that none of them has.
    """
    if request.out.exists():
        raise Conflict(f"{request.out} exists already; name another --out folder, which is made.")
    if request.resume:
        raise Refusal("--resume goes on with one fit; name the one family that was interrupted, with its --out.")
    for key in request.arguments:
        if not any(key.partition(".")[0] in keywords(FAMILIES[n]) for n in names):
            raise Refusal(f"None of the families {', '.join(names)} has an argument {key.partition('.')[0]!r}.")
    spec, _ = inputs.infer_spec(sources.open_source(request.source, request.reading), request.shaping)
    if test is not None:  # read before the first fit, so that a wrong name or column is answered at once
        sources.read_labels(sources.open_source(test.source, test.reading), spec.kind, test.labels)
    requests, refused, budgets = {}, {}, []
    for name in names:
        arguments = {k: v for k, v in request.arguments.items() if k.partition(".")[0] in keywords(FAMILIES[name])}
        try:
            family = make(FAMILIES, name, spec, arguments)
        except Refusal as error:
            refused[name] = str(error)
            continue
        requests[name] = replace(request, family=name, arguments=arguments, out=request.out / name)
        if family.players():
            budgets.append(family.recipe.steps)
    # One budget for all: the largest that any would take for itself, so that none is cut short; the others stop when
    # nothing improves.
    steps = request.options.steps or max(budgets, default=1)
    entries = []
    for name in names:
        if name in refused:
            entries.append(Entry(name, None, None, refused[name]))
            continue
        begun(name)
        asked = replace(requests[name], options=replace(request.options, steps=steps))
        try:
            made = run(asked, watch)
        except Refusal as error:
            entries.append(Entry(name, None, None, str(error)))
            continue
        figures, why = measured(made.bundle, made.fitted), None
        if test is not None:
            try:
                found = evaluated(made.bundle, test)
                figures = replace(
                    figures, auroc=found.auroc["score"], found=found.detection_rate, false_alarms=found.false_alarm_rate
                )
            except Refusal as error:
                why = str(error)
        entries.append(Entry(name, made, figures, why))
    if not any(e.made for e in entries):
        raise Refusal(f"None of the families could be fitted. {entries[0].name}: {entries[0].why}")
    return spec, entries


def measured(bundle: Bundle, fitted: Fitted) -> Figures:
    """What the bundle is worth without labels, by its own graphs."""
    report = json.loads(bundle.read("report/report.json"))
    likelihood, repeated = report["likelihood"], report["reconstruction"]
    # A latent that holds all of a sample gives it back whatever was learned.
    repeated = None if repeated and repeated["exact"] else repeated
    interval = report["decision"]["interval"]
    graphs = [n for n in bundle.manifest.files if n.endswith(".onnx")]
    return Figures(
        seconds=fitted.seconds,
        steps=fitted.steps,
        milliseconds=_milliseconds(bundle),
        megabytes=sum(len(bundle.read(n)) for n in graphs) / 1e6,
        alpha=bundle.manifest.alpha,
        expected=(interval[0], interval[1]) if interval else None,
        bits=likelihood["validate"]["bits_per_dimension"] if likelihood and likelihood["term"] == EXACT else None,
        repeated=repeated["explained"] if repeated else None,
    )


def evaluated(bundle: Bundle, test: Labelled) -> Evaluation:
    """The bundle's verdicts on labelled samples, at its own rate.

    Raises:
        Refusal: a sample without a label, or labels of one sort only.
    """
    scorer, decision = Scorer(bundle, "cpu"), decide(bundle.calibration, bundle.manifest.alpha)
    source = sources.open_source(test.source, test.reading)
    table = sources.read_labels(source, bundle.spec.kind, test.labels)
    evidence: dict[str, list[NDArray[np.float64]]] = {t: [] for t in scorer.terms}
    flagged, label, classes = [], [], []
    for block in inputs.blocks(source, bundle.spec, roi=bundle.roi):
        verdicts = scorer.verdicts(block, decision)
        told, kinds = table.find(block.items, block.index)
        if (told < 0).any():
            i = int((told < 0).argmax())
            raise Refusal(
                f"{block.items[i]} [{block.index[i]}] of the test source has no label in {test.labels}; label every "
                "sample."
            )
        label.append(told)
        classes += kinds
        flagged.append(verdicts.anomalous)
        for term, values in verdicts.evidence.items():
            evidence[term].append(values)
    if not label:
        raise Refusal(f"The test source {test.source} holds no samples; name one that does.")
    return evaluate(
        {t: np.concatenate(v) for t, v in evidence.items()},
        np.concatenate(flagged),
        np.concatenate(label).astype(np.int64),
        classes,
        decision,
        scorer.calibration.group(None).effective,
    )


def examples(bundle: Bundle, source: Path, reading: SourceOptions, most: int = EXAMPLES) -> Examples:
    """A few samples of a source, evenly from its first block."""
    for block in inputs.blocks(sources.open_source(source, reading), bundle.spec, roi=bundle.roi):
        held = np.flatnonzero(block.count > 0)
        if not len(held):
            continue
        chosen = held[np.unique(np.linspace(0, len(held) - 1, min(most, len(held))).astype(np.int64))]
        parts = block.first[chosen]
        parts, once = np.unique(parts, return_index=True)
        told = block.conditions[parts] if block.conditions is not None else None
        names = tuple(f"{block.items[i]} [{block.index[i]}]" for i in chosen[once])
        return Examples(block.parts[parts], names, told)
    raise Refusal(f"{source} holds no sample that can be shown.")


def _milliseconds(bundle: Bundle) -> float:
    """Of one sample among `TIMED`, on values such as the graph may be given."""
    rng, spec = np.random.default_rng(0), bundle.spec
    top = 2**8 if spec.dtype.kind == "u" else 2
    parts = rng.integers(0, top, (TIMED, *spec.shape)).astype(spec.dtype)
    told = rng.integers(0, len(spec.conditions), TIMED) if spec.conditions else None
    graph = Graph(bundle.read(SCORE), spec, "cpu")
    graph.run(parts, batch=TIMED, conditions=told)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < TIMED_LEAST:
        graph.run(parts, batch=TIMED, conditions=told)
        calls += 1
    return 1000 * (time.perf_counter() - began) / (calls * TIMED)


@dataclass(frozen=True)
class Candidate:
    """One setting of a sweep."""

    arguments: Mapping[str, Any]  # those swept
    made: Made
    value: float  # held-out clean evidence, lower is better
    error: float  # its standard error

    @property
    def name(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.arguments.items())


@dataclass(frozen=True)
class Swept:
    """What a sweep chose, and from what."""

    candidates: Sequence[Candidate]
    chosen: Candidate
    by: str  # what decided, in words
    failed: Mapping[str, str] = field(default_factory=dict)  # candidate -> why it could not be fitted


def sweep(
    request: Request, grid: Sequence[Mapping[str, Any]], watch: Watch, begun: Callable[[str], None] = lambda _: None
) -> Swept:
    """Fits the family with each setting into a numbered folder under `request.out`, and chooses one.

    Raises:
        Refusal: fewer than two settings, one that changes what is measured, or none that could be fitted.
    """
    if len(grid) < 2:
        raise Refusal("A sweep needs two values or more to choose from, such as --sweep latent=8,16,32.")
    for key in {k.partition(".")[0] for one in grid for k in one}:
        if key in NOT_COMPARABLE:
            raise Refusal(
                f"Argument {key} changes what is measured, so that clean evidence cannot choose it; fit each with "
                f"--set {key}=... and compare them with vaegis evaluate."
            )
    if request.resume:
        raise Refusal("--resume goes on with one fit; a sweep begins anew.")
    spec, _ = inputs.infer_spec(sources.open_source(request.source, request.reading), request.shaping)
    for one in grid:  # a wrong argument is answered before the first fit
        make(FAMILIES, request.family, spec, {**request.arguments, **one})
    found, failed, by = [], {}, ""
    for i, one in enumerate(grid):
        name = ", ".join(f"{k}={v}" for k, v in one.items())
        begun(name)
        asked = replace(request, arguments={**request.arguments, **one}, out=request.out / str(i))
        try:
            made = run(asked, watch)
        except Refusal as error:
            failed[name] = str(error)
            continue
        by, value, error_of = standing(json.loads(made.bundle.read("report/report.json")))
        found.append(Candidate(one, made, value, error_of))
    if not found:
        raise Refusal(f"None of the settings could be fitted. {next(iter(failed.items()))[1]}")
    return Swept(found, choose(found), by, failed)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The first within one standard error of the best."""
    best = min(candidates, key=lambda c: c.value)
    return next(c for c in candidates if c.value <= best.value + best.error)


def standing(report: Mapping[str, Any]) -> tuple[str, float, float]:
    """What decides, in words, its mean over the validate split, and the standard error of that.

    Raises:
        Refusal: the family has neither a likelihood nor a reconstruction error.
    """
    likelihood, terms = report["likelihood"], report["terms"]
    if likelihood is not None:
        term, offset = likelihood["term"], likelihood["log_jacobian"] or 0.0
        exact = "negative log-likelihood" if term == EXACT else "negative bound of the log-likelihood"
        by = f"{exact} of held-out clean samples, nats"
    elif "reconstruction_error" in terms:
        term, offset = "reconstruction_error", 0.0
        by = "standardised reconstruction error of held-out clean samples"
    else:
        raise Refusal(f"Family {report['family']} has no clean evidence that a sweep could choose by; compare by hand.")
    held, counts = terms[term]["validate"], report["samples"]
    # Overlapping windows are no independent samples.
    worth = held["samples"] * min(1.0, counts["independent"] / max(counts["calibrate"], 1))
    return by, held["mean"] + offset, held["sd"] / math.sqrt(max(worth, 1.0))
