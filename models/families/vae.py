"""Variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114; beta: Higgins et al. 2017; free bits: Kingma et
al. 2016, arXiv:1606.04934).

x is a sample of D values, y the same normalised; q(z|x) = N(mu, sigma^2) and p(z) = N(0, I) over L latent units.

    loss                  = (-E_q[log p(x|z)] + beta sum_l max(KL_l, free_bits)) / D      trained, one z a sample
    negative_elbo         = -1/K sum_k log p(x|z_k) + KL(q(z|x) || p(z))                  nats, z_k = mu + sigma e_k
    kl                    = 1/2 sum_l (mu_l^2 + sigma_l^2 - log sigma_l^2 - 1)            nats
    reconstruction_error  = 1/D |y - E[y|mu]|^2                                           from the posterior mean
    latent_distance       = Mahalanobis distance of mu from the clean posterior means
    latent_density        = -log of a Gaussian mixture over the clean posterior means, at mu  nats; the prior is only
                            what training pulled them towards, this is where they came to lie (ex-post density
                            estimation, Ghosh et al. 2020, arXiv:1903.12436)
    map                   = (y - E[y|mu])^2 / s^2, s^2 the clean residual variance         per pixel, step or column
    map_peak              = max of the smoothed map
    residual_distance     = Mahalanobis distance of y - E[y|mu] from the clean residuals
    input_distance        = Mahalanobis distance of y from clean y (Hotelling's T2)

The last two are taken over the columns of a table, over the channels at each step of a window (and then as the root
mean square over its steps), and over an image averaged down to a coarse grid: what is left over may be small
everywhere and yet lie where, or go together as, nothing left over by clean samples does.

The K noises e_k are stored in the graph, half of them the negatives of the other half (antithetic) and each unit's
scaled to a mean square of 1, so that the bound is an average over the posterior, of its very mean and variance, and yet
the same at each call; at the posterior mean it would be no bound at all.
Where conditions are declared, q(z|x, c) and p(x|z, c): the one-hot c stands beside the inputs of encoder and decoder
(Sohn, Lee and Yan 2015). The prior is the same under every condition; y's distance is taken from clean y of its own
condition, by a covariance common to all.
Missing values (NaN) enter the encoder as the clean mean with a flag beside them and leave no trace in any evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Progress, Recipe, in_range
from vaegis.models.families.fusion import Form, terms_for
from vaegis.models.families.parts.conditions import beside, one_hot
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, WIDTHS, latent_units, sizes_in_range
from vaegis.models.families.parts.densities import Gaussian, Mixture
from vaegis.models.families.parts.layers import (
    averaged,
    averaging,
    decoder_for,
    encoder_for,
    enlarge,
    from_channels,
    inner_shape,
    shrink,
    smooth,
    to_channels,
)
from vaegis.models.families.parts.likelihoods import ColumnLikelihoods, LocationScale, likelihood_for
from vaegis.models.families.parts.normaliser import averaging_notes, moments, usable
from vaegis.models.families.parts.relations import RESIDUAL_MEANING, Relations, relatable, related, related_values
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

RIDGE = 1e-2  # added to the latent covariance: collapsed units have none of their own
NOISE_SEED = 20131220

MEANING = {
    "reconstruction_error": "mean squared error per value of the reconstruction from the posterior mean",
    "negative_elbo": "negative evidence lower bound, nats: how improbable the sample is under the model",
    "kl": "KL divergence of the posterior from the prior, nats: how much the sample says about its latent",
    "latent_distance": "Mahalanobis distance of the posterior mean from the clean latents",
    "latent_density": "negative log-density of the posterior mean among the clean latents, nats",
    "map_peak": MAP_PEAK_MEANING,
}
DISTANCE_MEANING = {
    "residual_distance": RESIDUAL_MEANING,
    "input_distance": "Mahalanobis distance of the values themselves from clean ones (Hotelling's T2)",
}
# Which terms a score fuses was chosen by synthetic defects (docs/benchmarks.md), not by labels.
FUSED: dict[str, dict[str, Form]] = {
    "image": {"latent_density": "linear", "map_peak": "log", "residual_distance": "log"},
    "series": {"map_peak": "log", "residual_distance": "log", "input_distance": "log"},
    "vector": {"residual_distance": "log", "input_distance": "log"},
    "varied": {"reconstruction_error": "log", "residual_distance": "log"},
    # Without distances: at its mean a gap breaks the very relations they hold it to.
    "missing": {"reconstruction_error": "log", "latent_density": "linear", "map_peak": "log"},
}


class Pass(NamedTuple):
    """A loss, and what it comes from."""

    terms: dict[str, Tensor]
    y: Tensor  # normalised, channels first
    mask: Tensor  # 1 where a value was observed
    z: Tensor  # one draw for each sample
    out: Tensor  # of the decoder for it


class VAE(Family):
    """See the module's mathematics."""

    conditional = True

    centre: Tensor  # normalisation of raw values, inner shape with singleton space or time
    scale: Tensor
    noise: Tensor  # (K, L)
    residual: Tensor  # clean residual variance per value, inner shape
    usual: Tensor  # (conditions, V) mean of clean y under each

    def __init__(
        self,
        spec: InputSpec,
        *,
        latent: int = 0,
        width: int = 0,
        beta: float = 1.0,
        warmup: float = 0.2,
        free_bits: float = 0.0,
        likelihood: str | Mapping[str, str] = "gaussian",
        variance: str = "feature",
        sigma: float = 1.0,
        noises: int = 2,
        resolution: int = 64,
    ) -> None:
        """Builds the networks.

        Args:
            latent: L; 0 chooses by the input.
            width: channels of the first convolution, or units of a dense layer; 0 chooses by the input.
            beta: weight of the KL term, >= 0.
            warmup: share of the steps over which beta rises from 0, in [0, 1].
            free_bits: nats per latent unit below which KL is not charged, >= 0.
            likelihood: bernoulli, gaussian or laplace; per column of a table poisson or categorical:K.
            variance: of gaussian and laplace: fixed (sigma), feature (learned per value) or predicted by the decoder.
            sigma: fixed or starting standard deviation, in units of clean variation.
            noises: K, even.
            resolution: pixels of an image's longer side that the networks see, at most; larger images are averaged
                down inside the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range.
        """
        whole = relatable(spec)
        super().__init__(spec, MEANING | (DISTANCE_MEANING if whole else {}), terms_for(FUSED, spec, whole))
        sizes_in_range(latent=latent, width=width, resolution=resolution)
        self.resolution = resolution
        self.factor = averaging(spec, resolution)
        # What the networks see: the spec, but for larger images averaged down.
        self.inner = averaged(spec, self.factor)
        shape = inner_shape(self.inner)
        in_range("beta", beta, 0, math.inf)
        in_range("warmup", warmup, 0, 1)
        in_range("free_bits", free_bits, 0, math.inf)
        if noises < 2 or noises % 2:
            raise Refusal(f"Argument noises is {noises}; it must be even and at least 2, as noises come in pairs.")
        self.latent = latent or latent_units(spec)
        self.width = width or WIDTHS[spec.kind]
        self.beta, self.warmup, self.free_bits = beta, warmup, free_bits
        self.likelihood, self.variance, self.sigma, self.noises = likelihood, variance, sigma, noises
        self.distribution = likelihood_for(self.inner, shape, likelihood, variance, sigma)
        total = self.distribution.total if isinstance(self.distribution, ColumnLikelihoods) else 0
        conditions = len(spec.conditions)
        extra = (shape[0] if spec.missing == "allow" else 0) + conditions
        self.encoder = encoder_for(self.inner, 2 * self.latent, self.width, extra)
        self.decoder = decoder_for(self.inner, self.latent + conditions, self.distribution.outputs, self.width, total)
        per_channel = (shape[0],) + (1,) * (len(shape) - 1)
        self.register_buffer("centre", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))
        half = torch.randn(noises // 2, self.latent, generator=torch.Generator().manual_seed(NOISE_SEED))
        half = half / half.square().mean(0).sqrt()
        self.register_buffer("noise", torch.cat([half, -half]))
        self.register_buffer("residual", torch.ones(shape))
        self.latents = Gaussian(self.latent, RIDGE)
        self.clusters = Mixture(self.latent, RIDGE)
        self.residuals = Relations(self.inner) if whole else None
        self.inputs = Relations(self.inner) if whole else None
        self.register_buffer("usual", torch.zeros(conditions, related_values(self.inner)), persistent=bool(conditions))

    @property
    def latent_size(self) -> int:
        return self.latent

    @property
    def recipe(self) -> Recipe:
        match self.inner:
            case ImageSpec():
                pixels = self.inner.height * self.inner.width
                batch = 128 if pixels <= 32 * 32 else 64 if pixels <= 64 * 64 else 32
                return Recipe(steps=1200, batch=batch, rate=2e-3)
            case SeriesSpec():
                return Recipe(steps=2000, batch=128, rate=2e-3)
            case _:
                return Recipe(steps=3000, batch=128, rate=2e-3)

    def notes(self) -> tuple[str, ...]:
        return averaging_notes(self.factor)

    def start(self, batches: Batches) -> None:
        """Mean and spread of each channel or column over the fit split, as the likelihood needs them."""
        mean, spread = self.distribution.natural(*moments(self._checked(batches)))
        spread = usable(mean, spread)
        self.centre.copy_(mean.view_as(self.centre))
        self.scale.copy_(spread.view_as(self.scale))
        whole_numbers = isinstance(self.spec, ImageSpec)
        rounding = (1.0 / spread.min()) ** 2 / 12 if whole_numbers else torch.tensor(1e-4)
        self.distribution.settle(mean, spread, rounding)

    def _checked(self, batches: Batches) -> Iterator[Tensor]:
        """Raw batches as the networks see them, once the likelihood has let them pass."""
        for batch in batches():
            raw = self._arrange(batch.x)
            self.distribution.check(raw.double())
            yield raw

    def players(self) -> dict[str, nn.Module]:
        return {"vae": self}

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        return self._pass(batch, at).terms

    def _pass(self, batch: Batch, at: Progress) -> Pass:
        raw, y, mask = self._values(batch.x)
        mean, log_variance = self._posterior(y, mask, batch.condition)
        z = mean + (0.5 * log_variance).exp() * at.normal(mean)
        out = self._output(z, batch.condition)
        nats = -(self.distribution.log_prob(y, raw, out).float() * mask).flatten(1).sum(1).mean()
        unit = self._divergence(mean, log_variance, z).float()
        kl = unit.sum(1).mean()
        charged = unit.mean(0).clamp_min(self.free_bits).sum() if self.free_bits else kl
        weight = self.beta * min(1.0, at.share / self.warmup) if self.warmup else self.beta
        values = y[0].numel()
        terms = {"total": (nats + weight * charged) / values, "reconstruction": nats / values, "kl": kl}
        return Pass(terms, y, mask, z, out)

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Clean latents and residuals."""
        latents, squares = [], MeanSquares(self.residual)
        if self.inputs is not None and self.spec.conditions:
            self._find_usual(batches)
        for x, condition in batches():
            raw, y, mask = self._values(x)
            mean, _ = self._posterior(y, mask, condition)
            out = self._output(mean, condition)
            latents.append(mean)
            squares.add(self.distribution.error(y, raw, out) * mask, mask)
            if self.residuals is not None and self.inputs is not None:
                self.residuals.add(related(y - self.distribution.mean(out), self.inner))
                self.inputs.add(self._unusual(y, condition))
        self.latents.fit(torch.cat(latents))
        self.clusters.fit(torch.cat(latents))
        if self.residuals is not None and self.inputs is not None:
            self.residuals.settle()
            self.inputs.settle()
        self.residual.copy_(squares.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        raw, y, mask = self._values(batch.x)
        mean, log_variance = self._posterior(y, mask, batch.condition)
        spread = (0.5 * log_variance).exp()
        count = mask.flatten(1).sum(1).clamp_min(1.0)
        centre = self._output(mean, batch.condition)
        error = self.distribution.error(y, raw, centre) * mask
        # A partly observed sample's nats are scaled up to a full one's, so that one threshold serves both.
        share = count / float(math.prod(y.shape[1:]))
        nats = kl = torch.zeros_like(count)
        for k in range(self.noises):
            z = mean + spread * self.noise[k]
            out = self._output(z, batch.condition)
            nats = nats - (self.distribution.log_prob(y, raw, out) * mask).flatten(1).sum(1)
            kl = kl + self._divergence(mean, log_variance, z).sum(1) / self.noises
        heat = from_channels(error / self.residual, self.inner)
        if isinstance(self.inner, ImageSpec):
            heat = smooth(heat.mean(-1), self.inner)
        peak = heat.flatten(1).amax(1)
        if isinstance(self.spec, ImageSpec):
            heat = enlarge(heat[:, None], self.factor, (self.spec.height, self.spec.width))[:, 0]
        terms = {
            "reconstruction_error": error.flatten(1).sum(1) / count,
            "negative_elbo": nats / self.noises / share + kl,
            "kl": kl,
            "latent_distance": self.latents.distance(mean),
            "latent_density": self.clusters.density(mean),
            "map_peak": peak,
        }
        if self.residuals is not None and self.inputs is not None:
            residual = related(y - self.distribution.mean(centre), self.inner)
            terms["residual_distance"] = self.residuals.away(residual)
            terms["input_distance"] = self.inputs.away(self._unusual(y, batch.condition))
        return Evidence(terms, heat)

    def log_jacobian(self) -> float | None:
        if not isinstance(self.distribution, LocationScale) or self.factor > 1:
            return None
        return float(self.scale.double().log().expand(self.residual.shape).sum())

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        _, y, mask = self._values(batch.x)
        return self._posterior(y, mask, batch.condition)

    def decode(self, latents: Batch) -> Tensor:
        mean = self.distribution.mean(self._output(*latents))
        values = mean * self.scale + self.centre
        if isinstance(self.spec, ImageSpec):
            values = enlarge(values, self.factor, (self.spec.height, self.spec.width))
        return from_channels(values, self.spec)

    def sample(self, draw: Draw) -> Tensor:
        return self.decode(Batch(draw.normal(self.latent).to(self.centre.device), draw.condition))

    def _divergence(self, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
        """KL(q || p) in nats per latent unit, (B, L); z is one draw from q, for priors without a closed form."""
        return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)

    def _arrange(self, x: Tensor) -> Tensor:
        """Raw (B, *shape) -> raw as the networks see it, channels first."""
        raw = to_channels(x, self.spec)
        return shrink(raw, self.factor) if self.factor > 1 else raw

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw (B, *shape) -> raw and normalised, at the mean where missing, and the mask (1 where observed)."""
        raw = self._arrange(x)
        if self.spec.missing == "allow":
            mask = (~raw.isnan()).to(raw.dtype)
            raw = torch.where(raw.isnan(), self.centre.expand_as(raw), raw)
        else:
            mask = torch.ones_like(raw)
        return raw, (raw - self.centre) / self.scale, mask

    def _posterior(self, y: Tensor, mask: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, L)."""
        inputs = torch.cat([y, mask], dim=1) if self.spec.missing == "allow" else y
        if self.spec.conditions:
            inputs = beside(inputs, self._one_hot(condition, y))
        mean, log_variance = self.encoder(inputs).chunk(2, dim=1)
        # Bounded so that no single sample can overflow exp; +-10 nats is far beyond any useful posterior.
        return mean, 10.0 * torch.tanh(log_variance / 10.0)

    def _find_usual(self, batches: Batches) -> None:
        """The clean mean under each condition."""
        total, count = torch.zeros_like(self.usual).double(), torch.zeros(len(self.usual), 1).double()
        for x, condition in batches():
            y = self._values(x)[1]
            vectors = self._one_hot(condition, y).double()
            total += vectors.T @ related(y, self.inner).double().mean(1)
            count += vectors.sum(0)[:, None]
        self.usual.copy_(total / count.clamp_min(1))

    def _unusual(self, y: Tensor, condition: Tensor | None) -> Tensor:
        """What `related` gives, (B, S, V), less what is usual under the condition."""
        values = related(y, self.inner)
        return values - (self._one_hot(condition, y) @ self.usual)[:, None] if self.spec.conditions else values

    def _output(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The decoder's output for latents (B, L)."""
        out: Tensor = self.decoder(torch.cat([z, self._one_hot(condition, z)], dim=1) if self.spec.conditions else z)
        return out

    def _one_hot(self, condition: Tensor | None, like: Tensor) -> Tensor:
        return one_hot(condition, len(self.spec.conditions), like)
