"""Gaussian mixtures against scikit-learn, scipy, automatic differentiation and integrals."""

import math

import numpy as np
import pytest
import torch
from conforming import batches
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Known

from toy_data import IMAGES, SERIES, SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw
from vaegis.models.families.mixture import GaussianMixture
from vaegis.models.spec import VectorSpec


def fitted(spec, x, **arguments):
    family = GaussianMixture(spec, **arguments)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    return family


def normalised(family, x):
    """(n, D) as the family sees it, double precision."""
    return family.normaliser(torch.from_numpy(x)).flatten(1).double().numpy()


def terms(family, x):
    return {k: v.double().numpy() for k, v in family.evidence(Batch(torch.from_numpy(x))).terms.items()}


def islands(n, seed=0, centres=((0, 0), (6, 0), (0, 7)), spread=(1.0, 0.6)):
    """Points about a few centres, (n, 2), and whose each is."""
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, len(centres), n)
    return (np.asarray(centres)[whose] + rng.normal(size=(n, 2)) * spread).astype(np.float32), whose


PLANE = VectorSpec(("a", "b"))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag"])
@pytest.mark.parametrize("components", [1, 3])
def test_the_likelihood_is_that_of_scikit_learn(covariance, components):
    x = clean("vector", 300)
    family = fitted(VECTORS, x, components=components, covariance=covariance)
    known = Known(components, covariance_type=covariance, reg_covar=1e-4, random_state=0).fit(normalised(family, x))
    for seen in (x, clean("vector", 60, seed=9), x[:50] + 1):
        y = normalised(family, seen)
        assert terms(family, seen)["negative_log_likelihood"] == pytest.approx(-known.score_samples(y), rel=1e-5)
        if components > 1:
            mean, log_variance = family.encode(Batch(torch.from_numpy(seen)))
            share = known.predict_proba(y)
            assert mean.numpy() == pytest.approx(share, abs=1e-5)
            assert log_variance.exp().numpy() == pytest.approx(np.maximum(share * (1 - share), 1e-6), abs=1e-5)
            assert (mean.numpy().argmax(1) == known.predict(y)).all()


@pytest.mark.parametrize("reduce", [2, 1], ids=["whole", "reduced"])
def test_the_density_integrates_to_one(reduce):
    family = fitted(PLANE, islands(400)[0], components=3, reduce=reduce)
    side = np.linspace(-9, 9, 400)
    raw = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    x = (raw * family.normaliser.scale.numpy() + family.normaliser.centre.numpy()).astype(np.float32)
    density = np.exp(-terms(family, x)["negative_log_likelihood"])
    assert density.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-3)


def test_what_principal_components_leave_over_is_part_of_the_density():
    x = clean("vector", 300)
    family = fitted(VECTORS, x, components=2, reduce=3)
    part, mixture = family.principal, family.clusters
    y = normalised(family, x)
    axes, mean, noise = part.axes.numpy(), part.mean.numpy(), part.noise.item()
    weights = family._weights().numpy()
    assert weights.sum() == pytest.approx(1)
    density = 0.0
    for k in range(2):
        factor = mixture.factors[k].numpy()
        inside = np.linalg.inv(factor @ factor.T)
        covariance = axes @ inside @ axes.T + noise * (np.eye(6) - axes @ axes.T)
        law = multivariate_normal(mean + axes @ mixture.means[k].numpy(), covariance)
        density = density + weights[k] * law.pdf(y)
    assert terms(family, x)["negative_log_likelihood"] == pytest.approx(-np.log(density), rel=1e-5)


@pytest.mark.parametrize("true", [1, 2, 3, 5])
def test_bic_finds_the_true_number_of_components(true):
    centres = [(0, 0), (8, 0), (0, 8), (8, 8), (4, 16)][:true]
    x, whose = islands(500, centres=centres)
    family = fitted(PLANE, x)
    assert family.components == true
    assert family.arguments()["components"] == true
    if true > 1:
        found = family.encode(Batch(torch.from_numpy(x)))[0].argmax(1).numpy()
        for k in range(true):  # each island is one component's
            assert (found[whose == k] == np.bincount(found[whose == k]).argmax()).mean() > 0.99


@pytest.mark.parametrize("arguments", [{"components": 3}, {"components": 2, "reduce": 3}], ids=["whole", "reduced"])
def test_the_map_is_the_slope_of_the_density_in_its_own_units(arguments):
    x = clean("vector", 300)
    family = fitted(VECTORS, x, **arguments)
    y = family.normaliser(torch.from_numpy(x[:20])).double().requires_grad_()
    nats, slope, shares = family._density(y)
    (expected,) = torch.autograd.grad(nats.sum(), y)
    assert torch.allclose(slope, expected, rtol=1e-8, atol=1e-8)
    heat = family.evidence(Batch(torch.from_numpy(x[:20]))).map
    local = shares.float() @ family.precision
    assert torch.allclose(heat, (slope.float().square() / local / family.usual).detach(), rtol=1e-4)


def test_the_map_of_one_gaussian_is_what_a_value_has_beyond_the_others():
    x = clean("vector", 500)
    family = fitted(VECTORS, x, components=1)
    y = normalised(family, x)
    factor = family.clusters.factors[0].numpy()
    covariance, mean = np.linalg.inv(factor @ factor.T), family.clusters.means[0].numpy()
    beyond = []
    for d in range(6):
        rest = [i for i in range(6) if i != d]
        told = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, d])
        left = y[:, d] - mean[d] - (y[:, rest] - mean[rest]) @ told
        beyond.append(left**2 / (covariance[d, d] - covariance[rest, d] @ told))
    heat = family.evidence(Batch(torch.from_numpy(x))).map.numpy() * family.usual.numpy()
    assert heat == pytest.approx(np.stack(beyond, axis=1), rel=1e-3, abs=1e-4)
    assert family.usual.numpy() == pytest.approx(1, abs=0.05)


def test_typicality_is_two_sided():
    x = islands(500)[0]
    family = fitted(PLANE, x, components=3)
    nats = terms(family, x)["negative_log_likelihood"]
    found = terms(family, np.float32([[0, 0], [30, 30]]))
    expected = np.abs(found["negative_log_likelihood"] - nats.mean()) / nats.std()
    assert found["typicality"] == pytest.approx(expected, rel=1e-4)
    assert found["negative_log_likelihood"][0] < nats.mean()


@pytest.mark.parametrize("arguments", [{}, {"covariance": "tied"}, {"covariance": "diag"}])
def test_samples_follow_the_mixture(arguments):
    x, _ = islands(900)
    family = fitted(PLANE, x, components=3, **arguments)
    drawn = family.sample(Draw(20000, torch.Generator().manual_seed(0))).numpy()
    assert np.array_equal(drawn, family.sample(Draw(20000, torch.Generator().manual_seed(0))).numpy())
    nearest = np.linalg.norm(drawn[:, None] - np.array([[0, 0], [6, 0], [0, 7]]), axis=2).argmin(1)
    for k, centre in enumerate([(0, 0), (6, 0), (0, 7)]):
        mine = drawn[nearest == k]
        assert len(mine) / len(drawn) == pytest.approx(1 / 3, abs=0.04)
        assert mine.mean(axis=0) == pytest.approx(centre, abs=0.15)
        assert mine.std(axis=0) == pytest.approx([1.0, 0.6], abs=0.12)


def test_reduced_samples_lie_within_the_components():
    x = clean("image", 150)
    family = fitted(IMAGES, x, components=2, reduce=4)
    y = normalised(family, family.sample(Draw(50, torch.Generator().manual_seed(0))).numpy())
    away = y - family.principal.mean.numpy()
    axes = family.principal.axes.numpy()
    assert away == pytest.approx(away @ axes @ axes.T, abs=1e-4)


def test_many_values_are_reduced_unasked():
    assert GaussianMixture(VECTORS).reduce == 6
    assert GaussianMixture(SERIES).reduce == 48
    assert GaussianMixture(IMAGES).reduce == 32
    assert GaussianMixture(VectorSpec(tuple(f"c{i}" for i in range(64)))).principal is None


@pytest.mark.parametrize("kind", SPECS)
def test_one_component_is_no_latent_space(kind):
    family = fitted(SPECS[kind], clean(kind, 120), components=1)
    assert family.latent_size == 0
    with pytest.raises(Refusal, match="one component, and so no latent space"):
        family.encode(Batch(torch.from_numpy(clean(kind, 2))))


def test_it_has_no_decoder():
    with pytest.raises(Refusal, match="no decoder"):
        fitted(VECTORS, clean("vector", 100), components=2).decode(Batch(torch.zeros(1, 2)))


def test_more_components_than_samples_are_refused():
    with pytest.raises(Refusal, match="components is 40, and there are 30 samples to fit them on"):
        fitted(VECTORS, clean("vector", 30), components=40)


def test_constant_and_copied_columns_stay_finite():
    x = clean("vector", 100).copy()
    x[:, 1], x[:, 3] = 7.0, x[:, 2]
    assert all(np.isfinite(v).all() for v in terms(fitted(VECTORS, x), x).values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"components": -1}, "components is -1; it must lie between 0 and 256"),
        ({"covariance": "spherical"}, "covariance is 'spherical'; choose full, tied, diag"),
        ({"reduce": 7}, "reduce is 7; it must lie between 0 and 6"),
        ({"reduce": -2}, "reduce is -2"),
        ({"ridge": 0.0}, "ridge is 0.0; a variance must be above 0"),
        ({"ridge": math.nan}, "ridge is nan"),
        ({"ridge": math.inf}, "ridge is inf"),
        ({"resolution": -3}, "resolution is -3"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, said):
    with pytest.raises(Refusal, match=said):
        GaussianMixture(VECTORS, **arguments)
