"""Samples that are arrays already."""

from dataclasses import replace

import numpy as np
import pytest

from toy_data import IMAGES, SERIES, VECTORS, digits, pump, vectors, windows
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory, InputOptions, infer_spec, load
from vaegis.models.sources import SourceOptions, open_source


def loaded(tmp_path, options=None, shaping=None, **arrays):
    np.savez(tmp_path / "clean.npz", **arrays)
    source = open_source(tmp_path / "clean.npz", options or SourceOptions())
    spec, _ = infer_spec(source, shaping or InputOptions())
    return load(source, spec, tmp_path / "spool")


CODES = np.arange(60) % 2
GAPS = np.where(np.arange(360).reshape(60, 6) % 7 == 0, np.nan, vectors(60, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "options", "shaping"),
    [
        ({"x": vectors(60, 1)}, None, None),
        ({"x": GAPS}, None, InputOptions(missing="allow")),
        ({"x": digits(most=60)}, None, None),
        ({"x": windows(pump(75, 1))}, None, None),
        ({"x": vectors(60, 1), "c": np.array(["A", "B"])[CODES]}, SourceOptions(condition="key:c"), None),
    ],
    ids=["vectors", "missing values", "images", "windows", "conditions"],
)
def test_they_are_the_samples_that_would_be_read_from_a_file(tmp_path, arrays, options, shaping):
    file = loaded(tmp_path, options, shaping, **arrays)
    parts = arrays["x"].reshape(-1, *file.spec.shape)
    memory = InMemory(file.spec, parts, conditions=CODES if "c" in arrays else None)
    assert memory.digest == file.digest
    assert len(memory) == len(file)
    some = np.array([3, 1, 50])
    assert np.array_equal(memory.take(some), file.take(some), equal_nan=True)
    assert [memory.content(i) for i in range(60)] == [file.content(i) for i in range(60)]


def test_tiles_of_an_image_are_one_sample(tmp_path):
    images = np.concatenate([digits(most=40), digits(most=80)[40:]], axis=2)  # (40, 16, 32)
    file = loaded(tmp_path, shaping=InputOptions(tile=16, overlap=0), x=images)
    tiles = np.stack([images[:, :, :16], images[:, :, 16:]], axis=1).reshape(80, 16, 16, 1)
    memory = InMemory(file.spec, tiles, each=2)
    assert memory.digest == file.digest
    assert (memory.first.tolist(), memory.count.tolist()) == (file.first.tolist(), file.count.tolist())
    assert memory.content(3) == file.content(3)


def test_what_is_taken_is_a_copy():
    memory = InMemory(VECTORS, vectors(10, 1))
    memory.take(np.array([2]))[:] = 7
    assert np.array_equal(memory.parts, vectors(10, 1))


@pytest.mark.parametrize(
    ("spec", "parts", "more", "words"),
    [
        (VECTORS, vectors(10, 1)[:, :5], {}, r"shape \(10, 5\), and the spec takes float32 of shape \(m, 6\)"),
        (VECTORS, vectors(10, 1).astype(float), {}, "float64"),
        (VECTORS, np.where(np.eye(10, 6) > 0, np.nan, vectors(10, 1)).astype(np.float32), {}, "Part 0 holds NaN"),
        (replace(VECTORS, missing="allow"), np.full((10, 6), np.nan, np.float32), {}, "Part 0 holds NaN"),
        (SERIES, windows(pump(30, 1)), {"row": np.arange(3)}, "row has 3 entries and must have 15"),
        (IMAGES, digits(most=9)[..., None], {"each": 2}, "9 parts are no whole number of samples of 2"),
        (VECTORS, vectors(10, 1), {"groups": ["a"]}, "groups has 1 entries and must have 10"),
        (VECTORS, vectors(10, 1), {"conditions": np.zeros(10, np.int64)}, "where it has some"),
        (replace(VECTORS, conditions=("A", "B")), vectors(10, 1), {}, "where it has some"),
    ],
)
def test_what_is_refused(spec, parts, more, words):
    with pytest.raises(Refusal, match=words):
        InMemory(spec, parts, **more)
