"""Conditions: read from a source, put beside parts, and refused where they mean nothing."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal
from vaegis.models.inputs import InputOptions, blocks, declare, from_json, infer_spec, load
from vaegis.models.inputs.conditions import with_conditions
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.sources.conditions import read_conditions
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec, to_json
from vaegis.models.spec import from_json as spec_from_json

VECTOR = VectorSpec(columns=("a", "b"), conditions=("A", "B"))
SERIES = SeriesSpec(columns=("a",), window=3, conditions=("A", "B"))


def table(path, words, rows=None):
    rows = rows or [[i, -i] for i in range(len(words))]
    path.write_text("a,b,recipe\n" + "".join(f"{r[0]},{r[1]},{w}\n" for r, w in zip(rows, words, strict=True)))
    return path


def source(path, condition, **options):
    return open_source(path, SourceOptions(condition=condition, **options))


def told(found, spec):
    """Name of each judged sample's condition, or the error of one that is not."""
    return [
        spec.conditions[found.conditions[f]] if c else found.errors[i]
        for i, (f, c) in enumerate(zip(found.first, found.count, strict=True))
    ]


def one(path, spec, condition, **options):
    (found,) = blocks(source(path, condition, **options), spec)
    return found


def test_a_spec_holds_conditions_only_where_there_are_some():
    assert "conditions" not in to_json(VectorSpec(("a",)))
    assert to_json(VECTOR)["conditions"] == ("A", "B")
    assert spec_from_json(json.loads(json.dumps(to_json(VECTOR)))) == VECTOR


def test_a_column_of_a_csv(tmp_path):
    path = table(tmp_path / "t.csv", ["B", "A", "", "C", "A"])
    found = one(path, VECTOR, "column:recipe", kind="vector")
    says = told(found, VECTOR)
    assert [says[0], says[1], says[4]] == ["B", "A", "A"]
    assert "no condition" in says[2] and "A, B" in says[2]
    assert "'C'" in says[3] and "A, B" in says[3]
    assert found.parts[found.first[[0, 1, 4]], 0].tolist() == [0, 1, 4]
    assert len(found.parts) == len(found.conditions) == 3


@pytest.mark.parametrize("values", [[1, 2, 1], [1.0, 2.0, 1.0], ["1", "2", "1"]])
def test_numbers_are_names_too(tmp_path, values):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [0.0, 1.0, 2.0], "b": [1.0, 1.0, 1.0], "recipe": values}), path)
    spec = dataclasses.replace(VECTOR, conditions=("1", "2"))
    assert told(one(path, spec, "column:recipe", kind="vector"), spec) == ["1", "2", "1"]


def test_a_key_of_an_npz_and_rows_of_it(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, x=np.zeros((4, 2), np.float32), c=np.array(["A", "B", "B", "A"]))
    assert told(one(path, VECTOR, "key:c"), VECTOR) == ["A", "B", "B", "A"]
    assert told(one(path, VECTOR, "key:c", rows=(1, 3)), VECTOR) == ["B", "B"]
    assert told(one(path, VECTOR, "is:B"), VECTOR) == ["B"] * 4


def test_folders_of_images(tmp_path):
    for name in ("A/1.png", "B/2.png", "B/10.png", "other/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), 7).save(tmp_path / name)
    spec = ImageSpec(16, 16, 1, conditions=("A", "B"))
    says = told(one(tmp_path, spec, "folders"), spec)
    assert says[:3] == ["A", "B", "B"] and "'other'" in says[3]


def test_a_file_of_conditions(tmp_path):
    path = table(tmp_path / "t.csv", ["x"] * 3)
    names = tmp_path / "names.csv"
    names.write_text("item,index,condition\nt.csv,2,A\nt.csv,0,B\n")
    says = told(one(path, VECTOR, str(names), kind="vector"), VECTOR)
    assert [says[0], says[2]] == ["B", "A"] and "no condition" in says[1]
    names.write_text("item,condition\nt.csv,B\n")
    assert told(one(path, VECTOR, str(names), kind="vector"), VECTOR) == ["B"] * 3


def test_a_window_has_the_condition_of_the_row_it_ends_at(tmp_path):
    words = ["A"] * 4 + ["B"] * 3 + ["C"] * 2
    path = table(tmp_path / "s.csv", words)
    found = one(path, SERIES, "column:recipe")
    says = told(found, SERIES)
    assert says[:7] == ["A", "A", "A", "A", "B", "B", "B"]
    assert all("'C'" in s for s in says[7:])
    assert found.place[:, 0].tolist() == [0, 1, 2, 3, 4]  # those that end at the last two rows are gone
    assert found.conditions.tolist() == [0, 0, 1, 1, 1]


def test_windows_keep_their_condition_across_blocks(tmp_path):
    words = ["A" if i // 7 % 2 else "B" for i in range(60)]
    path = table(tmp_path / "s.csv", words)
    whole = source(path, "column:recipe")
    spec = dataclasses.replace(SERIES, columns=("a",))
    found = list(blocks(whole, spec, rows=12))
    assert len(found) > 3
    says = [w for block in found for w in told(block, spec)]
    assert says[2:] == words[2:] and says[:2] == [words[2]] * 2


def test_clean_samples_carry_them_into_a_fit(tmp_path):
    path = table(tmp_path / "t.csv", ["A", "B", "A", "B"])
    opened = source(path, "column:recipe", kind="vector")
    spec, _ = infer_spec(opened, InputOptions())
    assert spec.columns == ("a", "b") and spec.conditions == ("A", "B")
    samples = load(opened, spec, tmp_path / "spool")
    assert samples.conditions[samples.first].tolist() == [0, 1, 0, 1]
    other = table(tmp_path / "u.csv", ["A", "B", "B", "A"])
    again = load(source(other, "column:recipe", kind="vector"), spec, tmp_path / "again")
    assert again.digest != samples.digest  # the same values, declared otherwise


def test_windows_of_a_fit_carry_that_of_their_last_row(tmp_path):
    words = ["A"] * 5 + ["B"] * 5
    opened = source(table(tmp_path / "s.csv", words), "column:recipe", columns=("a",))
    spec, _ = infer_spec(opened, InputOptions(window=3))
    samples = load(opened, spec, tmp_path / "spool")
    assert samples.conditions.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_rows_without_any_value_shift_nothing(tmp_path):
    rows = [[1, 1], ["", ""], [2, 2], [3, 3]]
    opened = source(table(tmp_path / "t.csv", ["A", "A", "B", "A"], rows), "column:recipe", kind="vector")
    spec, _ = infer_spec(opened, InputOptions(missing="allow"))
    samples = load(opened, spec, tmp_path / "spool")
    assert samples.take(samples.first)[:, 0].tolist() == [1, 2, 3]
    assert samples.conditions[samples.first].tolist() == [0, 1, 0]


def test_tiles_have_the_condition_of_their_image():
    found = with_conditions(
        Block([None] * 3, np.arange(3), np.zeros((5, 2)), np.array([0, 2, 2]), np.array([2, 0, 3]), {1: "torn"}),
        VECTOR, ["B", "A"], np.array([0, 0, 1], np.int32),
    )  # fmt: skip
    assert found.conditions.tolist() == [1, 1, 0, 0, 0]
    dropped = with_conditions(found, VECTOR, ["Z", "A"], np.array([0, 0, 1], np.int32))
    assert dropped.count.tolist() == [0, 0, 3] and dropped.first[2] == 0
    assert dropped.errors[1] == "torn" and "'Z'" in dropped.errors[0]


def test_a_request_says_it_per_sample():
    body = {"data": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "condition": ["B", "Q", "A"]}
    found = from_json(VECTOR, body)
    says = told(found, VECTOR)
    assert (says[0], says[2]) == ("B", "A") and "'Q'" in says[1]
    numbered = dataclasses.replace(VECTOR, conditions=("1", "2"))
    assert told(from_json(numbered, {**body, "condition": [2, 1, 2]}), numbered) == ["2", "1", "2"]


@pytest.mark.parametrize("condition", ["A", ["A", None, "B"], [["A"], "B", "A"], {"a": 1}, [True, "A", "B"]])
def test_a_request_of_another_form_is_malformed(condition):
    with pytest.raises(Malformed, match="list of names"):
        from_json(VECTOR, {"data": [[1.0, 2.0]] * 3, "condition": condition})


def test_a_request_with_too_few_or_for_a_model_without_them():
    with pytest.raises(Refusal, match="2 entries, and the data have 3"):
        from_json(VECTOR, {"data": [[1.0, 2.0]] * 3, "condition": ["A", "B"]})
    with pytest.raises(Refusal, match="without conditions"):
        from_json(VectorSpec(("a", "b")), {"data": [[1.0, 2.0]], "condition": ["A"]})
    with pytest.raises(Refusal, match="without conditions"):
        declare(from_json(VectorSpec(("a", "b")), {"data": [[1.0, 2.0]]}), VectorSpec(("a", "b")), ["A"])


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("column:nosuch", "no column 'nosuch'"),
        ("key:c", "needs an .npz"),
        ("folders", "needs a folder of images"),
        ("nosuch.csv", "no such file"),
        ("is:", "names no condition"),
        ("is:Z", "'Z'"),
        (None, "fitted with conditions"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, condition, words):
    path = table(tmp_path / "t.csv", ["A", "B"])
    with pytest.raises(Refusal, match=words):
        list(blocks(source(path, condition, kind="vector"), VECTOR))


def test_a_model_without_conditions_takes_none(tmp_path):
    path = table(tmp_path / "t.csv", ["A", "B"])
    with pytest.raises(Refusal, match="leave --condition out"):
        list(blocks(source(path, "column:recipe", kind="vector"), VectorSpec(("a", "b"))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A"] * 4, "only the condition 'A'"),
        ([""] * 4, "no condition"),
        ([f"c{i}" for i in range(300)], "300 different values"),
    ],
)
def test_conditions_that_tell_nothing_apart_are_refused(tmp_path, words, said):
    opened = source(table(tmp_path / "t.csv", words), "column:recipe", kind="vector")
    with pytest.raises(Refusal, match=said):
        infer_spec(opened, InputOptions())


def test_a_clean_sample_without_one_is_refused(tmp_path):
    opened = source(table(tmp_path / "t.csv", ["A", "B", "", "A"]), "column:recipe", kind="vector")
    spec, _ = infer_spec(opened, InputOptions())
    with pytest.raises(Refusal, match=r"Sample 2 of t\.csv has no condition"):
        load(opened, spec, tmp_path / "spool")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,index,condition\n", "holds no row"),
        ("item,index,condition\nt.csv,0,A\nt.csv,0,B\n", "more than once"),
        ("item,condition\nother.csv,A\n", "is in the source"),
        ("item,index,condition\nt.csv,x,A\n", "whole numbers"),
        ("item,index\nt.csv,0\n", "'condition'"),
    ],
)
def test_files_of_conditions_that_say_nothing_are_refused(tmp_path, text, said):
    path = table(tmp_path / "t.csv", ["A", "B"])
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(Refusal, match=said):
        read_conditions(source(path, None, kind="vector"), str(tmp_path / "names.csv"))
