"""Arrays in memory are read as those of an .npz are."""

import numpy as np
import pytest

from vaegis.models.errors import Refusal
from vaegis.models.sources import SourceOptions, as_kind, open_arrays, open_source

X = np.arange(60, dtype=np.float32).reshape(20, 3)
GROUPS = np.repeat(["a", "b"], 10)


def test_chunks_and_vectors_are_those_of_the_npz(tmp_path):
    big = np.random.default_rng(0).normal(size=(3000, 900))  # 21 MB: several chunks
    np.savez(tmp_path / "a.npz", x=big, g=np.arange(3000))
    options = SourceOptions(rows=(5, 2900))
    one, two = open_arrays({"x": big, "g": np.arange(3000)}, options), open_source(tmp_path / "a.npz", options)
    assert (one.kind, one.span, one.header.shape, one.header.dtype) == (
        two.kind, two.span, two.header.shape, two.header.dtype,
    )  # fmt: skip
    pairs = list(zip(one.chunks(), two.chunks(), strict=True))
    assert len(pairs) > 1
    for (at, a), (same, b) in pairs:
        assert at == same
        assert np.array_equal(a, b)
    assert np.array_equal(one.vector("g"), two.vector("g"))


def test_the_samples_are_x_else_the_first_else_the_key_that_is_named():
    arrays = {"g": GROUPS, "x": X, "z": X[:, 0]}
    assert open_arrays(X, SourceOptions()).key == "x"
    assert open_arrays(arrays, SourceOptions()).key == "x"
    assert open_arrays({"z": X, "g": GROUPS}, SourceOptions()).key == "z"
    assert open_arrays(arrays, SourceOptions(key="z")).header.shape == (20,)


def test_a_chunk_is_a_copy():
    x = X.copy()
    _, chunk = next(open_arrays(x, SourceOptions()).chunks())
    chunk[:] = 0
    assert np.array_equal(x, X)


def test_what_a_form_holds():
    assert open_arrays(np.zeros((4, 16, 16), np.uint8), SourceOptions()).kind == "image"
    assert open_arrays(np.zeros((4, 8, 2)), SourceOptions()).kind == "series"
    assert as_kind(open_arrays(X, SourceOptions()), "series").kind == "series"
    with pytest.raises(Refusal, match="Array 'x' of arrays holds float32 .* which is no image array"):
        as_kind(open_arrays(X, SourceOptions()), "image")


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({}, SourceOptions(), "holds no array"),
        ({"x": X}, SourceOptions(key="y"), "no array 'y'; the key may be x"),
        (np.float32(1), SourceOptions(), "a single value"),
        (np.empty((0, 3)), SourceOptions(), "is empty: its shape is"),
        (np.array([{}, {}]), SourceOptions(), "not numeric"),
        (X, SourceOptions(rows=(30, 40)), "leave nothing of arrays, which holds 20 samples"),
    ],
)
def test_what_is_no_source(arrays, options, words):
    with pytest.raises(Refusal, match=words):
        open_arrays(np.asarray(arrays) if not isinstance(arrays, dict) else arrays, options)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("none", "no array 'none'; it holds x, short, objects"),
        ("short", r"has shape \(3,\); it must hold 20"),
        ("objects", "integers or strings"),
    ],
)
def test_what_is_no_value_per_sample(key, words):
    source = open_arrays({"x": X, "short": np.zeros(3), "objects": np.array([None] * 20)}, SourceOptions())
    with pytest.raises(Refusal, match=words):
        source.vector(key)
