"""`vaegis fit`: clean data in, a calibrated model out. With `evaluate`, what needs the extra `train`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from rich.console import Console

    from vaegis.training.pipeline import Made, Watch


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
    asked: shared.Asked,
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

    from vaegis.service.cli import several
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import Registry, check_name

    check_name(name)
    settings = read_settings()
    if missing not in ("refuse", "allow"):
        raise Refusal(f"--missing {missing} is unknown; write refuse or allow.")
    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    need_training()
    from vaegis.models.inputs import InputOptions
    from vaegis.training.fit import FitOptions
    from vaegis.training.pipeline import Request, run

    work = settings.home / "fits"
    request = Request(
        source=source,
        name=name,
        out=out if out is not None else settings.home / "bundle",
        work=work,
        family=family,
        arguments=shared.arguments(set_ or (), recipe),
        reading=asked.reading(group_by, calibrate_by, condition=condition),
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
        options=FitOptions(seed, steps, shared.duration(max_time), batch, rate, cast(Any, device)),
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
            entries, kept_all, page = several.compared(request, names, against, out, settings, console, watch)
        several.tell(Console(highlight=False, soft_wrap=True), entries, kept_all, page)
        return
    aside: Path | None = None
    try:
        if out is None:
            settings.home.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".fit-", dir=settings.home))
            request = replace(request, out=aside / "bundle")
        with _watch(console) as watch:
            made = several.swept(request, sweep, console, watch) if sweep else run(request, watch)
        if out is None:
            with closing(Registry.open(settings)) as registry:
                kept = registry.add(name, made.bundle.path, move=True)
                place = registry.resolve(f"{name}@{kept.version}").path
            said = shared.kept(kept, name)
        else:
            said, place = f"{out}", out
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    _tell(Console(highlight=False, soft_wrap=True), made, said, place)


def need_training() -> None:
    """Says plainly when only the service is installed; to be called before torch is imported."""
    import os
    from importlib.util import find_spec

    # torch's threads wait for each other by spinning, which on cores shared with other work made fits 8 times slower;
    # waiting asleep costs next to nothing on idle ones. libgomp reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")

    for module in ("torch", "lightning_fabric", "onnxscript", "safetensors", "sklearn", "matplotlib"):
        if find_spec(module) is None:
            raise Refusal(f"Fitting needs {module}, which is not installed; run: pip install 'vaegis[train]'.")


@contextmanager
def _watch(console: Console) -> Iterator[Watch]:
    """A progress bar, and what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vaegis.training.fit import Step
    from vaegis.training.pipeline import Watch

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
        held = f"  validate {at.validate:.4g}" if at.validate is not None else ""
        bar.update(task, description="fitting", completed=at.step, total=at.total, loss=terms + held)

    def stage(text: str) -> None:
        console.print(text, style="bold", markup=False)
        bar.reset(task, total=None, description="", loss="")

    watch = Watch(stage, lambda text: console.print(f"  note: {text}", style="yellow", markup=False), read, step)
    with bar:
        yield watch


def _tell(console: Console, made: Made, said: str, place: Path) -> None:
    """What came of it, in a few lines."""
    from vaegis.models.calibration import decide

    manifest, split = made.bundle.manifest, made.split
    decision = decide(made.calibration, manifest.alpha)
    counts = split.counts()
    console.print(f"{said}  (digest {manifest.digest[:12]})", style="bold", markup=False)
    console.print(
        f"  learned from {counts['fit']} clean samples, validated on {counts['validate']}, calibrated on "
        f"{counts['calibrate']}; {made.fitted.steps} steps in {made.fitted.seconds:.0f} s ({made.fitted.stopped})"
    )
    beyond = ", extrapolated" if decision.extrapolated else ""
    console.print(f"  flags a score above {decision.threshold:.5g}: {manifest.alpha:.2%} false alarms{beyond}")
    console.print(f"  report: {place / 'report' / 'report.html'}", soft_wrap=True, markup=False)
