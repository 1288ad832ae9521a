"""A conditional model from fit to verdicts."""

import dataclasses
import json

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest

from toy_data import recipes
from vaegis.models.blocks import parts_of
from vaegis.models.spec import from_json, to_json
from vaegis.training.fit import looks


@pytest.fixture
def test_set(tmp_path):
    """60 samples of each recipe; `c` as they were made, `wrong` the other way round."""
    x = np.concatenate([recipes(60, "A", 7), recipes(60, "B", 8)])
    c = np.repeat(["A", "B"], 60)
    path = tmp_path / "test.npz"
    np.savez(path, x=x, c=c, wrong=c[::-1], y=np.repeat([0, 1], 60), all=np.repeat("A", 120))
    return path


@pytest.fixture
def scored(vaegis, conditional, tmp_path):
    def run(path, condition, *more):
        out = tmp_path / "out.parquet"
        done = vaegis("score", path, "--bundle", conditional.bundle.path, "--condition", condition, "--out", out, *more)
        assert done.code == 0, done
        return pq.read_table(out).to_pydict()

    return run


def inputs(made, graph):
    opened = ort.InferenceSession(made.bundle.read(graph), providers=["CPUExecutionProvider"])
    return {i.name: (i.type, i.shape[0]) for i in opened.get_inputs()}


def test_the_graphs_take_conditions(conditional):
    told = ("tensor(int64)", "batch")
    assert inputs(conditional, "score.onnx") == {"input": ("tensor(float)", "batch"), "condition": told}
    assert inputs(conditional, "encoder.onnx") == {"input": ("tensor(float)", "batch"), "condition": told}
    assert inputs(conditional, "decoder.onnx") == {"latent": ("tensor(float)", "batch"), "condition": told}
    assert from_json(json.loads(json.dumps(to_json(conditional.bundle.spec)))).conditions == ("A", "B")


def test_the_graphs_of_other_models_do_not(fitted):
    made = fitted("vae", "vector")
    assert set(inputs(made, "score.onnx")) == {"input"}
    assert "conditions" not in made.bundle.manifest.spec


def test_a_sample_is_good_as_what_it_is_and_bad_as_what_it_is_not(scored, test_set):
    right, wrong = scored(test_set, "key:c"), scored(test_set, "key:wrong")
    assert np.mean(right["anomalous"]) < 0.15
    assert np.mean(wrong["anomalous"]) > 0.9
    assert (np.array(wrong["score"]) > np.array(right["score"])).mean() > 0.95


def test_one_condition_for_all(scored, test_set):
    found = np.array(scored(test_set, "is:A")["anomalous"])
    assert found[:60].mean() < 0.2 and found[60:].mean() > 0.9


def test_an_unknown_condition_leaves_only_its_samples_unjudged(scored, tmp_path):
    np.savez(tmp_path / "t.npz", x=recipes(4, "A", 3), c=np.array(["A", "C", "A", "C"]))
    found = scored(tmp_path / "t.npz", "key:c")
    assert [s == "unjudged" for s in found["status"]] == [False, True, False, True]
    assert "'C'" in found["error"][1] and "A, B" in found["error"][1]
    assert found["score"][1] is None


def test_nothing_but_unknown_conditions_is_refused(refused, conditional, tmp_path):
    np.savez(tmp_path / "t.npz", x=recipes(4, "A", 3), c=np.repeat("C", 4))
    of = ("score", tmp_path / "t.npz", "--bundle", conditional.bundle.path)
    refused(*of, "--condition", "key:c", words=["None of the 4", "'C'", "A, B"])
    refused(*of, "--condition", "is:C", words=["'C'", "A, B"])
    refused(*of, words=["fitted with conditions (A, B)", "--condition"])
    refused(*of, "--condition", "column:c", words=["needs csv or Parquet"])


def test_evaluate_takes_conditions(vaegis, conditional, test_set):
    of = ("evaluate", test_set, "--bundle", conditional.bundle.path, "--labels", "key:y", "--json")
    found = json.loads(vaegis(*of, "--condition", "key:all").out)
    assert found["auroc"]["score"] > 0.95


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("key:nosuch", ["'nosuch'"]),
        ("is:A", ["only the condition 'A'"]),
        ("folders", ["folder of images"]),
    ],
)
def test_fits_that_cannot_be_conditional(refused, test_set, condition, words):
    refused("fit", test_set, "--name", "x", "--condition", condition, words=words)


def test_a_family_that_takes_none_is_refused_before_the_fit(monkeypatch, refused, test_set):
    from vaegis.models.families import FAMILIES
    from vaegis.models.families.vae import VAE

    monkeypatch.setitem(FAMILIES, "plain", type("Plain", (VAE,), {"conditional": False}))
    refused(
        "fit", test_set, "--name", "x", "--family", "plain", "--condition", "key:c",
        words=["plain takes no conditions", "vae"],
    )  # fmt: skip


def test_a_pass_brings_the_conditions_beside_the_samples(conditional, tmp_path):
    from vaegis.models import inputs as reading
    from vaegis.models.sources import SourceOptions, open_source

    np.savez(tmp_path / "t.npz", x=recipes(6, "A", 3), c=np.array(list("ABABBA")))
    source = open_source(tmp_path / "t.npz", SourceOptions(condition="key:c"))
    samples = reading.load(source, conditional.bundle.spec, tmp_path / "spool")
    batches = looks(samples, parts_of(samples, np.arange(6)))
    for _ in range(2):
        (batch,) = batches()
        assert batch.condition.tolist() == [0, 1, 0, 1, 1, 0]
        assert batch.x.numpy() == pytest.approx(samples.take(np.arange(6)))
    plain_spec = dataclasses.replace(conditional.bundle.spec, conditions=())
    plain = reading.load(open_source(tmp_path / "t.npz", SourceOptions()), plain_spec, tmp_path / "plain")
    (batch,) = looks(plain, parts_of(plain, np.arange(6)))()
    assert batch.condition is None
