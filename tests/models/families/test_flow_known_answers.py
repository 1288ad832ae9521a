"""The flow against autograd's Jacobian, numerical integration and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from conforming import batches
from scipy.stats import multivariate_normal

from toy_data import IMAGES, SERIES, SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress
from vaegis.models.families.flow import Flow
from vaegis.models.families.parts.coupling import MultiScale, squeeze, unsqueeze
from vaegis.models.families.parts.layers import smooth
from vaegis.models.families.parts.transforms import Vectors
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

SHAPES = [(1, 6, 7), (3, 4, 4), (2, 5), (1, 8)]  # (C, H, W) or (C, T); sides that divide by four and that do not


def at(seed=0):
    return Progress(50, 100, torch.Generator().manual_seed(seed))


def stirred(module):
    """The module with weights that make it do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def multi_scale(shape):
    torch.manual_seed(0)
    return stirred(MultiScale(shape, steps=2, width=6)).double()


def vectors(transform, size=4):
    torch.manual_seed(0)
    flow = stirred(Vectors(size, transform, layers=3, width=8, bins=4)).double()
    flow.whiten(torch.randn(50, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64))
    return flow


CASES = [*((multi_scale, s) for s in SHAPES), *((vectors, t) for t in ("spline", "realnvp", "maf"))]


@pytest.mark.parametrize(("make", "what"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_the_log_determinant_is_that_of_the_jacobian(make, what):
    flow = make(what)
    shape = what if make is multi_scale else (4,)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v.reshape(1, *shape))[0].flatten(), x.flatten())
    _, shares = flow(x[None])
    assert shares.sum().item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-5)
    assert abs(shares.sum().item()) > 0.05


@pytest.mark.parametrize(("make", "what"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_the_inverse_is_one(make, what):
    flow = make(what).float()
    shape = what if make is multi_scale else (4,)
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        z, _ = flow(x)
        assert z.shape == x.shape
        assert torch.allclose(flow.inverse(z), x, atol=1e-4)
        assert not torch.allclose(z, x, atol=0.1)


@pytest.mark.parametrize("transform", ["spline", "realnvp", "maf"])
def test_the_density_of_vectors_integrates_to_one(transform):
    family = Flow(VectorSpec(("a", "b")), transform=transform, layers=2, width=8)
    family.start(batches(clean("vector", 200)[:, :2]))
    stirred(family)
    assert mass(family, 12.0, 300) == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
def mass(family, reach, n):
    """The integral of exp(-nll) over normalised values, on a grid."""
    line = np.linspace(-reach, reach, n)
    y = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    x = torch.from_numpy(y).float() * family.normaliser.scale + family.normaliser.centre
    nats = family.evidence(Batch(x)).terms["negative_log_likelihood"].double()
    return float((-nats).exp().sum()) * (line[1] - line[0]) ** 2


@torch.no_grad()
def test_the_density_of_windows_integrates_to_one():
    """Of one channel and two steps: a plane."""
    torch.manual_seed(0)
    flow = stirred(MultiScale((1, 2), steps=2, width=4)).double()
    line = torch.linspace(-12, 12, 240, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 1, 2)
    z, shares = flow(y)
    nats = (0.5 * z.square() + 0.5 * math.log(2 * math.pi) - shares).flatten(1).sum(1)
    assert float((-nats).exp().sum()) * float(line[1] - line[0]) ** 2 == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
def test_whitening_alone_is_a_gaussian_with_the_clean_covariance():
    x = clean("vector", 300)
    family = Flow(VECTORS)
    family.start(batches(x))
    family.flow.parts = torch.nn.ModuleList()
    y = ((torch.from_numpy(x) - family.normaliser.centre) / family.normaliser.scale).double().numpy()
    known = multivariate_normal(np.zeros(6), y.T @ y / len(y) + 1e-4 * np.eye(6))
    found = family.evidence(Batch(torch.from_numpy(x))).terms["negative_log_likelihood"].numpy()
    assert found == pytest.approx(-known.logpdf(y), rel=1e-3, abs=1e-2)


def test_the_log_jacobian_takes_densities_to_raw_units():
    family = Flow(VectorSpec(("a", "b")))
    family.normaliser.scale.copy_(torch.tensor([2.0, 3.0]))
    assert family.log_jacobian() == pytest.approx(math.log(6))
    assert Flow(ImageSpec(100, 100, 1), resolution=50).log_jacobian() is None


@torch.no_grad()
@pytest.mark.parametrize("kind", SPECS)
def test_evidence_by_hand(kind):
    x = clean(kind, 90)
    torch.manual_seed(0)
    family = Flow(SPECS[kind], layers=2, width=8)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    x = torch.from_numpy(x)
    found = family.evidence(Batch(x))
    z, log_variance = family.encode(Batch(x))
    _, shares = family.flow(family.normaliser(x))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    nats = -prior - shares.flatten(1).sum(1)
    assert torch.allclose(found.terms["negative_log_likelihood"], nats, rtol=1e-4, atol=1e-3)
    away = (nats - nats.mean()).abs() / nats.std(correction=0)
    assert torch.allclose(found.terms["typicality"], away, atol=1e-3)
    if kind == "vector":
        moved = z.square()
    else:  # what changes when the latent is brought back along its ray
        radius = z.square().sum(1).mean().sqrt()
        raw = family.decode(Batch(0.5 * z * radius / z.norm(dim=1, keepdim=True)))
        moved = (family.normaliser(x) - family.normaliser(raw)).square().flatten(1)
    usual = moved.mean(0)
    heat = (moved / (0.9 * usual + 0.1 * usual.mean())).view(len(x), *family.normaliser.shape)
    if kind == "image":
        heat = smooth(heat.mean(1), SPECS[kind])
    elif kind == "series":
        heat = heat.permute(0, 2, 1)
    assert torch.allclose(found.map, heat, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.terms["map_peak"], found.map.flatten(1).amax(1))
    assert (log_variance == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", SPECS)
def test_decoding_what_was_encoded_gives_the_sample(kind):
    x = clean(kind, 90)
    torch.manual_seed(0)
    family = stirred(Flow(SPECS[kind], layers=2, width=8))
    family.start(batches(x))
    x = torch.from_numpy(x)
    again = family.decode(Batch(family.encode(Batch(x))[0]))
    assert (again - x).abs().max() < 1e-4 * x.float().std() * 10


def test_pixels_are_spread_over_their_level_in_training_alone():
    x = clean("image", 64)
    family = Flow(IMAGES, layers=1, width=4, noise=0.0)
    family.start(batches(x))
    y = family.normaliser(torch.from_numpy(x))
    moved = (family._dequantise(y, torch.Generator().manual_seed(0)) - y) * family.normaliser.scale
    assert moved.min() == pytest.approx(-0.5, abs=1e-3)
    assert moved.max() == pytest.approx(0.5, abs=1e-3)
    assert moved.std() == pytest.approx(math.sqrt(1 / 12), rel=0.02)
    still = Flow(SERIES, noise=0.0)
    assert torch.equal(still._dequantise(y, torch.Generator()), y)


def test_the_first_look_leaves_every_activation_norm_standardised():
    x = clean("series", 200)
    torch.manual_seed(0)
    family = Flow(SERIES, layers=2, width=8)
    family.start(batches(x))
    seen = []
    for module in family.flow.modules():
        if type(module).__name__ == "ActNorm":
            module.register_forward_hook(lambda m, i, out: seen.append(out[0]))
    generator = torch.Generator().manual_seed(20150521)
    with torch.no_grad():
        parts = [
            family._dequantise(family.normaliser(torch.from_numpy(b)), generator) for b in np.split(x, [64, 128, 192])
        ]
        family.flow(torch.cat(parts))
    for out in seen:
        assert out.mean((0, 2)).abs().max() < 1e-3
        assert (out.std((0, 2)) - 1).abs().max() < 2e-2


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 8)])
def test_squeezing_and_back(shape):
    x = torch.arange(math.prod(shape)).view(shape).float()
    small = squeeze(x)
    assert torch.equal(unsqueeze(small), x)
    # The channels of a cell are the values that lay in it.
    if len(shape) == 4:
        assert set(small[0, :4, 1, 2].tolist()) == set(x[0, 0, 2:4, 4:6].flatten().tolist())
    else:
        assert set(small[0, :2, 3].tolist()) == set(x[0, 0, 6:8].tolist())


def test_padding_never_moves():
    """What stands beyond the border has no latent: only the real values have a density."""
    torch.manual_seed(0)
    flow = stirred(MultiScale((1, 5, 6), steps=2, width=4))
    assert any(flow.pads)
    inner, _ = flow.top(*2 * [torch.nn.functional.pad(torch.randn(2, 1, 5, 6), flow.pads)])
    real = torch.nn.functional.pad(torch.ones(2, 1, 5, 6), flow.pads)
    assert (inner[real == 0] == 0).all()


def test_gradients_reach_every_parameter_of_every_transform():
    x = torch.from_numpy(clean("vector", 64))
    for transform in ("spline", "realnvp", "maf"):
        torch.manual_seed(0)
        family = Flow(VECTORS, transform=transform, layers=2, width=8)
        family.start(batches(x.numpy()))
        family.loss(Batch(x), "flow", at())["total"].backward()
        assert [n for n, p in family.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_samples_follow_their_generator_and_look_like_the_data():
    x = clean("vector", 200)
    torch.manual_seed(0)
    for transform in ("realnvp", "maf"):
        family = Flow(VECTORS, transform=transform, layers=1, width=8)
        family.start(batches(x))
        one = family.sample(Draw(500, torch.Generator().manual_seed(4)))
        assert torch.equal(one, family.sample(Draw(500, torch.Generator().manual_seed(4))))
        assert one.shape == (500, 6)
        ratio = one.std(0) / torch.from_numpy(x).std(0)
        assert (ratio > 0.3).all()
        assert (ratio < 3).all()


def test_an_autoregressive_flow_offers_no_decoder():
    assert Flow(VECTORS, transform="spline").decodes
    assert not Flow(VECTORS, transform="maf").decodes


def test_one_column_is_enough():
    x = np.random.default_rng(0).normal(3.0, 2.0, (100, 1)).astype(np.float32)
    for transform in ("spline", "realnvp", "maf"):
        family = Flow(VectorSpec(("a",)), transform=transform, layers=2)
        family.start(batches(x))
        family.finish(batches(x))
        with torch.no_grad():
            found = family.evidence(Batch(torch.from_numpy(x)))
            assert torch.isfinite(found.terms["negative_log_likelihood"]).all()
            assert torch.allclose(
                family.decode(Batch(family.encode(Batch(torch.from_numpy(x)))[0])), torch.from_numpy(x), atol=1e-3
            )


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (VECTORS, {"transform": "nice"}, "transform is 'nice'; choose auto, spline, realnvp, maf"),
        (IMAGES, {"transform": "maf"}, "'maf' takes vectors, not image"),
        (SERIES, {"transform": "spline"}, "'spline' takes vectors, not series"),
        (VECTORS, {"layers": -1}, "layers is -1; it must lie between 0 and 64"),
        (VECTORS, {"layers": 65}, "layers is 65"),
        (VECTORS, {"width": -8}, "width is -8"),
        (VECTORS, {"bins": 1}, "bins is 1; it must lie between 2"),
        (VECTORS, {"noise": -0.1}, "noise is -0.1"),
        (VECTORS, {"noise": math.nan}, "noise is nan"),
        (VECTORS, {"noise": 2.0}, "noise is 2.0; it must lie between 0 and 1"),
        (IMAGES, {"resolution": 1000}, "resolution is 1000"),
        (SeriesSpec(("a",), 8), {"resolution": -1}, "resolution is -1"),
    ],
)
def test_arguments_out_of_range_are_named(spec, arguments, said):
    with pytest.raises(Refusal, match=said):
        Flow(spec, **arguments)
