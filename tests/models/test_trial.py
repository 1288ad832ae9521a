import time
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

import hostile_bundles as hostile
from toy_bundles import IMAGE, SERIES, VECTOR, graph, network_bundle, toy_bundle
from vaegis.models.bundle import write_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.errors import Damaged, Refusal, Unfit
from vaegis.models.trial import TrialResult, try_bundle
from vaegis.models.trial_process import examine


@pytest.mark.parametrize("spec", [IMAGE, SERIES, VECTOR, replace(IMAGE, depth=8), replace(VECTOR, missing="allow")])
def test_bundles_that_are_what_they_say_pass(tmp_path, spec):
    assert examine(str(toy_bundle(tmp_path / "toy", spec).path)) is True


def test_conditions_are_given(tmp_path):
    spec = replace(VECTOR, conditions=("a", "b"))
    assert examine(str(network_bundle(tmp_path / "toy", spec).path)) is True


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (hostile.of_the_future(), r"score\.onnx: .*cannot open it \(.*999"),
        (hostile.of_unknown_operators(), r"score\.onnx: .*cannot open it \(.*Mystery"),
        (hostile.twice_as_long(), r"gives 'score' of shape \(2,\) for 1 sample, where \(1,\) is right"),
        (hostile.retyped("input", TensorProto.INT32), r"takes input as tensor\(int32\) and its spec says"),
        (hostile.renamed("input", "samples"), "takes the inputs 'samples' and its spec says 'input'"),
        (hostile.renamed("negative_elbo", "nll"), "gives .*'nll'.* and the calibration holds .*'negative_elbo'"),
        (hostile.renamed("map", "heat"), "and a map is needed"),
        (hostile.of_one_batch(), "takes batches of 1 alone"),
        (graph(SERIES, 0.0), r"takes input as \['batch', 4, 2\] and its spec says \['batch', 3\]"),
        (graph(IMAGE, 0.0), "takes input as tensor"),
    ],
)
def test_graphs_that_are_not_what_the_bundle_says_are_refused(tmp_path, raw, words):
    with pytest.raises(Unfit, match=words) as refused:
        examine(str(hostile.hostile_bundle(tmp_path / "hostile", raw).path))
    assert "/" not in str(refused.value)  # no path of the runtime's sources, nor of ours


def test_evidence_that_is_never_finite_is_told(tmp_path):
    assert examine(str(hostile.hostile_bundle(tmp_path / "hostile", hostile.never_finite()).path)) is False


def test_a_graph_far_from_zero_is_tried_at_its_centre(tmp_path):
    """Made-up samples lie 1e30 away, where squares overflow; what the graph is centred on does not."""
    values = {"score": np.arange(50.0), "reconstruction_error": np.arange(50.0), "negative_elbo": np.arange(50.0)}
    spec = replace(VECTOR, columns=("a",))
    bundle = write_bundle(
        tmp_path / "far",
        {"score.onnx": graph(spec, 1e30), "calibration.npz": to_bytes(calibrate(values, None, None, (0.0, 1.0)))},
        hostile.toy_manifest(spec, evidence=dict.fromkeys(values, "far")),
    )
    assert examine(str(bundle.path)) is True


def test_every_graph_of_a_bundle_is_opened(tmp_path):
    files = {"score.onnx": graph(VECTOR, 0.0), "decoder.onnx": hostile.of_the_future()}
    whole = toy_bundle(tmp_path / "toy", VECTOR)
    files["calibration.npz"] = whole.read("calibration.npz")
    bundle = write_bundle(tmp_path / "more", files, whole.manifest)
    with pytest.raises(Unfit, match=r"decoder\.onnx: "):
        examine(str(bundle.path))


def test_a_trial_runs_in_a_process_of_its_own(tmp_path):
    assert try_bundle(toy_bundle(tmp_path / "toy").path) == TrialResult(finite=True)
    with pytest.raises(Unfit, match=r"\(2,\) for 1 sample"):
        try_bundle(hostile.hostile_bundle(tmp_path / "long", hostile.twice_as_long()).path)
    bundle = toy_bundle(tmp_path / "torn")
    (bundle.path / "calibration.npz").write_bytes(b"torn")
    with pytest.raises(Damaged, match=r"calibration\.npz is not what was written"):
        try_bundle(bundle.path)


def test_a_graph_without_end_is_ended(tmp_path):
    bundle = hostile.hostile_bundle(tmp_path / "loop", hostile.without_end())
    began = time.monotonic()
    with pytest.raises(Unfit, match="did not come to an end within 3 seconds.*VAEGIS_OPEN_SECONDS"):
        try_bundle(bundle.path, 3)
    assert time.monotonic() - began < 10


def test_a_graph_that_wants_all_memory_gets_none(tmp_path):
    with pytest.raises(Refusal):
        try_bundle(hostile.hostile_bundle(tmp_path / "greedy", hostile.greedy()).path, 30)
