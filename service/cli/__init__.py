"""The `vaegis` command.

Commands import what they need when they run, so that `vaegis --help` answers at once. What a user can cause ends in one
sentence and exit code 1, wrong usage in 2, Ctrl+C in 130.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Annotated

import typer

from vaegis.models.errors import Refusal
from vaegis.models.texts import printable_lines

# Command -> the module here that has a function of its name.
COMMANDS = {
    "fit": "fit",
    "score": "score",
    "evaluate": "evaluate",
    "encode": "latent.encode",
    "generate": "latent.generate",
    "interpolate": "latent.interpolate",
    "impute": "latent.impute",
    "purify": "latent.purify",
    "latent": "latent.latent",
    "ensemble": "ensemble",
    "demo": "demo",
    "serve": "serve",
}
GROUPS = {
    "models": "The registered models: list, show, import, promote, roll back, try beside the champion.",
    "keys": "Access keys of the service: create, list, revoke.",
}


def build() -> typer.Typer:
    """The command with all its subcommands.

    Raises:
        Refusal: one of them cannot be imported.
    """
    app = typer.Typer(
        name="vaegis",
        help="Learns what clean product looks like, and says of every image or sensor series how strange it is.",
        epilog="Start with: vaegis fit CLEAN --name NAME, then vaegis score NEW --model NAME, or vaegis serve.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, module in COMMANDS.items():
        app.command(name)(getattr(_module(module, name), name))
    for name, text in GROUPS.items():
        app.add_typer(_module(name, name).app, name=name, help=text, no_args_is_help=True)
    return app


def _module(path: str, command: str) -> ModuleType:
    """Imports the module of a command. One that is missing is an error: a command must not vanish in silence."""
    try:
        return import_module(f"vaegis.service.cli.{path}")
    except ModuleNotFoundError as error:
        raise Refusal(
            f"The command `vaegis {command}` cannot be loaded: {error}. The installation is not whole; install vaegis "
            "again."
        ) from error


def main() -> None:
    """The entry point: runs the command line and ends the process with its exit code."""
    # What Pillow thinks of a file's metadata: whatever of it matters is a reason or a note of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        build()(prog_name="vaegis")
    except Refusal as refusal:
        if _debugging():
            raise
        _say(str(refusal))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has left; a flush at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _debugging():
            raise
        _say(
            f"vaegis failed unexpectedly ({type(error).__name__}: {error}). Set VAEGIS_DEBUG=1 to see the whole trace."
        )
        sys.exit(1)


def _debugging() -> bool:
    return os.environ.get("VAEGIS_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _say(sentence: str) -> None:
    typer.echo(printable_lines(sentence), err=True)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"vaegis {version('vaegis')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Takes the options that stand before a command."""
