"""Hybrids: a VAE with something of another family.

`VAEFlow`, a VAE whose prior is a normalising flow (Chen et al. 2017, arXiv:1611.02731; the gap that a standard normal
prior leaves: Rosca et al. 2018, arXiv:1802.06847). With u = f(z), f invertible, and u ~ N(0, I):

    log p(z)       = sum_l (-u_l^2 / 2 - log(2 pi) / 2) + log|det du/dz|
    KL(q || p)     = -1/2 sum_l (1 + log sigma_l^2 + log 2 pi) - E_q[log p(z)]     nats

The entropy is exact; the expectation has no closed form. Training takes it from its one draw, `negative_elbo` and `kl`
from the K stored noises: an average over draws of q is an unbiased bound all the same, and the same at each call.

Everything else is the VAE's (`vae.py`), `latent_density` too: -log p(mu) would be of little use there. The prior learns
where draws of q lie, spread as they are, and a defect that the encoder makes little of has its mean in their midst.
A sample is decoded from z = f^-1(u), which `sampler.onnx` does.

`VAEGAN`, a VAE whose decoder answers to a discriminator (Larsen, Sonderby, Larochelle and Winther 2016,
arXiv:1512.09300; objectives and discriminator: `vaegis.models.families.parts.adversarial`). With f(.) the F values that
the discriminator judges by, y' the reconstruction of y by one z from q(z|x), and z_p from the prior:

    discriminator   learns to tell y from y' and from the decoded z_p
    vae             minimises over encoder and decoder
                    VAE's loss + matching 1/F |f(y) - f(y')|^2 + adversarial (D(y'), D(decoded z_p) judged real)

The last term teaches the decoder alone: an encoder that learned from it would hide in z what fools the discriminator
(section 3.3 there). Larsen et al. measure the reconstruction by f instead of by the values; here the likelihood of the
values stays beside it, so that the bound and every other evidence are the VAE's and mean what they mean there. What
early stopping minimises is the VAE's loss. The discriminator is told no condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vaegis.models.bundle import SAMPLER
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Plan, Progress, Recipe, in_range
from vaegis.models.families.flow import HALF_LOG_2PI, Vectors
from vaegis.models.families.parts.adversarial import (
    OBJECTIVES,
    PENALTY,
    Discriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    lost,
    untracked,
)
from vaegis.models.families.vae import VAE
from vaegis.models.spec import InputSpec

BLUR = 0.1  # standard deviation of noise on all that the discriminator sees: see `gan`
PRIORS = ("realnvp", "spline")  # transforms whose inverse is one pass


class VAEFlow(VAE):
    """See the module's mathematics."""

    def __init__(
        self,
        spec: InputSpec,
        *,
        prior: str = "realnvp",
        prior_layers: int = 4,
        prior_width: int = 64,
        **vae: Any,
    ) -> None:
        """Builds the networks.

        Args:
            prior: realnvp or spline.
            prior_layers: couplings of the prior, at least 1.
            prior_width: units of the networks within.
            vae: the VAE's arguments; `free_bits` counts all latent units together.

        Raises:
            Refusal: an argument out of its range.
        """
        super().__init__(spec, **vae)
        if prior not in PRIORS:
            raise Refusal(f"Argument prior is {prior!r}; choose {' or '.join(PRIORS)}.")
        in_range("prior_layers", prior_layers, 1, 64)
        in_range("prior_width", prior_width, 1, 4096)
        self.prior, self.prior_layers, self.prior_width = prior, prior_layers, prior_width
        self.flow = Vectors(self.latent, prior, prior_layers, prior_width, bins=8)

    def sample(self, n: int, generator: torch.Generator, condition: Tensor | None = None) -> Tensor:
        u = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.decode(self.flow.inverse(u.to(self.centre.device)), condition)

    def more_graphs(self) -> dict[str, Plan]:
        inputs = {"noise": torch.zeros(3, self.latent)}
        if self.spec.conditions:
            inputs["condition"] = torch.arange(3) % len(self.spec.conditions)
        return {SAMPLER: Plan(Sampler(self), inputs, ("sample",))}

    def _divergence(self, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
        """KL(q || p) in nats of all units together, (B, 1), from one draw."""
        entropy = (0.5 * (1 + log_variance) + HALF_LOG_2PI).sum(1)
        return (self._prior(z) - entropy)[:, None]

    def _prior(self, z: Tensor) -> Tensor:
        """-log p(z) in nats, (B,)."""
        u, shares = self.flow(z)
        nats: Tensor = (0.5 * u.float().square() + HALF_LOG_2PI - shares.float()).sum(1)
        return nats


class Sampler(nn.Module):
    """`noise` (and `condition`) -> `sample`."""

    def __init__(self, family: VAEFlow) -> None:
        super().__init__()
        self.family = family

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        out: Tensor = self.family.decode(self.family.flow.inverse(noise), condition)
        return out


class VAEGAN(VAE):
    """See the module's mathematics."""

    def __init__(
        self,
        spec: InputSpec,
        *,
        objective: str = "minimax",
        discriminator_steps: int = 0,
        adversarial: float = 0.01,
        matching: float = 0.1,
        **vae: Any,
    ) -> None:
        """Builds the networks.

        Args:
            objective: minimax, wasserstein or hinge.
            discriminator_steps: turns of the discriminator for each of the VAE; 0 takes 1, of wasserstein 3.
            adversarial: weight of fooling the discriminator, >= 0.
            matching: weight of the features' difference, >= 0.
            vae: the VAE's arguments.

        Raises:
            Refusal: an argument out of its range.
        """
        super().__init__(spec, **vae)
        if objective not in OBJECTIVES:
            raise Refusal(f"Argument objective is {objective!r}; choose {', '.join(OBJECTIVES)}.")
        in_range("discriminator_steps", discriminator_steps, 0, 100)
        in_range("adversarial", adversarial, 0, 1e6)
        in_range("matching", matching, 0, 1e6)
        self.objective, self.adversarial, self.matching = objective, adversarial, matching
        self.discriminator_steps = discriminator_steps or (3 if objective == "wasserstein" else 1)
        self.discriminator = Discriminator(self.inner, self.width, objective != "wasserstein")

    @property
    def recipe(self) -> Recipe:
        own = super().recipe
        momentum = 0.0 if self.objective == "wasserstein" else 0.5
        return replace(own, batch=min(own.batch, 64), rate=1e-3, momentum=momentum)

    def players(self) -> dict[str, nn.Module]:
        return {
            "discriminator": self.discriminator,
            "vae": nn.ModuleList([self.encoder, self.decoder, self.distribution]),
        }

    def turns(self, player: str) -> int:
        return self.discriminator_steps if player == "discriminator" else 1

    def loss(self, x: Tensor, player: str, at: Progress, condition: Tensor | None = None) -> dict[str, Tensor]:
        if player == "discriminator":
            with torch.no_grad(), untracked(self.encoder, self.decoder):
                _, y, seen, z, _ = self._learned(x, at, condition)
                made = self._made(z, seen, at, condition)
            real = y + BLUR * _normal(y, at)
            told = self.discriminator(real)
            with untracked(self.discriminator):
                adversarial = discriminator_loss(self.objective, told, self.discriminator(made))
            if self.objective != "wasserstein":
                return {"total": adversarial, "adversarial": adversarial}
            penalty = gradient_penalty(self.discriminator, real, made[: len(real)], at.generator)
            return {"total": adversarial + PENALTY * penalty, "adversarial": adversarial, "penalty": penalty}
        terms, y, seen, z, out = self._learned(x, at, condition)
        with untracked(self.decoder, self.discriminator):
            made = self._made(z.detach(), seen, at, condition)
            adversarial = generator_loss(self.objective, self.discriminator(made))
            with torch.no_grad():
                judged = self.discriminator.features(y)
            back = self.distribution.mean(out) * seen
            features = (self.discriminator.features(back) - judged).square().mean()
        total = terms["total"] + self.matching * features + self.adversarial * adversarial
        return {**terms, "total": total, "adversarial": adversarial, "features": features}

    def held(self, x: Tensor, at: Progress, condition: Tensor | None = None) -> Tensor:
        return self._learned(x, at, condition)[0]["total"]

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        rows = [{**row, "generator.adversarial": row.get("vae.adversarial", 0.0)} for row in history]
        return lost(self.objective, rows, "Fit with --set objective=wasserstein, or without one (--family vae).")

    def _made(self, z: Tensor, seen: Tensor, at: Progress, condition: Tensor | None) -> Tensor:
        """What the discriminator is to tell from y, (2B, C, ...): decoded z, then as many decoded from the prior."""
        twice = None if condition is None else condition.repeat(2)
        made = self.distribution.mean(self._decoded(torch.cat([z, _normal(z, at)]), twice)) * seen.repeat(
            2, *(1,) * (seen.dim() - 1)
        )
        return made + BLUR * _normal(made, at)


def _normal(like: Tensor, at: Progress) -> Tensor:
    return torch.randn(like.shape, generator=at.generator, device=at.generator.device).to(like)
