"""The columns of every file of results: exact names and types, in order. Whoever reads them relies on it."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from writers import strange_series, verdicts_of

from toy_bundles import IMAGE, SERIES, VECTOR
from vaegis.models.errors import Refusal
from vaegis.models.outputs.event_file import EventFile
from vaegis.models.outputs.map_files import MapFiles
from vaegis.models.outputs.sample_files import sample_files
from vaegis.models.outputs.score_file import ScoreFile

TERMS = ["score", "reconstruction_error", "negative_elbo"]
SCORE = {
    "item": "string",
    "index": "int64",
    "timestamp": "string",
    "status": "string",
    "score": "double",
    "p_value": "double",
    "p_tail": "double",
    "anomalous": "bool",
    "warmup": "bool",
    "reconstruction_error": "double",
    "negative_elbo": "double",
    "error": "string",
}
EVENT = {
    "item": "string",
    "start": "int64",
    "end": "int64",
    "start_timestamp": "string",
    "end_timestamp": "string",
    "peak": "int64",
    "peak_score": "double",
    "channels": "list<element: string>",
}
VALUES = {"image": np.zeros((3, 4, 4, 1), np.uint8), "series": strange_series(), "vector": np.ones((3, 3), np.float32)}


def columns(path):
    return {f.name: str(f.type) for f in pq.read_schema(path)}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return {s.kind: verdicts_of(folder / s.kind, s, VALUES[s.kind]) for s in (IMAGE, SERIES, VECTOR)}


def written(file, *blocks):
    with file as taking:
        for block in blocks:
            taking.write(block)


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_score_files(toys, tmp_path, kind):
    for form in ("parquet", "csv", "jsonl"):
        written(ScoreFile(tmp_path / f"s.{form}", TERMS), toys[kind][1])
    assert list(columns(tmp_path / "s.parquet").items()) == list(SCORE.items())
    assert next(csv.reader((tmp_path / "s.csv").read_text().splitlines())) == list(SCORE)
    assert list(json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])) == list(SCORE)


def test_event_files(toys, tmp_path):
    for form in ("parquet", "csv", "jsonl"):
        written(EventFile(tmp_path / f"e.{form}", SERIES), toys["series"][1])
    assert list(columns(tmp_path / "e.parquet").items()) == list(EVENT.items())
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    # Rows 20 to 23 and 37 to 39 leap; windows of four rows reach three further, and the last event the end.
    assert [(r["item"], r["start"], r["end"], r["peak"]) for r in rows] == [(None, 20, 26, 23), (None, 37, 39, 39)]
    assert [r["peak_score"] for r in rows] == [(4 * 1600 + 4) / 8, (3 * 1600 + 5) / 8]
    assert [(r["start_timestamp"], r["end_timestamp"], r["channels"]) for r in rows] == [
        (None, None, ["flow", "speed"]),
        (None, None, ["flow", "speed"]),
    ]
    assert [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()] == rows
    table = list(csv.DictReader((tmp_path / "e.csv").read_text().splitlines()))
    assert list(table[0]) == list(EVENT)
    assert [r["channels"] for r in table] == ["flow;speed"] * 2
    assert [(int(r["start"]), int(r["end"]), float(r["peak_score"])) for r in table] == [
        (r["start"], r["end"], r["peak_score"]) for r in rows
    ]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_file_of_no_events_has_its_columns(toys, tmp_path, form):
    path = tmp_path / f"e.{form}"
    _, calm = verdicts_of(tmp_path / "b", SERIES, np.ones((20, 2), np.float32))
    written(EventFile(path, SERIES), calm)
    if form == "parquet":
        assert (columns(path), pq.read_metadata(path).num_rows) == (EVENT, 0)
    else:
        quoted = ",".join(f'"{name}"' for name in EVENT) + "\n"
        assert path.read_text() == (quoted if form == "csv" else "")


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=["image", "vector"])
def test_single_samples_have_no_events(tmp_path, spec):
    with pytest.raises(Refusal, match=rf"^--events e\.csv .* takes single {spec.kind}s; leave --events out"):
        EventFile(tmp_path / "e.csv", spec)


def test_windows_have_no_events(toys, tmp_path):
    bundle, _ = toys["series"]
    _, windows = verdicts_of(tmp_path / "b", SERIES, np.ones((3, 4, 2), np.float32))
    with pytest.raises(Refusal, match="SOURCE holds windows, each a sample by itself"):
        written(EventFile(tmp_path / "e.csv", bundle.spec), windows)
    assert not list(tmp_path.glob("*e.csv*"))


@pytest.mark.parametrize(
    ("kind", "channels"), [("series", ["speed", "flow"]), ("vector", ["a", "b", "c"])], ids=["series", "vector"]
)
def test_map_tables(toys, tmp_path, kind, channels):
    bundle, verdicts = toys[kind]
    written(MapFiles(tmp_path / "maps", bundle), verdicts, verdicts)
    found = columns(tmp_path / "maps" / "maps.parquet")
    assert list(found.items()) == [("item", "string"), ("index", "int64"), *((c, "float") for c in channels)]
    assert pq.read_metadata(tmp_path / "maps" / "maps.parquet").num_rows == 2 * len(verdicts)


@pytest.mark.parametrize("about", [(), ("difference",)], ids=str)
def test_sample_tables(tmp_path, about):
    values = np.ones((3, 3), np.float32)
    given = dict.fromkeys(about, values)
    for form in ("parquet", "csv"):
        with sample_files(tmp_path / f"s.{form}", VECTOR, about) as files:
            files.write(values, ["a"] * 3, np.arange(3), **given)
    channels = ["a", "b", "c", *(f"{name}.{c}" for name in about for c in "abc")]
    want = {"item": "string", "index": "int64", "timestamp": "string", **dict.fromkeys(channels, "float")}
    want["note"] = "string"
    assert list(columns(tmp_path / "s.parquet").items()) == list(want.items())
    assert next(csv.reader((tmp_path / "s.csv").read_text().splitlines())) == list(want)


def test_sample_arrays(tmp_path):
    values = np.ones((2, 3), np.float32)
    with sample_files(tmp_path / "s.npz", VECTOR, ("difference",)) as files:
        files.write(values, ["a"] * 2, np.arange(2), difference=values - 1)
        files.write(values, ["b"] * 2, np.arange(2), difference=values - 1)
    with np.load(tmp_path / "s.npz") as arrays:
        assert {n: (a.shape, str(a.dtype)) for n, a in arrays.items()} == {
            "x": ((4, 3), "float32"),
            "difference": ((4, 3), "float32"),
        }
