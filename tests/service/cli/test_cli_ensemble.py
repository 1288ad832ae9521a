"""Ensembles of toy bundles whose score is the mean of the sample."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest

from toy_data import mean_graph
from toy_latents import IMAGE, RECIPES, SERIES, VECTOR, bundle_of
from vaegis.models.bundle import open_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.derived.calibrating import independent
from vaegis.models.manifest import Training

MIDDLE, SPREAD = 50.0, 49.0 / 1.349  # of clean scores 1 to 99: median, interquartile range over a normal one's


def clean(n=200, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, 4)) + 50).astype(np.float32)


def other(spec, scale=1.0):
    """Graphs and calibration of a member whose clean scores are `scale` as large."""
    scores = scale * np.arange(1.0, 100.0)
    calibration = calibrate({"score": scores, "twice": 2 * scores}, None, None, (0.0, scale))
    return {"score.onnx": mean_graph(spec, f"other {scale}"), "calibration.npz": to_bytes(calibration)}


@pytest.fixture
def toy(tmp_path):
    bundle_of(tmp_path / "one", VECTOR, {})
    bundle_of(tmp_path / "two", VECTOR, other(VECTOR, 2.0))
    np.save(tmp_path / "clean.npy", clean())
    return tmp_path


@pytest.fixture
def made(vaegis, toy):
    def make(*more, members=("one", "two"), out="both"):
        done = vaegis("ensemble", *(toy / m for m in members), "--on", toy / "clean.npy", "--name", "both", "--out",
                      toy / out, *more)  # fmt: skip
        assert done.code == 0, done
        return open_bundle(toy / out), done

    return make


def test_the_graph_is_the_mean_of_the_members(made):
    bundle, _ = made()
    session = ort.InferenceSession(bundle.read("score.onnx"), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    assert names == ["score", "one.score", "one.twice", "two.score", "two.twice", "map"]
    assert [i.name for i in session.get_inputs()] == ["input"]
    x = clean(9, seed=4)
    for rows in (x, x[:1]):
        out = dict(zip(names, session.run(None, {"input": rows}), strict=True))
        mean = rows.mean(axis=1)
        assert out["one.score"] == pytest.approx(mean, rel=1e-6) and out["two.twice"] == pytest.approx(2 * mean)
        two = (mean - 2 * MIDDLE) / (2 * SPREAD)
        assert out["score"] == pytest.approx(((mean - MIDDLE) / SPREAD + two) / 2, rel=1e-4, abs=1e-5)
        assert out["map"] == pytest.approx((rows + rows / 2) / 2, rel=1e-5)


def test_the_bundle_says_what_it_is_made_of(made, toy):
    bundle, done = made()
    manifest = bundle.manifest
    assert manifest.family == "ensemble" and manifest.arguments == {"members": ["one", "two"]}
    assert [m.digest for m in manifest.lineage.members] == [open_bundle(toy / n).digest for n in ("one", "two")]
    assert set(manifest.evidence) == {"score", "one.score", "one.twice", "two.score", "two.twice"}
    assert manifest.training.samples == 200
    assert "taken on trust" in done.err
    assert bundle.spec == VECTOR


def test_it_is_calibrated_on_the_clean_samples(made, vaegis, toy):
    bundle, _ = made("--alpha", "0.1")
    assert len(bundle.calibration.groups[""].terms["score"].values) == 200
    np.save(toy / "new.npy", clean(2000, seed=9))
    assert vaegis("score", toy / "new.npy", "--bundle", toy / "both", "--out", toy / "s.parquet").code == 0
    rows = pq.read_table(toy / "s.parquet").to_pydict()
    assert 0.04 < np.mean(rows["anomalous"]) < 0.18
    assert "two.score" in rows
    done = vaegis("score", toy / "new.npy", "--bundle", toy / "both", "--decide-by", "two.twice")
    assert done.code == 0


def test_the_same_members_and_samples_give_the_same_digest(made):
    assert made(out="a")[0].digest == made(out="b")[0].digest


def test_the_service_serves_it(vaegis, toy):
    done = vaegis("ensemble", toy / "one", toy / "two", "--on", toy / "clean.npy", "--name", "both")
    assert done.code == 0 and "both version 1, now its champion" in done.said
    listed = vaegis("models", "show", "both")
    assert listed.code == 0 and "ensemble" in listed.said
    again = vaegis("ensemble", "both", toy / "one", "--on", toy / "clean.npy", "--name", "more")
    assert again.code == 0, again  # an ensemble is a model like any other
    assert vaegis("score", toy / "clean.npy", "--model", "more").code == 0


def test_too_few_samples_raise_the_rate(vaegis, toy):
    np.save(toy / "few.npy", clean(25))
    done = vaegis("ensemble", toy / "one", toy / "two", "--on", toy / "few.npy", "--name", "b", "--out", toy / "b")
    assert done.code == 0 and "own rate is 0.039" in done.err
    assert open_bundle(toy / "b").manifest.alpha == 0.039


def test_data_that_a_member_was_fitted_on_is_named(made, toy):
    from vaegis.models import inputs
    from vaegis.models.sources import SourceOptions, open_source

    samples = inputs.load(open_source(toy / "clean.npy", SourceOptions()), VECTOR, toy / "spool")
    bundle_of(toy / "knows", VECTOR, other(VECTOR, 3.0), training=Training(digest=samples.digest))
    bundle, done = made(members=("one", "knows"), out="c")
    assert "very data that knows was fitted on" in done.err
    assert bundle.manifest.training.calibrated_on_data_of == ("knows",)


def test_windows_are_counted_side_by_side(vaegis, toy):
    x = np.random.default_rng(0).normal(size=(200, 2)) + 50
    (toy / "s.csv").write_text("speed,flow\n" + "".join(f"{a},{b}\n" for a, b in x.tolist()))
    bundle_of(toy / "s1", SERIES, {})
    bundle_of(toy / "s2", SERIES, other(SERIES))
    done = vaegis("ensemble", toy / "s1", toy / "s2", "--on", toy / "s.csv", "--name", "s", "--out", toy / "s")
    assert done.code == 0, done
    assert open_bundle(toy / "s").manifest.training.calibrate_independent == 50
    assert vaegis("score", toy / "s.csv", "--bundle", toy / "s").code == 0


def test_independent_windows_restart_with_each_item():
    from vaegis.models.inputs import InMemory

    parts = np.arange(48, dtype=np.float32).reshape(6, 4, 2)
    samples = InMemory(SERIES, parts, ("a",) * 4 + ("b",) * 2, np.array([0, 1, 4, 6, 0, 3]))
    assert independent(samples) == 3


def test_members_called_alike_get_names_of_their_own(made, toy):
    (toy / "x").mkdir()
    bundle_of(toy / "x" / "one", VECTOR, other(VECTOR, 5.0))
    bundle, _ = made(members=("one", "x/one"), out="d")
    assert bundle.manifest.arguments["members"] == ["one", "one-2"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dataclasses.replace(VECTOR, columns=("a", "b", "d", "c")), ["columns", "Fit them alike"]),
        (dataclasses.replace(VECTOR, missing="allow"), ["missing", "allow"]),
        (RECIPES, ["conditions", "not declared"]),
        (SERIES, ["kind", "vector", "series"]),
        (IMAGE, ["kind", "image"]),
    ],
    ids=["columns", "missing", "conditions", "series", "image"],
)
def test_different_inputs_are_refused(refused, toy, spec, words):
    bundle_of(toy / "odd", spec, other(spec))
    refused("ensemble", toy / "one", toy / "odd", "--on", toy / "clean.npy", "--name", "b", "--out", toy / "b",
            words=["one and odd take different inputs", *words])  # fmt: skip
    assert not (toy / "b").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{t}/one", "--on", "{t}/clean.npy", "--name", "b"], ["1 model", "two or more"]),
        (["{t}/one", "{t}/one", "--on", "{t}/clean.npy", "--name", "b"], ["same bundle"]),
        (["{t}/one", "nosuch", "--on", "{t}/clean.npy", "--name", "b"], ["nosuch"]),
        (["{t}/one", "{t}/two", "--on", "{t}/nosuch.npy", "--name", "b"], ["nothing at"]),
        (["{t}/one", "{t}/two", "--on", "{t}/wide.npy", "--name", "b"], ["5 columns", "4"]),
        (["{t}/one", "{t}/two", "--on", "{t}/few.npy", "--name", "b"], ["10 clean samples", "20"]),
        (["{t}/one", "{t}/two", "--on", "{t}/nan.npy", "--name", "b"], ["NaN"]),
        (["{t}/one", "{t}/two", "--on", "{t}/clean.npy", "--name", "B!"], ["B!"]),
        (["{t}/one", "{t}/two", "--on", "{t}/clean.npy", "--name", "b", "--alpha", "2"], ["alpha is 2"]),
        (["{t}/one", "{t}/two", "--on", "{t}/clean.npy", "--name", "b", "--condition", "is:A"], ["without conditions"]),
        (["{t}/one", "{t}/two", "--on", "{t}/clean.npy", "--name", "b", "--out", "{t}/one"], ["exists already"]),
        (["{t}/one", "{t}/broken", "--on", "{t}/clean.npy", "--name", "b"], ["broken"]),
    ],
)
def test_wrong_calls_are_refused(refused, toy, words, said):
    np.save(toy / "wide.npy", np.zeros((30, 5), np.float32))
    np.save(toy / "few.npy", clean(10))
    np.save(toy / "nan.npy", np.full((30, 4), np.nan, np.float32))
    (toy / "broken").mkdir()
    refused("ensemble", *(w.format(t=toy) for w in words), words=said)


def test_graphs_of_other_operator_sets_are_refused(refused, toy):
    model = onnx.load_model_from_string(mean_graph(VECTOR))
    model.opset_import[0].version = 19
    bundle_of(toy / "old", VECTOR, {**other(VECTOR), "score.onnx": model.SerializeToString()})
    refused(
        "ensemble", toy / "one", toy / "old", "--on", toy / "clean.npy", "--name", "b", words=["18 and 19", "again"]
    )


def test_nothing_stands_in_the_manifest_that_varies(made):
    """Two runs differ in the time of writing only."""
    one, two = (json.loads((made(out=o)[0].path / "manifest.json").read_text()) for o in ("e", "f"))
    assert {k for k in one if one[k] != two[k]} <= {"created"}
