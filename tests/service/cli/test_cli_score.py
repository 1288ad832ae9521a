import csv
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from size_limit import size_limit
from toy_data import SERIES, pump, write_csv
from vaegis.models.bundle import open_bundle
from vaegis.models.outputs.colours import to_png
from vaegis.models.runtime.graph import Graph

TERMS = ["reconstruction_error", "negative_elbo", "kl", "latent_distance"]


def read(path):
    return pq.read_table(path).to_pydict()


@pytest.fixture
def scored(vaegis, bundle, sources, tmp_path):
    """`scored("image", ...)`: the columns of the score file of the kind's test source."""

    def run(kind, *options, source=None):
        out = tmp_path / f"{kind}.parquet"
        given = source or sources / {"series": "series-test.csv"}.get(kind, f"{kind}-test.npz")
        result = vaegis("score", given, "--bundle", bundle(kind), "--out", out, *options)
        assert result.code == 0, result
        return read(out), result

    return run


def test_a_row_per_sample(scored):
    rows, result = scored("image")
    assert list(rows)[:9] == (
        ["item", "index", "timestamp", "status", "score", "p_value", "p_tail", "anomalous", "warmup"]
    )
    assert list(rows)[-1] == "error"
    assert set(TERMS) <= set(rows)
    assert rows["index"] == list(range(40))
    assert set(rows["item"]) == {"image-test.npz"}
    assert rows["status"] == ["anomalous" if a else "ok" for a in rows["anomalous"]]
    assert rows["warmup"] == rows["timestamp"] == rows["error"] == [None] * 40
    assert sum(rows["anomalous"][20:]) >= 12
    assert sum(rows["anomalous"][:20]) <= 5
    found = sum(rows["anomalous"])
    assert f"{found} of 40 samples are anomalous" in result.out
    # The strangest are named, strangest first.
    strangest = np.argsort(rows["score"])[::-1][:5]
    places = [result.out.index(f"image-test.npz [{i}] ") for i in strangest]
    assert places == sorted(places)


def test_p_values_and_verdicts_follow_the_bundles_calibration(scored, bundle):
    rows, _ = scored("vector", "--alpha", "0.1")
    opened = open_bundle(bundle("vector"))
    group = opened.calibration.group(None).terms["score"]
    scores = np.array(rows["score"])
    assert rows["p_value"] == group.p_value(scores).tolist()
    assert rows["anomalous"] == (np.array(rows["p_value"]) <= 0.1).tolist()


def test_the_three_forms_say_the_same(vaegis, bundle, sources, tmp_path):
    for form in ("parquet", "csv", "jsonl"):
        done = vaegis(
            "score", sources / "vector-test.npz", "--bundle", bundle("vector"), "--out", tmp_path / f"s.{form}"
        )
        assert done.code == 0
    columns = read(tmp_path / "s.parquet")
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert {k: [line[k] for line in lines] for k in lines[0]} == columns
    table = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert list(table[0]) == list(columns)
    assert [float(row["score"]) for row in table] == columns["score"]
    assert [row["anomalous"] == "true" for row in table] == columns["anomalous"]
    assert [row["error"] for row in table] == [""] * 40
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["s.csv", "s.jsonl", "s.parquet"]


def test_a_row_per_time_step(scored):
    rows, _ = scored("series")
    assert len(rows["score"]) == 400
    assert rows["index"] == list(range(400))
    assert rows["warmup"] == [True] * 15 + [False] * 385
    assert rows["score"][:16] == [rows["score"][0]] * 16
    assert rows["timestamp"][61].startswith("2026-01-01T00:01:01")
    assert np.mean(rows["anomalous"][320:]) > 0.8
    assert np.mean(rows["anomalous"][:300]) < 0.25


def test_what_cannot_be_read_keeps_its_row_and_is_never_ok(scored, sources, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for i, picture in enumerate(np.load(sources / "image-test.npz")["x"][:12]):
        Image.fromarray(picture).save(parts / f"part_{i}.png")
    (parts / "part_2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows, result = scored("image", source=parts)
    assert rows["item"] == [f"part_{i}.png" for i in range(12)]
    assert rows["status"][2] == "unjudged"
    for column in ("score", "p_value", "p_tail", "anomalous", *TERMS):
        assert rows[column][2] is None
    assert rows["error"][2]
    assert rows["error"][:2] == [None, None]
    assert "1 could not be judged" in result.out
    assert "part_2.png" in result.out
    assert "unjudged" not in rows["status"][:2] + rows["status"][3:]


def test_nothing_readable_is_a_failure(refused, bundle, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.png").write_bytes(b"no")
    refused("score", tmp_path / "parts", "--bundle", bundle("image"), words=["None of the 1 samples", "a.png"])


def test_alpha_threshold_and_term_decide(scored):
    low, _ = scored("image", "--alpha", "0.02")
    high, _ = scored("image", "--alpha", "0.3")
    assert low["score"] == high["score"]
    assert all(b or not a for a, b in zip(low["anomalous"], high["anomalous"], strict=True))
    assert sum(high["anomalous"]) > sum(low["anomalous"])
    never, said = scored("image", "--threshold", "1e30")
    assert not any(never["anomalous"])
    assert "as given" in said.out
    cut = sorted(never["kl"])[30]
    by_kl, _ = scored("image", "--threshold", repr(cut), "--decide-by", "kl")
    assert by_kl["anomalous"] == [k > cut for k in by_kl["kl"]]
    by_elbo, _ = scored("image", "--decide-by", "negative_elbo", "--alpha", "0.1")
    assert by_elbo["anomalous"] == [p <= 0.1 for p in by_elbo["p_value"]]


def test_an_extrapolated_rate_is_marked(scored, bundle):
    n = len(open_bundle(bundle("image")).calibration.group(None).terms["score"].values)
    rows, said = scored("image", "--alpha", str(0.5 / (n + 1)))
    assert "extrapolated" in said.out
    assert rows["anomalous"] == [p <= 0.5 / (n + 1) for p in rows["p_tail"]]


def test_scoring_twice_gives_the_same_bytes(vaegis, bundle, sources, tmp_path):
    for name in ("a.csv", "b.csv"):
        vaegis("score", sources / "image-test.npz", "--bundle", bundle("image"), "--out", tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_fail_on_anomaly(vaegis, bundle, sources):
    command = ["score", sources / "image-test.npz", "--bundle", bundle("image"), "--fail-on-anomaly"]
    assert vaegis(*command).code == 3
    assert vaegis(*command, "--threshold", "1e30").code == 0


def test_fail_on_anomaly_does_not_pass_what_could_not_be_judged(vaegis, bundle, sources, tmp_path):
    values = np.load(sources / "vector-test.npz")["x"][:20].astype(np.float64)
    values[3, 0] = np.nan
    np.save(tmp_path / "gap.npy", values)
    gate = ["score", tmp_path / "gap.npy", "--bundle", bundle("vector"), "--fail-on-anomaly"]
    passed = vaegis(*gate, "--threshold", "1e30")
    assert passed.code == 4
    assert "1 could not be judged" in passed.out
    assert vaegis(*gate[:-1], "--threshold", "1e30").code == 0, "without the option only a failure is one"
    assert vaegis(*gate, "--threshold", "0").code == 3, "an anomaly weighs more than an unjudged sample"


def test_maps_of_images_are_pictures_on_the_bundles_scale(scored, bundle, sources, tmp_path):
    scored("image", "--maps", tmp_path / "maps", "--rows", "3:5")
    opened = open_bundle(bundle("image"))
    x = np.load(sources / "image-test.npz")["x"][3:5, ..., None]
    heat = Graph(opened.read("score.onnx"), opened.spec, "cpu").run(x, maps=True)["map"]
    expected = {f"image-test.npz.{i}.png": to_png(heat[i - 3], opened.calibration.map_range) for i in (3, 4)}
    assert {p.name: p.read_bytes() for p in (tmp_path / "maps").iterdir()} == expected


def test_maps_are_named_as_their_images(vaegis, bundle, tmp_path):
    (tmp_path / "parts" / "left").mkdir(parents=True)
    picture = Image.fromarray(np.zeros((16, 16), np.uint8))
    for name in ("left/a.png", "left/a.bmp", "b.jpg"):
        picture.save(tmp_path / "parts" / name)
    maps = tmp_path / "maps"
    assert vaegis("score", tmp_path / "parts", "--bundle", bundle("image"), "--maps", maps).code == 0
    found = sorted(p.relative_to(maps).as_posix() for p in maps.rglob("*.png"))
    assert found == ["b.jpg.png", "left/a.bmp.png", "left/a.png"]


def test_maps_of_series_are_a_table(scored, tmp_path):
    rows, _ = scored("series", "--maps", tmp_path / "maps")
    table = read(tmp_path / "maps" / "maps.parquet")
    assert list(table) == ["item", "index", *SERIES.columns]
    assert table["index"] == rows["index"]
    # From row 300 on it is the flow that lags.
    heat = np.array([table[c][330:] for c in SERIES.columns])
    assert heat.mean(1).argmax() == SERIES.columns.index("flow")


def test_maps_never_overwrite_the_images_they_are_of(refused, bundle, sources, tmp_path):
    Image.fromarray(np.load(sources / "image-test.npz")["x"][0]).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    refused("score", tmp_path, "--bundle", bundle("image"), "--maps", tmp_path, words=["--maps", "SOURCE"])
    assert (tmp_path / "a.png").read_bytes() == before


def test_columns_go_by_name(scored, tmp_path):
    table = pump(120, 5)
    one, _ = scored("series", source=write_csv(tmp_path / "a.csv", table))
    turned = write_csv(tmp_path / "b.csv", table[:, ::-1], columns=SERIES.columns[::-1])
    other, _ = scored("series", source=turned)
    assert one["score"] == other["score"]


def test_a_registered_model_answers_by_name(vaegis, bundle, sources):
    assert vaegis("models", "import", bundle("vector"), "--name", "pump").code == 0
    done = vaegis("score", sources / "vector-test.npz", "--model", "pump")
    assert done.code == 0
    assert "of 40 samples are anomalous" in done.out
    assert vaegis("score", sources / "vector-test.npz", "--model", "pump@1").out == done.out


BAD = {
    "no model": (["{vector}"], ["--model", "--bundle"]),
    "both models": (["{vector}", "--model", "a", "--bundle", "{bundle}"], ["--model", "--bundle"]),
    "unknown model": (["{vector}", "--model", "ghost"], ["ghost"]),
    "no such bundle": (["{vector}", "--bundle", "{tmp}/nowhere"], ["nowhere"]),
    "a folder that is no bundle": (["{vector}", "--bundle", "{tmp}"], ["manifest.json"]),
    "no such source": (["{tmp}/nowhere.npz", "--bundle", "{bundle}"], ["nowhere.npz"]),
    "an empty folder": (["{tmp}/empty", "--bundle", "{bundle}"], ["empty"]),
    "another kind": (["{image}", "--bundle", "{bundle}"], ["image", "vector"]),
    "alpha beyond 1": (["{vector}", "--bundle", "{bundle}", "--alpha", "1.5"], ["alpha", "1.5"]),
    "alpha of nothing": (["{vector}", "--bundle", "{bundle}", "--alpha", "nan"], ["alpha", "nan"]),
    "alpha too low": (["{vector}", "--bundle", "{bundle}", "--alpha", "1e-7"], ["9999999", "clean"]),
    "threshold nan": (["{vector}", "--bundle", "{bundle}", "--threshold", "nan"], ["threshold", "nan"]),
    "rate and threshold": (["{vector}", "--bundle", "{bundle}", "--alpha", "0.1", "--threshold", "3"], ["Both"]),
    "unknown term": (["{vector}", "--bundle", "{bundle}", "--decide-by", "luck"], ["luck", "negative_elbo"]),
    "unknown group": (["{vector}", "--bundle", "{bundle}", "--group", "left"], ["left", "without groups"]),
    "unknown kind": (["{vector}", "--bundle", "{bundle}", "--kind", "sound"], ["sound", "series"]),
    "unknown device": (["{vector}", "--bundle", "{bundle}", "--device", "tpu"], ["tpu", "cuda"]),
    "unknown array": (["{vector}", "--bundle", "{bundle}", "--key", "z"], ["z"]),
    "rows of no range": (["{vector}", "--bundle", "{bundle}", "--rows", "5"], ["--rows", "5"]),
    "an unknown form": (["{vector}", "--bundle", "{bundle}", "--out", "{tmp}/s.xlsx"], [".xlsx", ".parquet"]),
    "out is a folder": (["{vector}", "--bundle", "{bundle}", "--out", "{tmp}/empty.csv"], ["empty.csv", "folder"]),
    "out below a file": (["{vector}", "--bundle", "{bundle}", "--out", "{tmp}/file/s.csv"], ["--out", "file/s.csv"]),
    "maps is a file": (["{vector}", "--bundle", "{bundle}", "--maps", "{tmp}/file"], ["--maps", "file"]),
    "maps below a file": (["{vector}", "--bundle", "{bundle}", "--maps", "{tmp}/file/maps"], ["--maps", "file/maps"]),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_answered_with_a_sentence(refused, bundle, sources, tmp_path, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").mkdir()
    (tmp_path / "file").write_text("mine")
    names = {
        "tmp": tmp_path,
        "bundle": bundle("vector"),
        "vector": sources / "vector-test.npz",
        "image": sources / "image-test.npz",
    }
    given, words = BAD[case]
    refused("score", *(a.format(**names) for a in given), words=words)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["empty", "empty.csv", "file"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_disk_that_fills_up_leaves_the_old_score_file(refused, bundle, sources, tmp_path, form):
    out = tmp_path / f"s.{form}"
    out.write_text("old")
    given = ["score", sources / "vector-test.npz", "--bundle", bundle("vector"), "--out", out]
    with size_limit(1000):
        refused(*given, words=["File too large"])
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".s.*"))


@pytest.mark.parametrize("args", [["--alpha", "much"], ["--luck", "3"], []], ids=str)
def test_wrong_usage_is_exit_code_2(refused, args):
    refused("score", *args, words=["score"], code=2)


def test_a_changed_byte_of_the_model_is_named(refused, bundle, sources, tmp_path):
    shutil.copytree(bundle("vector"), tmp_path / "b")
    raw = bytearray((tmp_path / "b/score.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "b/score.onnx").write_bytes(raw)
    refused("score", sources / "vector-test.npz", "--bundle", tmp_path / "b", words=["score.onnx"])


def test_a_failure_half_way_leaves_the_old_score_file(refused, bundle, tmp_path):
    """Columns that a later table lacks end the run; what an earlier run wrote stays as it was."""
    folder = tmp_path / "runs"
    folder.mkdir()
    write_csv(folder / "a.csv", pump(60, 1))
    rows = (folder / "a.csv").read_text().splitlines()
    (folder / "b.csv").write_text("\n".join([rows[0], *rows[30:60], *rows[1:30]]) + "\n")  # time runs backwards
    (tmp_path / "s.csv").write_text("old")
    refused("score", folder, "--bundle", bundle("series"), "--out", tmp_path / "s.csv", words=["b.csv"])
    assert (tmp_path / "s.csv").read_text() == "old"
    assert not list(tmp_path.glob(".s.csv*"))
