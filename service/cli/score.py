"""`vaegis score`: verdicts on a source, to the terminal and to a score file."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from vaegis.models.bundle import Bundle
    from vaegis.models.calibration import Decision
    from vaegis.models.scorer import Scorer, Verdicts
    from vaegis.models.sources import SourceOptions

SHOWN = 5  # strangest samples named on the terminal


@shared.reads()
def score(
    *,
    source: shared.Source,
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    alpha: shared.Alpha = None,
    threshold: shared.Threshold = None,
    decide_by: shared.DecideBy = "score",
    group: Annotated[
        str | None, typer.Option("--group", help="Decide all by this calibration group; else each by its own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A row per sample: .parquet, .csv or .jsonl.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", metavar="DIR", help="Where it is strange: PNGs of images, a Parquet file otherwise."),
    ] = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with status 3 if anything is anomalous.")
    ] = False,
    asked: shared.Asked,
    device: shared.Device = "auto",
) -> None:
    """Say of every sample in SOURCE how strange it is, and whether it is an anomaly.

    vaegis score line4/today --model bracket --out today.parquet --maps today-maps

    vaegis score pump.csv --model pump --alpha 0.001
    """
    from rich.console import Console

    if maps is not None and maps.resolve() == source.resolve():
        raise Refusal(f"--maps {maps} is SOURCE itself, whose images the maps would replace; name another folder.")
    scorer, decision, blocks = judged(
        source, shared.bundle_for(model, bundle), alpha, threshold, decide_by, group, device,
        asked.reading(), maps is not None,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    strangest: list[tuple[float, str]] = []
    unread: list[str] = []
    with ExitStack() as stack:
        file: Any = None
        if out is not None:
            from vaegis.models.outputs.score_file import ScoreFile

            file = stack.enter_context(ScoreFile(out, scorer.terms))
        pictures: Any = None
        if maps is not None:
            from vaegis.models.outputs.map_files import MapFiles

            pictures = stack.enter_context(MapFiles(maps, scorer.bundle))
        for verdicts in watched(blocks):
            counts.update(verdicts.status)
            _remember(verdicts, strangest, unread)
            if file is not None:
                file.write(verdicts)
            if pictures is not None:
                pictures.write(verdicts)
    console = Console(highlight=False, soft_wrap=True)
    _tell(console, counts, decision, strangest, unread, scorer.bundle)
    if out is not None:
        console.print(f"  rows: {out}", soft_wrap=True, markup=False)
    if not counts["ok"] and not counts["anomalous"]:
        raise Refusal(f"None of the {counts['unjudged']} samples could be judged; the first: {unread[0]}")
    if fail_on_anomaly and counts["anomalous"]:
        raise typer.Exit(3)


def judged(
    source: Path,
    folder: Path,
    alpha: float | None,
    threshold: float | None,
    decide_by: str,
    group: str | None,
    device: str,
    reading: SourceOptions,
    maps: bool = False,
) -> tuple[Scorer, Decision, Iterator[Verdicts]]:
    """The scorer, the decision, and the source's verdicts block by block.

    Raises:
        Refusal: anything about the bundle, the source or the decision that does not fit.
    """
    from vaegis.models import inputs
    from vaegis.models.bundle import open_bundle
    from vaegis.models.calibration import decide
    from vaegis.models.scorer import Scorer
    from vaegis.models.sources import open_source

    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    bundle = open_bundle(folder)
    rate = bundle.manifest.alpha if alpha is None and threshold is None else alpha
    decision = decide(bundle.calibration, rate, threshold, decide_by, group)
    opened = open_source(source, reading)
    stream = inputs.blocks(opened, bundle.spec, roi=bundle.roi)
    scorer = Scorer(bundle, cast(Any, device))
    return scorer, decision, (scorer.verdicts(block, decision, maps) for block in stream)


def watched(blocks: Iterator[Verdicts]) -> Iterator[Verdicts]:
    """The same, counted on the terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("scoring {task.completed:,.0f}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("scoring", total=None)
        for one in blocks:
            bar.advance(task, len(one))
            yield one


def _remember(verdicts: Verdicts, strangest: list[tuple[float, str]], unread: list[str]) -> None:
    """Keeps the strangest samples and the first that could not be judged."""
    block, scores = verdicts.block, verdicts.evidence[verdicts.decision.decide_by]
    floor = strangest[0][0] if len(strangest) == SHOWN else float("-inf")
    for i in (scores > floor).nonzero()[0].tolist():
        name = block.items[i]
        where = f"{name} [{block.index[i]}]" if name else f"[{block.index[i]}]"
        p = verdicts.p_values[verdicts.decision.decide_by][i]
        entry = (float(scores[i]), f"{where}  {verdicts.decision.decide_by} {scores[i]:.5g}  p {p:.3g}")
        (heapq.heappushpop if len(strangest) == SHOWN else heapq.heappush)(strangest, entry)
    for i, why in verdicts.errors.items():
        if len(unread) < SHOWN:
            unread.append(f"{block.items[i] or ''} [{block.index[i]}]: {why}".strip())


def _tell(
    console: Any,
    counts: Counter[str],
    decision: Decision,
    strangest: list[tuple[float, str]],
    unread: list[str],
    bundle: Bundle,
) -> None:
    total = sum(counts.values())
    rate = f"{decision.alpha:.2%} false alarms" if decision.alpha is not None else "as given"
    beyond = ", extrapolated" if decision.extrapolated else ""
    what = "time steps" if bundle.spec.kind == "series" else "samples"
    console.print(
        f"[bold]{counts['anomalous']:,} of {total:,} {what} are anomalous[/] "
        f"({decision.decide_by} above {decision.threshold:.5g}: {rate}{beyond})"
    )
    if strangest:
        console.print("  strangest:")
        for _, line in sorted(strangest, reverse=True):
            console.print(f"    {line}", markup=False)
    if counts["unjudged"]:
        console.print(f"[yellow]  {counts['unjudged']:,} could not be judged:[/]")
        for line in unread:
            console.print(f"    {line}", markup=False)
