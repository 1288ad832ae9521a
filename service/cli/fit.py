"""`vaegis fit`: clean data in, a calibrated model out. With `evaluate`, what needs the extra `train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from rich.console import Console

    from vaegis.service.fitting import Outcome, Step, Watch


@shared.reads("condition")
def fit(
    *,
    source: shared.Source,
    name: Annotated[str, typer.Option("--name", help="What the model is called: lower case, digits, . _ -")],
    family: Annotated[
        str, typer.Option("--family", help="The kind of model; several with commas, or all, are compared.")
    ] = "vae",
    alpha: Annotated[float, typer.Option("--alpha", help="False-alarm rate when none is asked for.")] = 0.01,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the bundle here instead of registering it.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything random: same seed and data, same model.")
    ] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps at most.")] = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", metavar="10m", help="Stop training after this time: 90s, 10m, 1.5h.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from where this very command was interrupted.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the family, such as latent=32; repeatable."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep", metavar="KEY=A,B,C", help="Fit with each value and keep the best by clean evidence; repeatable."
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="SOURCE", help="Of several families: labelled samples to hold them to."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="FILE.csv|column:NAME|key:NAME|folders", help="Where the labels of --test are."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE.toml", help="The family's arguments from a file.")
    ] = None,
    invariant: Annotated[
        str | None,
        typer.Option(
            "--invariant",
            metavar="A,B",
            help="What may vary on clean product: rotation, flip, shift, lighting, noise (images); offset, scale, noise"
            " (series); noise (vectors).",
        ),
    ] = None,
    source_options: shared.ReadingOptions,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="COLUMN|KEY|folder|REGEX",
            help="Samples of one batch or camera session, which are never split between fitting and calibration.",
        ),
    ] = None,
    calibrate_by: Annotated[
        str | None,
        typer.Option("--calibrate-by", metavar="...", help="Groups with thresholds of their own, such as a station."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition",
            metavar="FILE.csv|column:NAME|key:NAME|folders",
            help="What each sample was made as, such as its recipe: the model judges it as that.",
        ),
    ] = None,
    missing: Annotated[
        str, typer.Option("--missing", metavar="refuse|allow", help="Whether NaN is an error or a missing value.")
    ] = "refuse",
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Resize images to this many pixels, 16 to 512 a side.")
    ] = None,
    tile: Annotated[int | None, typer.Option("--tile", help="Cut large images into square tiles of this side.")] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", help="Pixels that neighbouring tiles share.")] = None,
    roi: Annotated[
        Path | None, typer.Option("--roi", metavar="MASK.png", help="Inspect only where this mask is not black.")
    ] = None,
    window: Annotated[int | None, typer.Option("--window", help="Rows per window of a series.")] = None,
    stride: Annotated[int, typer.Option("--stride", help="Rows from one window to the next.")] = 1,
    batch: Annotated[int | None, typer.Option("--batch", min=2, help="Samples a step; else the family's.")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.0, help="Peak learning rate; else the family's.")
    ] = None,
    generation: Annotated[
        bool, typer.Option("--generation/--no-generation", help="Judge what the model generates, in the report.")
    ] = True,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="NET.onnx", help="A feature network to judge that by; else a small VAE's."),
    ] = None,
    device: shared.Device = "auto",
) -> None:
    """Learn what clean product looks like, calibrate it, and keep the model.

    SOURCE holds clean samples only: whatever is in it is taken to be good. A fifth of it or more is held out to
    calibrate the thresholds. The model is registered under --name, and served if it is the first of that name.

        vaegis fit parts/clean --name bracket

        vaegis fit pump.csv --name pump --exclude batch,operator --alpha 0.005

    Several families are fitted on the same samples and compared; --sweep tries values of one family's arguments.

        vaegis fit parts/clean --name bracket --family all --test parts/checked --labels folders

        vaegis fit parts/clean --name bracket --sweep latent=8,16,32
    """
    from rich.console import Console

    from vaegis.service import fitting
    from vaegis.service.cli import several
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import check_name

    check_name(name)
    settings = read_settings()
    if missing not in ("refuse", "allow"):
        raise Refusal(f"--missing {missing} is unknown; write refuse or allow.")
    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    fitting.need_training()
    from vaegis.models.inputs import InputOptions

    request = fitting.Request(
        source=source,
        name=name,
        out=out if out is not None else settings.home / "bundle",
        work=settings.home / "fits",
        family=family,
        arguments=shared.arguments(set_ or (), recipe),
        reading=source_options.reading(group_by, calibrate_by, condition=condition),
        shaping=InputOptions(
            size=shared.size(size),
            tile=tile,
            overlap=overlap,
            window=window,
            stride=stride,
            missing=cast(Any, missing),
            invariances=shared.names(invariant),
            roi=roi,
        ),
        alpha=alpha,
        options=fitting.FitOptions(seed, steps, shared.duration(max_time), batch, rate, cast(Any, device)),
        resume=resume,
        generation=generation,
        network=features,
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    names = several.families(family)
    against = several.test_of(test, labels, request)
    if names is not None and sweep:
        raise Refusal("--sweep takes one family, and --family names several; sweep them one at a time.")
    if names is None and against is not None:
        raise Refusal("--test compares several families; of one model write: vaegis evaluate SOURCE --model NAME.")
    if names is not None:
        with _watch(console) as watch:
            comparison = fitting.compare(
                request, names, settings, out, against, watch, several.family_begun(console, names)
            )
        several.tell(Console(highlight=False, soft_wrap=True), name, comparison)
        return
    if sweep:
        grid = several.grid(sweep)
        with _watch(console) as watch:
            outcome = fitting.sweep(request, grid, settings, out, watch, several.setting_begun(console))
        several.tell_sweep(console, outcome)
    else:
        with _watch(console) as watch:
            outcome = fitting.fit(request, settings, out, watch)
    _tell(Console(highlight=False, soft_wrap=True), name, outcome)


@contextmanager
def _watch(console: Console) -> Iterator[Watch]:
    """A progress bar, and what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vaegis.service.fitting import Watch

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        transient=True,
    )
    task = bar.add_task("reading", total=None, loss="")

    def read(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total)

    def step(at: Step) -> None:
        terms = "  ".join(f"{k} {v:.3g}" for k, v in at.terms.items())
        validation = f"  validate {at.validate:.4g}" if at.validate is not None else ""
        bar.update(task, description="fitting", completed=at.step, total=at.total, loss=terms + validation)

    def stage(text: str) -> None:
        console.print(text, style="bold", markup=False)
        bar.reset(task, total=None, description="", loss="")

    watch = Watch(stage, lambda text: console.print(f"  note: {text}", style="yellow", markup=False), read, step)
    with bar:
        yield watch


def _tell(console: Console, name: str, outcome: Outcome) -> None:
    """What came of it, in a few lines."""
    result, place = outcome.result, outcome.placement.path
    manifest, decision, counts = result.bundle.manifest, result.report.decision, result.split.counts()
    where = shared.placement_phrase(outcome.placement, name)
    console.print(f"{where}  (digest {manifest.digest[:12]})", style="bold", markup=False)
    console.print(
        f"  learned from {counts['fit']} clean samples, validated on {counts['validate']}, calibrated on "
        f"{counts['calibrate']}; {result.fit.steps} steps in {result.fit.seconds:.0f} s ({result.fit.stopped})"
    )
    beyond = ", extrapolated" if decision.extrapolated else ""
    console.print(f"  flags a score above {decision.threshold:.5g}: {manifest.alpha:.2%} false alarms{beyond}")
    console.print(f"  report: {place / 'report' / 'report.html'}", soft_wrap=True, markup=False)
