"""`vaegis models`: what is registered, and which version answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.models.texts import printable
from vaegis.service.cli.options import Device, ReadingOptions, Source, reads, registration_phrase

if TYPE_CHECKING:
    from rich.table import Table

    from vaegis.models.blocks import Samples
    from vaegis.models.bundle import Bundle
    from vaegis.models.trial import TrialResult
    from vaegis.service.store.promotions import Promotions
    from vaegis.service.store.registry import Model, Promotion, Registry
    from vaegis.service.store.servings import Serving

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move.")]
CHAMPION = "champion"


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List every registered model and its champion, the version that answers when none is named."""
    with _registry() as registry:
        models = registry.list()
    if as_json:
        _json([_plain(m) for m in models])
        return
    if not models:
        typer.echo("No model is registered yet. Fit one: vaegis fit CLEAN --name NAME")
        return
    table = _table("name", "champion", "versions", "kind", "family", "digest")
    for m in models:
        shown = next((v for v in m.versions if v.version == m.aliases.get(CHAMPION)), m.versions[-1])
        champion = m.aliases.get(CHAMPION)
        count, family = str(len(m.versions)), printable(shown.family)
        table.add_row(m.name, str(champion or "-"), count, shown.kind, family, shown.digest[:12])
    _print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    as_json: AsJson = False,
) -> None:
    """Show one model: its versions, its aliases and every promotion."""
    with _registry() as registry:
        model = registry.show(name.partition("@")[0])
    if as_json:
        _json(_plain(model))
        return
    table = _table("version", "aliases", "kind", "family", "alpha", "registered", "digest")
    for v in model.versions:
        aliases, family = ", ".join(v.aliases), printable(v.family)
        table.add_row(
            str(v.version), aliases, v.kind, family, f"{v.alpha:g}", f"{v.registered:%Y-%m-%d %H:%M}", v.digest[:12]
        )
    log = _table("when (UTC)", "what", "alias", "from", "to", "by")
    for p in model.promotions:
        log.add_row(
            f"{p.at:%Y-%m-%d %H:%M:%S}",
            p.action,
            p.alias,
            str(p.from_version or "-"),
            str(p.to_version),
            printable(p.by),
        )
    _print(table, log)


@app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle, as `vaegis fit --out DIR` writes it.")],
    name: Annotated[str, typer.Option("--name", help="The model it becomes the next version of.")],
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="DIGEST", help="Take no bundle but that of this digest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a bundle: every byte of it is verified and copied, and it is tried. A model's first version becomes its
    champion."""
    from vaegis.service.store.imports import import_bundle

    with _registry() as registry:
        outcome = import_bundle(registry, name, bundle, expect=expect, by=_who(), trial=_trial_within_limit())
    added = outcome.registered
    for warning in outcome.warnings:
        typer.echo(f"  note: {warning}", err=True)
    if as_json:
        _json({"name": added.name, "version": added.version, "digest": added.digest, "promoted": added.promoted})
        return
    more = ", registered before" if added.known else ", now its champion" if added.promoted else ""
    typer.echo(f"{added.name} version {added.version}{more}.")
    if not added.known and not added.promoted:
        typer.echo(f"Promote it with: vaegis models promote {added.name}@{added.version}")


@app.command()
def promote(
    address: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version, by number or by alias.")],
    alias: Alias = CHAMPION,
    override: Annotated[
        bool, typer.Option("--override", help="Promote a version that takes other samples than the champion.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version answer from now on, if it can: it is tried first. Running services follow within a second."""
    name, at, target = address.partition("@")
    if not at or not target:
        raise Refusal(f"{address!r} names no version; write {name or 'NAME'}@VERSION, such as {name or 'NAME'}@2.")
    with _registry() as registry:
        _moved(name, _promotions(registry).promote(name, target, alias, _who(), override), as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    alias: Alias = CHAMPION,
    as_json: AsJson = False,
) -> None:
    """Undo the last promotion; again for the one before that."""
    with _registry() as registry:
        _moved(name, registry.rollback(name, alias, _who()), as_json)


@app.command()
def canary(
    address: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The version that shall answer; with --end, the model.")
    ],
    share: Annotated[float | None, typer.Option(help="Its share of requests, such as 0.05.")] = None,
    end: Annotated[bool, typer.Option("--end", help="Let the champion answer every request again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version answer a share of the champion's requests. A promotion ends it; running services follow."""
    from vaegis.service.store.servings import Servings

    name, target = _trial(address, end)
    if (share is None) != end:
        raise Refusal("Give --share, such as --share 0.05, or --end." if not end else "--end takes no --share.")
    with _registry() as registry:
        if target is None:
            now = Servings(registry).canary(name, None, by=_who())
        else:
            now = _promotions(registry).canary(name, target, share or 0.0, _who())
    effect = f"{name} version {now.canary} answers {now.share:.3g} of its requests now."
    _print_trial(name, now, effect if now.canary is not None else f"{name} has no canary now.", as_json)


@app.command()
def shadow(
    address: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The version that shall score too; with --end, the model.")
    ],
    end: Annotated[bool, typer.Option("--end", help="Let only the champion score again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a version score the champion's traffic, to be compared and never returned. A promotion ends it.

    GET /v1/models/NAME/shadow and the metrics show how the two compare.
    """
    from vaegis.service.store.servings import Servings

    name, target = _trial(address, end)
    with _registry() as registry:
        if target is None:
            now = Servings(registry).shadow(name, None, _who())
        else:
            now = _promotions(registry).shadow(name, target, _who())
    effect = f"{name} version {now.shadow} scores the same traffic now; see GET /v1/models/{name}/shadow."
    _print_trial(name, now, effect if now.shadow is not None else f"{name} has no shadow now.", as_json)


@app.command()
@reads()
def half(
    *,
    source: Source,
    model: Annotated[str, typer.Option("--model", help="The model: NAME, NAME@VERSION or NAME@ALIAS.")],
    source_options: ReadingOptions,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Register a version in half precision, which a GPU runs faster, if it decides as the one it is made of.

    SOURCE holds clean samples that the model was not fitted on: they prove it, and calibrate it anew, in the groups
    that the model was calibrated in.
    """
    from vaegis.models.bundle import open_bundle
    from vaegis.models.derived.half import half_bundle

    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    with _registry() as registry, TemporaryDirectory(prefix="vaegis-half-") as folder:
        of = registry.resolve(model)
        bundle = open_bundle(of.path)
        samples = _clean_samples(of.name, bundle, source, source_options, Path(folder), "half precision")
        half, agreement = half_bundle(bundle, samples, Path(folder) / "half", cast(Any, device))
        added = registry.add(of.name, half.path, by=_who())
    worst = min(agreement.rank.values())
    if as_json:
        _json({"name": of.name, "version": added.version, "digest": added.digest, **asdict(agreement)})
        return
    flips = f"{agreement.flips}, all near the threshold," if agreement.flips else "none"
    typer.echo(f"{agreement.samples} clean samples: ranks agree to {worst:.6f}; {flips} decided differently.")
    typer.echo(registration_phrase(added, of.name) + ".")


@app.command()
@reads()
def recalibrate(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The version that keeps its graphs.")],
    clean: Annotated[
        Path, typer.Option("--clean", metavar="SOURCE", help="Clean samples that the model was not fitted on.")
    ],
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="False-alarm rate when none is asked for; else the model's own.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="COLUMN|KEY|folder|REGEX",
            help="Samples of one batch or camera session: calibration counts these as independent, not their samples.",
        ),
    ] = None,
    source_options: ReadingOptions,
    as_json: AsJson = False,
) -> None:
    """Register a version with the same graphs and a calibration of fresh clean samples, without a refit.

    For clean product that has changed a little, or a false-alarm rate that takes more clean samples than the fit had.
    """
    from vaegis.models.bundle import open_bundle
    from vaegis.models.derived.recalibration import recalibrate_bundle

    with _registry() as registry, TemporaryDirectory(prefix="vaegis-recalibrate-") as folder:
        of = registry.resolve(name)
        bundle = open_bundle(of.path)
        samples = _clean_samples(of.name, bundle, clean, source_options, Path(folder), "the new version", group_by)
        outcome = recalibrate_bundle(bundle, samples, Path(folder) / "bundle", alpha, group_by)
        added = registry.add(of.name, outcome.bundle.path, by=_who())
    rate, wanted = outcome.bundle.manifest.alpha, bundle.manifest.alpha if alpha is None else alpha
    if rate > wanted:
        typer.echo(
            f"  note: A false-alarm rate of {wanted:g} needs more than {outcome.independent} independent clean "
            f"samples; this version's own rate is {rate:g}. Add clean samples for a lower one.",
            err=True,
        )
    if as_json:
        figures = {"samples": outcome.samples, "independent": outcome.independent, "alpha": rate}
        figures |= {"threshold": outcome.threshold, "flagged_before": outcome.flagged_before}
        _json({"name": of.name, "version": added.version, "digest": added.digest, **figures})
        return
    typer.echo(
        f"{outcome.samples} clean samples, {outcome.independent} of them independent: flags a score above "
        f"{outcome.threshold:.5g} at {rate:.2%}; version {of.version} flags {outcome.flagged_before:.2%} of them at "
        f"{bundle.manifest.alpha:.2%}."
    )
    typer.echo(registration_phrase(added, of.name) + ".")


def _trial(address: str, end: bool) -> tuple[str, str | None]:
    name, _, target = address.partition("@")
    if end:
        return name, None
    if not target:
        raise Refusal(f"{address!r} names no version; write {name or 'NAME'}@VERSION, such as {name or 'NAME'}@2.")
    return name, target


def _print_trial(name: str, now: Serving, effect: str, as_json: bool) -> None:
    if as_json:
        _json({"name": name, "canary": now.canary, "share": now.share, "shadow": now.shadow})
    else:
        typer.echo(effect)


def _moved(name: str, p: Promotion, as_json: bool) -> None:
    if as_json:
        _json({"name": name, "alias": p.alias, "version": p.to_version, "previous": p.from_version})
        return
    before = "" if p.from_version is None else f" (before: {p.from_version})"
    typer.echo(f"{name}@{p.alias} is version {p.to_version} now{before}.")


def _registry() -> Registry:
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import Registry

    return Registry.open(read_settings())


def _promotions(registry: Registry) -> Promotions:
    from vaegis.service.store.promotions import Promotions

    return Promotions(registry, _trial_within_limit())


def _trial_within_limit() -> Callable[[Path], TrialResult]:
    from vaegis.models.trial import try_bundle
    from vaegis.service.settings import read_settings

    return partial(try_bundle, seconds=read_settings().open_seconds)


def _who() -> str:
    """The user, for the promotions log; containers may have none."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "command line"


def _plain(model: Model) -> dict[str, object]:
    return asdict(model)


def _json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(*tables: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for table in tables:
        console.print(table)


def _clean_samples(
    name: str,
    bundle: Bundle,
    source: Path,
    source_options: ReadingOptions,
    folder: Path,
    version: str,
    group_by: str | None = None,
) -> Samples:
    """Clean samples for a version made of a bundle, spooled in a folder; what is to know of them is said.

    Args:
        version: the new one, in words.
    """
    from vaegis.models import inputs
    from vaegis.models.derived.copies import copies_of, remarks
    from vaegis.models.sources import open_source

    clean = open_source(source, source_options.reading(group_by, calibrate_by=bundle.spec.calibrate_by))
    samples = inputs.load(clean, bundle.spec, folder / "samples", roi=bundle.roi)
    notes = [f"Left out {item}: {why}" for item, why in samples.skipped]
    notes += remarks(samples, copies_of(samples))
    if samples.digest == bundle.manifest.training.digest:
        notes.append(
            f"{source.name} is the very data that {name} was fitted on: scores are lower there than on new clean "
            f"samples, and {version} will raise more false alarms than promised."
        )
    for text in notes:
        typer.echo(f"  note: {text}", err=True)
    return samples
