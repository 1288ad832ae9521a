"""`vaegis ensemble`: several models as one, calibrated together."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from vaegis.models.derived.ensemble import Member


@shared.reads()
def ensemble(
    *,
    models: Annotated[
        list[str], typer.Argument(metavar="A B [C ...]", help="Models by NAME[@VERSION], or bundles' folders.")
    ],
    name: Annotated[str, typer.Option("--name", help="What the ensemble is called: lower case, digits, . _ -")],
    on: Annotated[
        Path,
        typer.Option("--on", metavar="SOURCE", help="Clean samples to calibrate on, which no member was fitted on."),
    ],
    alpha: Annotated[float, typer.Option("--alpha", help="False-alarm rate when none is asked for.")] = 0.01,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the bundle here instead of registering it.")
    ] = None,
    source_options: shared.ReadingOptions,
) -> None:
    """Make one model of several: it runs them all, its score is the mean of theirs, its thresholds are its own.

    The members must take the same input. The samples of --on must be clean and new to every member: on samples that
    one was fitted on, scores are too low, and the ensemble would raise more false alarms than promised.

    vaegis ensemble bracket bracket-flow --on bracket/clean-more --name bracket-both
    """
    from vaegis.models import inputs
    from vaegis.models.calibration import decide
    from vaegis.models.derived.copies import copies_of, remarks
    from vaegis.models.derived.ensemble import check, ensemble_bundle, fitted_on, merge
    from vaegis.models.errors import Conflict
    from vaegis.models.sources import open_source
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import Registry, check_name

    check_name(name)
    if not 0.0 < alpha < 1.0:
        raise Refusal(f"The false-alarm rate alpha is {alpha}; give a number between 0 and 1, such as 0.01.")
    if out is not None and out.exists():
        raise Conflict(f"{out} exists already; a bundle is never altered. Name another --out folder.")
    members = _members(models)
    check(members)
    spec = members[0].bundle.spec
    reading = source_options.reading(calibrate_by=spec.calibrate_by)
    graph = merge(members)
    settings = read_settings()
    aside: Path | None = None
    with tempfile.TemporaryDirectory(prefix="vaegis-ensemble-") as folder:
        samples = inputs.load(open_source(on, reading), spec, Path(folder), roi=members[0].bundle.roi)
        for text in (*remarks(samples, copies_of(samples)), *_doubts(fitted_on(members, samples), on)):
            typer.echo(f"  note: {text}", err=True)
        try:
            if out is None:
                settings.home.mkdir(parents=True, exist_ok=True)
                aside = Path(tempfile.mkdtemp(prefix=".ensemble-", dir=settings.home))
            target = out if out is not None else Path(str(aside)) / "bundle"
            bundle = ensemble_bundle(members, graph, samples, alpha, target)
            rate, calibration = bundle.manifest.alpha, bundle.calibration
            outcome = str(out)
            if out is None:
                with closing(Registry.open(settings)) as registry:
                    outcome = shared.registration_phrase(registry.add(name, bundle.path, move=True), name)
        finally:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
    if rate > alpha:
        typer.echo(
            f"  note: A false-alarm rate of {alpha:g} needs more than the "
            f"{bundle.manifest.training.calibrate_independent} independent clean samples of {on.name}; this model's "
            f"own rate is {rate:g}. Add clean samples for a lower one.",
            err=True,
        )
    decision = decide(calibration, rate)
    beyond = ", extrapolated" if decision.extrapolated else ""
    typer.echo(f"{outcome}  (digest {bundle.digest[:12]})")
    typer.echo(
        f"  {len(members)} members: {', '.join(m.name for m in members)}; calibrated on {len(samples)} clean samples"
    )
    typer.echo(f"  flags a score above {decision.threshold:.5g}: {rate:.2%} false alarms{beyond}")


def _members(models: list[str]) -> list[Member]:
    """The bundles, each with a name that no other has."""
    from vaegis.models.bundle import open_bundle
    from vaegis.models.derived.ensemble import Member

    members: list[Member] = []
    for text in models:
        folder = Path(text)
        path = folder if folder.is_dir() else shared.bundle_for(text, None)
        plain = re.sub(r"[^a-z0-9_-]+", "-", (folder.resolve().name if folder.is_dir() else text.split("@")[0]).lower())
        name, number = plain.strip("-") or "member", 1
        while name in {m.name for m in members}:
            number += 1
            name = f"{plain.strip('-') or 'member'}-{number}"
        members.append(Member(name, open_bundle(path)))
    return members


def _doubts(known: tuple[str, ...], on: Path) -> list[str]:
    if known:
        verb = "was" if len(known) == 1 else "were"
        return [
            f"{on.name} is the very data that {', '.join(known)} {verb} fitted on: scores are lower there than on new "
            "clean samples, and the ensemble will raise more false alarms than promised. Calibrate on other clean ones."
        ]
    return [
        f"The samples of {on.name} must be new to every member; that none was fitted on some of them is taken on trust."
    ]
