"""Autoregressive models: what sees what, by autograd; sums and integrals to 1; the mixture against scipy."""

import itertools
import math

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conforming import batches
from scipy.stats import logistic

from toy_data import IMAGES, SERIES, SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import FAMILIES, Batch, Draw, Progress, make
from vaegis.models.families.autoregressive import NETWORKS, Autoregressive, channelled
from vaegis.models.families.parts.layers import smooth
from vaegis.models.families.parts.logistics import Logistics, _log_1m_exp
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec
from vaegis.training.export import export

SHAPE = {"image": (2, 5, 6), "series": (2, 9), "vector": (6,)}
NAMED = [(kind, name) for kind, able in NETWORKS.items() for name in able]


def stirred(module):
    """The module with weights that make it do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return module


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_nothing_sees_itself_or_what_comes_later(kind, name):
    """The Jacobian of places by places is strictly lower triangular, and every place sees some of those before."""
    torch.manual_seed(0)
    shape = SHAPE[kind]
    network = stirred(NETWORKS[kind][name][0](shape, 4, 8, 2))
    channels = 1 if kind == "vector" else shape[0]
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(network, x)
    places = math.prod(shape) // channels
    seen = jacobian.reshape(4, places, channels, places).abs().sum((0, 2))
    assert (torch.triu(seen) == 0).all()
    assert (seen[1:].sum(1) > 0).all()
    # Convolutions see the place before, but where it is at the other border of the row above.
    before = torch.diagonal(seen, -1)
    if kind == "image":
        before = before.reshape(-1)[torch.arange(places - 1) % shape[-1] != shape[-1] - 1]
    assert (before > 0).all() or name == "made"


def test_pixelcnn_has_no_blind_spot():
    """Every pixel near above a pixel, either side, is seen: masked convolutions alone would miss those to the right."""
    torch.manual_seed(0)
    network = stirred(NETWORKS["image"]["pixelcnn"][0]((1, 7, 7), 1, 8, 3))
    x = torch.randn(1, 1, 7, 7)
    seen = torch.autograd.functional.jacobian(lambda v: network(v)[0, 0, 4, 3], x)[0, 0].abs() > 0
    assert seen[2:4].all()
    assert seen[4, :3].all()
    assert not seen[4, 3:].any()
    assert not seen[5:].any()


def of_place(numbers, components):
    """Weights, means and scales of one channel as scipy takes them."""
    weights, means, raw = numbers.double().reshape(3, components)
    shift = torch.linspace(-1, 1, components + 2)[1:-1].double() * 1.5
    return weights.softmax(0).numpy(), (means + shift).numpy(), torch.nn.functional.softplus(raw).numpy()


def test_the_density_is_a_mixture_of_logistics():
    torch.manual_seed(0)
    values = Logistics(1, 3, 0.0)
    numbers, y = torch.randn(1, 9, 1), torch.tensor([[[0.7]]])
    w, m, s = of_place(numbers, 3)
    found = values.log_prob(numbers, y, y, torch.ones(1, 1))
    assert found.item() == pytest.approx(math.log((w * logistic.pdf(0.7, m, s + 1e-3)).sum()), rel=1e-5)


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_the_probability_of_a_level_is_a_difference_of_distribution_functions(level):
    torch.manual_seed(0)
    values = Logistics(1, 3, 255.0)
    numbers = torch.randn(1, 9, 1)
    w, m, s = of_place(numbers, 3)
    scale = 60.0
    high = 1.0 if level == 255 else logistic.cdf((level + 0.5) / scale, m, s + 0.1 / scale)
    low = 0.0 if level == 0 else logistic.cdf((level - 0.5) / scale, m, s + 0.1 / scale)
    raw = torch.full((1, 1, 1), float(level))
    found = values.log_prob(numbers, raw / scale, raw, torch.full((1, 1), scale))
    assert found.item() == pytest.approx(math.log((w * (high - low)).sum()), rel=1e-4)


def test_no_value_is_too_far_for_a_logarithm():
    values = Logistics(1, 1, 255.0)
    numbers = torch.tensor([[[0.0], [0.0], [-20.0]]])  # a scale as small as can be
    raw = torch.tensor([[[200.0]]])
    found = values.log_prob(numbers, raw / 60, raw, torch.full((1, 1), 60.0))
    assert found.item() == pytest.approx(-2000 + 5, abs=8)  # -(200 levels) / (0.1 level), and the level's own width


def test_log_of_one_less_exp_to_the_precision_of_floats():
    w = torch.logspace(-6, 2, 200)
    expected = torch.log(-torch.expm1(-w.double()))
    assert torch.allclose(_log_1m_exp(w).double(), expected, rtol=2e-6, atol=2e-7)


def test_channels_of_a_place_follow_one_another():
    """What a channel is expected to be depends on the channels before it, and on none after."""
    torch.manual_seed(0)
    values = stirred(Logistics(3, 2, 0.0))
    numbers = torch.randn(1, 18, 1)
    y = torch.randn(1, 3, 1)
    jacobian = torch.autograd.functional.jacobian(lambda v: values.log_prob(numbers, v, v, torch.ones(3, 1)), y)
    seen = jacobian.reshape(3, 3).abs() > 0
    assert seen.equal(torch.ones(3, 3).tril().bool())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS["image"])
@pytest.mark.parametrize(("channels", "width"), [(1, 2), (2, 1)])
def test_probabilities_of_all_tiny_images_sum_to_one(name, channels, width):
    """Of two values of two bits: sixteen images."""
    torch.manual_seed(0)
    family = stirred(Autoregressive(ImageSpec(1, width, channels), network=name, width=4, layers=1, mixture=2))
    family.values.top = 3.0
    family.normaliser.centre.fill_(1.4)
    family.normaliser.scale.fill_(1.1)
    every = np.array(list(itertools.product(range(4), repeat=2)), np.uint8).reshape(16, 1, width, channels)
    nats = family.evidence(Batch(torch.from_numpy(every))).terms["negative_log_likelihood"].double()
    assert float((-nats).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert nats.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize(
    "spec",
    [VectorSpec(("a", "b")), SeriesSpec(("a",), 2), SeriesSpec(("a", "b"), 1)],
    ids=["table", "time", "channels"],
)
def test_the_density_of_two_values_integrates_to_one(spec):
    for network in NETWORKS[spec.kind]:
        torch.manual_seed(0)
        family = stirred(Autoregressive(spec, network=network, width=8, layers=1, mixture=2))
        line = torch.linspace(-25, 25, 300)
        y = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, *spec.shape)
        nats = family.evidence(Batch(y)).terms["negative_log_likelihood"].double()
        assert float((-nats).exp().sum()) * float(line[1] - line[0]) ** 2 == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("kind", SPECS)
def test_evidence_by_hand(kind):
    x = clean(kind, 90)
    torch.manual_seed(0)
    family = stirred(Autoregressive(SPECS[kind], width=8, layers=2))
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    x = torch.from_numpy(x)
    found = family.evidence(Batch(x))
    raw = family.normaliser.arrange(x)
    shares = family._nats_of(family.normaliser.normalise(raw), raw)
    nats = shares.flatten(1).sum(1)
    assert torch.equal(found.terms["negative_log_likelihood"], nats)
    away = (nats - nats.mean()).abs() / nats.std(correction=0)
    assert torch.allclose(found.terms["typicality"], away, atol=2e-3)
    heat = shares.sum(1) if kind == "image" else shares
    variance = heat.var(0, correction=0)
    heat = (heat - heat.mean(0)) / (0.9 * variance + 0.1 * variance.mean()).sqrt()
    heat = smooth(heat, SPECS[kind]) if kind == "image" else heat.permute(0, 2, 1) if kind == "series" else heat
    assert torch.allclose(found.map, heat, rtol=1e-3, atol=5e-3)
    assert torch.equal(found.terms["map_peak"], found.map.flatten(1).amax(1))


def test_bits_are_of_raw_values():
    assert Autoregressive(IMAGES).log_jacobian() == 0.0
    assert Autoregressive(ImageSpec(100, 100, 1), resolution=50).log_jacobian() is None
    family = Autoregressive(VectorSpec(("a", "b")))
    family.normaliser.scale.copy_(torch.tensor([2.0, 3.0]))
    assert family.log_jacobian() == pytest.approx(math.log(6))


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_gradients_reach_every_parameter_of_every_network(kind, name):
    x = torch.from_numpy(clean(kind, 32))
    torch.manual_seed(0)
    family = Autoregressive(SPECS[kind], network=name, width=8, layers=2)
    family.start(batches(x.numpy()))
    family.loss(Batch(x), "network", Progress(50, 100, torch.Generator().manual_seed(0)))["total"].backward()
    assert [n for n, p in family.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_samples_have_the_distribution_they_were_drawn_from():
    """Of a model that ignores its input: two columns, each the same known mixture."""
    family = Autoregressive(VectorSpec(("a", "b")), mixture=2, width=4)
    for p in family.predict.parameters():
        p.zero_()
    family.normaliser.centre.copy_(torch.tensor([5.0, -1.0]))
    family.normaliser.scale.copy_(torch.tensor([2.0, 1.0]))
    drawn = family.sample(Draw(4000, torch.Generator().manual_seed(0))).double().numpy()
    s = math.log(2) + 1e-3

    def distribution(v):
        return 0.5 * logistic.cdf(v, -0.5, s) + 0.5 * logistic.cdf(v, 0.5, s)

    for column, (centre, scale) in enumerate([(5.0, 2.0), (-1.0, 1.0)]):
        for v in (-2.0, 0.0, 1.5):
            share = (drawn[:, column] <= centre + scale * v).mean()
            assert share == pytest.approx(distribution(v), abs=0.03)
    again = family.sample(Draw(4000, torch.Generator().manual_seed(0))).double().numpy()
    assert np.array_equal(again, drawn)


@torch.no_grad()
def test_a_sample_is_drawn_in_order_and_lies_on_the_levels():
    torch.manual_seed(0)
    family = stirred(Autoregressive(ImageSpec(3, 4, 2), width=4, layers=1, mixture=2))
    family.normaliser.centre.fill_(100.0)
    family.normaliser.scale.fill_(50.0)
    drawn = family.sample(Draw(3, torch.Generator().manual_seed(0)))
    assert drawn.shape == (3, 3, 4, 2)
    assert torch.allclose(drawn, drawn.round(), atol=1e-3)
    assert drawn.min() >= -1e-3
    assert drawn.max() <= 255 + 1e-3
    y = family.normaliser(drawn)
    later = family.step(y, 5, torch.full((3, 2, 2), 0.3))
    assert later.shape == y.shape
    changed = (later != y).any(1).flatten(1).any(0)
    assert changed.nonzero().flatten().tolist() in ([5], [])


@pytest.mark.parametrize(
    ("spec", "name"), [(ImageSpec(5, 6, 1), "rowlstm"), (SeriesSpec(("a", "b"), 6), "lstm")], ids=str
)
def test_networks_that_run_in_a_loop_are_exported(spec, name):
    """The defaults are held to this by the conformance suite."""
    torch.manual_seed(0)
    family = stirred(Autoregressive(spec, network=name, width=6, layers=1, mixture=2))
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (7, *spec.shape)).astype(spec.dtype))
    family.start(lambda: [Batch(x)])
    family.eval()
    family.finish(lambda: [Batch(x)])
    graph = ort.InferenceSession(export(family)["score.onnx"], providers=["CPUExecutionProvider"])
    for size in (1, 7):
        found = graph.run(["negative_log_likelihood", "map"], {"input": x[:size].numpy()})
        with torch.no_grad():
            known = family.evidence(Batch(x[:size]))
        assert found[0] == pytest.approx(known.terms["negative_log_likelihood"].numpy(), rel=1e-4)
        assert found[1] == pytest.approx(known.map.numpy(), rel=1e-3, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("spec", [ImageSpec(2, 3, 2), SeriesSpec(("a", "b"), 4), VectorSpec(("a", "b", "c"))], ids=str)
def test_the_step_graph_draws_what_sampling_draws(spec):
    """Step after step, with its noise as the uniform numbers of `step`."""
    torch.manual_seed(0)
    family = stirred(Autoregressive(spec, width=4, layers=1, mixture=3))
    generator = torch.Generator().manual_seed(0)
    family.normaliser.centre.add_(
        torch.linspace(60, 90, len(family.normaliser.centre)).view_as(family.normaliser.centre)
    )
    family.normaliser.scale.mul_(20.0)
    (plan,) = family.more_graphs().values()
    sample = torch.randn(5, *spec.shape, generator=generator)
    first, y = sample.clone(), torch.zeros(5, *family.normaliser.shape)
    for position in range(family.positions):
        noise = torch.randn(sample.shape, generator=generator)
        chance = [channelled(family.normaliser.arrange(v)).flatten(2)[:, :, position] for v in (noise, first)]
        uniform = torch.distributions.Normal(0.0, 1.0).cdf(torch.stack(chance, dim=2))
        y = family.step(y, position, uniform)
        sample = plan.module(sample, torch.full((5,), family.positions - position), noise)
    assert torch.allclose(sample, family.normaliser.denormalise(y), rtol=1e-3, atol=1e-3)


def test_averaged_images_have_no_step_graph():
    assert Autoregressive(ImageSpec(100, 100, 1), resolution=50).more_graphs() == {}


def test_a_word_per_column_is_no_network():
    with pytest.raises(Refusal, match="Argument network is"):
        make(FAMILIES, "autoregressive", VECTORS, {"network.a": "made"})


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (IMAGES, {"network": "wavenet"}, "network is 'wavenet'; for image inputs choose auto or pixelcnn or rowlstm"),
        (SERIES, {"network": "made"}, "network is 'made'; for series inputs choose auto or wavenet or lstm"),
        (VECTORS, {"network": "lstm"}, "for vector inputs choose auto or made"),
        (VECTORS, {"network": ""}, "network is ''"),
        (VECTORS, {"mixture": 0}, "mixture is 0; it must lie between 1 and 32"),
        (VECTORS, {"mixture": 33}, "mixture is 33"),
        (VECTORS, {"layers": -1}, "layers is -1"),
        (IMAGES, {"layers": 100}, "layers is 100; it must lie between 0 and 64"),
        (VECTORS, {"width": -8}, "width is -8"),
        (VECTORS, {"noise": -0.1}, "noise is -0.1"),
        (SERIES, {"noise": math.nan}, "noise is nan"),
        (IMAGES, {"resolution": 513}, "resolution is 513"),
    ],
)
def test_arguments_out_of_range_are_named(spec, arguments, said):
    with pytest.raises(Refusal, match=said):
        Autoregressive(spec, **arguments)
