import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from vaegis.models.families.parts.densities import COMPONENTS, Gaussian, Mixture


def correlated(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) @ rng.normal(size=(4, 4)) + [1, -2, 30, 0]


def clusters(n, seed):
    """Two clusters of four values, ten apart."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) + 10 * (rng.random(n) < 0.3)[:, None]


def test_distance_is_mahalanobis():
    clean, new = correlated(300, 0), correlated(20, 0) + 3
    made = Gaussian(4, ridge=0.05)
    made.fit(torch.tensor(clean, dtype=torch.float32))
    inverse = np.linalg.inv(np.cov(clean, rowvar=False, bias=True) + 0.05 * np.eye(4))
    expected = [mahalanobis(v, clean.mean(0), inverse) for v in new]
    assert made.distance(torch.tensor(new, dtype=torch.float32)).numpy() == pytest.approx(expected, rel=1e-3)


def test_values_that_never_vary_have_the_least_spread():
    made = Gaussian(2, ridge=0.01)
    made.fit(torch.tensor([[1.0, 5.0]] * 10))
    assert made.distance(torch.tensor([[1.0, 5.3]])).item() == pytest.approx(3.0, rel=1e-4)


def test_a_mixture_of_one_is_a_normal_density():
    made = Mixture(4, ridge=1e-3)
    x = np.random.default_rng(0).normal(size=(5, 4))
    start = made.density(torch.tensor(x, dtype=torch.float32))
    assert start.numpy() == pytest.approx(-multivariate_normal.logpdf(x, np.zeros(4), np.eye(4)), rel=1e-5)
    clean = correlated(200, 0)
    made.fit(torch.tensor(clean, dtype=torch.float32))
    assert (made.constants > -1e29).sum() == 1
    covariance = np.cov(clean, rowvar=False, bias=True) + 1e-3 * np.eye(4)
    expected = -multivariate_normal.logpdf(clean[:9], clean.mean(0), covariance)
    assert made.density(torch.tensor(clean[:9], dtype=torch.float32)).numpy() == pytest.approx(expected, rel=1e-3)


def test_two_clusters_are_found_and_agree_with_scikit_learn():
    clean, new = clusters(400, 0), np.concatenate([clusters(20, 1), np.full((1, 4), 5.0)])
    made = Mixture(4, ridge=1e-3)
    made.fit(torch.tensor(clean, dtype=torch.float32))
    assert (made.constants > -1e29).sum() == 2
    known = GaussianMixture(2, reg_covar=1e-3, random_state=0).fit(clean)
    found = made.density(torch.tensor(new, dtype=torch.float32)).numpy()
    assert found == pytest.approx(-known.score_samples(new), rel=2e-3)
    # Between the clusters lies the mean of all, and yet nothing clean.
    assert found[-1] > found[:-1].max() + 10


def test_few_points_get_few_components():
    made = Mixture(4, ridge=1e-3)
    made.fit(torch.tensor(clusters(10, 0), dtype=torch.float32))
    assert (made.constants > -1e29).sum() == 1
    assert torch.isfinite(made.density(torch.randn(5, 4))).all()


def test_the_same_points_give_the_same_mixture_and_any_mixture_loads():
    one, two = Mixture(4, 1e-3), Mixture(4, 1e-3)
    for made in (one, two):
        made.fit(torch.tensor(clusters(400, 0), dtype=torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))
    again = Mixture(4, 1e-3)
    again.fit(torch.tensor(correlated(200, 0), dtype=torch.float32))
    again.load_state_dict(one.state_dict())
    x = torch.randn(7, 4)
    assert torch.equal(again.density(x), one.density(x))
    assert one.means.shape == (COMPONENTS[-1], 4)
