"""The autoencoder against principal components, memory addressing worked by hand, and its evidence written out."""

import math

import numpy as np
import pytest
import torch
from conforming import batches
from scipy.spatial.distance import mahalanobis
from sklearn.decomposition import PCA
from torch import nn

from toy_data import SPECS, VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress
from vaegis.models.families.autoencoder import ENTROPY, RIDGE, Autoencoder, Memory
from vaegis.models.families.parts.layers import from_channels, smooth
from vaegis.models.spec import VectorSpec


def at(share=1.0, seed=0):
    return Progress(int(100 * share), 100, torch.Generator().manual_seed(seed))


def started(spec, x, **arguments):
    """One that has looked at its data once and learned nothing."""
    torch.manual_seed(0)
    family = Autoencoder(spec, **{"width": 8, "latent": 4, **arguments})
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    return family


@pytest.fixture(scope="module", params=SPECS)
def case(request):
    x = clean(request.param, 150)
    return started(SPECS[request.param], x, memory=12), torch.from_numpy(x)


def test_a_linear_one_finds_the_principal_subspace():
    """Baldi and Hornik 1989: its least error is that of as many principal components."""
    x = clean("vector", 400)
    family = started(VECTORS, x, latent=2)
    family.encoder, family.decoder = nn.Linear(6, 2), nn.Linear(2, 6)
    optimiser = torch.optim.LBFGS(family.parameters(), max_iter=80, line_search_fn="strong_wolfe")
    raw = torch.from_numpy(x)

    def closure():
        optimiser.zero_grad()
        error = family.loss(Batch(raw), "autoencoder", at())["total"]
        error.backward()
        return error

    optimiser.step(closure)
    y = family.normaliser(raw).numpy()
    known = PCA(2).fit(y)
    best = ((y - known.inverse_transform(known.transform(y))) ** 2).mean()
    family.finish(batches(x))
    with torch.no_grad():
        found = family.evidence(Batch(raw)).terms["reconstruction_error"].mean().item()
    assert best <= found * (1 + 1e-5)
    assert found == pytest.approx(best, rel=0.02)


def test_memory_addressing_by_hand():
    """Three prototypes in the plane, a code that lies between the first two; without sharpening."""
    memory = Memory(3, 2)
    with torch.no_grad():
        memory.items.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
        memory.sharpness.zero_()
        found = memory.address(torch.tensor([[1.0, 1.0], [5.0, 0.0]]))
    # Cosines of the first are 1/sqrt 2, 1/sqrt 2, -1/sqrt 2: the third lies under a third and is left out.
    assert found[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    # Of the second they are 1, 0, -1: e / (e + 1 + 1/e) is .665, and .245 lies under a third.
    assert found[1].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_memory_is_sharpened_by_its_factor():
    memory = Memory(3, 2)
    with torch.no_grad():
        memory.items.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]))
        memory.sharpness.fill_(math.log(2.0))
        found = memory.address(torch.tensor([[1.0, 0.2]]))[0]
    cosines = np.array([1.0, 0.76, -1.0]) / math.hypot(1.0, 0.2)
    shares = np.exp(2 * cosines) / np.exp(2 * cosines).sum()
    kept = np.where(shares > 1 / 3, shares, 0)
    assert found.numpy() == pytest.approx(kept / kept.sum(), rel=1e-5)


def test_where_no_prototype_stands_out_all_are_taken():
    memory = Memory(4, 3)
    found = memory.address(torch.zeros(2, 3))
    assert found.detach().numpy() == pytest.approx(0.25)


@torch.no_grad()
def test_a_memory_rebuilds_from_its_prototypes_alone(case):
    family, x = case
    z, _ = family.encode(Batch(x))
    shares = family.prototypes.address(z)
    assert torch.allclose(shares.sum(1), torch.ones(len(x)))
    assert torch.equal(
        family.decode(Batch(z)), family.normaliser.denormalise(family.decoder(shares @ family.prototypes.items))
    )
    # Its length does not matter, only its direction: what lies far out is rebuilt like what lies near.
    assert torch.allclose(family.decode(Batch(100 * z)), family.decode(Batch(z)), rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_reconstruction_error_and_map_are_as_stated(case):
    family, x = case
    found = family.evidence(Batch(x))
    rebuilt = family.decode(Batch(family.encode(Batch(x))[0]))
    scale = from_channels(family.normaliser.scale[None], family.spec)
    squared = ((x.float() - rebuilt) / scale).square()
    assert torch.allclose(found.terms["reconstruction_error"], squared.flatten(1).mean(1), rtol=1e-3)
    heat = squared / from_channels(family.residual[None], family.spec)
    if family.spec.kind == "image":
        heat = smooth(heat.mean(-1), family.spec)
    assert torch.allclose(found.map, heat, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.terms["map_peak"], found.map.flatten(1).amax(1))


@torch.no_grad()
def test_latent_distance_is_mahalanobis_of_the_code(case):
    family, x = case
    z = family.encode(Batch(x))[0].double().numpy()
    scale = math.sqrt(z.var(axis=0).mean())
    y = (z - z.mean(axis=0)) / scale
    inverse = np.linalg.inv(np.cov(y, rowvar=False, bias=True) + RIDGE * np.eye(4))
    expected = [mahalanobis(v, np.zeros(4), inverse) for v in y]
    assert family.evidence(Batch(x)).terms["latent_distance"].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_loss_is_the_error_of_what_was_blurred():
    x = torch.from_numpy(clean("vector", 64))
    plain, blurred = started(VECTORS, x.numpy()), started(VECTORS, x.numpy(), noise=0.5)
    y = plain.normaliser(x)
    with torch.no_grad():
        expected = (y - plain.decoder(plain.encoder(y))).square().mean().item()
        assert plain.loss(Batch(x), "autoencoder", at())["total"].item() == pytest.approx(expected, rel=1e-6)
        draw = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        expected = (y - blurred.decoder(blurred.encoder(y + 0.5 * draw))).square().mean().item()
        assert blurred.loss(Batch(x), "autoencoder", at(seed=3))["total"].item() == pytest.approx(expected, rel=1e-6)
        # Noise is for training alone.
        one = blurred.evidence(Batch(x)).terms["reconstruction_error"]
        assert torch.equal(one, blurred.evidence(Batch(x)).terms["reconstruction_error"])


def test_the_loss_of_a_memory_charges_the_entropy_of_its_addresses():
    x = torch.from_numpy(clean("vector", 64))
    family = started(VECTORS, x.numpy(), memory=9)
    found = family.loss(Batch(x), "autoencoder", at())
    with torch.no_grad():
        shares = family.prototypes.address(family.encode(Batch(x))[0])
    entropy = torch.special.entr(shares).sum(1).mean().item()
    assert found["entropy"].item() == pytest.approx(entropy, rel=1e-4)
    assert found["total"].item() == pytest.approx(found["reconstruction"].item() + ENTROPY * entropy, rel=1e-6)
    assert set(started(VECTORS, x.numpy()).loss(Batch(x), "autoencoder", at())) == {"total"}


def test_missing_values_are_left_out_of_every_sum():
    spec = VectorSpec(VECTORS.columns, missing="allow")
    family = started(spec, clean("vector", 80), memory=5, noise=0.2)
    x = torch.from_numpy(clean("vector", 5, seed=4))
    x[:, [1, 4]] = torch.nan
    found = family.evidence(Batch(x))
    with torch.no_grad():
        rebuilt = family.normaliser(family.decode(Batch(family.encode(Batch(x))[0])))
    squared = (family.normaliser(x) - rebuilt).square()
    assert torch.allclose(found.terms["reconstruction_error"], squared[:, [0, 2, 3, 5]].mean(1), rtol=1e-3)
    assert (found.map[:, [1, 4]] == 0).all()
    assert torch.isfinite(torch.stack(list(found.terms.values()))).all()
    assert torch.isfinite(family.loss(Batch(x), "autoencoder", at())["total"])


def test_it_says_why_it_cannot_generate():
    family = started(VECTORS, clean("vector", 80))
    with pytest.raises(Refusal, match="no distribution over its codes to draw from. Fit a vae"):
        family.sample(Draw(3, torch.Generator()))
    assert family.more_graphs() == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"latent": -1}, "latent is -1; it must lie between 0 and 4096"),
        ({"latent": 5000}, "latent is 5000"),
        ({"width": -1}, "width is -1"),
        ({"noise": -0.1}, "noise is -0.1; it must lie between 0 and 10"),
        ({"noise": math.nan}, "noise is nan"),
        ({"noise": math.inf}, "noise is inf"),
        ({"memory": 1}, "one prototype would be every reconstruction"),
        ({"memory": -5}, "memory is -5"),
        ({"memory": 10**6}, "memory is 1000000"),
        ({"resolution": 513}, "resolution is 513"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, said):
    with pytest.raises(Refusal, match=said):
        Autoencoder(VECTORS, **arguments)
