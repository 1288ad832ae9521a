"""Probabilistic PCA against scikit-learn, scipy and Gaussians written out."""

import math

import numpy as np
import pytest
import torch
from conforming import batches
from scipy.linalg import subspace_angles
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA as Known

from toy_data import IMAGES, SERIES, SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw
from vaegis.models.families.parts.principal import WHOLE_MOST, Principal
from vaegis.models.families.pca import PCA, eliminate
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec


def fitted(spec, x, **arguments):
    family = PCA(spec, **arguments)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    return family


def normalised(family, x):
    """(n, D) as the family sees it, double precision."""
    return family.normaliser(torch.from_numpy(x)).flatten(1).double().numpy()


def terms(family, x):
    return {k: v.double().numpy() for k, v in family.evidence(Batch(torch.from_numpy(x))).terms.items()}


@pytest.fixture(scope="module", params=SPECS)
def case(request):
    """A family of 3 components, its data, and scikit-learn's of the same."""
    x = clean(request.param, 150)
    family = fitted(SPECS[request.param], x, latent=3)
    y = normalised(family, x)
    return family, x, y, Known(3, svd_solver="full").fit(y)


def test_the_components_are_those_of_scikit_learn(case):
    family, _, _, known = case
    assert np.rad2deg(subspace_angles(family.principal.axes.numpy(), known.components_.T)).max() < 1e-3
    assert family.principal.variance.numpy() == pytest.approx(known.explained_variance_, rel=1e-6)


def test_encode_gives_the_scores_shrunk_towards_the_prior(case):
    family, x, y, known = case
    with torch.no_grad():
        mean, log_variance = family.encode(Batch(torch.from_numpy(x)))
    variance, noise = family.principal.variance.numpy(), family.principal.noise.item()
    scores = mean.double().numpy() * variance / np.sqrt(variance - noise)
    expected = known.transform(y)
    turned = np.sign((scores * expected).sum(0))
    assert scores * turned == pytest.approx(expected, rel=1e-4, abs=1e-4)
    # The textbook's form: M = W^T W + s2 I.
    w = family.principal.loadings().numpy()
    inverse = np.linalg.inv(w.T @ w + noise * np.eye(3))
    assert mean.numpy() == pytest.approx((y - family.principal.mean.numpy()) @ w @ inverse, rel=1e-4, abs=1e-5)
    assert log_variance.exp().numpy() == pytest.approx(np.tile(np.diag(noise * inverse), (len(x), 1)), rel=1e-4)


def test_the_likelihood_is_that_of_scikit_learn():
    """Where samples outnumber values the two mean the same by the noise."""
    x = clean("vector", 200)
    for q in (1, 2, 5):
        family = fitted(VECTORS, x, latent=q)
        for seen in (x, clean("vector", 50, seed=9), x + 3):
            y = normalised(family, seen)
            known = Known(q, svd_solver="full").fit(normalised(family, x))
            assert terms(family, seen)["negative_log_likelihood"] == pytest.approx(-known.score_samples(y), rel=1e-5)


def test_the_likelihood_is_that_of_the_gaussian_written_out(case):
    family, x, y, _ = case
    w, noise = family.principal.loadings().numpy(), family.principal.noise.item()
    law = multivariate_normal(family.principal.mean.numpy(), w @ w.T + noise * np.eye(len(w)))
    assert terms(family, x)["negative_log_likelihood"] == pytest.approx(-law.logpdf(y), rel=1e-5)


def test_noise_is_what_the_components_leave_over_evenly(case):
    family, _, y, known = case
    total = np.trace(np.cov(y, rowvar=False))
    expected = (total - known.explained_variance_.sum()) / (y.shape[1] - 3)
    assert family.principal.noise.item() == pytest.approx(expected, rel=1e-6)


def test_t2_and_spe_by_hand(case):
    family, x, y, known = case
    found = terms(family, x)
    scores = known.transform(y)
    left = y - known.inverse_transform(scores)
    assert found["reconstruction_error"] == pytest.approx((left**2).mean(1), rel=1e-4)
    assert found["latent_distance"] ** 2 == pytest.approx((scores**2 / known.explained_variance_).sum(1), rel=1e-4)


def test_t2_and_spe_of_two_columns():
    """Points on the diagonal: T2 is along it, SPE across it."""
    t = np.linspace(-1, 1, 101)
    x = np.stack([t, t], axis=1).astype(np.float32)
    family = fitted(VectorSpec(("a", "b")), x, latent=1)
    spread = x[:, 0].std()
    variance = 2 * 101 / 100  # of the score, y having variance 1 by n in each column
    found = terms(family, np.float32([[1, 1], [0.5, -0.5], [0, 0.6]]))
    assert found["latent_distance"] == pytest.approx(
        [math.sqrt(2 / variance) / spread, 0, 0.3 * math.sqrt(2 / variance) / spread], rel=1e-4, abs=1e-6
    )
    assert found["reconstruction_error"] == pytest.approx([0, 0.25 / spread**2, 0.09 / spread**2], rel=1e-4, abs=1e-9)


def test_the_map_is_what_each_value_has_beyond_what_the_others_say():
    x = clean("vector", 200)
    family = fitted(VECTORS, x, latent=2)
    seen = clean("vector", 30, seed=8)
    w, noise = family.principal.loadings().numpy(), family.principal.noise.item()
    covariance = w @ w.T + noise * np.eye(6)

    def beyond(rows):
        """y_d less its mean given all other values."""
        y, out = normalised(family, rows) - family.principal.mean.numpy(), []
        for d in range(6):
            rest = [i for i in range(6) if i != d]
            out.append(y[:, d] - y[:, rest] @ np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, d]))
        return np.stack(out, axis=1)

    heat = family.evidence(Batch(torch.from_numpy(seen))).map.double().numpy()
    # Each column's is scaled by clean ones; the scale is drawn towards the mean over columns.
    factor = np.linalg.inv(covariance).diagonal() * noise
    own = ((beyond(x) * factor) ** 2).mean(0)
    assert heat == pytest.approx((beyond(seen) * factor) ** 2 / (0.9 * own + 0.1 * own.mean()), rel=1e-3, abs=1e-4)


def rows(y, size=64):
    return lambda: iter(torch.from_numpy(y).split(size))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_share_keeps_the_fewest_components_that_hold_it(share):
    y = np.random.default_rng(0).normal(size=(400, 6)) * [5, 4, 3, 2, 1, 0.5]
    part = Principal(6)
    part.fit(rows(y), share)
    assert part.components == Known(share, svd_solver="full").fit(y).n_components_


@pytest.mark.parametrize("true", [1, 3, 5])
def test_bic_finds_the_true_number_of_components(true):
    rng = np.random.default_rng(true)
    y = rng.normal(size=(600, true)) @ rng.normal(size=(true, 12)) + 0.3 * rng.normal(size=(600, 12))
    part = Principal(12)
    part.fit(rows(y))
    assert part.components == true


def test_the_number_found_is_the_argument_kept():
    family = fitted(VECTORS, clean("vector", 200))
    assert family.arguments() == {"latent": family.latent_size, "share": 0.0, "resolution": 64}
    assert family.latent_size == family.principal.components >= 1


def test_many_values_are_taken_apart_without_their_covariance():
    """As exact as the whole covariance where the leading components stand out."""
    rng = np.random.default_rng(0)
    size = WHOLE_MOST + 100
    y = (rng.normal(size=(300, 4)) * [9, 6, 4, 3]) @ rng.normal(size=(4, size)) / 10 + 0.1 * rng.normal(
        size=(300, size)
    )
    part = Principal(size, 4)
    part.fit(lambda: iter(torch.from_numpy(y).split(50)))
    known = Known(4, svd_solver="full").fit(y)
    assert np.rad2deg(subspace_angles(part.axes.numpy(), known.components_.T)).max() < 0.01
    assert part.variance.numpy() == pytest.approx(known.explained_variance_, rel=1e-4)
    total = y.var(axis=0, ddof=1).sum()
    assert part.noise.item() == pytest.approx((total - known.explained_variance_.sum()) / (size - 4), rel=1e-4)


def test_samples_vary_as_the_components_do():
    x = clean("vector", 300)
    family = fitted(VECTORS, x, latent=2)
    drawn = family.sample(Draw(20000, torch.Generator().manual_seed(0)))
    assert torch.equal(drawn[:5], family.sample(Draw(20000, torch.Generator().manual_seed(0)))[:5])
    w = family.principal.loadings().numpy()
    y = normalised(family, drawn.numpy())
    assert np.cov(y, rowvar=False) == pytest.approx(w @ w.T, abs=0.05)


def test_large_images_are_averaged():
    spec = ImageSpec(height=96, width=80, channels=1)
    x = np.random.default_rng(0).integers(0, 255, (60, 96, 80, 1)).astype(np.uint8)
    family = fitted(spec, x, resolution=32, latent=2)
    assert family.values == 32 * 27
    assert family.decode(Batch(family.encode(Batch(torch.from_numpy(x[:2])))[0])).shape == (2, 96, 80, 1)
    assert family.evidence(Batch(torch.from_numpy(x[:2]))).map.shape == (2, 96, 80)
    assert "3x3 pixels are averaged" in family.notes()[0]


def test_elimination_solves_and_gives_the_determinant():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.normal(size=(5, 4, 4)))
    matrix, right = root @ root.mT + torch.eye(4, dtype=torch.float64), torch.from_numpy(rng.normal(size=(5, 4, 2)))
    solved, logs = eliminate(matrix, right)
    assert torch.allclose(solved, torch.linalg.solve(matrix, right), rtol=1e-10)
    assert torch.allclose(logs, torch.linalg.slogdet(matrix)[1], rtol=1e-10)


ALLOWING = VectorSpec(VECTORS.columns, missing="allow")


def gappy(n, seed=1, share=0.15):
    x = clean("vector", n, seed).copy()
    x[np.random.default_rng(seed).random(x.shape) < share] = np.nan
    return x


def test_evidence_is_over_what_was_observed():
    """The marginal Gaussian of the observed columns, scaled up to six."""
    family = fitted(ALLOWING, gappy(300), latent=2)
    x = gappy(40, seed=5)
    found = terms(family, x)
    y = normalised(family, x)
    w, noise, mean = family.principal.loadings().numpy(), family.principal.noise.item(), family.principal.mean.numpy()
    covariance = w @ w.T + noise * np.eye(6)
    latents, log_variance = (v.detach().numpy() for v in family.encode(Batch(torch.from_numpy(x))))
    for i in range(len(x)):
        seen = np.flatnonzero(~np.isnan(y[i]))
        law = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
        assert found["negative_log_likelihood"][i] == pytest.approx(-law.logpdf(y[i, seen]) * 6 / len(seen), rel=1e-5)
        # E[z | y_o] = W_o^T C_oo^-1 a_o and its covariance I - W_o^T C_oo^-1 W_o
        inverse = np.linalg.inv(covariance[np.ix_(seen, seen)])
        assert latents[i] == pytest.approx(w[seen].T @ inverse @ (y[i, seen] - mean[seen]), rel=1e-4, abs=1e-5)
        spread = np.diag(np.eye(2) - w[seen].T @ inverse @ w[seen])
        assert np.exp(log_variance[i]) == pytest.approx(spread, rel=1e-3)
        assert found["latent_distance"][i] == pytest.approx(np.linalg.norm(latents[i]), rel=1e-4)
        left = y[i, seen] - mean[seen] - w[seen] @ latents[i]
        assert found["reconstruction_error"][i] == pytest.approx((left**2).mean(), rel=1e-3)


def observed_nats(part, y):
    """-log p of what was observed, over all rows."""
    w = part.loadings().numpy()
    covariance, nats = w @ w.T + part.noise.item() * np.eye(len(w)), 0.0
    for row in y:
        seen = np.flatnonzero(~np.isnan(row))
        nats -= multivariate_normal(part.mean.numpy()[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen])
    return nats


def test_what_is_learned_from_gaps_is_likeliest():
    rng = np.random.default_rng(3)
    loadings = rng.normal(size=(2, 6))
    y = rng.normal(size=(300, 2)) @ loadings + 0.5 * rng.normal(size=(300, 6))
    y[rng.random(y.shape) < 0.25] = np.nan
    part = Principal(6, 2)
    part.fit(rows(y))
    first = observed_nats(part, y)
    part.refine(rows(y))
    best = observed_nats(part, y)
    assert best < first
    assert np.rad2deg(subspace_angles(part.axes.numpy(), loadings.T)).max() < 3
    assert part.noise.item() == pytest.approx(0.25, rel=0.1)
    # A maximum: whatever is moved, it falls.
    for name in ("mean", "axes", "variance", "noise"):
        kept = getattr(part, name).clone()
        pattern = torch.cos(torch.arange(kept.numel(), dtype=torch.float64)).sign().view(kept.shape)
        for step in (0.05, -0.05):
            getattr(part, name).copy_(kept + step * kept.abs().mean() * pattern)
            assert observed_nats(part, y) > best - 0.02, name
        getattr(part, name).copy_(kept)


def test_without_gaps_allowing_them_changes_no_density():
    x = clean("vector", 200)
    one, two = fitted(VECTORS, x, latent=2), fitted(ALLOWING, x, latent=2)
    expected = terms(one, x)["negative_log_likelihood"]
    # Expectation maximisation divides by n where the other divides by n - 1.
    assert terms(two, x)["negative_log_likelihood"] == pytest.approx(expected, rel=0.01, abs=0.05)


def test_windows_with_gaps():
    spec = SeriesSpec(SERIES.columns, window=SERIES.window, missing="allow")
    x = clean("series", 200).copy()
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    family = fitted(spec, x)
    found = terms(family, x)
    assert all(np.isfinite(v).all() for v in found.values())
    assert 1 <= family.latent <= 64


def test_one_constant_column_and_a_copied_one_stay_finite():
    x = clean("vector", 100).copy()
    x[:, 1], x[:, 3] = 7.0, x[:, 2]
    found = terms(fitted(VECTORS, x), x)
    assert all(np.isfinite(v).all() for v in found.values())


def test_an_error_of_nothing_is_one_part_in_ten_billion():
    t = np.linspace(-1, 1, 50)
    x = np.stack([t, t, -t], axis=1).astype(np.float32)
    found = terms(fitted(VectorSpec(("a", "b", "c")), x), x)
    assert found["reconstruction_error"] == pytest.approx(1e-10, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "arguments", "said"),
    [
        (VECTORS, {"latent": 6}, "latent is 6; it must lie between 0 and 5, one less than a sample's 6 values"),
        (VECTORS, {"latent": -1}, "latent is -1"),
        (VECTORS, {"share": 1.0}, "share is 1.0; it must be at least 0 and below 1"),
        (VECTORS, {"share": -0.1}, "share is -0.1"),
        (VECTORS, {"share": math.nan}, "share is nan"),
        (IMAGES, {"resolution": 999}, "resolution is 999"),
        (VectorSpec(("a",)), {}, "1 value has no principal components"),
        (
            VectorSpec(tuple(f"c{i}" for i in range(99)), missing="allow"),
            {"latent": 65},
            "64 where values may be missing",
        ),
    ],
)
def test_arguments_out_of_range_are_named(spec, arguments, said):
    with pytest.raises(Refusal, match=said):
        PCA(spec, **arguments)
