"""Bundles that nobody would export: whole, with digests that are right, and graphs that should not answer anybody."""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from toy_bundles import VECTOR, calibration_scores, graph, toy_manifest
from vaegis.models.bundle import Bundle, write_bundle
from vaegis.models.calibration import calibrate, to_bytes
from vaegis.models.spec import InputSpec

TERMS = ("score", "reconstruction_error", "negative_elbo")


def hostile_bundle(folder: Path, raw: bytes, spec: InputSpec = VECTOR, terms: tuple[str, ...] = TERMS) -> Bundle:
    """A bundle of this score graph, with the calibration of a toy."""
    evidence = {term: calibration_scores() for term in terms}
    return write_bundle(
        folder,
        {"score.onnx": raw, "calibration.npz": to_bytes(calibrate(evidence, None, None, (0.0, 100.0)))},
        toy_manifest(spec, evidence=dict.fromkeys(terms, "a hostile toy's")),
    )


def toy(spec: InputSpec = VECTOR) -> ModelProto:
    return onnx.load_model_from_string(graph(spec, 0.0))


def of_the_future() -> bytes:
    """An opset that no runtime knows yet."""
    model = toy()
    model.opset_import[0].version = 999
    return model.SerializeToString()


def of_unknown_operators() -> bytes:
    model = toy()
    model.graph.node[1].op_type = "Mystery"
    return model.SerializeToString()


def twice_as_long() -> bytes:
    """Every output holds two values for each sample."""
    model = toy()
    first = next(n for n in model.graph.node if n.op_type == "Cast")
    first.output[0] = "once"
    model.graph.node.insert(1, helper.make_node("Concat", ["once", "once"], ["x"], axis=0))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "two"
    return model.SerializeToString()


def without_end() -> bytes:
    """A loop whose condition stays true."""
    model = toy()
    condition = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["carried"], ["further"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            condition,
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("further", TensorProto.FLOAT, None),
        ],
    )
    first = next(n for n in model.graph.node if n.op_type == "Cast")
    first.output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(1, helper.make_node("Loop", ["", "yes", "before"], ["x"], body=body))
    return model.SerializeToString()


def never_finite() -> bytes:
    """Every score is 0 / 0."""
    model = toy()
    next(c for c in model.graph.initializer if c.name == "centre").CopyFrom(
        numpy_helper.from_array(np.array(np.nan, np.float32), "centre")
    )
    return model.SerializeToString()


def greedy() -> bytes:
    """Asks for a tensor of terabytes."""
    model = toy()
    size = numpy_helper.from_array(np.array([2**40], np.int64), "size")
    model.graph.initializer.append(size)
    first = next(n for n in model.graph.node if n.op_type == "Cast")
    first.output[0] = "before"
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["size"], ["huge"]))
    model.graph.node.insert(2, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    model.graph.node.insert(3, helper.make_node("Add", ["before", "sum"], ["x"]))
    return model.SerializeToString()


def retyped(name: str, kind: int) -> bytes:
    """The input of another element type."""
    model = toy()
    for slot in model.graph.input:
        if slot.name == name:
            slot.type.tensor_type.elem_type = kind
    return model.SerializeToString()


def renamed(old: str, new: str) -> bytes:
    """The input or output of another name."""
    model = toy()
    for slot in (*model.graph.input, *model.graph.output):
        slot.name = new if slot.name == old else slot.name
    for node in model.graph.node:
        node.input[:] = [new if n == old else n for n in node.input]
        node.output[:] = [new if n == old else n for n in node.output]
    return model.SerializeToString()


def of_one_batch() -> bytes:
    """Takes one sample at a time alone."""
    model = toy()
    for slot in (*model.graph.input, *model.graph.output):
        slot.type.tensor_type.shape.dim[0].dim_value = 1
    return model.SerializeToString()
