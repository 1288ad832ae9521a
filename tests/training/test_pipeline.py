import dataclasses
import json

import numpy as np
import pytest
import torch

from toy_data import SMALL, clean, defective, vectors
from vaegis.models import inputs
from vaegis.models.blocks import plain
from vaegis.models.bundle import open_bundle
from vaegis.models.calibration import decide
from vaegis.models.derived.calibrating import evidence_of
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import FAMILIES, Evidence
from vaegis.models.families.vae import VAE
from vaegis.models.runtime.graph import Graph
from vaegis.models.scorer import Scorer
from vaegis.models.sources import SourceOptions, open_source
from vaegis.training import export
from vaegis.training.pipeline import run
from vaegis.training.request import FitOptions, Request, Watch


@pytest.fixture
def request_(sources, tmp_path):
    """The request that `fitted("vae", "vector")` answers, for another folder."""
    return Request(
        source=sources / "vector.npz",
        name="toy",
        out=tmp_path / "bundle",
        work=tmp_path / "work",
        arguments=SMALL["vae"],
        alpha=0.05,
        options=FitOptions(steps=60, device="cpu"),
    )


def leaves_nothing(request, match, kind=Refusal):
    before = sorted(p.name for p in request.out.parent.iterdir()) if request.out.parent.exists() else []
    with pytest.raises(kind, match=match):
        run(request)
    after = sorted(p.name for p in request.out.parent.iterdir()) if request.out.parent.exists() else []
    assert [n for n in after if n != "work"] == [n for n in before if n != "work"]


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_a_bundle_says_what_was_done(fitted, kind):
    made = fitted("vae", kind)
    manifest = open_bundle(made.bundle.path).manifest
    assert list(manifest.evidence)[0] == "score"
    assert set(manifest.evidence) == {"score", *made.fit.family.meaning}
    assert (manifest.family, manifest.alpha, manifest.arguments["latent"]) == ("vae", 0.05, 4)
    training = manifest.training
    assert dataclasses.asdict(training.split) == made.split.counts()
    assert training.calibrate == len(made.split.calibrate)
    assert training.calibrate_independent == made.split.effective == made.calibration.group(None).effective
    assert (training.seed, training.steps, training.stopped) == (0, 60, "steps")
    assert {"report/report.html", "report/report.json", "weights.safetensors"} <= set(manifest.files)
    assert torch.__version__.startswith(manifest.versions["torch"])


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_calibration_is_what_the_graph_says_of_the_held_out_samples(fitted, sources, tmp_path, kind):
    made = fitted("vae", kind)
    source = open_source(sources / {"series": "series.csv"}.get(kind, f"{kind}.npz"), SourceOptions())
    samples = inputs.load(source, made.bundle.spec, tmp_path)
    graph = Graph(made.bundle.read("score.onnx"), made.bundle.spec, "cpu")
    found = evidence_of(graph, samples, made.split.calibrate)
    group = made.bundle.calibration.group(None)
    for term, values in found.items():
        assert group.terms[term].values.tolist() == np.sort(values).tolist()
    # At rate alpha the threshold is the k-th largest of n, and k - 1 held-out samples exceed it.
    n, alpha = len(made.split.calibrate), 0.1
    above = (found["score"] > decide(made.bundle.calibration, alpha).threshold).sum()
    assert above == int(alpha * (n + 1) + 1e-9) - 1


def test_clean_product_scores_about_zero(fitted):
    """The fused score counts clean deviations above the clean mean."""
    made = fitted("vae", "vector")
    values = made.bundle.calibration.group(None).terms["score"].values
    assert abs(np.median(values)) < 0.5
    assert 0.3 < values.std() < 2.5


def test_a_defect_is_anomalous(fitted):
    made = fitted("vae", "vector")
    scorer = Scorer(made.bundle, "cpu")

    found = scorer.verdicts(plain(defective("vector", 20)), decide(scorer.calibration, made.bundle.manifest.alpha))
    assert found.status.count("anomalous") >= 18


def test_the_same_fit_gives_the_same_digest_and_another_rate_only_another_digest(fitted, request_, tmp_path):
    first, notes = fitted("vae", "vector").bundle, []
    assert run(request_).bundle.digest == first.digest
    low = dataclasses.replace(request_, alpha=1e-5, out=tmp_path / "low")
    made = run(low, Watch(note=notes.append))
    assert made.bundle.digest != first.digest
    assert made.bundle.manifest.files["score.onnx"] == first.manifest.files["score.onnx"]
    assert made.bundle.manifest.files["calibration.npz"] == first.manifest.files["calibration.npz"]
    # Too low a rate is a warning, and the bundle's own becomes one that works.
    assert made.bundle.manifest.alpha == 0.001
    assert decide(made.calibration, made.bundle.manifest.alpha).extrapolated
    assert any("1e-05" in note and "0.001" in note for note in notes)
    assert list(notes) == list(made.notes)
    assert not list((tmp_path / "work").rglob("*.safetensors")), "a finished fit keeps no checkpoint"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"family": "vea"}, "no family 'vea'; the families are .*vae"),
        ({"arguments": {"latnet": 3}}, "no argument 'latnet'; its arguments are .*latent"),
        ({"arguments": {"latent": "many"}}, "latent of family vae is 'many'; it must be a whole number"),
        ({"arguments": {"latent.a": 3}}, "latent of family vae takes one value"),
        ({"arguments": {"beta": -1}}, "beta is -1"),
        ({"arguments": {"likelihood.z": "poisson"}}, "no column 'z'"),
        ({"options": FitOptions(device="cuda")}, "cuda was asked for"),
    ],
    ids=str,
)
def test_wrong_requests_leave_nothing(request_, changed, said):
    if "cuda" in said and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    leaves_nothing(dataclasses.replace(request_, **changed), said)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((200, 4), np.nan, np.float32), "(?i)nan"),
        (np.where(np.eye(200, 4) > 0, np.inf, 1).astype(np.float32), "(?i)inf"),
        (vectors(19, 1), "19 clean samples"),
        (np.ones((200, 4), np.float32), "Nothing varies in the clean data: all 200 samples are equal"),
        (np.repeat(vectors(12, 1), 17, axis=0), "12 distinct samples"),
        (np.empty((0, 4), np.float32), "(?i)empty|no row"),
    ],
    ids=["nan", "inf", "few", "equal", "copies", "empty"],
)
def test_data_that_cannot_be_learned_leave_nothing(request_, tmp_path, array, said):
    np.save(tmp_path / "bad.npy", array)
    leaves_nothing(dataclasses.replace(request_, source=tmp_path / "bad.npy"), said)


def test_an_existing_folder_is_answered_at_once(request_):
    request_.out.mkdir()
    leaves_nothing(request_, "exists already", Conflict)


class Doctored(VAE):
    """A family whose exported graph says something else of its evidence than torch does."""

    def evidence(self, batch):
        found = super().evidence(batch)
        if not torch.compiler.is_exporting():
            return found
        return Evidence(found.terms | {"kl": found.terms["kl"] * 1.001}, found.map)


def test_a_graph_that_differs_from_torch_never_becomes_a_bundle(request_, monkeypatch):
    monkeypatch.setitem(FAMILIES, "doctored", Doctored)
    request = dataclasses.replace(request_, family="doctored", options=FitOptions(steps=5, device="cpu"))
    leaves_nothing(request, r"gate failed: on calibration sample \d+ the graph gives kl .* where torch gives")


def test_a_table_that_single_precision_is_too_coarse_for_is_scored_in_double(request_, fitted, sources, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 2e-7)  # about two roundings of the answer itself
    made = run(request_)
    assert made.gate.torch < 1
    assert any("computes in double precision" in note for note in made.notes)
    usual = fitted("vae", "vector").bundle
    x = vectors(20, 3)
    fine, coarse = (Graph(b.read("score.onnx"), b.spec, "cpu").run(x)["score"] for b in (made.bundle, usual))
    assert fine.dtype == np.float32 and fine == pytest.approx(coarse, rel=1e-3, abs=1e-4)
    # The graph is finer, nothing else of the bundle changes.
    assert made.bundle.read("encoder.onnx") == usual.read("encoder.onnx")


def test_convolutions_have_no_double_precision(request_, sources, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 1e-9)
    request = dataclasses.replace(request_, source=sources / "image.npz", options=FitOptions(steps=5, device="cpu"))
    leaves_nothing(request, "gate failed")


def test_the_report_is_read_as_json(fitted):
    made = fitted("vae", "image")
    told = json.loads(made.bundle.read("report/report.json"))
    assert told["samples"]["fit"] == len(made.split.fit)


def test_groups_of_calibration_travel_into_the_bundle(tmp_path, request_):
    x = clean("vector", 400)
    np.savez(tmp_path / "g.npz", x=x, station=np.array(["left", "right"])[np.arange(400) % 2])
    request = dataclasses.replace(
        request_, source=tmp_path / "g.npz", reading=SourceOptions(calibrate_by="station"), alpha=0.1
    )
    made = run(request)
    groups = open_bundle(made.bundle.path).calibration.groups
    assert set(groups) == {"", "left", "right"}
    sizes = [len(groups[g].terms["score"].values) for g in ("left", "right")]
    assert sum(sizes) == len(made.split.calibrate)
    assert [groups[g].effective for g in ("left", "right")] == sizes


def test_an_out_folder_that_cannot_be_is_refused_before_anything_is_read(request_, tmp_path):
    (tmp_path / "file").write_text("")
    asked = dataclasses.replace(request_, source=tmp_path / "nowhere", out=tmp_path / "file" / "bundle")
    with pytest.raises(Refusal, match="file is no folder to write in"):
        run(asked)
