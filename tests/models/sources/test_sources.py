"""Sources: what is found at a path, in which order, and how bad input is refused."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaegis.models.errors import Refusal
from vaegis.models.inputs import from_npy
from vaegis.models.sources import SourceOptions, as_kind, open_source, parse_rows, read_labels
from vaegis.models.sources.dialects import detect_separator
from vaegis.models.sources.images import grouping
from vaegis.models.sources.tables import roles
from vaegis.models.spec import VectorSpec


def picture(path: Path, value: int = 0, size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def every(source) -> np.ndarray:
    return np.concatenate([chunk for _, chunk in source.chunks()])


@pytest.mark.parametrize(
    ("text", "rows"), [("0:400", (0, 400)), ("400:", (400, None)), (":7", (None, 7)), (":", (None, None))]
)
def test_rows_are_parsed(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["5", "a:b", "-3:4", "4:4", "5:2", ""])
def test_bad_rows_are_refused_by_their_text(text):
    with pytest.raises(Refusal, match=r"--rows"):
        parse_rows(text)


def test_images_are_listed_recursively_in_natural_order(tmp_path):
    for name in ("part_10.png", "part_2.png", "b/1.png", "A/12.PNG", "A/3.png", ".hidden/0.png"):
        picture(tmp_path / name)
    (tmp_path / "labels.csv").write_text("item,label\n")
    source = open_source(tmp_path, SourceOptions())
    assert source.kind == "image"
    assert source.names() == ("A/3.png", "A/12.PNG", "b/1.png", "part_2.png", "part_10.png")
    sliced = open_source(tmp_path, SourceOptions(rows=(1, 3)))
    assert sliced.names() == ("A/12.PNG", "b/1.png")


def test_images_without_a_known_suffix_are_found_by_their_bytes(tmp_path):
    picture(tmp_path / "one.png")
    (tmp_path / "one.png").rename(tmp_path / "one")
    (tmp_path / "notes.txt").write_text("nothing")
    assert open_source(tmp_path, SourceOptions()).names() == ("one",)


def test_a_single_image_is_a_source(tmp_path):
    picture(tmp_path / "a.png")
    assert open_source(tmp_path / "a.png", SourceOptions()).names() == ("a.png",)


def test_nothing_there_is_refused_by_name(tmp_path):
    with pytest.raises(Refusal, match="nowhere"):
        open_source(tmp_path / "nowhere", SourceOptions())
    (tmp_path / "void").mkdir()
    with pytest.raises(Refusal, match="void is empty"):
        open_source(tmp_path / "void", SourceOptions())
    (tmp_path / "void" / "a.txt").write_text("x")
    with pytest.raises(Refusal, match=r"no images or tables.*a\.txt"):
        open_source(tmp_path / "void", SourceOptions())
    (tmp_path / "zero.csv").write_bytes(b"")
    with pytest.raises(Refusal, match=r"zero\.csv is empty"):
        open_source(tmp_path / "zero.csv", SourceOptions())


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros((3, 20, 20), np.uint8), "image"),
        (np.zeros((3, 20, 20, 3), np.uint16), "image"),
        (np.zeros((3, 8, 2), np.float32), "series"),
        (np.zeros((3, 8)), "vector"),
        (np.zeros((3, 8), np.int64), "vector"),
        (np.zeros((3, 8), bool), "vector"),
    ],
)
def test_the_form_of_an_array_says_what_it_holds(tmp_path, array, kind):
    np.savez(tmp_path / "a.npz", other=np.zeros(3), x=array)
    source = open_source(tmp_path / "a.npz", SourceOptions())
    assert (source.kind, source.key, source.names()) == (kind, "x", ("a.npz",))
    np.save(tmp_path / "a.npy", array)
    assert open_source(tmp_path / "a.npy", SourceOptions()).kind == kind


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.zeros((3, 20, 20, 3), np.float32), None, "uint8 or uint16"),
        (np.zeros((3, 4), np.uint8), None, "--kind vector"),
        (np.zeros((5, 4), np.float32), "image", "no image array"),
        (np.zeros((5, 4, 3), np.float32), "vector", r"\(N, D\)"),
        (np.array(["a", "b"]), None, "not numeric"),
        (np.zeros((0, 4), np.float32), None, "is empty"),
        (np.array([{}] * 3, object), None, r"'x'.*object array"),
    ],
)
def test_arrays_of_other_forms_are_refused(tmp_path, array, kind, words):
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(Refusal, match=words):
        open_source(tmp_path / "a.npz", SourceOptions(kind=kind))


def test_a_pickled_npy_is_refused_unread(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}] * 3, object), allow_pickle=True)
    with pytest.raises(Refusal, match="object"):
        open_source(tmp_path / "a.npy", SourceOptions())


def test_the_key_is_the_one_named_else_x_else_the_first(tmp_path):
    np.savez(tmp_path / "a.npz", b=np.zeros((2, 3)), c=np.ones((2, 3)))
    assert open_source(tmp_path / "a.npz", SourceOptions()).key == "b"
    assert open_source(tmp_path / "a.npz", SourceOptions(key="c")).key == "c"
    with pytest.raises(Refusal, match="'d'.*b, c"):
        open_source(tmp_path / "a.npz", SourceOptions(key="d"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_saved_and_sliced(tmp_path, save, order, monkeypatch):
    monkeypatch.setattr("vaegis.models.sources.arrays.CHUNK", 1000)  # several chunks of a small array
    x = np.asarray(np.random.default_rng(0).normal(size=(300, 7)), order=order)
    save(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "a.npy", x)
    for name in ("a.npz", "a.npy"):
        np.testing.assert_array_equal(every(open_source(tmp_path / name, SourceOptions())), x)
        part = open_source(tmp_path / name, SourceOptions(rows=(51, 200)))
        assert next(part.chunks())[0] == 51
        np.testing.assert_array_equal(every(part), x[51:200])


def test_a_compressed_array_is_never_held_whole(tmp_path):
    x = np.zeros((96, 1024, 1024), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    del x
    tracemalloc.start()
    seen = sum(len(chunk) for _, chunk in open_source(tmp_path / "a.npz", SourceOptions()).chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 96
    assert peak < 40 << 20, f"{peak >> 20} MiB for an array of 96 MiB"


def test_damaged_arrays_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(500, 4)))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[len(raw) // 2] ^= 255
    (tmp_path / "bit.npz").write_bytes(raw)
    with pytest.raises(Refusal, match="damaged"):
        every(open_source(tmp_path / "bit.npz", SourceOptions()))
    (tmp_path / "not.npz").write_bytes(b"no zip")
    with pytest.raises(Refusal, match=r"not\.npz is not a readable"):
        open_source(tmp_path / "not.npz", SourceOptions())
    np.save(tmp_path / "b.npy", np.zeros((50, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(Refusal, match="ends early"):
        open_source(tmp_path / "cut.npy", SourceOptions())
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    with pytest.raises(Refusal, match="is empty"):
        open_source(tmp_path / "none.npz", SourceOptions())


def stored(header, data=b""):
    """An .npy with this text for its header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_refused_whatever_the_compression(tmp_path, compression):
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).normal(size=(500, 4)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", out.getvalue())
    assert every(open_source(tmp_path / "a.npz", SourceOptions())).shape == (500, 4)
    whole = (tmp_path / "a.npz").read_bytes()
    for at in (60, 200, 3000):
        (tmp_path / "bit.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(Refusal, match=r"bit\.npz (is damaged|cannot be read)"):
            every(open_source(tmp_path / "bit.npz", SourceOptions()))


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ("{'descr': '<f4', 'shape': (3,", 0, "its header cannot be read"),  # numpy raises a TokenError
        ("1\n  2\n 3", 0, "its header cannot be read"),  # an IndentationError
        ("{[]: 1}", 0, "its header cannot be read"),  # a TypeError
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -4), }", 48, r"no array has the shape \(-3, -4\)"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 0), }}", 0, "no array has the shape"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15}, 0), }}", 0, "samples have no values"),
    ],
)
def test_headers_that_no_array_has_are_refused(tmp_path, header, data, words):
    raw = stored(header, bytes(data))
    (tmp_path / "a.npy").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", raw)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(Refusal, match=words):
            every(open_source(tmp_path / name, SourceOptions()))
    with pytest.raises(Refusal):
        from_npy(VectorSpec(("a", "b", "c", "d")), raw)


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_the_separator_is_detected(sep):
    text = "\n".join(sep.join(row) for row in [["a", "b, c", "d"], ["1", "2", "3"], ["4", "5", "6"]])
    assert detect_separator(text.replace("b, c", "b").encode()) == sep


def table(tmp_path: Path, text: str, name: str = "t.csv", **options):
    (tmp_path / name).write_text(text)
    source = open_source(tmp_path / name, SourceOptions(**options))
    return roles(source.open(name), source.options)


def test_features_are_the_numeric_columns_that_remain(tmp_path):
    text = "Time;speed;lot;flow;state;y\n2026-01-01;1;7;2.5;on;0\n"
    found = table(tmp_path, text, group_by="lot", exclude=("state",), labels="column:y")
    assert found.features == ("speed", "flow")
    assert found.timestamp == "Time"
    assert "'Time'" in found.notes[0]
    chosen = table(tmp_path, text, columns=("flow", "lot"))
    assert chosen.features == ("flow", "lot")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,x\n", {}, r"'b'.*'x'.*--exclude"),
        ("a,a\n1,2\n", {}, "'a' of|'a' more than once"),
        ("a,b\n1,2\n", {"columns": ("c",)}, "'c' for --columns; it has a, b"),
        ("a,b\n1,2\n", {"exclude": ("c",)}, "--exclude"),
        ("a,b\n1,2\n", {"timestamp": "c"}, "--timestamp"),
        ("a,b\n1,2\n", {"columns": ("a",), "group_by": "a"}, "--group-by"),
        ("a\nx\n", {"exclude": ("a",)}, "no numeric column"),
        ("1.5,2.5\n3,4\n", {}, "header line"),
    ],
)
def test_columns_that_cannot_be_used_are_refused_by_name(tmp_path, text, options, words):
    with pytest.raises(Refusal, match=words):
        table(tmp_path, text, **options)


def test_column_names_must_be_utf_8(tmp_path):
    (tmp_path / "t.csv").write_bytes("Temp °C,a\n1,2\n".encode("latin-1"))
    with pytest.raises(Refusal, match=r"t\.csv are not UTF-8"):
        open_source(tmp_path / "t.csv", SourceOptions()).open("t.csv")


def test_an_unnamed_index_is_no_feature(tmp_path):
    found = table(tmp_path, ",a\n0,5\n1,6\n")
    assert found.features == ("a",)
    assert "without a name" in found.notes[0]


def test_numbered_headers_are_names(tmp_path):
    assert table(tmp_path, "0,1\n5,6\n").features == ("0", "1")


def test_csv_and_parquet_of_a_folder_are_items(tmp_path):
    (tmp_path / "run10.csv").write_text("a\n1\n")
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "run9.parquet")
    source = open_source(tmp_path, SourceOptions())
    assert (source.kind, source.names()) == ("series", ("run9.parquet", "run10.csv"))
    assert open_source(tmp_path, SourceOptions(kind="vector")).kind == "vector"


def test_a_source_is_read_as_the_model_takes_it(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((30, 4), np.float32))
    source = open_source(tmp_path / "a.npy", SourceOptions())
    assert as_kind(source, "series").kind == "series"
    with pytest.raises(Refusal, match="image"):
        as_kind(source, "image")
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert as_kind(open_source(tmp_path / "t.csv", SourceOptions()), "vector").kind == "vector"
    with pytest.raises(Refusal, match="holds tables, but the model takes images"):
        as_kind(open_source(tmp_path / "t.csv", SourceOptions()), "image")
    with pytest.raises(Refusal, match="leave --kind out"):
        as_kind(open_source(tmp_path / "t.csv", SourceOptions(kind="series")), "vector")


def test_images_are_grouped_by_folder_or_expression():
    assert grouping("folder", "--group-by")("lot7/a.png") == "lot7"
    assert grouping(r"lot(\d+)", "--group-by")("x/lot12_3.png") == "12"
    assert grouping(r"lot(\d+)", "--group-by")("x/3.png") is None
    for how in ("lot", "(a)(b)", "("):
        with pytest.raises(Refusal, match="--group-by"):
            grouping(how, "--group-by")


def found(labels, items, index):
    label, classes = labels.find(items, np.array(index))
    return label.tolist(), classes


def test_labels_from_folders(tmp_path):
    for name in ("good/0.png", "scratch/0.png", "OK/1.png"):
        picture(tmp_path / name)
    source = open_source(tmp_path, SourceOptions())
    labels = read_labels(source, "image", "folders")
    at = [source.names().index(n) for n in ("good/0.png", "scratch/0.png", "OK/1.png")]
    assert found(labels, ["good/0.png", "scratch/0.png", "OK/1.png"], at) == ([0, 1, 0], [None, "scratch", None])
    picture(tmp_path / "loose.png")
    with pytest.raises(Refusal, match=r"loose\.png"):
        read_labels(open_source(tmp_path, SourceOptions()), "image", "folders")


def test_labels_from_a_column_and_from_a_key(tmp_path):
    (tmp_path / "t.csv").write_text("a,y,word\n1,0,good\n2,3,leak\n3,0,ok\n")
    source = open_source(tmp_path / "t.csv", SourceOptions(rows=(1, None)))
    assert found(read_labels(source, "series", "column:y"), ["t.csv"] * 3, [0, 1, 2]) == ([-1, 1, 0], [None] * 3)
    words = read_labels(source, "series", "column:word")
    assert found(words, ["t.csv"] * 2, [1, 2]) == ([1, 0], ["leak", None])
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4, 2)), y=np.array([0, 2, 0]), w=np.array([[0, 0], [0, 1], [0, 0]]))
    array = open_source(tmp_path / "a.npz", SourceOptions())
    for key in ("y", "w"):
        assert found(read_labels(array, "series", f"key:{key}"), ["a.npz"] * 3, [0, 1, 2])[0] == [0, 1, 0]
    with pytest.raises(Refusal, match="'z'"):
        read_labels(array, "series", "key:z")


def test_labels_from_a_file(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "im" / name)
    source = open_source(tmp_path / "im", SourceOptions())
    (tmp_path / "l.csv").write_text("item,index,label,class\nb.png,1,1,dent\na.png,0,0,\n")
    labels = read_labels(source, "image", str(tmp_path / "l.csv"))
    assert found(labels, ["a.png", "b.png", "c.png"], [0, 1, 2]) == ([0, 1, -1], [None, "dent", None])
    (tmp_path / "w.csv").write_text("item,label\na.png,1\n")
    whole = read_labels(source, "image", str(tmp_path / "w.csv"))
    assert found(whole, ["a.png", "a.png"], [0, 99])[0] == [1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item,label\nz.png,1\n", "No item"),
        ("item,label\na.png,\n", "has no label"),
        ("item\na.png\n", "'label'"),
        ("item,label\na.png,1\na.png,0\n", "more than once"),
        ("item,label\n", "is empty"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(tmp_path, text, words):
    picture(tmp_path / "im" / "a.png")
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(Refusal, match=words):
        read_labels(open_source(tmp_path / "im", SourceOptions()), "image", str(tmp_path / "l.csv"))


@pytest.mark.parametrize("how", ["column:y", "key:y", "nowhere.csv"])
def test_labels_that_a_folder_of_images_cannot_have(tmp_path, how):
    picture(tmp_path / "a.png")
    with pytest.raises(Refusal, match="--labels"):
        read_labels(open_source(tmp_path, SourceOptions()), "image", how)
