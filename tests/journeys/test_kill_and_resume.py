"""A fit that is killed at any moment leaves no bundle, and resumed gives the one it would have given."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from toy_data import vectors

pytestmark = pytest.mark.slow
VAEGIS = [sys.executable, "-c", "from vaegis.service.cli import main; main()"]


def heeding():
    """A shell has what it runs in the background ignore interrupts, and these tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def command(tmp_path):
    """`command("--out", DIR)`: one and the same fit, as a process of its own."""
    np.savez(tmp_path / "clean.npz", x=vectors(600, 1))
    env = dict(os.environ, VAEGIS_HOME=str(tmp_path / "home"), OMP_WAIT_POLICY="passive")

    def start(*args):
        fit = ["fit", tmp_path / "clean.npz", "--name", "toy", "--steps", 1500, "--seed", 4, "--set", "width=32"]
        return subprocess.Popen(
            [*VAEGIS, *map(str, (*fit, "--device", "cpu", *args))],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding,
        )  # fmt: skip

    return start


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def digest(folder):
    return json.loads((folder / "manifest.json").read_text())["digest"]


def killed_after(process, home, seconds):
    """Kills the process so long after its first checkpoint; returns the checkpoint's path."""
    for _ in range(6000):
        found = list(home.rglob("checkpoint.safetensors"))
        if found or process.poll() is not None:
            break
        time.sleep(0.01)
    assert found, process.communicate()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return found[0]


def test_kill_and_resume(command, tmp_path):
    finished(command("--out", tmp_path / "whole"))
    for turn, seconds in enumerate((0.0, 0.3)):
        out = tmp_path / f"resumed-{turn}"
        checkpoint = killed_after(command("--out", out), tmp_path / "home", seconds)
        assert checkpoint.is_file()
        assert not out.exists()
        finished(command("--out", out, "--resume"))
        assert digest(out) == digest(tmp_path / "whole")
        assert not list((tmp_path / "home").rglob("*.safetensors")), "a finished fit keeps no checkpoint"


def test_without_resume_a_fit_starts_anew_and_says_so(command, tmp_path):
    killed_after(command("--out", tmp_path / "a"), tmp_path / "home", 0.0)
    process = command("--out", tmp_path / "b")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "--resume" in err
    assert "starts anew" in " ".join(err.split())


def test_an_interrupt_ends_quietly(command, tmp_path):
    process = command("--out", tmp_path / "a")
    for _ in range(6000):
        if list((tmp_path / "home").rglob("checkpoint.safetensors")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "a").exists()
