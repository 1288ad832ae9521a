"""Generative adversarial network with an encoder (Goodfellow et al. 2014, arXiv:1406.2661; networks: DCGAN, Radford,
Metz and Chintala 2015, arXiv:1511.06434; objectives: `vaegis.models.families.parts.adversarial`).

y is the normalised sample of D values, z ~ N(0, I) of L units, G the generator, E the encoder, D the discriminator and
f(.) the F values its last layer judges by.

    discriminator   learns to tell y from G(z), `discriminator_steps` times a step
    generator       minimises over G and E together
                    adversarial(D(G(z))) + fidelity (1/D |y - G(E(y))|^2 + matching 1/F |f(y) - f(G(E(y)))|^2)

    reconstruction_error  = 1/D |y - G(E(y))|^2
    feature_distance      = root of 1/F sum_j (f_j(y) - f_j(G(E(y))))^2 / s_j^2,   s_j^2 the clean mean square
    latent_distance       = Mahalanobis distance of E(y) from the clean ones
    map                   = (y - G(E(y)))^2 / s^2, s^2 the clean residual variance
    map_peak              = max of the smoothed map

AnoGAN (Schlegl et al. 2017) seeks each sample's z by hundreds of gradient steps. One pass needs an encoder, and there
are two ways to one. f-AnoGAN (Schlegl et al. 2019) fits it afterwards, to a generator that is finished and fixed
(izi_f): two fits, the first of 10^5 steps, for an encoder finds nothing in a generator that is not yet good. GANomaly
(Akcay et al. 2018, arXiv:1805.06725) lets both learn together, by the pixel and the feature error of reconstructions,
against the discriminator. That is what is done here: it is one fit, short ones work, and E and G are trained in the
very roles in which they score. Unlike GANomaly's, the generator also answers for pictures of z from the prior, so it
can be sampled from; prior and encoded latents pass through it in one batch, so its batch statistics serve both.

What early stopping minimises is the reconstruction error of the validate split: the adversarial losses tell how good
each player is against the other, not how good they are, and the encoder's path is what scoring runs.
The networks are DCGAN's with SiLU for ReLU in E and G, and without its tanh: normalised values have no bounds.
Missing values enter the encoder as the clean mean with a flag beside them; the discriminator sees generated samples
with the gaps of real ones (AmbientGAN, Bora et al. 2018), or it would only have to look for gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Progress, Recipe, in_range
from vaegis.models.families.fusion import Form, terms_for
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
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, WIDTHS, latent_units, sizes_in_range
from vaegis.models.families.parts.densities import Gaussian
from vaegis.models.families.parts.layers import decoder_for, encoder_for, inner_shape, smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

RIDGE = 1e-2  # added to the latent covariance
CERTAIN = -20.0  # log-variance of a latent that is a function of the sample

MEANING = {
    "reconstruction_error": "mean squared error per value of what the generator makes of the encoded sample",
    "feature_distance": "distance between sample and reconstruction in the features that the discriminator judges by",
    "latent_distance": "Mahalanobis distance of the encoded sample from the clean ones",
    "map_peak": MAP_PEAK_MEANING,
}
ALL: dict[str, Form] = dict.fromkeys(MEANING, "log")
FUSED: dict[str, dict[str, Form]] = {
    **dict.fromkeys(("image", "series", "vector"), ALL),
    "varied": {"reconstruction_error": "log", "feature_distance": "log"},
}


class GAN(Family):
    """See the module's mathematics."""

    residual: Tensor  # clean residual variance per value, inner shape
    feature: Tensor  # (F,) clean mean square of the features' differences

    def __init__(
        self,
        spec: InputSpec,
        *,
        latent: int = 0,
        width: int = 0,
        objective: str = "minimax",
        discriminator_steps: int = 0,
        fidelity: float = 10.0,
        matching: float = 0.1,
        noise: float = 0.1,
        resolution: int = 64,
    ) -> None:
        """Builds the networks.

        Args:
            latent: L; 0 chooses by the input.
            width: channels of the first convolution, or units of a dense layer; 0 chooses by the input.
            objective: minimax (the non-saturating form), wasserstein (with gradient penalty) or hinge.
            discriminator_steps: turns of the discriminator for each of the generator; 0 takes 1, of wasserstein 3.
            fidelity: weight of the reconstruction against the adversarial loss, > 0.
            matching: weight of the feature error within it, >= 0.
            noise: standard deviation of what is added to all the discriminator sees while it learns, in units of clean
                variation, >= 0: real samples that lie on a thin sheet are told apart too easily (Arjovsky and Bottou
                2017, arXiv:1701.04862).
            resolution: pixels of an image's longer side that the networks see, at most; 0 averages none.

        Raises:
            Refusal: an argument out of its range.
        """
        super().__init__(spec, MEANING, terms_for(FUSED, spec))
        sizes_in_range(latent=latent, width=width, resolution=resolution)
        in_range("discriminator_steps", discriminator_steps, 0, 100)
        in_range("fidelity", fidelity, 1e-6, 1e6)
        in_range("matching", matching, 0, 1e6)
        in_range("noise", noise, 0, 10)
        if objective not in OBJECTIVES:
            raise Refusal(f"Argument objective is {objective!r}; choose {', '.join(OBJECTIVES)}.")
        self.resolution, self.objective = resolution, objective
        self.fidelity, self.matching, self.noise = fidelity, matching, noise
        self.discriminator_steps = discriminator_steps or (3 if objective == "wasserstein" else 1)
        self.latent = latent or latent_units(spec, round_up=True)
        self.width = width or WIDTHS[spec.kind]
        self.normaliser = Normaliser(spec, resolution)
        inner = self.inner = self.normaliser.inner
        shape = inner_shape(inner)
        self.encoder = encoder_for(inner, self.latent, self.width, shape[0] if spec.missing == "allow" else 0)
        self.generator = decoder_for(inner, self.latent, 1, self.width)
        self.discriminator = Discriminator(inner, self.width, objective != "wasserstein")
        self.register_buffer("residual", torch.ones(shape))
        self.register_buffer("feature", torch.ones(self.discriminator.features_size))
        self.latents = Gaussian(self.latent, RIDGE)

    @property
    def latent_size(self) -> int:
        return self.latent

    @property
    def recipe(self) -> Recipe:
        momentum = 0.0 if self.objective == "wasserstein" else 0.5
        match self.inner:
            case ImageSpec():
                big = self.inner.height * self.inner.width > 64 * 64
                return Recipe(steps=1200, batch=32 if big else 64, rate=1e-3, momentum=momentum)
            case SeriesSpec():
                return Recipe(steps=1500, batch=64, rate=1e-3, momentum=momentum)
            case _:
                return Recipe(steps=2000, batch=128, rate=1e-3, momentum=momentum)

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def start(self, batches: Batches) -> None:
        self.normaliser.fit(batches)

    def players(self) -> dict[str, nn.Module]:
        return {
            "discriminator": self.discriminator,
            "generator": nn.ModuleList([self.generator, self.encoder]),
        }

    def turns(self, player: str) -> int:
        return self.discriminator_steps if player == "discriminator" else 1

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        y, mask = self.normaliser.observe(batch.x)
        z = at.normal(torch.empty(len(y), self.latent, device=y.device))
        if player == "discriminator":
            with torch.no_grad(), untracked(self.generator):
                fake = self._blur(self.generator(z) * mask, at)
            real = self._blur(y, at)
            judged_real = self.discriminator(real)
            with untracked(self.discriminator):
                adversarial = discriminator_loss(self.objective, judged_real, self.discriminator(fake))
            if self.objective != "wasserstein":
                return {"total": adversarial, "adversarial": adversarial}
            penalty = gradient_penalty(self.discriminator, real, fake, at.generator)
            return {"total": adversarial + PENALTY * penalty, "adversarial": adversarial, "penalty": penalty}
        fake, rebuilt = self.generator(torch.cat([z, self._code(y, mask)])).chunk(2)
        error = ((y - rebuilt) * mask).square().sum() / mask.sum().clamp_min(1)
        with untracked(self.discriminator):
            adversarial = generator_loss(self.objective, self.discriminator(self._blur(fake * mask, at)))
            with torch.no_grad():
                of_real = self.discriminator.features(y)
            features = (self.discriminator.features(rebuilt * mask) - of_real).square().mean()
        total = adversarial + self.fidelity * (error + self.matching * features)
        return {"total": total, "adversarial": adversarial, "reconstruction": error, "features": features}

    def validation_loss(self, batch: Batch, at: Progress) -> Tensor:
        y, mask = self.normaliser.observe(batch.x)
        rebuilt = self.generator(self._code(y, mask))
        error: Tensor = ((y - rebuilt) * mask).square().sum() / mask.sum().clamp_min(1)
        return error

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        remedy = "Fit with --set objective=wasserstein, or with more noise before its eyes (--set noise=0.3)."
        return lost(self.objective, history, remedy)

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Clean latents, and clean differences between samples and their reconstructions."""
        latents, residuals, features = [], MeanSquares(self.residual), MeanSquares(self.feature)
        for batch in batches():
            y, mask = self.normaliser.observe(batch.x)
            z = self._code(y, mask)
            rebuilt = self.generator(z)
            latents.append(z)
            residuals.add(((y - rebuilt) * mask).square(), mask)
            features.add(self._feature_gap(y, rebuilt * mask).square())
        self.latents.fit(torch.cat(latents))
        self.residual.copy_(residuals.shrunk())
        self.feature.copy_(features.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        y, mask = self.normaliser.observe(batch.x)
        z = self._code(y, mask)
        rebuilt = self.generator(z)
        error = ((y - rebuilt) * mask).square()
        heat = error / self.residual
        if isinstance(self.inner, ImageSpec):
            heat = smooth(heat.mean(1), self.inner)
        gap = self._feature_gap(y, rebuilt * mask)
        terms = {
            "reconstruction_error": error.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1.0),
            "feature_distance": (gap.square() / self.feature).mean(1).sqrt(),
            "latent_distance": self.latents.distance(z),
            "map_peak": heat.flatten(1).amax(1),
        }
        return Evidence(terms, self.normaliser.full_size(heat))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """E is a function, not a distribution: the log-variance is `CERTAIN` for every unit."""
        z = self._code(*self.normaliser.observe(batch.x))
        return z, torch.full_like(z, CERTAIN)

    def decode(self, latents: Batch) -> Tensor:
        return self.normaliser.denormalise(self.generator(latents.x))

    def sample(self, draw: Draw) -> Tensor:
        return self.decode(Batch(draw.normal(self.latent).to(self.residual.device)))

    def _code(self, y: Tensor, mask: Tensor) -> Tensor:
        """E(y), (B, L)."""
        out: Tensor = self.encoder(torch.cat([y, mask], dim=1) if self.spec.missing == "allow" else y)
        return out

    def _feature_gap(self, y: Tensor, rebuilt: Tensor) -> Tensor:
        """f(y) - f(rebuilt), (B, F)."""
        return self.discriminator.features(y) - self.discriminator.features(rebuilt)

    def _blur(self, y: Tensor, at: Progress) -> Tensor:
        """y with the noise that the discriminator sees all through."""
        return y + self.noise * at.normal(y) if self.noise else y
