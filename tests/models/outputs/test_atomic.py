import os
import threading

import pytest

from vaegis.models.errors import Refusal
from vaegis.models.outputs.atomic import atomic_file, atomic_files, atomic_folder, explain, write_bytes, writing


def test_nothing_is_there_under_its_name_until_it_is_whole(tmp_path):
    path = tmp_path / "above" / "x.bin"
    with atomic_file(path) as file:
        file.write(b"12")
        assert not path.exists()
    assert path.read_bytes() == b"12"
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_a_file_has_the_rights_that_any_new_file_has(tmp_path):
    mask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"1")
        with atomic_folder(tmp_path / "f"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"old")
    (tmp_path / "x").symlink_to(tmp_path / "real" / "x")
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").is_symlink()
    assert (tmp_path / "real" / "x").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    taken = []
    reader = threading.Thread(target=lambda: taken.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_bytes(tmp_path / "pipe", b"new")
    reader.join()
    assert taken == [b"new"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_as_long_as_a_file_system_takes(tmp_path):
    path = tmp_path / ("ä" * 120 + ".bin")
    write_bytes(path, b"1")
    assert path.read_bytes() == b"1"


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("1")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["f", "f/mine"]


def test_files_join_those_of_a_folder_that_is_there(tmp_path):
    out = tmp_path / "out"
    (out / "left").mkdir(parents=True)
    for name in ("left/a", "left/b", "c"):
        (out / name).write_text("old")
    with atomic_files(out) as folder:
        (folder / "left").mkdir()
        (folder / "right").mkdir()
        for name in ("left/a", "right/a"):
            (folder / name).write_text("new")
        assert (out / "left/a").read_text() == "old"
    files = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert files == {"left/a": "new", "left/b": "old", "c": "old", "right/a": "new"}
    assert sorted(p.name for p in out.iterdir()) == ["c", "left", "right"]


def test_many_files_are_synced_too(tmp_path):
    with atomic_files(tmp_path / "out") as folder:
        for i in range(100):
            (folder / str(i)).write_text("1")
    assert len(list((tmp_path / "out").iterdir())) == 100


def test_only_what_the_output_cannot_do_is_said_of_it(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(Refusal, match="^--out x cannot be written: "),
        explain("--out x", atomic_files(tmp_path / "file/x")),
    ):
        raise AssertionError("never opened")
    with pytest.raises(FileNotFoundError, match="nowhere"), explain("--out x", atomic_files(tmp_path / "x")):
        (tmp_path / "nowhere").read_bytes()  # a source's error is none of the output
    with pytest.raises(Refusal, match="^--out x cannot be written: "), explain("--out x", atomic_files(tmp_path / "x")):
        (tmp_path / "x").write_text("in the way")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x"]


@pytest.mark.parametrize("target", ["file/x", "/proc/vaegis/x"])
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, target):
    (tmp_path / "file").write_text("mine")
    sentence = r"^--out x cannot be written: .+\. Name another place or free space\.$"
    with pytest.raises(Refusal, match=sentence), writing("--out x"):
        write_bytes(tmp_path / target, b"1")
