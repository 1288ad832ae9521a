"""Tables without rows, and image arrays as people have them: floats from 0 to 1, int64, bool."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import csv, noise, opened

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

VECTOR = VectorSpec(("a", "b"))


@pytest.mark.parametrize("kind", ["vector", "series"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_without_rows_is_refused_by_name(tmp_path, form, kind):
    path = tmp_path / f"hdr.{form}"
    if form == "csv":
        path.write_text("a,b\n")
    else:
        pq.write_table(pa.table({"a": pa.array([], pa.float64()), "b": pa.array([], pa.float64())}), path)
    spec = VECTOR if kind == "vector" else SeriesSpec(("a", "b"), 4)
    with pytest.raises(Refusal, match=f"^hdr.{form} has no rows\\."):
        list(blocks(opened(path, kind=kind), spec))


def test_rows_past_the_end_are_refused_and_one_empty_table_of_several_is_unjudged(tmp_path):
    csv(tmp_path / "t" / "a.csv", np.zeros((5, 2)), ("a", "b"))
    with pytest.raises(Refusal, match=r"a.csv has no rows within --rows\."):
        list(blocks(opened(tmp_path / "t" / "a.csv", kind="vector", rows=(5, 9)), VECTOR))
    (tmp_path / "t" / "b.csv").write_text("a,b\n")
    found = list(blocks(opened(tmp_path / "t", kind="vector"), VECTOR))
    assert [b.count.tolist() for b in found] == [[1] * 5, [0]]
    assert found[1].errors[0].startswith("b.csv has no rows.")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_arrays_of_pictures_equal_their_uint8_twin(tmp_path, dtype):
    twin = noise(6, 20, 24)
    if dtype == "bool":
        twin = np.where(twin > 100, np.uint8(255), np.uint8(0))
    values = twin.astype(dtype) if dtype == "int64" else (twin / 255).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    source = opened(tmp_path / "x.npy", kind="image")
    spec, _ = infer_spec(source, InputOptions())
    assert spec == ImageSpec(20, 24, 1)
    (block,) = blocks(source, spec)
    np.testing.assert_array_equal(block.parts[..., 0], twin)
    np.testing.assert_array_equal(load(source, spec, tmp_path / "spool").take(np.arange(6))[..., 0], twin)
    (block,) = blocks(source, ImageSpec(16, 16, 1, tile=True))
    assert block.parts.dtype == np.uint8


@pytest.mark.parametrize("high", [1.5, np.nan, 300])
def test_other_values_are_no_pictures(tmp_path, high):
    values = np.zeros((3, 16, 16), np.int64 if high == 300 else np.float32)
    values[1, 2, 3] = high
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(Refusal, match="pixels of that type go from 0 to"):
        list(blocks(opened(tmp_path / "x.npy", kind="image"), ImageSpec(16, 16, 1)))


def test_floats_that_may_be_pictures_are_windows_with_a_note(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((30, 28, 28), np.float32))
    spec, notes = infer_spec(opened(tmp_path / "x.npy"), InputOptions())
    assert isinstance(spec, SeriesSpec)
    assert any("if it holds pictures, say --kind image" in note for note in notes)
    assert not any(
        "--kind image" in n for n in infer_spec(opened(tmp_path / "x.npy", kind="series"), InputOptions())[1]
    )
