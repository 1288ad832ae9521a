"""A VAE with a flow for a prior: its density, its divergence against closed forms, its draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conforming import batches
from torch import distributions as law

from toy_data import VECTORS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress
from vaegis.models.families.parts.transforms import negative_log_density
from vaegis.models.families.vae_flow import VAEFlow


def started(x, **arguments):
    torch.manual_seed(0)
    family = VAEFlow(VECTORS, **{"width": 8, "latent": 2, "prior_width": 8, "prior_layers": 2} | arguments)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    return family


def plain(family):
    """The family with an identity for its flow: the prior is N(0, I)."""
    family.flow.parts = torch.nn.ModuleList()
    return family


@torch.no_grad()
def test_the_prior_integrates_to_one():
    for prior in ("realnvp", "spline"):
        family = started(clean("vector", 80), prior=prior)
        line = torch.linspace(-9, 9, 250)
        z = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
        mass = float((-negative_log_density(*family.flow(z)).double()).exp().sum()) * float(line[1] - line[0]) ** 2
        assert mass == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
def test_with_no_transforms_many_draws_give_the_closed_form():
    family = plain(started(clean("vector", 80)))
    mean, log_variance = torch.tensor([[0.5, -1.0]]), torch.tensor([[-0.3, -2.0]])
    known = law.kl_divergence(law.Normal(mean, (0.5 * log_variance).exp()), law.Normal(0.0, 1.0)).sum()
    noise = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    found = family._divergence(mean, log_variance, mean + (0.5 * log_variance).exp() * noise)
    assert found.shape == (50_000, 1)
    assert found.mean().item() == pytest.approx(known.item(), rel=2e-2)


@torch.no_grad()
def test_the_stored_noises_give_the_closed_form_exactly_under_a_normal_prior():
    """Their mean is 0 and their mean square 1, and the log-density of a normal prior is a square."""
    x = torch.from_numpy(clean("vector", 80))
    family = plain(started(x.numpy()))
    mean, log_variance = family.encode(Batch(x))
    known = law.kl_divergence(law.Normal(mean, (0.5 * log_variance).exp()), law.Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(family.evidence(Batch(x)).terms["kl"], known, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_negative_elbo_is_the_mean_over_the_stored_noises():
    x = torch.from_numpy(clean("vector", 80))
    family = started(x.numpy(), noises=4)
    mean, log_variance = family.encode(Batch(x))
    posterior = law.Normal(mean, (0.5 * log_variance).exp())
    y = (x - family.centre) / family.scale
    spread = (family.distribution.log_variance.exp() + family.distribution.floor).sqrt()
    nats = 0.0
    for noise in family.noise:
        z = mean + posterior.stddev * noise
        u, shares = family.flow(z)
        prior = law.Normal(0.0, 1.0).log_prob(u).sum(1) + shares.sum(1)
        likelihood = law.Normal(family.decoder(z), spread).log_prob(y).sum(1)
        nats = nats - (likelihood + prior) / len(family.noise)
    expected = nats - posterior.entropy().sum(1)
    assert torch.allclose(family.evidence(Batch(x)).terms["negative_elbo"], expected, rtol=1e-4, atol=1e-3)


def test_the_prior_learns_with_the_networks():
    x = torch.from_numpy(clean("vector", 64))
    family = started(x.numpy())
    family.train()
    family.loss(Batch(x), "vae", Progress(100, 100, torch.Generator().manual_seed(0)))["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in family.flow.parameters())


@torch.no_grad()
def test_samples_are_decoded_from_the_prior():
    family = started(clean("vector", 80))
    one = family.sample(Draw(40, torch.Generator().manual_seed(4)))
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(4))
    (plan,) = family.more_graphs().values()
    assert torch.equal(one, plan.module(noise))
    u, _ = family.flow(family.flow.inverse(noise))
    assert torch.allclose(u, noise, atol=1e-4)


@torch.no_grad()
def test_the_sampler_is_told_a_condition():
    torch.manual_seed(0)
    family = VAEFlow(replace(VECTORS, conditions=("A", "B")), width=8, latent=2, prior_width=8, prior_layers=1)
    (plan,) = family.more_graphs().values()
    assert list(plan.inputs) == ["noise", "condition"]
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    one, two = (plan.module(noise, torch.full((5,), c)) for c in (0, 1))
    assert torch.equal(one, family.decode(Batch(family.flow.inverse(noise), torch.zeros(5, dtype=torch.int64))))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prior": "maf"}, "prior is 'maf'; choose realnvp or spline"),
        ({"prior": ""}, "prior is ''"),
        ({"prior_layers": 0}, "prior_layers is 0; it must lie between 1 and 64"),
        ({"prior_layers": 65}, "prior_layers is 65"),
        ({"prior_width": 0}, "prior_width is 0"),
        ({"prior_width": -4}, "prior_width is -4"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"free_bits": math.nan}, "free_bits is nan"),
        ({"noises": 3}, "noises is 3; it must be even"),
        ({"latent": -2}, "latent is -2"),
        ({"likelihood": "normal"}, "Likelihood 'normal'"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, said):
    with pytest.raises(Refusal, match=said):
        VAEFlow(VECTORS, **arguments)


def test_a_single_latent_is_enough():
    x = clean("vector", 80)
    family = started(x, latent=1)
    found = family.evidence(Batch(torch.from_numpy(x))).terms
    assert all(np.isfinite(v.detach().numpy()).all() for v in found.values())
