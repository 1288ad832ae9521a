"""`vaegis keys`: who may ask the service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vaegis.service.store.keys import Key
    from vaegis.service.store.registry import Registry

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who uses the key, such as line-3.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="score|audit|train|admin",
            help="What it may do; repeatable. admin includes the others.",
            show_default="score",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="SAMPLES",
            help="Samples a second it may ask for; 0 sets no bounds.",
            show_default="as VAEGIS_RATE says",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once and cannot be had again. From then on the service asks every request for a key."""
    from vaegis.service.store.keys import Keys

    with _registry() as registry:
        text = Keys(registry.database).create(name, scope or ["score"], rate)
    if as_json:
        typer.echo(json.dumps({"name": name, "key": text}))
        return
    typer.echo(text)
    typer.echo("Keep it: it is not shown again. Send it as  Authorization: Bearer KEY", err=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List every key by its id, revoked ones included; never the keys themselves."""
    from vaegis.service.store.keys import Keys

    with _registry() as registry:
        keys = Keys(registry.database).list()
    if as_json:
        typer.echo(json.dumps([_plain(k) for k in keys], indent=2))
        return
    if not keys:
        typer.echo("There is no key: the service answers anybody on this machine, and listens nowhere else.")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "name", "scopes", "rate", "created (UTC)", "revoked (UTC)", box=SIMPLE_HEAD, pad_edge=False)
    for k in keys:
        revoked = "-" if k.revoked is None else f"{k.revoked:%Y-%m-%d %H:%M}"
        rate = "-" if k.rate is None else f"{k.rate:g}/s" if k.rate else "any"
        table.add_row(k.id, k.name, " ".join(sorted(k.scopes)), rate, f"{k.created:%Y-%m-%d %H:%M}", revoked)
    Console(highlight=False).print(table)


@app.command()
def revoke(ident: Annotated[str, typer.Argument(metavar="ID", help="The key's id, from `vaegis keys list`.")]) -> None:
    """End a key for good. Running services refuse it at once."""
    from vaegis.service.store.keys import Keys

    with _registry() as registry:
        key = Keys(registry.database).revoke(ident)
    typer.echo(f"Key {key.id} of {key.name} is revoked.")


def _plain(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "rate": key.rate,
        "created": key.created.isoformat(),
        "revoked": None if key.revoked is None else key.revoked.isoformat(),
    }


def _registry() -> Registry:
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import Registry

    return Registry.open(read_settings())
