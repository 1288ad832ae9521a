"""Toy bundles whose every number can be worked out by hand: score = mean squared difference to a constant."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaegis.models.bundle import Bundle, write_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.manifest import Lineage, Manifest, Proof, SplitSizes, Training
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec, VectorSpec, to_json

IMAGE = ImageSpec(height=4, width=4, channels=1)
SERIES = SeriesSpec(columns=("speed", "flow"), window=4)
VECTOR = VectorSpec(columns=("a", "b", "c"))
CENTRE = {"image": 100.0, "series": 0.0, "vector": 0.0}


def graph(spec: InputSpec, centre: float, doc: str = "") -> bytes:
    """score = reconstruction_error = mean (x - centre)^2; negative_elbo = 2 score + 1; map = (x - centre)^2.

    Where values may be missing, the graph takes their mask, and the input is 0 there.
    """
    kind = TensorProto.UINT8 if spec.kind == "image" else TensorProto.FLOAT
    axes = numpy_helper.from_array(np.arange(1, len(spec.shape) + 1), "axes")
    values = {"centre": centre, "two": 2.0, "one": 1.0}
    constants = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in values.items()]
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x", "centre"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["reconstruction_error"], keepdims=0),
        helper.make_node("Identity", ["reconstruction_error"], ["score"]),
        helper.make_node("Mul", ["score", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "one"], ["negative_elbo"]),
    ]
    if spec.kind == "image":
        channel = numpy_helper.from_array(np.array([3]), "channel")
        constants.append(channel)
        nodes.append(helper.make_node("ReduceMean", ["square", "channel"], ["map"], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", ["square"], ["map"]))
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch"])
        for n in ("score", "reconstruction_error", "negative_elbo")
    ]
    outputs.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", *spec.map_shape]))
    inputs = [helper.make_tensor_value_info("input", kind, ["batch", *spec.shape])]
    if spec.missing == "allow":
        inputs.append(helper.make_tensor_value_info("mask", kind, ["batch", *spec.shape]))
    made = helper.make_graph(
        nodes,
        "toy",
        inputs,
        outputs,
        [axes, *constants],
        doc_string=doc,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def network_graph(spec: InputSpec) -> bytes:
    """score = mean (x - x W)^2 + 1000 condition = mean x^2 / 4 + 1000 condition, as W = I / 2; map = x^2 / 4.

    Exact in half precision for small whole numbers.
    """
    values = int(np.prod(spec.shape))
    kind = TensorProto.UINT8 if spec.kind == "image" else TensorProto.FLOAT
    constants = {
        "weight": np.eye(values, dtype=np.float32) / 2,
        "flat": np.array([-1, values]),
        "map_shape": np.array([-1, *spec.map_shape]),
        "axes": np.array([1]),
        "thousand": np.array(1000, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Sub", ["x", "y"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["square"]),
        helper.make_node("Reshape", ["square", "map_shape"], ["map"]),
    ]
    inputs = [helper.make_tensor_value_info("input", kind, ["batch", *spec.shape])]
    if spec.conditions:
        inputs.append(helper.make_tensor_value_info("condition", TensorProto.INT64, ["batch"]))
        nodes += [
            helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=0),
            helper.make_node("Cast", ["condition"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["number", "thousand"], ["offset"]),
            helper.make_node("Add", ["mean", "offset"], ["score"]),
        ]
    else:
        nodes.append(helper.make_node("ReduceMean", ["square", "axes"], ["score"], keepdims=0))
        del constants["thousand"]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", *spec.map_shape]),
    ]
    weights = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "network", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def network_bundle(folder: Path, spec: InputSpec, alpha: float = 0.05, digest: str = "ab" * 32) -> Bundle:
    """A bundle of `network_graph`, whose manifest holds the numbers of a fit on 500 samples of that digest."""
    calibration = calibrate({"score": calibration_scores()}, None, None, (0.0, 1.0))
    training = Training(
        digest=digest,
        samples=500,
        skipped=2,
        split=SplitSizes(fit=250, validate=51, calibrate=199),
        calibrate=199,
        calibrate_independent=199,
        steps=60,
        gate=Proof(torch=0.1, batch=0.2, samples=199),
    )
    return write_bundle(
        folder,
        {"score.onnx": network_graph(spec), "calibration.npz": to_bytes(calibration)},
        toy_manifest(
            spec,
            evidence={"score": "a quarter of the mean square"},
            alpha=alpha,
            training=training,
            lineage=Lineage(digest="cd" * 32),
        ),
    )


def toy_manifest(spec: InputSpec, **changed) -> Manifest:
    """A toy's manifest, with members of its own where they are given."""
    members = {
        "family": "toy",
        "arguments": {},
        "spec": to_json(spec),
        "evidence": {"score": "a toy's score"},
        "alpha": 0.05,
        "training": Training(digest="ab" * 32),
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**{**members, **changed})


def calibration_scores(n: int = 199) -> np.ndarray:
    """1, 2, ..., n: so p(s) = (1 + #{k >= s}) / (n + 1) can be read off."""
    return np.arange(1, n + 1, dtype=np.float64)


def toy_bundle(folder: Path, spec: InputSpec = IMAGE, alpha: float = 0.05, n: int = 199, doc: str = "") -> Bundle:
    """Writes one; `doc` changes the digest and nothing else."""
    scores = calibration_scores(n)
    evidence = {"score": scores, "reconstruction_error": scores, "negative_elbo": 2 * scores + 1}
    return write_bundle(
        folder,
        {
            "score.onnx": graph(spec, CENTRE[spec.kind], doc),
            "calibration.npz": to_bytes(calibrate(evidence, None, None, (0.0, 100.0))),
        },
        toy_manifest(
            spec,
            evidence={
                "score": "mean squared difference to a constant",
                "reconstruction_error": "the same",
                "negative_elbo": "twice the score and one",
            },
            alpha=alpha,
            training=Training(digest="ab" * 32, calibrate=n),
        ),
    )
