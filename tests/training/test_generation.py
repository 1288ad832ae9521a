"""Generation quality against known answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.linalg import sqrtm

from toy_data import IMAGES, constant
from toy_latents import VECTOR, coder_graphs
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory
from vaegis.training.generation import (
    Features,
    Nearest,
    Network,
    density_coverage,
    distances,
    figures,
    frechet,
    inception,
    measure,
    perceptual,
    precision_recall,
    radius,
    unwritten,
)
from vaegis.training.report.contents import plain
from vaegis.training.report.generated import section
from vaegis.training.splits import split


def normal(n, seed, size=3):
    return np.random.default_rng(seed).normal(size=(n, size))


def test_frechet_of_two_clouds_with_known_means_and_covariances():
    """Sets made to have their mean and covariance exactly, against the formula with scipy's matrix root."""
    rng = np.random.default_rng(0)

    def cloud(mean, covariance, n):
        x = rng.normal(size=(n, 3))
        x -= x.mean(axis=0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T @ np.linalg.cholesky(covariance).T
        return x + mean

    one, two = (m @ m.T + np.eye(3) for m in rng.normal(size=(2, 3, 3)))
    gap = np.array([1.0, -2.0, 0.5])
    expected = gap @ gap + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet(cloud(0, one, 50), cloud(gap, two, 70)) == pytest.approx(expected, rel=1e-9)
    # In one dimension: (difference of means)^2 + (difference of standard deviations)^2.
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [7.0]])
    assert frechet(a, b) == pytest.approx((4 - 0) ** 2 + (np.std(b, ddof=1) - np.std(a, ddof=1)) ** 2)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_identical_sets_have_precision_and_recall_one_and_disjoint_ones_none():
    a = normal(80, 0)
    same, far = figures(Features(a), Features(a.copy())), figures(Features(a), Features(a + 100))
    assert (same.precision, same.recall, same.coverage, same.spread) == (1, 1, 1, pytest.approx(1))
    assert same.frechet == pytest.approx(0, abs=1e-9)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    assert far.frechet == pytest.approx(3 * 100**2)


def test_one_mode_of_two_is_precise_and_recalls_half():
    both = np.concatenate([normal(100, 0), normal(100, 1) + 50])
    half = normal(200, 2)
    found = figures(Features(both), Features(half))
    assert found.precision > 0.85 and 0.3 < found.recall < 0.55 and found.coverage < 0.55 and found.spread < 0.01


def test_density_and_coverage_by_hand():
    """Real 0, 1, 3, 7 on a line, k = 1: radii 1, 1, 2, 4. Generated 0.5, 2, 12: 0.5 lies in the balls of 0 and 1; 2 in
    those of 1 and 3; 12 in none. density = 4 / (1 * 3); covered are 0, 1 and 3: 3 of 4."""
    real, made = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[0.5], [2.0], [12.0]])
    near, far = distances(real, real), distances(real, made)
    assert radius(near, 1).tolist() == [1, 1, 2, 4]
    assert density_coverage(near, far, k=1) == (pytest.approx(4 / 3), 0.75)
    # Precision: 0.5 and 2 lie within some ball. Radii of the generated: 1.5, 1.5, 10; of the real 0, 1, 3 and 7 lie in.
    assert precision_recall(near, far, distances(made, made), k=1) == (pytest.approx(2 / 3), 1.0)


def test_inception_lies_between_one_and_the_number_of_classes():
    assert inception(np.eye(4)[np.arange(40) % 4]) == pytest.approx(4)
    assert inception(np.full((9, 4), 0.25)) == pytest.approx(1)
    # Half certain of class 0, half of class 1: exp(KL((1, 0) || (1/2, 1/2))) = 2.
    assert inception(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(2)


def test_perceptual_distance_by_hand():
    """Unit vectors along channels: alike 0, at right angles 2, opposite 4; length does not count."""
    one = np.array([[[3.0, 0.0], [0.0, 5.0]]], np.float32)  # (1, C = 2, 2 places): e1 and e2
    two = np.array([[[0.5, 4.0], [0.0, 0.0]]], np.float32)  # e1 and e1
    assert perceptual((one,), (two,)).tolist() == [1.0]
    assert perceptual((one, one), (two, -one)).tolist() == [2.5]
    assert perceptual((one,), (7 * one,)) == pytest.approx([0])


def test_nearest_is_measured_in_spreads_of_each_column():
    x = np.array([[0.0, 0.0], [2.0, 200.0]])  # spreads 1 and 100
    found = Nearest(x)(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 100.0]]))
    assert found == pytest.approx([0, np.sqrt(0.5), np.sqrt(0.5)])
    assert distances(x, x).diagonal().tolist() == [0, 0]


def vectors(n, seed=0):
    """On the plane that the toy decoder makes, with a little noise."""
    from toy_latents import axes

    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 2)) @ axes(VECTOR).T + 0.01 * rng.normal(size=(n, 4))).astype(np.float32)


SAMPLES = InMemory(VECTOR, vectors(400))
PARTED = split(SAMPLES, 0)


@pytest.fixture
def network(tmp_path):
    """`network(shape)`: y = x as features and as logits, and x as a feature map (batch, D, 1)."""

    def make(shape=(4,), outputs=("features", "logits", "map"), inputs=1):
        floats = TensorProto.FLOAT
        nodes = [
            helper.make_node("Identity", ["x"], ["features"]),
            helper.make_node("Identity", ["x"], ["logits"]),
            helper.make_node("Unsqueeze", ["x", "last"], ["map"]),
        ]
        told = {
            "features": ["batch", *shape],
            "logits": ["batch", *shape],
            "map": ["batch", *shape, 1],
        }
        graph = helper.make_graph(
            [n for n in nodes if n.output[0] in outputs],
            "net",
            [helper.make_tensor_value_info(n, floats, ["batch", *shape]) for n in ["x", "z"][:inputs]],
            [helper.make_tensor_value_info(o, floats, told[o]) for o in outputs],
            [constant("last", [len(shape) + 1], np.int64)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}net.onnx"
        onnx.save(model, path)
        return path

    return make


def test_a_decoder_that_makes_the_clean_distribution_is_as_good_as_clean(network):
    found = measure(unwritten("toy", {}, VECTOR, coder_graphs(VECTOR)), SAMPLES, PARTED, network=network())
    assert found.samples >= 60 and "net.onnx" in found.features
    assert found.generated.coverage > 0.8 * found.clean.coverage
    assert found.generated.frechet < 0.2 and found.generated.spread == pytest.approx(1, abs=0.35)
    assert found.generated.inception > 1 and found.generated.diversity > 0 and found.rebuilt < 0.01
    assert found.alarms == () and found.copies < 0.05


def test_a_model_of_one_sample_alarms(network):
    """A decoder that ignores its latent: every sample is the first fitted one."""
    graphs = coder_graphs(VECTOR)
    model = onnx.load_model_from_string(graphs["decoder.onnx"])
    back = next(i for i in model.graph.initializer if i.name == "back")
    back.CopyFrom(constant("back", np.zeros((2, 4))))
    one = np.tile(SAMPLES.parts[PARTED.fit[0]], (1, 1))
    model.graph.initializer.append(constant("fixed", one))
    model.graph.node[0].output[0] = "nothing"
    model.graph.node.insert(1, helper.make_node("Add", ["nothing", "fixed"], ["plain"]))
    graphs["decoder.onnx"] = model.SerializeToString()
    found = measure(unwritten("toy", {}, VECTOR, graphs), SAMPLES, PARTED, network=network())
    assert {alarm.code for alarm in found.alarms} == {"mode collapse", "memorising"}
    assert found.copies == 1 and found.nearest == pytest.approx(0, abs=1e-3) and found.generated.recall < 0.1
    page = section(found)
    assert "few kinds of product" in page and "copies of fitted" in page
    assert {a["code"] for a in plain(found)["alarms"]} == {"mode collapse", "memorising"}


def test_features_of_a_small_vae_where_no_network_is_given():
    found = measure(unwritten("toy", {}, VECTOR, coder_graphs(VECTOR)), SAMPLES, PARTED, steps=60)
    assert "small VAE fitted on the same data" in found.features
    assert found.generated.inception is None and found.rebuilt is None
    assert found.generated.coverage > 0.6 * found.clean.coverage
    again = measure(unwritten("toy", {}, VECTOR, coder_graphs(VECTOR)), SAMPLES, PARTED, steps=60)
    assert again == found


def test_what_generates_nothing_is_not_judged():
    graphs = {"encoder.onnx": coder_graphs(VECTOR)["encoder.onnx"]}
    assert measure(unwritten("toy", {}, VECTOR, graphs), SAMPLES, PARTED) is None
    assert section(None) == ""
    few = InMemory(VECTOR, vectors(40))
    assert measure(unwritten("toy", {}, VECTOR, coder_graphs(VECTOR)), few, split(few, 0)) is None


def test_networks_that_cannot_be_used_are_refused(network, tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    for path, words in (
        (tmp_path / "nosuch.onnx", "cannot be read"),
        (tmp_path, "cannot be read"),
        (tmp_path / "text.onnx", "no ONNX network"),
        (network(shape=(5,)), r"\[batch, 4\]"),
        (network(inputs=2), r"\[batch, 4\]"),
        (network(outputs=("map",)), "no output"),
    ):
        with pytest.raises(Refusal, match=words):
            Network(path, VECTOR)
    with pytest.raises(Refusal, match=r"\[batch, 16, 16, 1\]"):
        Network(network(), IMAGES)
