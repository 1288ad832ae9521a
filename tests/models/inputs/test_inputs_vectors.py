"""Rows that are samples by themselves: missing and impossible values, spools, kinds of numbers."""

import numpy as np
import pytest
from source_files import RNG, csv, opened

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load
from vaegis.models.spec import VectorSpec


def test_vectors_are_judged_one_by_one(tmp_path):
    values = RNG.normal(size=(50, 3)).astype(np.float32)
    values[7, 2], values[9, 0] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", x=values)
    (block,) = blocks(opened(tmp_path / "a.npz"), VectorSpec(("0", "1", "2")))
    assert sorted(block.errors) == [7, 9]
    assert "'2' of row 7 of a.npz is NaN" in block.errors[7]
    assert "infinite" in block.errors[9]
    kept = np.delete(values, [7, 9], axis=0)
    np.testing.assert_array_equal(block.parts, kept)
    assert block.first[8] == 7
    np.testing.assert_array_equal(block.parts[block.first[49]], values[49])
    (allowed,) = blocks(opened(tmp_path / "a.npz"), VectorSpec(("0", "1", "2"), missing="allow"))
    assert sorted(allowed.errors) == [9]


@pytest.mark.parametrize(
    ("value", "missing", "words"),
    [
        (np.nan, "refuse", r"'1' of row 3 of a\.npz is NaN"),
        (np.inf, "refuse", "infinite"),
        (-np.inf, "allow", "infinite"),
    ],
)
def test_clean_data_may_not_hold_them(tmp_path, value, missing, words):
    values = np.zeros((20, 2))
    values[3, 1] = value
    np.savez(tmp_path / "a.npz", x=values)
    with pytest.raises(Refusal, match=words):
        load(opened(tmp_path / "a.npz"), VectorSpec(("0", "1"), missing=missing), tmp_path / "spool")


def test_values_beyond_32_bit_floats_are_refused(tmp_path):
    source = opened(csv(tmp_path / "a.csv", np.array([[1e300, 0.0]] * 3)), kind="vector")
    with pytest.raises(Refusal, match="too large"):
        load(source, VectorSpec(("speed", "flow")), tmp_path / "spool")


def test_missing_values_are_kept_in_a_spool_and_empty_rows_passed_over(tmp_path):
    values = np.ones((6, 2))
    values[1, 0] = np.nan
    values[4] = np.nan
    np.savez(tmp_path / "a.npz", x=values)
    samples = load(opened(tmp_path / "a.npz"), VectorSpec(("0", "1"), missing="allow"), tmp_path / "spool")
    assert len(samples) == 5
    np.testing.assert_array_equal(samples.take(samples.first), np.delete(values, 4, axis=0).astype(np.float32))


def test_vectors_from_integers_truths_and_single_columns(tmp_path):
    np.save(tmp_path / "i.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    np.save(tmp_path / "b.npy", np.eye(3, dtype=bool))
    np.save(tmp_path / "one.npy", np.arange(5.0))
    for name, width in (("i.npy", 2), ("b.npy", 3), ("one.npy", 1)):
        source = opened(tmp_path / name, kind="vector")
        spec, _ = infer_spec(source, InputOptions())
        (block,) = blocks(source, spec)
        np.testing.assert_array_equal(block.parts, np.load(tmp_path / name).reshape(-1, width).astype(np.float32))


def test_constant_columns_are_noted(tmp_path):
    values = np.stack([np.arange(30.0), np.full(30, 7.0), np.full(30, np.nan)], 1)
    values[3, 2] = 1.0
    np.savez(tmp_path / "a.npz", x=values)
    _, notes = infer_spec(opened(tmp_path / "a.npz"), InputOptions(missing="allow"))
    assert notes == ["Column 1, 2 are constant in the clean data: any other value will look strange."]
