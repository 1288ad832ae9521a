"""A cell that is no number costs its own row: the sentence quotes it, and what comes before and after is judged."""

import numpy as np
import pytest
from source_files import csv, opened

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, from_files, infer_spec, load
from vaegis.models.spec import SeriesSpec, VectorSpec

VECTOR = VectorSpec(("a", "b"))
RNG = np.random.default_rng(0)


def table(path, rows, bad, columns=("a", "b")):
    """Rows of numbers, with `bad` {(row, column): text} written in their place."""
    values = RNG.normal(size=(rows, len(columns)))
    lines = [",".join(bad.get((i, c), f"{v:.5f}") for c, v in enumerate(row)) for i, row in enumerate(values)]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return values.round(5)


def judged(found):
    return np.concatenate([b.count for b in found]), {b.index[i]: why for b in found for i, why in b.errors.items()}


@pytest.mark.parametrize("text", ["#DIV/0!", "?", "1.#IND", "a/b/c", "-", "12.5 bar", "1_000"])
@pytest.mark.parametrize("row", [0, 3, 499])
def test_the_cell_is_quoted_with_row_and_column_and_the_others_are_judged(tmp_path, text, row):
    values = table(tmp_path / "x.csv", 500, {(row, 1): text})
    found = list(blocks(opened(tmp_path / "x.csv", kind="vector"), VECTOR))
    count, errors = judged(found)
    assert count.sum() == 499
    assert list(errors) == [row]
    assert errors[row] == (
        f"Column 'b' of row {row} of x.csv is {text!r}, which is no number. Correct it, or fit with --missing allow "
        f"and --na {text!r}, which take it as missing."
    )
    np.testing.assert_allclose(np.concatenate([b.parts for b in found]), np.delete(values, row, axis=0), rtol=1e-6)


def test_past_the_first_megabyte_only_the_bad_rows_are_lost(tmp_path):
    rows = 150_000
    bad = {(100_000, 1): "#DIV/0!", (100_001, 0): "?", (149_999, 1): "n.a."}
    values = table(tmp_path / "late.csv", rows, bad)
    found = list(blocks(opened(tmp_path / "late.csv", kind="vector"), VECTOR))
    count, errors = judged(found)
    assert len(count) == rows
    assert count.sum() == rows - 3
    assert sorted(errors) == [100_000, 100_001, 149_999]
    assert "Column 'b' of row 100000 of late.csv is '#DIV/0!'" in errors[100_000]
    np.testing.assert_allclose(
        np.concatenate([b.parts for b in found]), np.delete(values, [100_000, 100_001, 149_999], axis=0), rtol=1e-6
    )
    some = list(blocks(opened(tmp_path / "late.csv", kind="vector", rows=(100_001, 100_003)), VECTOR))
    assert judged(some)[0].tolist() == [0, 1]
    assert list(judged(some)[1]) == [100_001]


def test_the_windows_over_a_bad_row_are_unjudged_and_the_others_are_not(tmp_path):
    table(tmp_path / "x.csv", 100, {(50, 0): "#DIV/0!"})
    spec = SeriesSpec(("a", "b"), 4)
    for missing in ("refuse", "allow"):
        count, errors = judged(list(blocks(opened(tmp_path / "x.csv"), SeriesSpec(("a", "b"), 4, missing=missing))))
        assert np.flatnonzero(count == 0).tolist() == [50, 51, 52, 53], "a bad cell is not a missing value"
        assert all("Column 'a' of row 50 of x.csv is '#DIV/0!'" in why for why in errors.values())
    assert "--na '#DIV/0!'." in errors[50]
    uploaded = from_files(spec, [("x.csv", (tmp_path / "x.csv").read_bytes())])
    assert np.flatnonzero(uploaded.count == 0).tolist() == [50, 51, 52, 53]


def test_na_takes_it_as_missing(tmp_path):
    table(tmp_path / "x.csv", 100, {(50, 0): "#DIV/0!", (60, 1): "?"})
    source = opened(tmp_path / "x.csv", kind="vector", na=("#DIV/0!", "?"))
    count, _ = judged(list(blocks(source, VectorSpec(("a", "b"), "allow"))))
    assert count.all()
    spec, _ = infer_spec(source, InputOptions(missing="allow"))
    samples = load(source, spec, tmp_path / "spool")
    assert np.argwhere(np.isnan(samples.take(np.arange(100)))).tolist() == [[50, 0], [60, 1]]


def test_a_fit_names_the_cell_and_a_remedy_that_keeps_the_sensor(tmp_path):
    table(tmp_path / "x.csv", 100, {(50, 0): "#DIV/0!"})
    source = opened(tmp_path / "x.csv", kind="vector")
    spec, _ = infer_spec(source, InputOptions())
    assert spec == VECTOR
    with pytest.raises(Refusal, match="Column 'a' of row 50 of x.csv is '#DIV/0!', .*--missing allow and --na"):
        load(source, spec, tmp_path / "spool")


def test_a_column_of_words_is_no_column_of_bad_cells(tmp_path):
    table(tmp_path / "x.csv", 10, {(i, 1): "anna" for i in range(8)})
    with pytest.raises(Refusal, match="Column 'b' of x.csv is not numeric \\('anna', for one\\)"):
        infer_spec(opened(tmp_path / "x.csv", kind="vector"), InputOptions())
    with pytest.raises(Refusal, match="is not numeric"):
        list(blocks(opened(tmp_path / "x.csv", kind="vector"), VECTOR))


def test_a_table_without_bad_cells_is_read_as_before(tmp_path):
    values = RNG.normal(size=(50, 2))
    csv(tmp_path / "x.csv", values, ("a", "b"))
    (block,) = blocks(opened(tmp_path / "x.csv", kind="vector"), VECTOR)
    np.testing.assert_array_equal(block.parts, values.astype(block.parts.dtype))
