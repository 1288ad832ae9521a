import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from torch import nn
from toy_families import Level

from toy_data import clean, constant, mean_graph, onnx_bytes
from vaegis.models.errors import Refusal
from vaegis.models.families import Evidence, Plan
from vaegis.models.manifest import Proof
from vaegis.models.spec import VectorSpec
from vaegis.training.export import GATE_BATCH, TOLERANCE, export, gate

SPEC = VectorSpec(("a", "b"))
ROWS = np.random.default_rng(0).normal(10, 1, (150, 2)).astype(np.float32)


class Mean(Level):
    """Says what `mean_graph` says: score = mean of x, twice = 2 score; or something else of one sample."""

    def __init__(self, spec, sample=None, term="score", to=None):
        super().__init__(spec)
        self.meaning = {"twice": "twice the mean"}
        self.sample, self.term, self.to = sample, term, to

    def score(self, batch):
        x = batch.x
        mean = x.mean(1)
        terms = {"score": mean, "twice": 2 * mean}
        if self.sample is not None:
            hit = (x == torch.from_numpy(ROWS[self.sample])).all(1)
            terms[self.term] = torch.where(hit, self.to(terms[self.term]), terms[self.term])
        return terms["score"], Evidence({"twice": terms["twice"]}, x)


def proved(family, graph=None, rows=ROWS):
    return gate(family, graph or mean_graph(SPEC), lambda i: rows[i], np.arange(len(rows)))


def test_a_graph_that_agrees_passes_with_its_largest_difference():
    found = proved(Mean(SPEC))
    assert found.samples == 150
    assert 0 <= found.torch < 0.1
    assert found.batch == 0.0


def allowed(term):
    """Of sample 77, by which the gate lets a term differ."""
    values = ROWS.mean(1) * (2 if term == "twice" else 1)
    spread = np.subtract(*np.percentile(values, [75, 25]))
    return TOLERANCE * max(abs(values[77]), spread)


@pytest.mark.parametrize("term", ["score", "twice"])
def test_the_tolerance_is_a_ten_thousandth(term):
    found = proved(Mean(SPEC, 77, term, lambda v: v + 0.9 * allowed(term)))
    assert found.torch == pytest.approx(0.9, abs=0.02)
    with pytest.raises(Refusal, match=f"on calibration sample 77 the graph gives {term} .* where torch gives"):
        proved(Mean(SPEC, 77, term, lambda v: v + 1.1 * allowed(term)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_in_torch_alone_is_refused(bad):
    with pytest.raises(Refusal, match="sample 77 the graph gives twice"):
        proved(Mean(SPEC, 77, "twice", lambda v: v * 0 + bad))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_the_graph_is_refused(bad):
    rows = ROWS.copy()
    rows[31] = bad
    with pytest.raises(Refusal, match="sample 31 the graph gives score (nan|inf)"):
        proved(Mean(SPEC), rows=rows)


def test_a_graph_that_looks_at_its_neighbours_is_refused():
    """score = mean of x, plus a little of the batch's mean: a batch of one answers otherwise than one of many."""
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["own"], keepdims=0),
        helper.make_node("ReduceMean", ["own"], ["all"], keepdims=1),
        helper.make_node("Sub", ["own", "all"], ["away"]),
        helper.make_node("Mul", ["away", "little"], ["bias"]),
        helper.make_node("Add", ["own", "bias"], ["score"]),
        helper.make_node("Add", ["own", "own"], ["twice"]),
        helper.make_node("Identity", ["input"], ["map"]),
    ]
    outputs = {"score": ["batch"], "twice": ["batch"], "map": ["batch", 2]}
    constants = [constant("axes", [1], np.int64), constant("little", 0.01)]
    graph = onnx_bytes(nodes, outputs, constants, SPEC)

    class Same(Mean):
        def score(self, batch):
            own = batch.x.mean(1)
            return own + 0.01 * (own - own.mean()), Evidence({"twice": 2 * own}, batch.x)

    with pytest.raises(Refusal, match="the graph gives score .* where a batch of one gives"):
        proved(Same(SPEC), graph)


def test_a_random_graph_is_refused():
    nodes = [
        helper.make_node("RandomNormalLike", ["input"], ["noise"]),
        helper.make_node("Add", ["input", "noise"], ["x"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["score"], keepdims=0),
        helper.make_node("Add", ["score", "score"], ["twice"]),
        helper.make_node("Identity", ["input"], ["map"]),
    ]
    outputs = {"score": ["batch"], "twice": ["batch"], "map": ["batch", 2]}
    graph = onnx_bytes(nodes, outputs, [constant("axes", [1], np.int64)], SPEC)
    with pytest.raises(Refusal, match="gave two answers to one batch"):
        proved(Mean(SPEC), graph)


def test_weights_changed_after_the_export_are_noticed(fitted):
    made = fitted("vae", "vector")
    family, x = copy.deepcopy(made.fit.family), clean("vector", GATE_BATCH + 3)
    graph = made.bundle.read("score.onnx")
    assert gate(family, graph, lambda i: x[i], np.arange(len(x))).torch < 1
    with torch.no_grad():
        next(iter(family.decoder.parameters())).add_(0.01)
    with pytest.raises(Refusal, match="on calibration sample"):
        gate(family, graph, lambda i: x[i], np.arange(len(x)))


def test_a_bundle_records_what_the_gate_measured(fitted):
    made = fitted("vae", "vector")
    proof = made.bundle.manifest.training.gate
    assert proof == Proof(torch=made.gate.torch, batch=made.gate.batch, samples=len(made.split.calibrate))
    assert 0 < proof.torch < 1


def test_graphs_have_the_signature_of_the_interface(fitted):
    for kind, dtype in (("image", "UINT8"), ("series", "FLOAT"), ("vector", "FLOAT")):
        made = fitted("vae", kind)
        shape = list(made.bundle.spec.shape)
        score = onnx.load_model_from_string(made.bundle.read("score.onnx"))
        assert signature(score.graph.input) == {"input": (dtype, shape)}
        outputs = signature(score.graph.output)
        assert list(outputs) == ["score", *made.fit.family.meaning, "map"]
        assert outputs.pop("map") == ("FLOAT", list(made.bundle.spec.map_shape))
        assert set(map(str, outputs.values())) == {"('FLOAT', [])"}
        latent = [made.fit.family.latent_size]
        encoder = onnx.load_model_from_string(made.bundle.read("encoder.onnx")).graph
        assert signature(encoder.output) == {"mean": ("FLOAT", latent), "log_variance": ("FLOAT", latent)}
        decoder = onnx.load_model_from_string(made.bundle.read("decoder.onnx")).graph
        assert signature(decoder.input) == {"latent": ("FLOAT", latent)}
        assert signature(decoder.output) == {"reconstruction": ("FLOAT", shape)}


class Walk(nn.Module):
    """One step of something that generates: sample + time * noise."""

    def __init__(self, pace):
        super().__init__()
        self.register_buffer("pace", torch.tensor(pace))

    def forward(self, sample, time, noise):
        return sample + self.pace * time[:, None] * noise


class Walker(Level):
    """Generates step by step, and has no decoder."""

    name = "step.onnx"

    def more_graphs(self):
        inputs = {
            "sample": torch.zeros(3, 2),
            "time": torch.zeros(3, dtype=torch.int64),
            "noise": torch.zeros(3, 2),
        }
        return {self.name: Plan(Walk(0.5), inputs, ("next",))}


def test_a_family_may_ship_a_graph_of_its_own():
    graphs = export(Walker(SPEC))
    assert list(graphs) == ["score.onnx", "step.onnx"]
    graph = onnx.load_model_from_string(graphs["step.onnx"]).graph
    assert signature(graph.input) == {"sample": ("FLOAT", [2]), "time": ("INT64", []), "noise": ("FLOAT", [2])}
    rng = np.random.default_rng(0)
    for n in (1, 5):
        sample, noise = rng.normal(size=(2, n, 2)).astype(np.float32)
        time = np.arange(n) + 3
        feed = {"sample": sample, "time": time, "noise": noise}
        (found,) = ort.InferenceSession(graphs["step.onnx"], providers=["CPUExecutionProvider"]).run(None, feed)
        assert found == pytest.approx(sample + 0.5 * time[:, None] * noise, rel=1e-6)


def test_only_graphs_that_a_bundle_knows_are_shipped():
    class Stray(Walker):
        name = "walk.onnx"

    with pytest.raises(AssertionError, match=r"walk\.onnx"):
        export(Stray(SPEC))


def signature(values):
    """Name -> element type and fixed shape; the first axis must be free."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        first, *rest = tensor.shape.dim
        assert first.dim_param
        found[value.name] = (onnx.TensorProto.DataType.Name(tensor.elem_type), [d.dim_value for d in rest])
    return found
