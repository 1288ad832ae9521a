"""The VAE's evidence against torch.distributions, scipy and cases whose exact evidence is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conforming import batches
from scipy.spatial.distance import mahalanobis
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from torch import distributions as law
from torch import nn

from toy_data import IMAGES, SERIES, SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress
from vaegis.models.families.parts.layers import from_channels, smooth, to_channels
from vaegis.models.families.parts.relations import IMAGE_SHRINK, RELATED_MOST, TABLE_RIDGE
from vaegis.models.families.vae import RIDGE, VAE
from vaegis.models.spec import VectorSpec


def started(spec, x, **arguments):
    """A VAE that has looked at its data once and learned nothing."""
    torch.manual_seed(0)
    family = VAE(spec, width=8, latent=4, **arguments)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    return family


@pytest.fixture(scope="module", params=SPECS)
def case(request):
    x = clean(request.param, 150)
    return started(SPECS[request.param], x), torch.from_numpy(x)


@torch.no_grad()
def test_kl(case):
    family, x = case
    mean, log_variance = family.encode(Batch(x))
    posterior, prior = law.Normal(mean, (0.5 * log_variance).exp()), law.Normal(0.0, 1.0)
    expected = law.kl_divergence(posterior, prior).sum(1)
    assert torch.allclose(family.evidence(Batch(x)).terms["kl"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_negative_elbo_is_the_mean_over_the_stored_noises(case):
    family, x = case
    mean, log_variance = family.encode(Batch(x))
    y = (to_channels(x, family.spec) - family.centre) / family.scale
    spread = (family.distribution.log_variance.exp() + family.distribution.floor).sqrt()
    nats = 0.0
    for noise in family.noise:
        z = mean + (0.5 * log_variance).exp() * noise
        nats = nats - law.Normal(family.decoder(z), spread).log_prob(y).flatten(1).sum(1) / len(family.noise)
    kl = law.kl_divergence(law.Normal(mean, (0.5 * log_variance).exp()), law.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(family.evidence(Batch(x)).terms["negative_elbo"], nats + kl, rtol=1e-4)


@torch.no_grad()
def test_reconstruction_error_and_map_are_of_the_posterior_mean(case):
    family, x = case
    found = family.evidence(Batch(x))
    rebuilt = family.decode(Batch(family.encode(Batch(x))[0]))
    scale = from_channels(family.scale[None], family.spec)
    squared = ((x.float() - rebuilt) / scale).square()
    assert torch.allclose(found.terms["reconstruction_error"], squared.flatten(1).mean(1), rtol=1e-3)
    heat = squared / from_channels(family.residual[None], family.spec)
    if family.spec.kind == "image":
        heat = smooth(heat.mean(-1), family.spec)
    assert torch.allclose(found.map, heat, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.terms["map_peak"], found.map.flatten(1).amax(1))


@torch.no_grad()
def test_latent_distance_is_mahalanobis(case):
    family, x = case
    mean = family.encode(Batch(x))[0].double().numpy()
    inverse = np.linalg.inv(np.cov(mean, rowvar=False, bias=True) + RIDGE * np.eye(4))
    expected = [mahalanobis(m, mean.mean(0), inverse) for m in mean]
    found = family.evidence(Batch(x)).terms
    assert found["latent_distance"].numpy() == pytest.approx(expected, rel=1e-3)
    used = int((family.clusters.constants > -1e29).sum())
    known = GaussianMixture(used, reg_covar=RIDGE, random_state=0).fit(mean)
    assert found["latent_density"].numpy() == pytest.approx(-known.score_samples(mean), rel=1e-3, abs=1e-3)


@torch.no_grad()
def test_tables_have_distances_of_values_and_of_residuals():
    x = torch.from_numpy(clean("vector", 150))
    family = started(VECTORS, x.numpy())
    found = family.evidence(Batch(x)).terms
    rebuilt = family.decode(Batch(family.encode(Batch(x))[0]))
    y = ((x - family.centre) / family.scale).double().numpy()
    for term, values in (("input_distance", y), ("residual_distance", ((x - rebuilt) / family.scale).double().numpy())):
        inverse = np.linalg.inv(np.cov(values, rowvar=False, bias=True) + TABLE_RIDGE * np.eye(6))
        expected = [mahalanobis(v, values.mean(0), inverse) for v in values]
        assert found[term].numpy() == pytest.approx(expected, rel=5e-3)


@torch.no_grad()
def test_series_have_distances_of_the_channels_at_each_step():
    x = torch.from_numpy(clean("series", 60))
    family = started(SERIES, x.numpy())
    found = family.evidence(Batch(x)).terms
    rebuilt = family.decode(Batch(family.encode(Batch(x))[0]))
    scale = family.scale.view(1, 1, -1)
    y = (x - family.centre.view(1, 1, -1)) / scale
    for term, values in (("input_distance", y), ("residual_distance", (x - rebuilt) / scale)):
        rows = values.double().flatten(0, 1).numpy()
        inverse = np.linalg.inv(np.cov(rows, rowvar=False, bias=True) + TABLE_RIDGE * np.eye(rows.shape[1]))
        squares = np.array([mahalanobis(r, rows.mean(0), inverse) ** 2 for r in rows]).reshape(len(x), -1)
        assert found[term].numpy() == pytest.approx(np.sqrt(squares.mean(1)), rel=5e-3)


@torch.no_grad()
def test_images_have_distances_on_a_coarse_grid():
    x = torch.from_numpy(clean("image", 80))
    family = started(IMAGES, x.numpy())
    y = ((x.float().permute(0, 3, 1, 2) - family.centre) / family.scale).numpy()
    side = 1
    while y.shape[1] * math.ceil(y.shape[2] / side) * math.ceil(y.shape[3] / side) > RELATED_MOST:
        side += 1
    coarse = np.pad(y, ((0, 0), (0, 0), (0, -y.shape[2] % side), (0, -y.shape[3] % side)), mode="edge")
    cells = coarse.reshape(*y.shape[:2], coarse.shape[2] // side, side, coarse.shape[3] // side, side).mean((3, 5))
    flat = cells.reshape(len(x), -1).astype(np.float64)
    spread = np.cov(flat, rowvar=False, bias=True)
    shrunk = (1 - IMAGE_SHRINK) * spread + IMAGE_SHRINK * np.diag(spread).mean() * np.eye(len(spread))
    expected = [mahalanobis(v, flat.mean(0), np.linalg.inv(shrunk)) for v in flat]
    assert family.evidence(Batch(x)).terms["input_distance"].numpy() == pytest.approx(expected, rel=5e-3)


def test_what_a_score_fuses_depends_on_what_may_vary_or_be_missing():
    assert VAE(IMAGES).fusion.terms == ("latent_density", "map_peak", "residual_distance")
    assert VAE(replace(IMAGES, invariances=("rotation",))).fusion.terms == ("reconstruction_error", "residual_distance")
    gaps = VAE(VectorSpec(("a", "b"), missing="allow"))
    assert "residual_distance" not in gaps.meaning and "reconstruction_error" in gaps.fusion.terms


def test_the_log_jacobian_takes_densities_to_raw_units():
    # log p(x) = log p(y) - sum log scale, here of one value twice as wide and one three times.
    family = VAE(VectorSpec(("a", "b")), width=4, latent=2)
    family.scale.copy_(torch.tensor([2.0, 3.0]))
    assert family.log_jacobian() == pytest.approx(math.log(6))
    wide = VAE(SERIES, width=4, latent=2)
    wide.scale.fill_(2.0)
    assert wide.log_jacobian() == pytest.approx(3 * 16 * math.log(2))
    assert VAE(IMAGES, width=4, likelihood="bernoulli").log_jacobian() is None


@torch.no_grad()
def test_the_residual_is_that_of_clean_samples(case):
    """Nine tenths a place's own mean squared error, one tenth the whole sample's: so a clean map averages near 1."""
    family, x = case
    y = (to_channels(x, family.spec) - family.centre) / family.scale
    own = (y - family.decoder(family.encode(Batch(x))[0])).square().mean(0)
    assert torch.allclose(family.residual, 0.9 * own + 0.1 * own.mean(), rtol=1e-3)


class Fixed(nn.Module):
    """An encoder that says the same of everything."""

    def __init__(self, mean, log_variance):
        super().__init__()
        bounded = 10 * torch.atanh(torch.as_tensor(log_variance) / 10)
        self.register_buffer("out", torch.cat([torch.as_tensor(mean), bounded]).float())

    def forward(self, x):
        return self.out.expand(len(x), -1)


@torch.no_grad()
def linear_gaussian(mean=None, log_variance=None):
    """y = W z + b + sigma e, whose evidence is a normal density; W has orthogonal columns, so that the posterior is
    diagonal and two noises of the right mean and variance give the bound exactly.

    Returns a VAE with the posterior given (by default the exact one), one y, its exact log-evidence, and
    KL(q || p(z|y))."""
    rng = np.random.default_rng(0)
    w = np.linalg.qr(rng.normal(size=(6, 2)))[0] * [2.0, 0.7]
    b, sigma, y = rng.normal(size=6), 0.5, rng.normal(size=6) * 1.5
    family = VAE(VECTORS, latent=2, likelihood="gaussian", variance="fixed", sigma=sigma)
    variance = sigma**2 + float(family.distribution.floor)
    family.decoder = nn.Linear(2, 6)
    family.decoder.weight.copy_(torch.tensor(w))
    family.decoder.bias.copy_(torch.tensor(b))
    precision = np.diag(w.T @ w) / variance + 1
    exact_mean, exact_variance = w.T @ (y - b) / variance / precision, 1 / precision
    mean = exact_mean if mean is None else np.array(mean)
    log_variance = np.log(exact_variance) if log_variance is None else np.array(log_variance)
    family.encoder = Fixed(mean, log_variance)
    posterior = law.Normal(torch.tensor(mean), torch.tensor(log_variance).mul(0.5).exp())
    exact = law.Normal(torch.tensor(exact_mean), torch.tensor(exact_variance).sqrt())
    gap = law.kl_divergence(posterior, exact).sum().item()
    evidence = multivariate_normal.logpdf(y, b, w @ w.T + variance * np.eye(6))
    return family, torch.tensor(y[None], dtype=torch.float32), float(evidence), gap


def test_with_the_exact_posterior_the_bound_is_the_evidence():
    family, y, evidence, gap = linear_gaussian()
    assert gap == pytest.approx(0.0, abs=1e-9)
    assert family.evidence(Batch(y)).terms["negative_elbo"].item() == pytest.approx(-evidence, rel=1e-5)


@pytest.mark.parametrize(
    ("mean", "log_variance"), [([0.0, 0.0], [0.0, 0.0]), ([1.0, -1.0], [-2.0, -1.0]), (None, [-6.0, -0.2])]
)
def test_the_bound_misses_the_evidence_by_the_posterior_gap(mean, log_variance):
    # log p(y) - ELBO = KL(q || p(z|y)) >= 0.
    family, y, evidence, gap = linear_gaussian(mean, log_variance)
    assert gap > 0.1
    found = family.evidence(Batch(y)).terms["negative_elbo"].item()
    assert found == pytest.approx(-evidence + gap, rel=1e-5)


def test_at_the_posterior_mean_it_would_be_no_bound():
    """Why the noises are there: log p(y | mean of q) - KL overstates the evidence."""
    family, y, evidence, _ = linear_gaussian()
    family.noise = torch.zeros(2, 2)
    assert family.evidence(Batch(y)).terms["negative_elbo"].item() < -evidence - 0.5


@pytest.mark.parametrize("noises", [2, 8, 64])
def test_the_noises_are_antithetic_and_always_the_same(noises):
    family = VAE(VECTORS, latent=3, noises=noises)
    assert family.noise.shape == (noises, 3)
    assert torch.equal(family.noise[: noises // 2], -family.noise[noises // 2 :])
    assert torch.allclose(family.noise.square().mean(0), torch.ones(3))
    torch.manual_seed(123)
    assert torch.equal(VAE(VECTORS, latent=3, noises=noises).noise, family.noise)


def test_the_first_look_by_hand():
    x = np.array([[1, 2, 7], [3, np.nan, 7], [5, 6, 7]], np.float32)
    family = VAE(VectorSpec(("a", "b", "still"), missing="allow"), width=4)
    family.start(batches(x))
    assert family.centre.tolist() == pytest.approx([3.0, 4.0, 7.0])
    # A constant column has no scale of its own.
    assert family.scale.tolist() == pytest.approx([math.sqrt(8 / 3), 2.0, 1.0])


def test_the_first_look_is_per_channel():
    rows = clean("series", 60)
    family = VAE(SERIES, width=4)
    family.start(batches(rows))
    assert family.centre[:, 0].numpy() == pytest.approx(rows.mean(axis=(0, 1)), rel=1e-5)
    assert family.scale[:, 0].numpy() == pytest.approx(rows.std(axis=(0, 1)), rel=1e-3)


def test_grey_values_under_bernoulli_are_probabilities():
    family = started(IMAGES, clean("image", 60), likelihood="bernoulli")
    x = torch.from_numpy(clean("image", 8))
    out = family.decoder(family.encode(Batch(x))[0])
    assert torch.allclose(
        family.decode(Batch(family.encode(Batch(x))[0])), 255 * from_channels(out.sigmoid(), IMAGES), rtol=1e-5
    )
    assert family.centre.item() == 0.0
    assert family.scale.item() == 255.0


@pytest.mark.parametrize("base", ["bernoulli", {"": "bernoulli", "n": "poisson"}], ids=["all", "beside counts"])
def test_probabilities_stay_probabilities(base):
    """Bernoulli needs values from 0 to 1 as they are: standardised ones have no such density."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.random(80), rng.random(80) > 0.5, rng.poisson(3.0, 80)], axis=1).astype(np.float32)
    if base == "bernoulli":
        x[:, 2] = rng.random(80)
    family = VAE(VectorSpec(("p", "q", "n")), width=4, likelihood=base)
    family.start(batches(x))
    assert family.centre[:2].tolist() == [0.0, 0.0]
    assert family.scale[:2].tolist() == [1.0, 1.0]
    x[0, 0] = 1.2
    with pytest.raises(Refusal, match="bernoulli needs values from 0 to 1"):
        family.start(batches(x))


def at(share):
    return Progress(int(100 * share), 100, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arguments", "share", "weight"),
    [
        ({}, 0.0, 0.0),
        ({}, 0.1, 0.5),
        ({}, 0.2, 1.0),
        ({}, 1.0, 1.0),
        ({"beta": 4.0}, 0.1, 2.0),
        ({"beta": 4.0, "warmup": 0.0}, 0.0, 4.0),
        ({"beta": 0.0}, 1.0, 0.0),
    ],
)
def test_the_loss_weighs_kl_as_stated(arguments, share, weight):
    x = clean("vector", 32)
    family = started(VECTORS, x, **arguments)
    found = family.loss(Batch(torch.from_numpy(x)), "vae", at(share))
    kl = family.evidence(Batch(torch.from_numpy(x))).terms["kl"].mean().item()
    assert found["kl"].item() == pytest.approx(kl, rel=1e-5)
    assert found["total"].item() == pytest.approx(found["reconstruction"].item() + weight * kl / 6, rel=1e-5)


def test_free_bits_charge_each_unit_at_least_so_much():
    x = clean("vector", 32)
    family = started(VECTORS, x, free_bits=0.4)
    with torch.no_grad():
        mean, log_variance = family.encode(Batch(torch.from_numpy(x)))
    unit = law.kl_divergence(law.Normal(mean, (0.5 * log_variance).exp()), law.Normal(0.0, 1.0)).mean(0)
    assert (unit < 0.4).any()
    found = family.loss(Batch(torch.from_numpy(x)), "vae", at(1.0))
    charged = (found["total"] - found["reconstruction"]).item() * 6
    assert charged == pytest.approx(unit.clamp_min(0.4).sum().item(), rel=1e-4)


def test_the_loss_draws_from_the_generator_alone():
    x = torch.from_numpy(clean("vector", 32))
    family = started(VECTORS, x.numpy())
    one = family.loss(Batch(x), "vae", at(1.0))["total"]
    torch.manual_seed(99)
    assert torch.equal(family.loss(Batch(x), "vae", at(1.0))["total"], one)
    other = family.loss(Batch(x), "vae", Progress(100, 100, torch.Generator().manual_seed(1)))["total"]
    assert not torch.equal(other, one)


def test_missing_values_are_left_out_of_every_sum():
    spec = VectorSpec(VECTORS.columns, missing="allow")
    family = started(spec, clean("vector", 80))
    x = torch.from_numpy(clean("vector", 5, seed=4))
    x[:, [1, 4]] = torch.nan
    found = family.evidence(Batch(x))
    y = (x - family.centre) / family.scale
    with torch.no_grad():
        squared = (y - family.decoder(family.encode(Batch(x))[0])).square()
    kept = [0, 2, 3, 5]
    assert torch.allclose(found.terms["reconstruction_error"], squared[:, kept].mean(1), rtol=1e-4)
    assert (found.map[:, [1, 4]] == 0).all()
    assert torch.isfinite(torch.stack(list(found.terms.values()))).all()


def test_samples_follow_their_generator_and_lie_in_raw_units():
    x = clean("vector", 200)
    family = started(VECTORS, x)
    one = family.sample(Draw(50, torch.Generator().manual_seed(4)))
    assert torch.equal(one, family.sample(Draw(50, torch.Generator().manual_seed(4))))
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    assert torch.equal(one, family.decode(Batch(z)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"beta": -1.0}, "beta is -1.0; it must lie between 0 and inf"),
        ({"warmup": 1.5}, "warmup is 1.5; it must lie between 0 and 1"),
        ({"free_bits": math.nan}, "free_bits is nan"),
        ({"latent": -2}, "latent is -2"),
        ({"noises": 3}, "noises is 3; it must be even"),
        ({"noises": 0}, "noises is 0"),
        ({"sigma": 0.0}, "sigma is 0.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, said):
    with pytest.raises(Refusal, match=said):
        VAE(VECTORS, **arguments)
