"""Bundles whose encoder and decoder are linear, so that every latent and every fixed point is known.

Encoder: mean = x W (L numbers), log-variance = -1. Decoder: z W' plus, if conditional, ten times the condition. W has
orthonormal columns, so that encoding what was decoded gives the latent back.
"""

import numpy as np
from onnx import TensorProto, helper

from toy_bundles import toy_manifest
from toy_data import constant, mean_graph
from vaegis.models.bundle import write_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

VECTOR = VectorSpec(columns=("a", "b", "c", "d"))
RECIPES = VectorSpec(columns=("a", "b", "c", "d"), conditions=("A", "B"))
SERIES = SeriesSpec(columns=("speed", "flow"), window=4)
IMAGE = ImageSpec(16, 16, 1)


def axes(spec, size=2):
    """W, (D, size): orthonormal columns."""
    values = int(np.prod(spec.shape))
    return np.linalg.qr(np.random.default_rng(3).normal(size=(values, size)))[0].astype(np.float32)


def _model(nodes, inputs, outputs, constants):
    made = helper.make_graph(nodes, "toy", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def coder_graphs(spec, size=2):
    """encoder.onnx and decoder.onnx."""
    w = axes(spec, size)
    values = len(w)
    floats = TensorProto.FLOAT
    kind = TensorProto.UINT8 if spec.kind == "image" else floats
    told = [helper.make_tensor_value_info("condition", TensorProto.INT64, ["batch"])] if spec.conditions else []
    encoder = _model(
        [
            helper.make_node("Cast", ["input"], ["x"], to=floats),
            helper.make_node("Reshape", ["x", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "w"], ["mean"]),
            helper.make_node("Mul", ["mean", "none"], ["zero"]),
            helper.make_node("Sub", ["zero", "one"], ["log_variance"]),
        ],
        [helper.make_tensor_value_info("input", kind, ["batch", *spec.shape]), *told],
        [helper.make_tensor_value_info(n, floats, ["batch", size]) for n in ("mean", "log_variance")],
        [
            constant("flat", [-1, values], np.int64), constant("w", w), constant("none", 0.0), constant("one", 1.0)
        ],
    )  # fmt: skip
    nodes = [helper.make_node("MatMul", ["latent", "back"], ["plain"])]
    shift = "plain"
    if told:
        nodes += [
            helper.make_node("Cast", ["condition"], ["number"], to=floats),
            helper.make_node("Reshape", ["number", "column"], ["per"]),
            helper.make_node("Mul", ["per", "ten"], ["level"]),
            helper.make_node("Add", ["plain", "level"], ["shifted"]),
        ]
        shift = "shifted"
    nodes.append(helper.make_node("Reshape", [shift, "whole"], ["reconstruction"]))
    decoder = _model(
        nodes,
        [helper.make_tensor_value_info("latent", floats, ["batch", size]), *told],
        [helper.make_tensor_value_info("reconstruction", floats, ["batch", *spec.shape])],
        [
            constant("back", w.T.copy()), constant("whole", [-1, *spec.shape], np.int64),
            *([constant("column", [-1, 1], np.int64), constant("ten", 10.0)] if told else []),
        ],
    )  # fmt: skip
    return {"encoder.onnx": encoder, "decoder.onnx": decoder}


def bundle_of(folder, spec, graphs, **changed):
    """A bundle with these graphs beside a score graph of the mean, calibrated on 1 to 99."""
    scores = np.arange(1.0, 100.0)
    calibration = to_bytes(calibrate({"score": scores, "twice": 2 * scores}, None, None, (0.0, 1.0)))
    files = {"score.onnx": mean_graph(spec), "calibration.npz": calibration, **graphs}
    evidence = {"score": "the mean", "twice": "the double of it"}
    return write_bundle(folder, files, toy_manifest(spec, **{"evidence": evidence, **changed}))


def sampler(spec, values):
    """sampler.onnx: sample = 3 noise + 1."""
    floats = TensorProto.FLOAT
    return _model(
        [
            helper.make_node("Mul", ["noise", "three"], ["wide"]),
            helper.make_node("Add", ["wide", "one"], ["moved"]),
            helper.make_node("Reshape", ["moved", "whole"], ["sample"]),
        ],
        [helper.make_tensor_value_info("noise", floats, ["batch", values])],
        [helper.make_tensor_value_info("sample", floats, ["batch", *spec.shape])],
        [constant("three", 3.0), constant("one", 1.0), constant("whole", [-1, *spec.shape], np.int64)],
    )


def stepper(spec):
    """step.onnx: next = sample + time, so that T steps add T (T + 1) / 2."""
    floats = TensorProto.FLOAT
    return _model(
        [
            helper.make_node("Cast", ["time"], ["float"], to=floats),
            helper.make_node("Reshape", ["float", "column"], ["per"]),
            helper.make_node("Mul", ["noise", "none"], ["zero"]),
            helper.make_node("Add", ["sample", "per"], ["moved"]),
            helper.make_node("Add", ["moved", "zero"], ["next"]),
        ],
        [
            helper.make_tensor_value_info("sample", floats, ["batch", *spec.shape]),
            helper.make_tensor_value_info("time", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("noise", floats, ["batch", *spec.shape]),
        ],
        [helper.make_tensor_value_info("next", floats, ["batch", *spec.shape])],
        [constant("column", [-1, *(1 for _ in spec.shape)], np.int64), constant("none", 0.0)],
    )
