"""Autoencoder: plain, denoising (Vincent et al. 2008) and with a memory (Gong et al. 2019, arXiv:1904.02639).

x is a sample of D values, y the same normalised; z = f(y) is its code of L numbers and y' = g(z) the reconstruction.

    loss                 = |y - g(f(y + noise e))|^2 / D + 0.0002 sum_i -a_i log a_i,      e ~ N(0, I)
    reconstruction_error = |y - y'|^2 / D
    latent_distance      = Mahalanobis distance of z from the clean codes
    latent_density       = -log of a Gaussian mixture over the clean codes, at z           nats
    map                  = (y - y')^2 / s^2, s^2 the clean residual variance               per pixel, step or column
    map_peak             = max of the smoothed map
    residual_distance    = Mahalanobis distance of y - y' from the clean residuals

With `noise` the network learns to undo a little noise, so it cannot merely copy, and what lies off the clean samples is
moved towards them. With a `memory` of N prototypes m_i, which are learned with the networks, the decoder never sees the
code but only the few prototypes nearest to it, so that even a defect can be reconstructed from clean parts alone:

    w = softmax_i cos(z, m_i),   a_i = w_i where w_i > t, else 0, scaled to a sum of 1,   t = 1 / N
    y' = g(sum_i a_i m_i)

Where no w_i exceeds t, which is where all are equal, w itself is taken. The cosine is sharpened by a learned factor;
without it a softmax over many prototypes stays nearly even. The second part of the loss, the entropy of a, keeps the
choice sparse; a plain autoencoder has none.

Nothing was learned of where codes lie but what these evidence terms hold, and nothing made them fill any known region:
there is no distribution to draw a code from, so that this family cannot generate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Progress, Recipe, in_range
from vaegis.models.families.fusion import Form, terms_for
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, WIDTHS, latent_units, sizes_in_range
from vaegis.models.families.parts.densities import Gaussian, Mixture
from vaegis.models.families.parts.layers import decoder_for, encoder_for, smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.relations import RESIDUAL_MEANING, Relations, relatable, related
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

RIDGE = 1e-2  # added to the covariance of codes, relative to their mean variance
ENTROPY = 2e-4  # weight of the addresses' entropy, as published
TINY = 1e-12

MEANING = {
    "reconstruction_error": "mean squared error per value of the reconstruction",
    "latent_distance": "Mahalanobis distance of the code from the clean codes",
    "latent_density": "negative log-density of the code among the clean codes, nats",
    "map_peak": MAP_PEAK_MEANING,
}
DISTANCE_MEANING = {"residual_distance": RESIDUAL_MEANING}
FUSED: dict[str, dict[str, Form]] = {
    "image": {"latent_density": "linear", "map_peak": "log", "residual_distance": "log"},
    "series": {"residual_distance": "log", "map_peak": "log"},
    "vector": {"residual_distance": "log"},
    "varied": {"reconstruction_error": "log", "residual_distance": "log"},
    "missing": {"reconstruction_error": "log", "latent_density": "linear", "map_peak": "log"},
}


class Autoencoder(Family):
    """See the module's mathematics."""

    residual: Tensor  # clean residual variance per value, inner shape
    middle: Tensor  # clean codes' mean and spread, each (L,)
    spread: Tensor

    def __init__(
        self,
        spec: InputSpec,
        *,
        latent: int = 0,
        width: int = 0,
        noise: float = 0.0,
        memory: int = 0,
        resolution: int = 64,
    ) -> None:
        """Builds the networks.

        Args:
            latent: L; 0 chooses by the input.
            width: channels of the first convolution, or units of a dense layer; 0 chooses by the input.
            noise: standard deviation of the noise to be undone in training, in clean standard deviations; 0: none.
            memory: N, prototypes that codes are made of; 0: none.
            resolution: pixels of an image's longer side that the networks see, at most; larger images are averaged
                down inside the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range.
        """
        whole = relatable(spec)
        super().__init__(spec, MEANING | (DISTANCE_MEANING if whole else {}), terms_for(FUSED, spec, whole))
        sizes_in_range(latent=latent, width=width, resolution=resolution)
        in_range("noise", noise, 0, 10)
        in_range("memory", memory, 0, 65536)
        if memory == 1:
            raise Refusal("Argument memory is 1; one prototype would be every reconstruction. Give 2 or more, or 0.")
        self.normaliser = Normaliser(spec, resolution)
        inner = self.normaliser.inner
        self.latent = latent or latent_units(spec)
        self.width = width or WIDTHS[spec.kind]
        self.noise, self.memory, self.resolution = noise, memory, resolution
        self.gaps = spec.missing == "allow"
        self.encoder = encoder_for(inner, self.latent, self.width, self.normaliser.shape[0] if self.gaps else 0)
        self.decoder = decoder_for(inner, self.latent, 1, self.width)
        self.prototypes = Memory(memory, self.latent) if memory else None
        self.register_buffer("residual", torch.ones(self.normaliser.shape))
        self.register_buffer("middle", torch.zeros(self.latent))
        self.register_buffer("spread", torch.ones(self.latent))
        self.codes = Gaussian(self.latent, RIDGE)
        self.clusters = Mixture(self.latent, RIDGE)
        self.residuals = Relations(inner) if whole else None

    @property
    def latent_size(self) -> int:
        return self.latent

    @property
    def recipe(self) -> Recipe:
        match self.normaliser.inner:
            case ImageSpec(height=height, width=width):
                return Recipe(steps=1200, batch=32 if height * width > 64 * 64 else 128, rate=2e-3)
            case SeriesSpec():
                return Recipe(steps=2000, batch=128, rate=2e-3)
            case _:
                return Recipe(steps=3000, batch=128, rate=2e-3)

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def start(self, batches: Batches) -> None:
        """Normalisation."""
        self.normaliser.fit(batches)

    def players(self) -> dict[str, nn.Module]:
        return {"autoencoder": self}

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        y, mask = self._values(batch.x)
        noisy = y
        if self.noise:
            # What is missing stays at its mean: noise there would be noise on nothing.
            noisy = y + self.noise * at.normal(y) * mask
        code, shares = self._recall(self._code(noisy, mask))
        error = ((y - self.decoder(code)).square() * mask).sum() / mask.sum().clamp_min(1)
        if shares is None:
            return {"total": error}
        entropy = -(shares * (shares + TINY).log()).sum(1).mean()
        return {"total": error + ENTROPY * entropy, "reconstruction": error, "entropy": entropy}

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Clean codes and residuals."""
        codes, squares = [], MeanSquares(self.residual)
        for batch in batches():
            y, mask = self._values(batch.x)
            z = self._code(y, mask)
            residual = (y - self._reconstruct(z)) * mask
            codes.append(z)
            squares.add(residual.square(), mask)
            if self.residuals is not None:
                self.residuals.add(related(residual, self.normaliser.inner))
        z = torch.cat(codes)
        self.middle.copy_(z.mean(0))
        # One scale for all units, that a ridge means something: their own would turn an idle unit's noise into news.
        self.spread.fill_(float(z.var(0, correction=0).mean().sqrt().clamp_min(1e-6)))
        z = (z - self.middle) / self.spread
        self.codes.fit(z)
        self.clusters.fit(z)
        if self.residuals is not None:
            self.residuals.settle()
        self.residual.copy_(squares.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        y, mask = self._values(batch.x)
        z = self._code(y, mask)
        residual = (y - self._reconstruct(z)) * mask
        inner = self.normaliser.inner
        heat = residual.square() / self.residual
        if isinstance(inner, ImageSpec):
            heat = smooth(heat.mean(1), inner)
        code = (z - self.middle) / self.spread
        terms = {
            "reconstruction_error": residual.square().flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1),
            "latent_distance": self.codes.distance(code),
            "latent_density": self.clusters.density(code),
            "map_peak": heat.flatten(1).amax(1),
        }
        if self.residuals is not None:
            terms["residual_distance"] = self.residuals.away(related(residual, inner))
        return Evidence(terms, self.normaliser.full_size(heat))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The code, whose log-variance is reported as 0: an autoencoder has no posterior."""
        z = self._code(*self._values(batch.x))
        return z, torch.zeros_like(z)

    def decode(self, latents: Batch) -> Tensor:
        return self.normaliser.denormalise(self._reconstruct(latents.x))

    def sample(self, draw: Draw) -> Tensor:
        raise Refusal(
            "An autoencoder cannot generate samples: it has no distribution over its codes to draw from. Fit a vae, "
            "which has one, or take codes of real samples and interpolate."
        )

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw (B, *shape) -> normalised and observed (1 or 0), channels first; missing values at the mean."""
        y = self.normaliser(x)
        if not self.gaps:
            return y, torch.ones_like(y)
        return torch.where(y.isnan(), 0.0, y), (~y.isnan()).to(y.dtype)

    def _code(self, y: Tensor, mask: Tensor) -> Tensor:
        z: Tensor = self.encoder(torch.cat([y, mask], dim=1) if self.gaps else y)
        return z

    def _recall(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the decoder is given for a code, and the addresses behind it."""
        if self.prototypes is None:
            return z, None
        shares = self.prototypes.address(z)
        return shares @ self.prototypes.items, shares

    def _reconstruct(self, z: Tensor) -> Tensor:
        y: Tensor = self.decoder(self._recall(z)[0])
        return y


class Memory(nn.Module):
    """Prototypes of codes, and how a code addresses them."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.items = nn.Parameter(torch.randn(count, size))
        self.sharpness = nn.Parameter(torch.tensor(10.0).log())

    def address(self, z: Tensor) -> Tensor:
        """(B, L) -> shares of the prototypes (B, N), most of them 0, with a sum of 1."""
        alike = functional.normalize(z, dim=1) @ functional.normalize(self.items, dim=1).T
        w = (alike * self.sharpness.exp()).softmax(1)
        sparse = w * (w > 1 / len(self.items))
        total = sparse.sum(1, keepdim=True)
        # Where all are equal, none stands out.
        return torch.where(total > 0, sparse / total.clamp_min(TINY), w)
