"""`vaegis score`: verdicts on a source, to the terminal and to a score file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from vaegis.models.bundle import Bundle
    from vaegis.models.calibration import Decision
    from vaegis.models.scorer import Verdicts
    from vaegis.models.sources import SourceOptions


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
    events: Annotated[
        Path | None,
        typer.Option(
            "--events", metavar="FILE", help="A row per stretch of anomalous time steps: .parquet, .csv or .jsonl."
        ),
    ] = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 3 if anything is anomalous, 4 if anything is unjudged.")
    ] = False,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Say of every sample in SOURCE how strange it is, and whether it is an anomaly.

    vaegis score line4/today --model bracket --out today.parquet --maps today-maps

    vaegis score pump.csv --model pump --alpha 0.001 --events pump-events.csv
    """
    from rich.console import Console

    from vaegis.service.cli.summary import ScoreSummary

    outputs = Outputs(out, maps, events)
    outputs.check(source)
    scoring = open_scoring(
        source, shared.bundle_for(model, bundle), alpha, threshold, decide_by, group, device,
        source_options.reading(), outputs.need_maps,
    )  # fmt: skip
    shared.say_notes(scoring.notes)
    summary = ScoreSummary()
    with ExitStack() as stack:
        files = [stack.enter_context(file) for file in outputs.files(scoring.bundle, scoring.terms)]
        for verdicts in with_progress(scoring.verdicts):
            summary.add(verdicts)
            for file in files:
                file.write(verdicts)
    console = Console(highlight=False, soft_wrap=True)
    summary.print(console, scoring.decision, scoring.bundle.spec.kind)
    for what, path in (("rows", out), ("events", events)):
        if path is not None:
            console.print(f"  {what}: {path}", soft_wrap=True, markup=False)
    counts = summary.counts
    if not counts["ok"] and not counts["anomalous"]:
        raise Refusal(f"None of the {counts['unjudged']} samples could be judged; the first: {summary.unjudged[0]}")
    if fail_on_anomaly and counts["anomalous"]:
        raise typer.Exit(3)
    if fail_on_anomaly and (counts["unjudged"] or scoring.unreadable):
        raise typer.Exit(4)


class VerdictFile(Protocol):
    """What verdicts are written to."""

    def write(self, verdicts: Verdicts) -> None:
        """Takes the next block."""
        ...


@dataclass(frozen=True)
class Outputs:
    """What `vaegis score` writes, each if it is named."""

    out: Path | None
    maps: Path | None
    events: Path | None

    @property
    def need_maps(self) -> bool:
        """Whether the maps of the samples are needed: an event's guilty channels come from them too."""
        return self.maps is not None or self.events is not None

    def check(self, source: Path) -> None:
        """Looks at where they are to be.

        Raises:
            Refusal: one would replace another, or the source.
        """
        if self.maps is not None and self.maps.resolve() == source.resolve():
            raise Refusal(f"--maps {self.maps} is SOURCE itself, whose images the maps would replace; name another.")
        named = {"SOURCE": source, "--maps": self.maps, "--out": self.out, "--events": self.events}
        options: dict[Path, str] = {}
        for option, path in named.items():
            if path is None:
                continue
            if path.resolve() in options:
                raise Refusal(f"{option} {path} is also {options[path.resolve()]}; name another place for one of them.")
            options[path.resolve()] = option
            if option == "--maps":
                options[path.resolve() / "maps.parquet"] = "the table of --maps"

    def files(self, bundle: Bundle, terms: list[str]) -> Iterator[AbstractContextManager[VerdictFile]]:
        """What takes the verdicts, to be opened one after another."""
        if self.out is not None:
            from vaegis.models.outputs.score_file import ScoreFile

            yield ScoreFile(self.out, terms)
        if self.maps is not None:
            from vaegis.models.outputs.map_files import MapFiles

            yield MapFiles(self.maps, bundle)
        if self.events is not None:
            from vaegis.models.outputs.event_file import EventFile

            yield EventFile(self.events, bundle.spec)


@dataclass(frozen=True)
class Scoring:
    """A source about to be judged."""

    bundle: Bundle
    terms: list[str]
    decision: Decision
    verdicts: Iterator[Verdicts]  # block by block
    notes: tuple[str, ...]  # how the source is read
    unreadable: tuple[str, ...]  # what of it cannot be read at all, and so is no sample


def open_scoring(
    source: Path,
    folder: Path,
    alpha: float | None,
    threshold: float | None,
    decide_by: str,
    group: str | None,
    device: str,
    reading: SourceOptions,
    maps: bool = False,
) -> Scoring:
    """A source, the model and how it decides.

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
    blocks = inputs.blocks(opened, bundle.spec, roi=bundle.roi)
    scorer = Scorer(bundle, cast(Any, device))
    return Scoring(
        bundle,
        scorer.terms,
        decision,
        (scorer.verdicts(block, decision, maps) for block in blocks),
        inputs.notes_of(opened, bundle.spec),
        opened.unreadable,
    )


def with_progress(stream: Iterator[Verdicts]) -> Iterator[Verdicts]:
    """The same blocks, counted on the terminal as they pass."""
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
        for verdicts in stream:
            bar.advance(task, len(verdicts))
            yield verdicts
