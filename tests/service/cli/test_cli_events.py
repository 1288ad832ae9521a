"""`vaegis score --events`: the stretches of time in which a series is strange."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from http_server import multipart

from toy_bundles import SERIES
from toy_data import write_csv

COLUMNS = ["item", "start", "end", "start_timestamp", "end_timestamp", "peak", "peak_score", "channels"]
LEAPS = [(20, 24, "flow"), (4094, 4099, "speed"), (6000, 8200, "flow"), (8997, 9000, "speed")]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """9000 rows, three blocks of them: one channel leaps within the first, over both borders, and at the end."""
    x = np.ones((9000, 2))
    for start, stop, channel in LEAPS:
        x[start:stop, SERIES.columns.index(channel)] = 40 + np.arange(stop - start) / 1000
    return write_csv(tmp_path_factory.mktemp("long") / "pump.csv", x, columns=SERIES.columns)


@pytest.fixture
def events(vaegis, toys, tmp_path):
    """`events(source, "csv", ...)`: the path of the event file of a series."""

    def run(source, form, *options):
        out = tmp_path / f"events.{form}"
        done = vaegis("score", source, "--bundle", toys / "series", "--events", out, *options)
        assert done.code == 0, done
        assert f"events: {out}" in done.out
        assert sorted(p.name for p in tmp_path.glob("*events*")) == [out.name]
        return out

    return run


def test_each_stretch_is_an_event_over_the_borders_of_blocks_too(events, long):
    rows = pq.read_table(events(long, "parquet")).to_pylist()
    # A row takes the verdict of the window of four that ends there, so an event lasts three rows beyond its leap.
    assert [(r["start"], r["end"]) for r in rows] == [(a, min(b + 2, 8999)) for a, b, _ in LEAPS]
    assert [r["peak"] for r in rows] == [b - 1 for _, b, _ in LEAPS]
    assert [r["channels"][0] for r in rows] == [c for *_, c in LEAPS]
    assert {r["item"] for r in rows} == {"pump.csv"}
    assert [r["start_timestamp"] for r in rows][1] == "2026-01-01T01:08:14"
    assert [r["end_timestamp"] for r in rows][1] == "2026-01-01T01:08:21"


def test_they_are_those_of_the_service(events, long, client):
    form, kind = multipart([("pump.csv", long.read_bytes())])
    status, answer = client.score("series", form, kind)
    assert status == 200
    assert len(answer["events"]) == len(LEAPS)
    rows = [json.loads(line) for line in events(long, "jsonl").read_text().splitlines()]
    assert rows == [{name: event[name] for name in COLUMNS} for event in answer["events"]]


def test_the_three_forms_say_the_same(events, long):
    rows = [json.loads(line) for line in events(long, "jsonl").read_text().splitlines()]
    (events(long, "jsonl")).unlink()
    assert pq.read_table(table := events(long, "parquet")).to_pylist() == rows
    table.unlink()
    text = list(csv.DictReader(events(long, "csv").read_text().splitlines()))
    assert list(text[0]) == COLUMNS
    assert [{**r, "channels": r["channels"].split(";")} for r in text] == [
        {n: v if n == "channels" else str(v) for n, v in r.items()} for r in rows
    ]


def test_the_rate_decides_and_the_score_file_agrees(events, long, tmp_path):
    out = tmp_path / "s.parquet"
    assert pq.read_table(events(long, "parquet", "--threshold", "1e9", "--out", out)).num_rows == 0
    rows = pq.read_table(events(long, "parquet", "--out", out)).to_pylist()
    scored = pq.read_table(out, columns=["index", "anomalous", "score", "timestamp"]).to_pydict()
    inside = {i for r in rows for i in range(r["start"], r["end"] + 1)}
    assert inside == {i for i, a in zip(scored["index"], scored["anomalous"], strict=True) if a}
    for r in rows:
        assert scored["score"][r["peak"]] == r["peak_score"] == max(scored["score"][r["start"] : r["end"] + 1])
        assert scored["timestamp"][r["start"]] == r["start_timestamp"]


def test_items_have_their_own_events(events, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    x = np.ones((30, 2))
    x[-4:, 0] = x[:4, 1] = 40
    for name in ("a.csv", "b.csv"):
        write_csv(runs / name, x, stamps=False, columns=SERIES.columns)
    rows = pq.read_table(events(runs, "parquet")).to_pylist()
    assert [(r["item"], r["start"], r["end"]) for r in rows] == [
        (name, *span) for name in ("a.csv", "b.csv") for span in ((0, 6), (26, 29))
    ]
    assert {r["start_timestamp"] for r in rows} == {None}


BAD = {
    "an unknown form": (["{series}", "--events", "{tmp}/e.xlsx"], [".xlsx", ".parquet, .csv or .jsonl"]),
    "no form": (["{series}", "--events", "{tmp}/events"], ["ends in nothing", ".parquet"]),
    "a folder": (["{series}", "--events", "{tmp}/folder.csv"], ["--events", "folder.csv is a folder"]),
    "below a file": (["{series}", "--events", "{tmp}/file/e.csv"], ["--events", "file/e.csv cannot be written"]),
    "no folder to write in": (["{series}", "--events", "/proc/none/e.csv"], ["--events", "cannot be written"]),
    "the score file": (
        ["{series}", "--events", "{tmp}/s.csv", "--out", "{tmp}/folder.csv/../s.csv"],
        ["--events", "--out", "name another place"],
    ),
    "the source": (["{series}", "--events", "{series}"], ["SOURCE", "name another place"]),
    "the score file is the source": (["{series}", "--out", "{series}"], ["--out", "SOURCE", "name another place"]),
    "the table of maps": (
        ["{series}", "--maps", "{tmp}/m", "--events", "{tmp}/m/maps.parquet"],
        ["--events", "--maps", "name another place"],
    ),
    "windows": (["{windows}", "--events", "{tmp}/e.csv"], ["windows", "--events", "as rows"]),
}


@pytest.fixture
def names(tmp_path, toys, long):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("mine")
    np.save(tmp_path / "windows.npy", np.ones((5, 4, 2), np.float32))
    np.save(tmp_path / "vectors.npy", np.ones((5, 3), np.float32))
    np.save(tmp_path / "images.npy", np.ones((5, 4, 4), np.uint8))
    return {"tmp": tmp_path, "series": long, "windows": tmp_path / "windows.npy"}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_answered_with_a_sentence(refused, toys, names, long, case):
    before, source = sorted(p for p in names["tmp"].rglob("*") if "home" not in p.parts), long.read_bytes()
    given, words = BAD[case]
    refused("score", *(a.format(**names) for a in given), "--bundle", toys / "series", words=words)
    assert sorted(p for p in names["tmp"].rglob("*") if "home" not in p.parts) == before
    assert long.read_bytes() == source


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_model_of_single_samples_has_none(refused, toys, names, kind):
    words = [f"--events e.csv asks for stretches of time, and the model takes single {kind}s"]
    out = names["tmp"] / "s.csv"
    source = names["tmp"] / f"{kind}s.npy"
    given = ["--bundle", toys / kind, "--events", names["tmp"] / "e.csv", "--out", out]
    refused("score", source, *given, words=words)
    assert not out.exists()
