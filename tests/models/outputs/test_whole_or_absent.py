"""What writes results leaves the old ones or the new ones, whole: after a failure, a full disk, a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from writers import FILES, FOLDERS, write

from size_limit import size_limit
from vaegis.models.errors import Refusal

TESTS = Path(__file__).parents[2]
FORMS = {**FILES, **FOLDERS}


class Broken(Exception):
    """The writer's own trouble, half-way."""


def tree(folder):
    """Relative path -> bytes of every file below, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def old(kind, target):
    """Puts an earlier result there, where the kind may replace one."""
    if kind in FILES:
        target.write_bytes(b"old")
    elif kind != "folder":
        target.mkdir()
        for name in ("a", "a0.png", "sample.0.png", "maps.parquet"):
            (target / name).write_bytes(b"old")


@pytest.fixture(params=[True, False], ids=["over an old one", "where nothing is"])
def place(request, tmp_path):
    """`place(kind)`: a target, with an earlier result in its place or not, and all that lies there."""
    folder = tmp_path / "out"

    def get(kind):
        folder.mkdir()
        if request.param:
            old(kind, folder / FORMS[kind])
        return folder / FORMS[kind], tree(folder)

    return get


@pytest.mark.parametrize("kind", FORMS)
def test_a_failure_leaves_what_was_there_and_nothing_else(place, kind):
    target, before = place(kind)
    there = sorted(target.parent.rglob("*"))

    def fail():
        raise Broken

    with pytest.raises(Broken):
        write(kind, target, fail)
    assert tree(target.parent) == before
    assert sorted(target.parent.rglob("*")) == there


@pytest.mark.parametrize("kind", FORMS)
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(place, kind):
    target, before = place(kind)
    there = sorted(target.parent.rglob("*"))
    with size_limit(20):
        expected = OSError if kind in ("file", "folder", "files") else Refusal
        with pytest.raises(expected, match=r"File too large|cannot be written: File too large\. Name another place"):
            write(kind, target, lambda: None)
    assert tree(target.parent) == before
    assert sorted(target.parent.rglob("*")) == there


def started(kind, target):
    """A process that writes, half-way through."""
    paths = [Path(__file__).parent, TESTS, TESTS.parent / "src"]
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("writers.py"), kind, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert process.stdout.readline() == "halfway\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize(
    "kind", ["file", "folder", "files", "scores.csv", "events.jsonl", "maps", "maps.parquet", "samples", "samples.csv"]
)
def test_a_kill_leaves_what_was_there_and_the_next_writing_tidies_up(place, kind):
    target, before = place(kind)
    kill(started(kind, target))
    left = tree(target.parent)
    assert {n: raw for n, raw in left.items() if ".partial" not in n} == before
    # What it leaves is hidden, so no source reads it.
    hidden = {n for n in left if ".partial" in n}
    assert all(any(part.startswith(".") and part.endswith(".partial") for part in n.split("/")) for n in hidden)
    write(kind, target, lambda: None)
    assert not [p for p in target.parent.rglob("*") if ".partial" in p.name]
    assert tree(target.parent) != before


def test_a_writer_that_lives_is_left_alone(tmp_path):
    """Two write one file: neither disturbs the other, and who ends last has the last word, whole."""
    target = tmp_path / "x.bin"
    process = started("file", target)
    write("file", target, lambda: None)
    assert target.read_bytes() == b"new" * 200_000
    target.write_bytes(b"between")
    out, _ = process.communicate("\n")
    assert out == "done\n"
    assert target.read_bytes() == b"new" * 200_000
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
