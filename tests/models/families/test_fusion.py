import dataclasses

import numpy as np
import pytest
import torch

from toy_data import SMALL, SPECS
from vaegis.models.families import FAMILIES, make
from vaegis.models.families.fusion import LEAST_SPREAD, Fusion

TERMS = {"error": "log", "nats": "linear"}


def evidence(n, seed):
    """Clean evidence: a log-normal error, and nats far from zero that go with it."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)
    return {
        "error": np.exp(-4 + 0.3 * common + 0.1 * rng.normal(size=n)),
        "nats": -700 + 20 * common + 5 * rng.normal(size=n),
        "other": rng.normal(size=n),  # not fused
    }


def tensors(terms):
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in terms.items()}


@pytest.fixture
def fusion():
    made = Fusion(TERMS)
    made.fit(tensors(evidence(400, 0)))
    return made


def test_the_score_is_the_mean_number_of_clean_deviations(fusion):
    clean, new = evidence(400, 0), evidence(50, 1)
    columns = [(np.log(clean["error"]), np.log(new["error"])), (clean["nats"], new["nats"])]
    expected = np.mean([(v - c.mean()) / c.std(ddof=1) for c, v in columns], axis=0)
    assert fusion(tensors(new)).numpy() == pytest.approx(expected, abs=1e-3)


def test_it_rises_with_every_term(fusion):
    for term, values in {
        "error": np.exp([-9.0, -5, -4, -3, 5]),
        "nats": np.array([-1e4, -800, -700, -600, 1e4]),
    }.items():
        given = {"error": np.full(5, np.exp(-4)), "nats": np.full(5, -700.0), term: values}
        found = fusion(tensors(given)).numpy()
        assert (np.diff(found) > 0.3).all()


def test_a_perfect_reconstruction_has_a_score(fusion):
    found = fusion(tensors({"error": np.zeros(1), "nats": np.full(1, -700.0)}))
    assert torch.isfinite(found).all()
    assert found.item() < -10


def test_what_is_not_finite_stays_so(fusion):
    for bad in (np.nan, np.inf):
        assert not torch.isfinite(fusion(tensors({"error": np.array([bad]), "nats": np.array([-700.0])}))).any()
        assert not torch.isfinite(fusion(tensors({"error": np.ones(1), "nats": np.array([bad])}))).any()


def test_float32_keeps_the_digits_of_large_nats():
    """Of nats near -2e5 float32 keeps two decimals: the score must lose no more."""
    values = -2e5 + 10 * np.random.default_rng(0).normal(size=300)
    made = Fusion({"nats": "linear"})
    made.fit(tensors({"nats": values}))
    found = made(tensors({"nats": np.array([-2e5 + 30.0])})).item()
    assert found == pytest.approx((-2e5 + 30.0 - values.mean()) / values.std(ddof=1), abs=0.01)


def test_a_term_that_never_varies_on_clean_samples_does_not_break_the_rest():
    made = Fusion({"error": "log", "flat": "linear"})
    terms = {"error": np.full(100, 0.5), "flat": np.full(100, 3.0)}
    made.fit(tensors(terms))
    assert made(tensors(terms)).abs().max() < 1e-3
    found = made(tensors({"error": np.array([0.5 * np.e]), "flat": np.array([3.0])})).item()
    assert found == pytest.approx(0.5 / LEAST_SPREAD, rel=1e-3)
    assert made(tensors({"error": np.array([0.5]), "flat": np.array([3.1])})).item() > 1e3


def test_what_was_fitted_travels_with_the_weights(fusion):
    other = Fusion(TERMS)
    other.load_state_dict(fusion.state_dict())
    x = tensors(evidence(9, 3))
    assert torch.equal(other(x), fusion(x))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"flow", "autoregressive"}))
def test_no_place_decides_where_images_may_be_moved_or_lit_anew(name):
    spec = dataclasses.replace(SPECS["image"], invariances=("rotation", "lighting"))
    still, varied = (make(FAMILIES, name, s, SMALL.get(name, {})).fusion.terms for s in (SPECS["image"], spec))
    assert "map_peak" in still
    assert varied and not {"map_peak", "latent_distance", "latent_density"} & set(varied)
