"""What a discriminator adds to the VAE, against the VAE itself and hand-worked terms."""

import dataclasses

import pytest
import torch
from conforming import batches

from toy_data import SPECS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Progress, make
from vaegis.models.families.parts.adversarial import LOST_EPOCHS
from vaegis.models.families.vae import VAE
from vaegis.models.families.vae_gan import BLUR, VAEGAN

TABLE = {"vae": VAE, "vae_gan": VAEGAN}


def at(share=1.0):
    return Progress(int(100 * share), 100, torch.Generator().manual_seed(0))


def small(name, kind, missing="refuse", **arguments):
    torch.manual_seed(0)
    spec = dataclasses.replace(SPECS[kind], missing=missing)
    family = make(TABLE, name, spec, {"width": 8, "latent": 3} | arguments)
    family.start(batches(clean(kind, 64)))
    return family


def twins(kind, **arguments):
    """A VAE and a VAE-GAN with the same weights."""
    vae, both = small("vae", kind), small("vae_gan", kind, **arguments)
    both.load_state_dict(vae.state_dict(), strict=False)
    return vae.eval(), both.eval()


def varied(family):
    """An untrained decoder says nearly the same of every latent; this one does not."""
    with torch.no_grad():
        family.decoder.layers[-1].weight.mul_(20)


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_without_its_weights_the_loss_is_the_vaes(kind):
    vae, both = twins(kind, adversarial=0, matching=0)
    x = torch.from_numpy(clean(kind, 32))
    one, two = vae.loss(Batch(x), "vae", at()), both.loss(Batch(x), "vae", at())
    assert two["total"].item() == one["total"].item()
    assert two["kl"].item() == one["kl"].item()


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_evidence_is_the_vaes(kind):
    vae, both = twins(kind)
    x = clean(kind, 40)
    vae.finish(batches(x))
    both.finish(batches(x))
    raw = torch.from_numpy(x)
    with torch.no_grad():
        one, two = vae.evidence(Batch(raw)), both.evidence(Batch(raw))
    assert list(one.terms) == list(two.terms)
    assert all(torch.equal(one.terms[t], two.terms[t]) for t in one.terms)
    assert torch.equal(one.map, two.map)


def test_terms_are_weighed_as_told():
    _, both = twins("vector", adversarial=0.3, matching=0.7)
    x = torch.from_numpy(clean("vector", 32))
    terms = both.loss(Batch(x), "vae", at())
    plain = both.validation_loss(Batch(x), at())
    expected = plain + 0.3 * terms["adversarial"] + 0.7 * terms["features"]
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_features_are_those_of_sample_and_reconstruction():
    _, both = twins("image")
    x = torch.from_numpy(clean("image", 16))
    with torch.no_grad():
        terms = both.loss(Batch(x), "vae", at())
        vae = both._pass(Batch(x), at())
        judge = both.discriminator.features
        back = both.distribution.mean(both.decoder(vae.z))
        assert terms["features"].item() == pytest.approx((judge(vae.y) - judge(back)).square().mean().item(), rel=1e-5)


def test_the_encoder_learns_nothing_from_fooling_the_discriminator():
    _, both = twins("vector")
    x = torch.from_numpy(clean("vector", 32))
    terms = both.loss(Batch(x), "vae", at())
    terms["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in both.encoder.parameters())
    assert any(p.grad.any() for p in both.decoder.parameters())
    both.zero_grad()
    terms["features"].backward()
    assert any(p.grad.any() for p in both.encoder.parameters())


def test_the_discriminator_is_shown_reconstructions_and_samples_alike():
    _, both = twins("vector")
    varied(both)
    x = torch.from_numpy(clean("vector", 32))
    seen = []

    class Watching(torch.nn.Module):
        features_size = 1

        def forward(self, y):
            seen.append(y)
            return y.sum(1) * 0

    both.discriminator = Watching()
    terms = both.loss(Batch(x), "discriminator", at())
    assert terms["total"].item() == pytest.approx(1.3862944, rel=1e-6)
    real, made = seen
    with torch.no_grad():
        vae = both._pass(Batch(x), at())
        y, back = vae.y, both.distribution.mean(both.decoder(vae.z))
    assert len(made) == 2 * len(real) == 64
    assert (real - y).std().item() == pytest.approx(BLUR, rel=0.2)
    assert (made[:32] - back).std().item() == pytest.approx(BLUR, rel=0.2)
    assert (made[32:] - back).std().item() > 2 * BLUR


def test_generated_samples_have_the_gaps_of_real_ones():
    both = small("vae_gan", "vector", missing="allow").eval()
    varied(both)
    x = torch.from_numpy(clean("vector", 32)).clone()
    x[:, 2] = torch.nan
    with torch.no_grad():
        vae = both._pass(Batch(x), at())
        made = both._fake(vae.z, vae.mask, None, at())
    # Only the noise that all the discriminator sees is left there.
    assert made[:, 2].abs().max().item() < 6 * BLUR
    assert made[:, 1].std().item() > 2 * BLUR


def test_what_stops_a_fit_is_the_vaes_loss():
    vae, both = twins("series")
    x = torch.from_numpy(clean("series", 32))
    assert both.validation_loss(Batch(x), at()).item() == vae.validation_loss(Batch(x), at()).item()


def test_a_lost_game_ends_the_fit():
    _, both = twins("vector")
    rows = [
        {"step": 50.0 * i, "discriminator.adversarial": 0.01, "vae.adversarial": 4.0 + i} for i in range(LOST_EPOCHS)
    ]
    assert both.alarm(rows).startswith("The discriminator wins")
    assert both.alarm(rows).endswith("--set objective=wasserstein, or without one (--family vae).")
    assert both.alarm(rows[:-1]) is None


def test_a_critic_takes_three_turns():
    assert small("vae_gan", "vector").turns("discriminator") == 1
    assert small("vae_gan", "vector", objective="wasserstein").turns("discriminator") == 3
    assert small("vae_gan", "vector", objective="wasserstein").turns("vae") == 1
    terms = small("vae_gan", "vector", objective="wasserstein").loss(
        Batch(torch.from_numpy(clean("vector", 32))), "discriminator", at()
    )
    assert terms["total"].item() == pytest.approx((terms["adversarial"] + 10 * terms["penalty"]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objective": "lsgan"}, "objective is 'lsgan'; choose minimax, wasserstein, hinge"),
        ({"objective": ""}, "objective is ''"),
        ({"discriminator_steps": -2}, "discriminator_steps is -2"),
        ({"discriminator_steps": "often"}, "discriminator_steps of family vae_gan is 'often'"),
        ({"adversarial": -1}, "adversarial is -1"),
        ({"adversarial": "nan"}, "adversarial is nan"),
        ({"adversarial": "inf"}, "adversarial is inf"),
        ({"matching": -0.5}, "matching is -0.5"),
        ({"matching": "some"}, "matching of family vae_gan is 'some'; it must be a number"),
        ({"noises": 3}, "noises is 3"),
        ({"beta": -1}, "beta is -1"),
        ({"fidelity": 1.0}, "no argument 'fidelity'; its arguments are objective, discriminator_steps, adversarial"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    with pytest.raises(Refusal, match=says):
        make(TABLE, "vae_gan", SPECS["vector"], arguments)
