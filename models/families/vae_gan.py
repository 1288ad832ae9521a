"""VAE whose decoder answers to a discriminator (Larsen, Sonderby, Larochelle and Winther 2016, arXiv:1512.09300;
objectives and discriminator: `vaegis.models.families.parts.adversarial`). With f(.) the F values that
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

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Progress, Recipe, in_range
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

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        return self._discriminator_loss(batch, at) if player == "discriminator" else self._vae_loss(batch, at)

    def _discriminator_loss(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        with torch.no_grad(), untracked(self.encoder, self.decoder):
            vae = self._pass(batch, at)
            fake = self._fake(vae.z, vae.mask, batch.condition, at)
        real = vae.y + BLUR * at.normal(vae.y)
        judged_real = self.discriminator(real)
        with untracked(self.discriminator):
            adversarial = discriminator_loss(self.objective, judged_real, self.discriminator(fake))
        if self.objective != "wasserstein":
            return {"total": adversarial, "adversarial": adversarial}
        penalty = gradient_penalty(self.discriminator, real, fake[: len(real)], at.generator)
        return {"total": adversarial + PENALTY * penalty, "adversarial": adversarial, "penalty": penalty}

    def _vae_loss(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        vae = self._pass(batch, at)
        with untracked(self.decoder, self.discriminator):
            fake = self._fake(vae.z.detach(), vae.mask, batch.condition, at)
            adversarial = generator_loss(self.objective, self.discriminator(fake))
            with torch.no_grad():
                of_real = self.discriminator.features(vae.y)
            rebuilt = self.distribution.mean(vae.out) * vae.mask
            features = (self.discriminator.features(rebuilt) - of_real).square().mean()
        total = vae.terms["total"] + self.matching * features + self.adversarial * adversarial
        return {**vae.terms, "total": total, "adversarial": adversarial, "features": features}

    def validation_loss(self, batch: Batch, at: Progress) -> Tensor:
        return self._pass(batch, at).terms["total"]

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        rows = [{**row, "generator.adversarial": row.get("vae.adversarial", 0.0)} for row in history]
        return lost(self.objective, rows, "Fit with --set objective=wasserstein, or without one (--family vae).")

    def _fake(self, z: Tensor, mask: Tensor, condition: Tensor | None, at: Progress) -> Tensor:
        """What the discriminator is to tell from y, (2B, C, ...): decoded z, then as many decoded from the prior."""
        twice = None if condition is None else condition.repeat(2)
        mean = self.distribution.mean(self._output(torch.cat([z, at.normal(z)]), twice))
        fake = mean * mask.repeat(2, *(1,) * (mask.dim() - 1))
        return fake + BLUR * at.normal(fake)
