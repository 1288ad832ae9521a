import numpy as np
import pytest
import torch

from models.families.fusion import SHRINK, Fusion

TERMS = {"error": "log", "nats": "linear", "distance": "log"}


def evidence(n, seed):
    """Clean evidence: a log-normal error, nats far from zero that go with it, and a distance of its own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)
    return {
        "error": np.exp(-4 + 0.3 * common + 0.1 * rng.normal(size=n)),
        "nats": -700 + 20 * common + 5 * rng.normal(size=n),
        "distance": np.exp(1 + 0.2 * rng.normal(size=n)),
    }


def tensors(terms):
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in terms.items()}


@pytest.fixture
def fusion():
    made = Fusion(TERMS)
    made.fit(tensors(evidence(400, 0)))
    return made


def test_the_score_is_the_stated_quadratic_form(fusion):
    def columns(terms):
        return np.stack([np.log(terms["error"]), terms["nats"], np.log(terms["distance"])], axis=1)

    clean, new = columns(evidence(400, 0)), columns(evidence(50, 1))
    centre, spread = clean.mean(0), clean.std(0, ddof=1)
    u = (clean - centre) / spread
    covariance = (1 - SHRINK) * u.T @ u / 400 + SHRINK * np.eye(3)
    v = (new - centre) / spread
    expected = 0.5 * np.einsum("ni,ij,nj->n", v, np.linalg.inv(covariance), v)
    assert fusion(tensors(evidence(50, 1))).numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def one(**changed):
    typical = {"error": np.exp(-4), "nats": -700.0, "distance": np.exp(1)}
    return tensors({k: np.array([v]) for k, v in (typical | changed).items()})


@pytest.mark.parametrize(
    "changed",
    [
        {"error": np.exp(-1)},
        {"error": np.exp(-7)},
        {"nats": 0.0},
        {"nats": -1400.0},
        {"distance": 0.01},
        {"error": 0.0},
    ],
    ids=["too large", "too small", "improbable", "too probable", "too near", "perfect"],
)
def test_it_is_two_sided(fusion, changed):
    found = fusion(one(**changed))
    assert torch.isfinite(found).all()
    assert found.item() > 10 > 0.5 > fusion(one()).item()


def test_terms_that_disagree_are_strange_though_each_is_common(fusion):
    """error and nats rise together on clean samples; one high with the other low is what the covariance is for."""
    together = fusion(one(error=np.exp(-4 + 0.5), nats=-700 + 33))
    apart = fusion(one(error=np.exp(-4 + 0.5), nats=-700 - 33))
    assert apart.item() > 3 * together.item()


def test_float32_keeps_the_digits_of_large_nats():
    """Of nats near -2e5 float32 keeps two decimals: the score must lose no more."""
    rng = np.random.default_rng(0)
    made = Fusion({"nats": "linear"})
    values = -2e5 + 10 * rng.normal(size=300)
    made.fit(tensors({"nats": values}))
    found = made(tensors({"nats": np.array([-2e5 + 30.0])})).item()
    expected = 0.5 * ((-2e5 + 30.0 - values.mean()) / values.std(ddof=1)) ** 2 / ((1 - SHRINK) * 299 / 300 + SHRINK)
    assert found == pytest.approx(expected, rel=2e-2)


def test_a_term_that_never_varies_on_clean_samples_does_not_break_the_rest():
    made = Fusion({"error": "log", "flat": "linear"})
    rng = np.random.default_rng(0)
    terms = {"error": np.exp(rng.normal(size=100)), "flat": np.full(100, 3.0)}
    made.fit(tensors(terms))
    assert torch.isfinite(made(tensors(terms))).all()
    assert made(tensors({"error": np.ones(1), "flat": np.array([3.1])})).item() > 1e3


def test_what_was_fitted_travels_with_the_weights(fusion):
    other = Fusion(TERMS)
    other.load_state_dict(fusion.state_dict())
    x = tensors(evidence(9, 3))
    assert torch.equal(other(x), fusion(x))
