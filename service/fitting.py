"""The one door to training: fit, sweep, compare, evaluate, and register what came of it.

Everything that needs `vaegis[train]` is imported inside the functions, so that the service starts without it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.outputs.atomic import write_bytes, writing
from vaegis.models.sources import SourceOptions
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registered, Registry, check_name
from vaegis.training.request import FitOptions, Labelled, Request, Step, Watch

if TYPE_CHECKING:
    from vaegis.models.calibration import Decision
    from vaegis.models.runtime.sessions import Device
    from vaegis.models.scorer import Verdicts
    from vaegis.models.spec import Kind
    from vaegis.training.comparison.families import Entry
    from vaegis.training.comparison.sweep import Sweep
    from vaegis.training.evaluate import CleanEvaluation as CleanEvaluation
    from vaegis.training.evaluate import Evaluation as Evaluation
    from vaegis.training.evaluate import Proposal as Proposal
    from vaegis.training.pipeline import FittedBundle

__all__ = [
    "Comparison",
    "FitOptions",
    "Labelled",
    "LabelledVerdicts",
    "Outcome",
    "Placement",
    "Request",
    "Step",
    "Watch",
    "compare",
    "demo",
    "evaluate",
    "family_names",
    "fit",
    "need_training",
    "sweep",
]

NEEDED = ("torch", "lightning_fabric", "onnxscript", "safetensors", "sklearn", "matplotlib")
PAGE, FIGURES = "compare.html", "compare.json"


@dataclass(frozen=True)
class Placement:
    """Where a bundle is kept."""

    path: Path
    registered: Registered | None  # None: in a folder that the user named


@dataclass(frozen=True)
class Outcome:
    """A model that was fitted and is kept."""

    result: FittedBundle
    placement: Placement
    sweep: Sweep | None = None  # what it was chosen from


@dataclass(frozen=True)
class Comparison:
    """Several families that were fitted on the same samples."""

    entries: Sequence[Entry]
    placements: Mapping[str, Placement]  # of each family that could be fitted
    page: Path
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]  # family -> a text for each column, of each that could be fitted


@dataclass(frozen=True)
class LabelledVerdicts:
    """What a model's verdicts on a labelled source were worth."""

    evaluation: Evaluation | None  # None where every sample is clean
    all_clean: CleanEvaluation | None  # None where some are not
    decision: Decision
    kind: Kind
    notes: tuple[str, ...] = ()  # how the source is read
    proposals: tuple[Proposal, ...] = ()  # thresholds for what was asked for


def need_training() -> None:
    """Says plainly when only the service is installed; to be called before torch is imported.

    Raises:
        Refusal: a library is missing.
    """
    # torch's threads wait for each other by spinning, which on cores shared with other work made fits 8 times slower;
    # waiting asleep costs next to nothing on idle ones. libgomp reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    for module in NEEDED:
        if find_spec(module) is None:
            raise Refusal(f"Fitting needs {module}, which is not installed; run: pip install 'vaegis[train]'.")


def family_names(text: str) -> tuple[str, ...]:
    """The families that a text names: `all`, or names with commas.

    Raises:
        Refusal: an unknown family, listing the right ones; none, or one twice.
    """
    need_training()
    from vaegis.training.comparison.families import named

    return named(text)


def fit(request: Request, settings: Settings, out: Path | None = None, watch: Watch | None = None) -> Outcome:
    """Fits a model, and registers it under `request.name` or writes it to a folder.

    Args:
        request: its own `out` is left aside.
        out: the bundle's folder, which must not exist; None registers it.

    Raises:
        Refusal: anything a user can cause; nothing is left behind.
    """
    need_training()
    from vaegis.training.pipeline import run

    if out is not None:
        return Outcome(run(replace(request, out=out), watch), Placement(out, None))
    with _aside(settings.home, ".fit-") as folder:
        return _registered(run(replace(request, out=folder / "bundle"), watch), request.name, settings)


def sweep(
    request: Request,
    grid: Sequence[Mapping[str, Any]],
    settings: Settings,
    out: Path | None = None,
    watch: Watch | None = None,
    begun: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Fits a family with every setting of a grid, and keeps the one that clean evidence chooses, as `fit` does.

    Args:
        begun: is called with each setting that is begun.

    Raises:
        Refusal: anything a user can cause; nothing is left behind.
    """
    need_training()
    from vaegis.training.comparison.sweep import sweep as fit_grid

    if out is not None and out.exists():
        raise Conflict(f"{out} exists already; a bundle is never altered. Name another --out folder.")
    beside, prefix = (settings.home, ".fit-") if out is None else (_nearest(out), ".sweep-")
    with _aside(beside, prefix) as folder:
        choice = fit_grid(replace(request, out=folder / "all"), grid, watch or Watch(), begun)
        result = choice.chosen.result
        if out is None:
            return replace(_registered(result, request.name, settings), sweep=choice)
        out.parent.mkdir(parents=True, exist_ok=True)
        result.bundle.path.rename(out)
        return Outcome(_at(result, out), Placement(out, None), choice)


def compare(
    request: Request,
    names: Sequence[str],
    settings: Settings,
    out: Path | None = None,
    test: Labelled | None = None,
    watch: Watch | None = None,
    begun: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Fits several families, keeps each as NAME-FAMILY or under `out`, and writes a page that shows them side by side.

    Args:
        test: labelled samples to hold them against.
        begun: is called with each family that is begun.

    Raises:
        Refusal: anything a user can cause; nothing is left behind.
    """
    need_training()
    from vaegis.training.comparison.families import compare as fit_all
    from vaegis.training.comparison.families import shown_samples
    from vaegis.training.comparison.page import COLUMNS, cells, page

    if out is not None and out.exists():
        raise Conflict(f"{out} exists already; name another --out folder, which is made.")
    if out is None:
        for name in names:
            check_name(f"{request.name}-{name}")
    with _aside(settings.home if out is None else _nearest(out), ".fit-") as aside:
        spec, entries = fit_all(replace(request, out=aside / "all"), names, test, watch or Watch(), begun)
        results = {e.name: e.result for e in entries if e.result is not None}
        examples = shown_samples(request, next(iter(results.values())).bundle, test)
        files = {
            PAGE: page(request.name, spec, entries, examples, test is not None),
            FIGURES: _figures(request.name, entries),
        }
        folder = out if out is not None else settings.home / "comparisons" / request.name
        placements = _placed(results, request.name, out, settings)
        with writing(f"The comparison in {folder}"):
            for name, raw in files.items():
                write_bytes(folder / name, raw)
    rows = {e.name: cells(e) for e in entries if e.result is not None}
    return Comparison(entries, placements, folder / PAGE, COLUMNS, rows)


def evaluate(
    source: Path,
    bundle: Path,
    labels: str | None,
    reading: SourceOptions,
    alpha: float | None = None,
    threshold: float | None = None,
    decide_by: str = "score",
    device: Device = "auto",
    watched: Callable[[Iterator[Verdicts]], Iterable[Verdicts]] = lambda verdicts: verdicts,
    recall: float | None = None,
    false_alarms: float | None = None,
) -> LabelledVerdicts:
    """Compares a bundle's verdicts on a source with its labels.

    Args:
        labels: where they are; None: every sample is clean.
        alpha, threshold: to decide at; neither takes the bundle's own rate.
        watched: passes the verdicts on, block by block, and may show how far they are.
        recall, false_alarms: to propose thresholds for.

    Raises:
        Refusal: anything about the bundle, the source, its labels or the decision that does not fit.
    """
    need_training()
    from vaegis.models import inputs
    from vaegis.models.bundle import open_bundle
    from vaegis.models.calibration import decide
    from vaegis.models.scorer import Scorer
    from vaegis.models.sources import open_source, read_labels
    from vaegis.training.evaluate import evaluate as compare_with_labels
    from vaegis.training.evaluate import evaluate_clean, gather, propose

    model = open_bundle(bundle)
    rate = model.manifest.alpha if alpha is None and threshold is None else alpha
    decision = decide(model.calibration, rate, threshold, decide_by)
    opened = open_source(source, reading)
    scorer = Scorer(model, device)
    table = None if labels is None else read_labels(opened, model.spec.kind, labels)
    blocks = inputs.blocks(opened, model.spec, roi=model.roi)
    verdicts = (scorer.verdicts(block, decision) for block in blocks)
    independent = model.calibration.group(None).effective
    gathered = gather(watched(verdicts), table, labels or "")
    evaluation, all_clean = None, None
    if gathered.all_clean:
        all_clean = evaluate_clean(gathered.evidence, gathered.flagged, decision, independent)
    else:
        evaluation = compare_with_labels(
            gathered.evidence, gathered.flagged, gathered.label, gathered.classes, decision, independent
        )
    proposals = propose(gathered, decision.decide_by, recall, false_alarms)
    notes = inputs.notes_of(opened, model.spec)
    return LabelledVerdicts(evaluation, all_clean, decision, model.spec.kind, notes, proposals)


def demo(home: Path, models_only: bool) -> None:
    """Fits two models in a home, serves them, and shows what they say of real requests.

    Raises:
        Refusal: the service does not come up.
    """
    need_training()
    from vaegis.training.demo import run

    run(home, models_only)


@contextmanager
def _aside(beside: Path, prefix: str) -> Iterator[Path]:
    """A folder that is gone afterwards, on the file system of what is moved out of it."""
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nearest(out: Path) -> Path:
    """The nearest folder above that exists: what is made aside is then renamed, not copied."""
    return next(folder for folder in out.absolute().parents if folder.is_dir())


def _at(result: FittedBundle, path: Path) -> FittedBundle:
    return replace(result, bundle=replace(result.bundle, path=path))


def _registered(result: FittedBundle, name: str, settings: Settings) -> Outcome:
    with closing(Registry.open(settings)) as registry:
        placement = _register(registry, name, result.bundle.path)
    return Outcome(_at(result, placement.path), placement)


def _register(registry: Registry, name: str, path: Path) -> Placement:
    added = registry.add(name, path, move=True)
    return Placement(registry.resolve(f"{name}@{added.version}").path, added)


def _placed(
    results: Mapping[str, FittedBundle], name: str, out: Path | None, settings: Settings
) -> dict[str, Placement]:
    """Each family's bundle to where it belongs."""
    if out is not None:
        out.mkdir(parents=True)
        return {n: Placement(r.bundle.path.rename(out / n), None) for n, r in results.items()}
    with closing(Registry.open(settings)) as registry:
        return {n: _register(registry, f"{name}-{n}", r.bundle.path) for n, r in results.items()}


def _figures(name: str, entries: Sequence[Entry]) -> bytes:
    rows = [{"family": e.name, "why": e.why, **_row(e)} for e in entries]
    return (json.dumps({"format": 1, "name": name, "families": rows}, indent=1) + "\n").encode()


def _row(entry: Entry) -> dict[str, Any]:
    if entry.figures is None:
        return {}
    row = asdict(entry.figures)
    return {"found" if key == "detection_rate" else key: value for key, value in row.items()}
