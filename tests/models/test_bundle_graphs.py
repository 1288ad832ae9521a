"""Graphs that a bundle may not hold: values in files outside it, wherever they hide, and bytes that are no graph."""

import onnx
import pytest
from bundle_folders import relist
from onnx import TensorProto, helper

from toy_data import VECTORS, constant, mean_graph
from vaegis.models.bundle import open_bundle, refuse_external_data
from vaegis.models.errors import Damaged


def external(name="weights"):
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def graph_with(place):
    """A graph that keeps an external tensor in the place named."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    inner = helper.make_graph([helper.make_node("Identity", ["weights"], ["y"])], "inner", [], [y], [external()])
    nodes = {
        "initialiser": [helper.make_node("Add", ["x", "weights"], ["y"])],
        "attribute": [helper.make_node("Constant", [], ["y"], value=external())],
        "branch": [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)],
        "branch of a branch": [],
        "function": [helper.make_node("Own", ["x"], ["y"], domain="own")],
    }
    if place == "branch of a branch":
        outer = helper.make_graph(
            [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)], "outer", [], [y]
        )
        nodes[place] = [helper.make_node("If", ["yes"], ["y"], then_branch=outer, else_branch=outer)]
    kept = [external()] if place == "initialiser" else [constant("yes", True, bool)]
    own = [helper.make_node("Constant", [], ["y"], value=external())]
    functions = [helper.make_function("own", "Own", ["x"], ["y"], own, [helper.make_opsetid("", 18)])]
    return helper.make_model(
        helper.make_graph(nodes[place], "g", [x], [y], kept), functions=functions if place == "function" else []
    ).SerializeToString()


@pytest.mark.parametrize("place", ["initialiser", "attribute", "branch", "branch of a branch", "function"])
def test_external_data_is_refused_wherever_it_hides(folder, place):
    raw = graph_with(place)
    with pytest.raises(Damaged, match=r"score\.onnx keeps tensor 'weights' in an external file"):
        refuse_external_data("score.onnx", raw)
    relist(folder, score_onnx=raw)
    with pytest.raises(Damaged, match="external file"):
        open_bundle(folder)


def test_external_data_without_the_flag_is_refused():
    model = onnx.load_model_from_string(mean_graph(VECTORS))
    model.graph.initializer[0].external_data.add(key="location", value="x.bin")
    with pytest.raises(Damaged, match="external file"):
        refuse_external_data("score.onnx", model.SerializeToString())


def test_bytes_that_are_no_graph_are_refused(folder):
    relist(folder, score_onnx=b"MZ not a graph")
    with pytest.raises(Damaged, match=r"score\.onnx is not an ONNX graph"):
        open_bundle(folder)


def test_a_relisted_file_is_what_a_forger_can_do(folder):
    """The tests above fail for what they say and not for a digest: a consistent bundle opens."""
    relist(folder, score_onnx=mean_graph(VECTORS, doc="forged"))
    assert open_bundle(folder).digest != "0" * 64
