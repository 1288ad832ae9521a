"""Every command is listed; one whose module is missing is an error that names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vaegis.service.cli import COMMANDS, GROUPS

MODULES = {**COMMANDS, **{name: name for name in GROUPS}}


def run(*words, missing=None):
    """The command in a process of its own, in which the module `missing` cannot be imported."""
    hide = f"sys.modules['vaegis.service.cli.{missing}'] = None; " if missing else ""
    program = f"import sys; {hide}from vaegis.service.cli import main; sys.argv[0] = 'vaegis'; main()"
    environment = {k: v for k, v in os.environ.items() if k != "VAEGIS_DEBUG"}
    environment |= {"COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    return subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command():
    done = run("--help")
    assert done.returncode == 0
    lines = [line.strip("│ ").split() for line in done.stdout.splitlines()]
    listed = [words[0] for words in lines if words and words[0] in MODULES]
    assert listed == list(MODULES)


@pytest.mark.parametrize("command", ["ensemble", "encode", "keys"])
@pytest.mark.parametrize("words", [["--help"], ["score"]], ids=" ".join)
def test_a_command_whose_module_is_missing_does_not_vanish(command, words):
    done = run(*words, missing=MODULES[command])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"The command `vaegis {command}` cannot be loaded: ")
    assert MODULES[command] in done.stderr
    assert "install vaegis again" in done.stderr
    assert "Traceback" not in done.stderr
