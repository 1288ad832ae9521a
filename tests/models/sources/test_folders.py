"""What lies in a folder is read or named: links, folders that cannot be opened, pipes, other formats, odd names."""

import os

import numpy as np
import pytest
from source_files import csv, folder, noise, opened, save

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load, notes_of
from vaegis.models.sources.folders import list_folder
from vaegis.models.spec import ImageSpec

SMALL = ImageSpec(16, 16, 1)
posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")


def images(path, count=3):
    folder(path, *[(16, 16)] * count)


def test_pictures_in_other_formats_are_counted_and_named_once(tmp_path):
    images(tmp_path)
    save(tmp_path / "u.gif", noise(16, 16))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "pgm.pgm").write_bytes(b"P5 2 2 255 abcd")
    (tmp_path / "nameless").write_bytes((tmp_path / "part_0.png").read_bytes())
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    source = opened(tmp_path)
    assert source.names() == ("part_0.png", "part_1.png", "part_2.png")
    (note,) = source.notes
    assert note.startswith("3 files were passed over: below/pgm.pgm, nameless, u.gif; PNG, JPEG,")
    assert notes_of(source, SMALL) == source.notes
    assert infer_spec(source, InputOptions())[1] == [note]


def test_nothing_passed_over_is_no_note(tmp_path):
    images(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.gif").write_bytes(b"GIF89a")
    assert opened(tmp_path).notes == ()


@posix
def test_linked_folders_are_followed(tmp_path):
    images(tmp_path / "store" / "lot2")
    images(tmp_path / "all" / "lot1")
    (tmp_path / "all" / "lot2").symlink_to(tmp_path / "store" / "lot2")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "good").symlink_to(tmp_path / "store" / "lot2")
    both = opened(tmp_path / "all")
    assert len(both.names()) == 6
    assert both.names()[3] == "lot2/part_0.png"
    assert both.notes == ()
    assert len(opened(tmp_path / "only").names()) == 3


@posix
def test_links_in_circles_end_and_are_named(tmp_path):
    images(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "copy").symlink_to(tmp_path / "a")
    source = opened(tmp_path)
    assert len(source.names()) == 3
    assert all(name.startswith("a/") for name in source.names()), "the folder's own name comes before a link's"
    (note,) = source.notes
    for link in ("a/up (the same as the whole folder)", "a/self (the same as a)", "copy (the same as a)"):
        assert link in note
    assert source.unreadable == ()


@posix
def test_many_folders_linked_to_each_other_are_read_once_each(tmp_path):
    for i in range(12):
        images(tmp_path / f"d{i}", 1)
    for i in range(12):
        for k in range(12):
            (tmp_path / f"d{i}" / f"to{k}").symlink_to(tmp_path / f"d{k}")
    listing = list_folder(tmp_path)
    assert len(listing.files) == 12
    assert len(listing.repeated) == 144


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    images(tmp_path / "lot1")
    images(tmp_path / "lot2")
    (tmp_path / "lot2").chmod(0)
    try:
        source = opened(tmp_path)
    finally:
        (tmp_path / "lot2").chmod(0o755)
    assert len(source.names()) == 3
    assert source.unreadable == ("lot2 (Permission denied)",)
    assert source.notes == ("What cannot be read was passed over: lot2 (Permission denied).",)


@posix
def test_a_pipe_is_never_opened_and_named(tmp_path):
    images(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    source = opened(tmp_path)
    assert len(source.names()) == 3
    assert set(source.unreadable) == {"pipe (no regular file)", "pipe.png (no regular file)"}
    for name in ("pipe", "pipe.png"):
        with pytest.raises(Refusal, match="pipe.* is no regular file"):
            opened(tmp_path / name)
    with pytest.raises(Refusal, match="no regular file"):
        opened(tmp_path / os.devnull)


@posix
def test_links_that_lead_nowhere_or_to_themselves_are_unjudged_items(tmp_path):
    images(tmp_path)
    (tmp_path / "x_gone.png").symlink_to(tmp_path / "not there")
    (tmp_path / "x_loop.png").symlink_to(tmp_path / "x_loop.png")
    (block,) = blocks(opened(tmp_path), SMALL)
    assert block.count.tolist() == [1, 1, 1, 0, 0]
    assert "x_gone.png: it cannot be opened (No such file" in block.errors[3]
    assert "x_loop.png: it cannot be opened (Too many levels" in block.errors[4]
    with pytest.raises(Refusal, match="There is nothing at"):
        opened(tmp_path / "x_loop.png")


@posix
def test_names_that_are_not_utf8_are_printable_everywhere(tmp_path):
    images(tmp_path / "p")
    odd = os.fsencode(tmp_path / "p") + b"/caf\xe9.png"
    os.rename(tmp_path / "p" / "part_0.png", odd)
    source = opened(tmp_path / "p")
    assert source.names() == (r"caf\xe9.png", "part_1.png", "part_2.png")
    (block,) = blocks(source, SMALL)
    assert block.count.tolist() == [1, 1, 1]
    assert list(load(source, SMALL, tmp_path / "spool").items) == list(source.names())
    alone = opened(type(tmp_path)(os.fsdecode(odd)))
    assert [item for b in blocks(alone, SMALL) for item in b.items] == [r"caf\xe9.png"]


@posix
def test_tables_and_arrays_of_such_names_too(tmp_path):
    csv(tmp_path / "t" / "a.csv", np.zeros((3, 2)))
    os.rename(tmp_path / "t" / "a.csv", os.fsencode(tmp_path / "t") + b"/\xff.csv")
    table = opened(tmp_path / "t", kind="vector")
    spec, _ = infer_spec(table, InputOptions())
    assert [b.items for b in blocks(table, spec)] == [[r"\xff.csv"] * 3]
    path = type(tmp_path)(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.npy"))
    np.save(path, np.zeros((3, 2)))
    array = opened(path)
    assert array.names() == (r"\xfe.npy",)
    assert [b.items for b in blocks(array, infer_spec(array, InputOptions())[0])] == [[r"\xfe.npy"] * 3]


@pytest.mark.parametrize("below", ["", "bottle"])
@pytest.mark.parametrize("clean", ["good", "ok"])
def test_a_fit_on_the_root_of_a_whole_data_set_asks_for_its_clean_images(tmp_path, below, clean):
    root = tmp_path / "set" / below
    images(root / "train" / clean)
    images(root / "test" / "crack")
    images(root / "ground_truth" / "crack")
    with pytest.raises(Refusal) as refusal:
        infer_spec(opened(tmp_path / "set"), InputOptions())
    path = "/".join(filter(None, ["set", below, "train", clean]))
    assert f"Give its clean images alone: {path}." in str(refusal.value)
    assert "train beside ground_truth, test" in str(refusal.value)
    assert len(opened(tmp_path / "set").names()) == 9, "what is scored may be anything"
    assert infer_spec(opened(root / "train"), InputOptions())[0] == ImageSpec(16, 16, 1)


def test_a_folder_called_train_alone_is_a_folder(tmp_path):
    images(tmp_path / "train")
    images(tmp_path / "more")
    assert infer_spec(opened(tmp_path), InputOptions())[0] == ImageSpec(16, 16, 1)
