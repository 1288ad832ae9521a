"""Request bodies: every form gives the same block, and every bad body its sentence."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaegis.models.errors import Malformed, Refusal, TooLarge, UnsupportedType
from vaegis.models.inputs import Limits, from_arrow, from_files, from_json, from_npy, from_raw
from vaegis.models.inputs.images import roi_digest
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

RNG = np.random.default_rng(0)
GREY = ImageSpec(16, 20, 1)
COLOUR = ImageSpec(16, 20, 3)
SERIES = SeriesSpec(("speed", "flow"), 8, timestamp="time")
VECTOR = VectorSpec(("a", "b", "c"))


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ipc(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


@pytest.mark.parametrize("spec", [GREY, COLOUR, ImageSpec(16, 20, 1, depth=16)])
def test_images_agree_whatever_they_come_as(spec):
    x = RNG.integers(0, 256, (4, *spec.shape)).astype(spec.dtype)
    squeezed = x[..., 0] if spec.channels == 1 else x
    found = [
        from_json(spec, {"data": squeezed.tolist()}),
        from_json(spec, {"data": x.tolist()}),
        from_raw(spec, x.astype(x.dtype.newbyteorder("<")).tobytes()),
        from_npy(spec, npy(squeezed)),
        from_npy(spec, npy(np.asfortranarray(x))),
        from_files(spec, [(f"{i}.png", png(one)) for i, one in enumerate(squeezed)]),
    ]
    for block in found:
        np.testing.assert_array_equal(block.parts, x)
        assert block.parts.dtype == spec.dtype
        assert block.index.tolist() == [0, 1, 2, 3]
        assert block.count.tolist() == [1] * 4
    assert list(found[-1].items) == ["0.png", "1.png", "2.png", "3.png"]


def test_series_agree_whatever_they_come_as():
    x = RNG.normal(size=(50, 2)).astype(np.float32)
    time = list(range(50))
    table = pa.table({"flow": x[:, 1].astype(float), "note": ["n"] * 50, "time": time, "speed": x[:, 0]})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    text = "flow;time;speed\n" + "".join(f"{float(b)!r};{t};{float(a)!r}\n" for t, (a, b) in enumerate(x))
    swapped = {"data": x[:, ::-1].tolist(), "columns": ["flow", "speed"], "timestamps": time}
    found = {
        "json": from_json(SERIES, {"data": x.tolist()}),
        "reordered": from_json(SERIES, swapped),
        "raw": from_raw(SERIES, x.tobytes()),
        "npy": from_npy(SERIES, npy(x.astype(np.float64))),
        "arrow": from_arrow(SERIES, ipc(table)),
        "parquet": from_files(SERIES, [("live.parquet", parquet.getvalue())]),
        "csv": from_files(SERIES, [("live.csv", text.encode())]),
    }
    for name, block in found.items():
        assert len(block) == 50, name
        np.testing.assert_allclose(block.parts, found["raw"].parts, rtol=1e-6, err_msg=name)
        assert block.warmup.sum() == 7
        assert (block.timestamps is None) == (name in ("json", "raw", "npy")), name
        if block.timestamps is not None:
            assert list(block.timestamps) == time, name
    assert set(found["csv"].items) == {"live.csv"}
    np.testing.assert_array_equal(found["raw"].parts[found["raw"].first[20]], x[13:21])


def test_vectors_agree_whatever_they_come_as():
    x = RNG.normal(size=(9, 3)).astype(np.float32)
    table = pa.table({"c": x[:, 2], "a": x[:, 0], "z": x[:, 0], "b": x[:, 1]})
    found = [
        from_json(VECTOR, {"data": x.tolist(), "items": [f"i{k}" for k in range(9)]}),
        from_json(VECTOR, {"data": x[:, [2, 0, 0, 1]].tolist(), "columns": ["c", "a", "z", "b"]}),
        from_raw(VECTOR, x.tobytes()),
        from_npy(VECTOR, npy(x)),
        from_arrow(VECTOR, ipc(table)),
    ]
    for block in found:
        np.testing.assert_allclose(block.parts, x, rtol=1e-6)
    assert list(found[0].items) == [f"i{k}" for k in range(9)]
    np.testing.assert_allclose(from_json(VECTOR, {"data": x[0].tolist()}).parts, x[:1], rtol=1e-6)


def test_a_null_makes_one_vector_unjudged_or_missing():
    body = json.loads('{"data": [[1, 2, 3], [1, null, 3]]}')
    block = from_json(VECTOR, body)
    assert block.count.tolist() == [1, 0]
    assert "'b' of row 1 is NaN" in block.errors[1]
    allowed = from_json(VectorSpec(("a", "b", "c"), missing="allow"), body)
    assert allowed.count.tolist() == [1, 1]
    assert np.isnan(allowed.parts[1, 1])


def test_items_part_a_series():
    x = RNG.normal(size=(30, 2))
    block = from_json(SERIES, {"data": x.tolist(), "items": ["p"] * 12 + ["q"] * 18})
    assert block.index.tolist() == [*range(12), *range(18)]
    assert block.warmup.tolist() == ([True] * 7 + [False] * 5) + ([True] * 7 + [False] * 11)
    np.testing.assert_allclose(block.parts[block.first[12]], x[12:20], rtol=1e-6)
    assert block.place[:, 0].tolist() == [*range(5), *range(12, 23)]
    several = from_files(
        SERIES, [("p.csv", b"speed,flow\n" + b"1,2\n" * 12), ("q.csv", b"junk\x00"), ("r.csv", b"speed,flow\n1,2\n")]
    )
    assert list(several.items) == ["p.csv"] * 12 + ["q.csv", "r.csv"]
    assert several.count.tolist() == [1] * 12 + [0, 0]
    assert "q.csv" in several.errors[12]
    assert "one window takes 8" in several.errors[13]


def test_windows_may_be_sent_as_they_are():
    x = RNG.normal(size=(3, 8, 2)).astype(np.float32)
    block = from_npy(SERIES, npy(x))
    np.testing.assert_array_equal(block.parts, x)
    assert len(block) == 3
    with pytest.raises(Refusal, match="windows have 8 rows, and the model takes 9"):
        from_npy(SeriesSpec(("a", "b"), 9), npy(x))


@pytest.mark.parametrize(
    ("spec", "body", "error", "words"),
    [
        (VECTOR, {}, Malformed, 'no "data"'),
        (VECTOR, [1], Malformed, "JSON object"),
        (VECTOR, {"data": "no"}, Malformed, "text 'no'"),
        (VECTOR, {"data": 5}, Malformed, "number"),
        (VECTOR, {"data": []}, Malformed, "is empty"),
        (VECTOR, {"data": [[]]}, Malformed, "is empty"),
        (VECTOR, {"data": [[1, 2], [3]]}, Malformed, "ragged"),
        (VECTOR, {"data": [["1", "2", "3"]]}, Malformed, "holds text"),
        (VECTOR, {"data": [[1, "2", None]]}, Malformed, "text '2'"),
        (VECTOR, {"data": [[{"a": 1}, 2, 3]]}, Malformed, "an object"),
        (VECTOR, {"data": [[True, False, True]]}, Malformed, "true or false"),
        (VECTOR, {"data": [[1, 2]]}, Refusal, "2 columns, and the model takes 3: a, b, c"),
        (VECTOR, {"data": [[1, 2, 3]], "columns": ["a", "b", "x"]}, Refusal, "lacks column c"),
        (VECTOR, {"data": [[1, 2, 3]], "columns": ["a", "b"]}, Refusal, "2 columns, and the data have 3"),
        (VECTOR, {"data": [[1, 2, 3]], "columns": ["a", "b", "b"]}, Refusal, "twice"),
        (VECTOR, {"data": [[1, 2, 3]], "columns": "abc"}, Malformed, "columns"),
        (VECTOR, {"data": [[1, 2, 3]], "items": ["x", "y"]}, Refusal, '"items" has 2 entries'),
        (VECTOR, {"data": [[[1, 2, 3]]]}, Refusal, r"\(N, D\)"),
        (VECTOR, {"data": [[1, 2, 3]] * 6}, TooLarge, "6 vectors"),
        (SERIES, {"data": [[1, 2]] * 3, "timestamps": [1, 2]}, Refusal, "2 entries, and the data have 3"),
        (SERIES, {"data": [[1, 2]] * 3, "timestamps": [1, 3, 2]}, Refusal, "row 2 has 2 after 3"),
        (SERIES, {"data": [[1, 2]] * 2, "timestamps": ["b", 2]}, Malformed, "mixes"),
        (SERIES, {"data": [[1, 2]] * 2, "timestamps": [{}, 2]}, Malformed, "timestamps"),
        (GREY, {"data": [[[0]]]}, Refusal, "1x1.*16x20"),
        (GREY, {"data": [[0.5]]}, Refusal, r"\(N, H, W\)"),
        (GREY, {"data": [[[0.5]]]}, Refusal, "whole numbers"),
        (GREY, {"data": [[[300]]]}, Refusal, "300.*0 to 255"),
        (GREY, {"data": [[[-1]]]}, Refusal, "-1"),
        (GREY, {"data": [[[None]]]}, Refusal, "whole numbers"),
    ],
)
def test_bad_json_is_refused_by_what_is_wrong(spec, body, error, words):
    with pytest.raises(Refusal, match=words) as refusal:
        from_json(spec, body, limits=Limits(samples=5))
    assert type(refusal.value) is error or (error is Refusal and refusal.value.status == 422)


@pytest.mark.parametrize(
    ("spec", "body", "words"),
    [
        (GREY, b"", "0 bytes.*320 bytes per image"),
        (GREY, b"abc", "3 bytes.*320 bytes per image"),
        (SERIES, b"1234567", "7 bytes.*8 bytes per row"),
        (VECTOR, b"1234567", "12 bytes per vector"),
    ],
)
def test_raw_bodies_must_hold_whole_samples(spec, body, words):
    with pytest.raises(Malformed, match=words):
        from_raw(spec, body)


def test_raw_bodies_have_a_limit():
    with pytest.raises(TooLarge, match="6 vectors"):
        from_raw(VECTOR, bytes(6 * 12), limits=Limits(samples=5))


@pytest.mark.parametrize(
    ("spec", "body", "error", "words"),
    [
        (GREY, b"not npy", Malformed, r"not an \.npy"),
        (GREY, npy(np.zeros((2, 16, 20), np.uint8))[:-5], Malformed, "holds 635"),
        (GREY, npy(np.zeros((2, 16, 20), np.float32)), Refusal, "whole numbers"),
        (GREY, npy(np.zeros((2, 16, 20), np.uint16)), Refusal, "16 bits"),
        (GREY, npy(np.zeros((0, 16, 20), np.uint8)), Malformed, "is empty"),
        (GREY, npy(np.array(["a"])), Refusal, "not numeric"),
        (VECTOR, npy(np.array([{}], object)), Refusal, "object array"),
        (VECTOR, npy(np.zeros(())), Refusal, r"shape \(\)"),
    ],
)
def test_bad_npy_is_refused(spec, body, error, words):
    with pytest.raises(error, match=words):
        from_npy(spec, body)


def test_big_endian_npy_is_read():
    x = RNG.normal(size=(4, 3)).astype(">f4")
    np.testing.assert_array_equal(from_npy(VECTOR, npy(x)).parts, x.astype(np.float32))


@pytest.mark.parametrize(
    ("spec", "body", "error", "words"),
    [
        (VECTOR, b"junk", Malformed, "not an Arrow"),
        (VECTOR, b"", Malformed, "not an Arrow"),
        (VECTOR, ipc(pa.table({"a": [1.0], "b": [1.0]})), Refusal, "lacks column c"),
        (VECTOR, ipc(pa.table({"a": ["x"], "b": [1.0], "c": [1.0]})), Refusal, "'a' of the table holds string"),
        (VECTOR, ipc(pa.table({k: pa.array([], pa.float64()) for k in "abc"})), Malformed, "no rows"),
        (GREY, b"", UnsupportedType, "images"),
        (
            SERIES,
            ipc(pa.table({"speed": [1.0, 2.0], "flow": [1.0, 2.0], "time": [2, 1]})),
            Refusal,
            "row 1 has 1 after 2",
        ),
    ],
)
def test_bad_arrow_is_refused(spec, body, error, words):
    with pytest.raises(error, match=words):
        from_arrow(spec, body)


def test_arrow_nulls_are_missing():
    block = from_arrow(VECTOR, ipc(pa.table({"a": [1, None], "b": [1.0, 2.0], "c": [True, False]})))
    assert block.count.tolist() == [1, 0]
    np.testing.assert_array_equal(block.parts, [[1, 1, 1]])


def test_a_bad_image_among_good_ones_stays_in_place():
    good = png(RNG.integers(0, 256, (16, 20), np.uint8))
    block = from_files(
        GREY, [("0.png", good), ("1.png", good[:40]), ("2.png", png(np.zeros((9, 9), np.uint8))), ("3.png", good)]
    )
    assert block.count.tolist() == [1, 0, 0, 1]
    assert block.first.tolist()[3] == 1
    assert block.errors[1].startswith("1.png: not a readable image")
    assert "9x9" in block.errors[2]


@pytest.mark.parametrize(
    ("spec", "files", "error", "words"),
    [
        (GREY, [], Malformed, "no file"),
        (GREY, [("a.png", b"")] * 6, TooLarge, "6 files"),
        (SERIES, [("a.png", png(np.zeros((16, 16), np.uint8)))], Refusal, r"a\.png is an image"),
        (SERIES, [("a.csv", b"")], Refusal, "is empty"),
        (SERIES, [("a.csv", b"speed,flow\n")], Refusal, "no rows"),
        (SERIES, [("a.csv", b"speed\n1\n")], Refusal, "lacks column flow"),
        (SERIES, [("a.csv", b"speed,flow\n" + b"1,2\n" * 6)], TooLarge, "6 rows"),
        (SERIES, [("a.csv", b"speed,flow,time\n1,2,5\n1,2,5\n")], Refusal, "same timestamp"),
    ],
)
def test_bad_uploads_are_refused(spec, files, error, words):
    with pytest.raises(error, match=words):
        from_files(spec, files, limits=Limits(samples=5))


def test_a_region_of_interest_holds_for_requests():
    mask = np.zeros((16, 20), bool)
    mask[2:5, 2:5] = True
    spec = ImageSpec(16, 20, 1, roi=roi_digest(mask))
    x = RNG.integers(1, 256, (2, 16, 20), np.uint8)
    expected = np.where(mask, x, 0)[..., None]
    np.testing.assert_array_equal(from_npy(spec, npy(x), roi=mask).parts, expected)
    np.testing.assert_array_equal(from_files(spec, [("a.png", png(x[0]))], roi=mask).parts, expected[:1])
    with pytest.raises(Refusal, match="--roi"):
        from_npy(spec, npy(x))


def test_tiled_models_cut_requests():
    spec = ImageSpec(16, 16, 1, tile=True, overlap=0)
    x = RNG.integers(0, 256, (2, 32, 48), np.uint8)
    block = from_npy(spec, npy(x))
    assert block.count.tolist() == [6, 6]
    assert list(block.extents) == [(32, 48)] * 2
    np.testing.assert_array_equal(block.parts[block.first[1]][..., 0], x[1, :16, :16])
    with pytest.raises(Refusal, match="smaller than one tile"):
        from_npy(spec, npy(x[:, :8]))
