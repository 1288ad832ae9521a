"""Several families on the same clean data.

Every fit goes through the same pipeline, on the same split (it follows from the data and the seed alone) and with the
same step budget; each leaves an ordinary bundle. What cannot take the data is named with its reason and left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models import inputs, sources
from vaegis.models.blocks import conditions_of
from vaegis.models.bundle import SCORE, Bundle
from vaegis.models.calibration import decide
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import FAMILIES, make
from vaegis.models.families.family import keywords
from vaegis.models.runtime.graph import Graph
from vaegis.models.scorer import Scorer
from vaegis.models.sources import Source, SourceOptions
from vaegis.models.spec import InputSpec
from vaegis.training.evaluate import Evaluation, evaluate_verdicts
from vaegis.training.pipeline import FittedBundle, run, spec_of
from vaegis.training.request import Labelled, Request, Watch

TIMED = 64  # samples per call when scoring is timed, as a service batches them
TIMED_LEAST = 0.2  # seconds
EXAMPLES = 6  # samples that every family's reconstructions are shown of
EXACT = "negative_log_likelihood"


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
    detection_rate: float | None = None  # share of anomalies flagged
    false_alarms: float | None = None  # share of clean test samples flagged


@dataclass(frozen=True)
class Entry:
    """One fit among several."""

    name: str  # the family
    result: FittedBundle | None
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
    fitter: Callable[[Request, Watch], FittedBundle] = run,
) -> tuple[InputSpec, list[Entry]]:
    """Fits every named family into a folder of its own under `request.out`.

    Args:
        request: its family is left aside; its arguments go to every family that has such.
        begun: is called with each family that is begun.
        fitter: what fits one.

    Raises:
        Refusal: nothing could be fitted, or an argument that none of them has.
    """
    if request.out.exists():
        raise Conflict(f"{request.out} exists already; name another --out folder, which is made.")
    if request.resume:
        raise Refusal("--resume goes on with one fit; name the one family that was interrupted, with its --out.")
    for key in request.arguments:
        if not any(_has(n, key) for n in names):
            raise Refusal(f"None of the families {', '.join(names)} has an argument {key.partition('.')[0]!r}.")
    spec = spec_of(request)
    if test is not None:  # read before the first fit, so that a wrong name or column is answered at once
        sources.read_labels(sources.open_source(test.source, test.reading), spec.kind, test.labels)
    requests, refused = _requests(request, names, spec)
    entries = []
    for name in names:
        if name in refused:
            entries.append(Entry(name, None, None, refused[name]))
            continue
        begun(name)
        try:
            result = fitter(requests[name], watch)
        except Refusal as error:
            entries.append(Entry(name, None, None, str(error)))
            continue
        entries.append(_entry(name, result, test))
    if not any(e.result for e in entries):
        raise Refusal(f"None of the families could be fitted. {entries[0].name}: {entries[0].why}")
    return spec, entries


def _has(family: str, argument: str) -> bool:
    """Whether a family has an argument, of which each column may have its own value: `likelihood.flow`."""
    return argument.partition(".")[0] in keywords(FAMILIES[family])


def _requests(request: Request, names: Sequence[str], spec: InputSpec) -> tuple[dict[str, Request], dict[str, str]]:
    """The fit of every family that can take the data, and why the others cannot."""
    requests, refused, budgets = {}, {}, []
    for name in names:
        arguments = {k: v for k, v in request.arguments.items() if _has(name, k)}
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
    options = replace(request.options, steps=request.options.steps or max(budgets, default=1))
    return {name: replace(r, options=options) for name, r in requests.items()}, refused


def _entry(name: str, result: FittedBundle, test: Labelled | None) -> Entry:
    figures = figures_of(result)
    if test is None:
        return Entry(name, result, figures)
    try:
        evaluation = evaluate_bundle(result.bundle, test)
    except Refusal as error:  # the fit is not lost for it
        return Entry(name, result, figures, str(error))
    figures = replace(
        figures,
        auroc=evaluation.auroc["score"],
        detection_rate=evaluation.detection_rate,
        false_alarms=evaluation.false_alarm_rate,
    )
    return Entry(name, result, figures)


def figures_of(result: FittedBundle) -> Figures:
    """What a bundle is worth without labels."""
    bundle, report = result.bundle, result.report
    likelihood, reconstruction = report.likelihood, report.reconstruction
    # A latent that holds all of a sample gives it back whatever was learned.
    repeated = None if reconstruction is None or reconstruction.exact else reconstruction.explained
    graphs = [n for n in bundle.manifest.files if n.endswith(".onnx")]
    return Figures(
        seconds=result.fit.seconds,
        steps=result.fit.steps,
        milliseconds=_milliseconds(bundle),
        megabytes=sum(len(bundle.read(n)) for n in graphs) / 1e6,
        alpha=bundle.manifest.alpha,
        expected=report.decision.interval,
        bits=likelihood.validate.bits_per_dimension if likelihood and likelihood.term == EXACT else None,
        repeated=repeated,
    )


def evaluate_bundle(bundle: Bundle, test: Labelled) -> Evaluation:
    """The bundle's verdicts on labelled samples, at its own rate.

    Raises:
        Refusal: a sample without a label, or labels of one sort only.
    """
    scorer, decision = Scorer(bundle, "cpu"), decide(bundle.calibration, bundle.manifest.alpha)
    source = sources.open_source(test.source, test.reading)
    return evaluate_verdicts(
        (scorer.verdicts(block, decision) for block in inputs.blocks(source, bundle.spec, roi=bundle.roi)),
        sources.read_labels(source, bundle.spec.kind, test.labels),
        decision,
        scorer.calibration.group(None).effective,
        test.labels,
        "the test source",
    )


def shown_samples(request: Request, bundle: Bundle, test: Labelled | None) -> Examples:
    """A few samples to show every family's reconstructions of: of the test source, else of the clean data."""
    if test is not None:
        return examples(bundle, test.source, test.reading)
    if isinstance(request.source, Path | Source):
        return examples(bundle, request.source, request.reading)
    samples = request.source
    chosen = np.linspace(0, len(samples) - 1, min(EXAMPLES, len(samples))).astype(np.int64)
    parts = samples.first[chosen]
    names = tuple(f"{samples.items[i]} [{i}]" for i in chosen.tolist())
    return Examples(samples.take(parts), names, conditions_of(samples, parts))


def examples(bundle: Bundle, source: Path | Source, reading: SourceOptions, most: int = EXAMPLES) -> Examples:
    """A few samples of a source, evenly from its first block."""
    opened = sources.open_source(source, reading) if isinstance(source, Path) else source
    for block in inputs.blocks(opened, bundle.spec, roi=bundle.roi):
        whole = np.flatnonzero(block.count > 0)
        if not len(whole):
            continue
        chosen = whole[np.unique(np.linspace(0, len(whole) - 1, min(most, len(whole))).astype(np.int64))]
        parts, once = np.unique(block.first[chosen], return_index=True)
        conditions = block.conditions[parts] if block.conditions is not None else None
        names = tuple(f"{block.items[i]} [{block.index[i]}]" for i in chosen[once])
        return Examples(block.parts[parts], names, conditions)
    raise Refusal(f"{source if isinstance(source, Path) else source.path} holds no sample that can be shown.")


def _milliseconds(bundle: Bundle) -> float:
    """Of one sample among `TIMED`, on values such as the graph may be given."""
    rng, spec = np.random.default_rng(0), bundle.spec
    top = 2**8 if spec.dtype.kind == "u" else 2
    parts = rng.integers(0, top, (TIMED, *spec.shape)).astype(spec.dtype)
    conditions = rng.integers(0, len(spec.conditions), TIMED) if spec.conditions else None
    graph = Graph(bundle.read(SCORE), spec, "cpu")
    graph.run(parts, batch=TIMED, conditions=conditions)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < TIMED_LEAST:
        graph.run(parts, batch=TIMED, conditions=conditions)
        calls += 1
    return 1000 * (time.perf_counter() - began) / (calls * TIMED)
