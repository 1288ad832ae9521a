"""Half precision: a linear autoencoder of four columns, whose score can be worked out by NumPy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from toy_bundles import IMAGE, graph, toy_manifest
from vaegis.models.blocks import plain
from vaegis.models.bundle import write_bundle
from vaegis.models.calibration import calibrate, decide, to_bytes
from vaegis.models.derived.half import half_bundle, halve
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory
from vaegis.models.scorer import Scorer
from vaegis.models.spec import VectorSpec

SPEC = VectorSpec(columns=("a", "b", "c", "d"))
RNG = np.random.default_rng(0)
DOWN = RNG.normal(size=(4, 2)).astype(np.float32)
UP = np.linalg.pinv(DOWN).astype(np.float32)


def linear(scale=1.0):
    """score = mean (x - x DOWN UP)^2; `scale` makes the numbers between larger, and the score no different."""
    constants = {"down": DOWN * scale, "up": UP / scale, "axes": np.array([1])}
    nodes = [
        helper.make_node("MatMul", ["input", "down"], ["z"]),
        helper.make_node("MatMul", ["z", "up"], ["y"]),
        helper.make_node("Sub", ["input", "y"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["score"], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 4]),
        ],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def bundle(folder, raw):
    scores = np.arange(1.0, 200.0)
    return write_bundle(
        folder,
        {"score.onnx": raw, "calibration.npz": to_bytes(calibrate({"score": scores}, None, None, (0.0, 1.0)))},
        toy_manifest(SPEC, evidence={"score": "what a plane leaves over"}),
    )


@pytest.fixture
def clean():
    return RNG.normal(size=(400, 4)).astype(np.float32)


def test_networks_are_halved_and_the_score_stays(clean):
    raw = halve(linear())
    weights = {w.name: w.data_type for w in onnx.load_from_string(raw).graph.initializer}
    assert weights == {"down/half": TensorProto.FLOAT16, "up/half": TensorProto.FLOAT16, "axes": TensorProto.INT64}
    score = ort.InferenceSession(raw).run(["score"], {"input": clean})[0]
    known = ((clean - clean @ DOWN @ UP) ** 2).mean(axis=1)
    assert score.dtype == np.float32
    assert np.abs(score - known).max() < 0.01 and not np.array_equal(score, known)


def test_what_computes_in_double_precision_stays_so(clean):
    graph = onnx.load_from_string(linear()).graph
    for tensor in graph.initializer:
        if tensor.name in ("down", "up"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    nodes = [helper.make_node("Cast", ["input"], ["x"], to=TensorProto.DOUBLE), *graph.node]
    nodes[1].input[0] = nodes[3].input[0] = "x"
    nodes[5].output[0] = "s"
    nodes[4].output[0] = nodes[5].input[0] = "m"
    nodes += [helper.make_node("Cast", [a], [b], to=TensorProto.FLOAT) for a, b in (("s", "score"), ("m", "map"))]
    made = helper.make_graph(nodes, "wide", graph.input, graph.output, graph.initializer)
    raw = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    with pytest.raises(Refusal, match="matrix product in single precision"):
        halve(raw)
    # A network in single precision before it is halved alone.
    square = numpy_helper.from_array(np.eye(4, dtype=np.float32), "square")
    first = helper.make_node("MatMul", ["input", "square"], ["same"])
    nodes[0].input[0] = "same"
    made = helper.make_graph([first, *nodes], "both", graph.input, graph.output, [square, *graph.initializer])
    raw = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    run = ort.InferenceSession(halve(raw), providers=["CPUExecutionProvider"]).run
    known = ((clean - clean @ DOWN.astype(float) @ UP.astype(float)) ** 2).mean(1)
    assert run(["score"], {"input": clean})[0] == pytest.approx(known, rel=0.02, abs=1e-4)


def test_a_halved_bundle_is_calibrated_by_its_own_scores(clean, tmp_path):
    made, agreement = half_bundle(bundle(tmp_path / "full", linear()), InMemory(SPEC, clean), tmp_path / "half")
    assert agreement.samples == 400 and agreement.rank["score"] > 0.999
    scorer = Scorer(made, "cpu", 1)
    verdicts = scorer.verdicts(plain(clean), decide(scorer.calibration, 0.05))
    # Its clean samples hold the ranks 1 ... 400 of its own calibration: the false-alarm rate is exact.
    assert np.allclose(np.sort(verdicts.p_values["score"]), np.arange(2, 402) / 401)
    assert made.manifest.lineage.precision == "float16" and made.manifest.training.calibrate == 400


def test_what_half_precision_cannot_hold_is_refused_with_the_reason(clean, tmp_path):
    for name, raw, samples, word in (
        ("large", linear(1e6), clean, "score is not finite"),
        ("coarse", linear(1.0), clean + np.float32(3000) * DOWN[:, 0], "ranks clean samples differently"),
        ("few", linear(), clean[:98], "at least 99 clean samples.*98"),
    ):
        with pytest.raises(Refusal, match=word):
            half_bundle(bundle(tmp_path / name, raw), InMemory(SPEC, samples), tmp_path / f"{name}-half")
        assert not (tmp_path / f"{name}-half").exists()
    with pytest.raises(Refusal, match="no convolution or matrix product"):
        halve(graph(IMAGE, 100.0))
