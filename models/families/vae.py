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
    residual_distance     = Mahalanobis distance of y - E[y|mu] from the clean residuals    vectors only
    input_distance        = Mahalanobis distance of y from clean y (Hotelling's T2)         vectors only

The K noises e_k are stored in the graph, half of them the negatives of the other half (antithetic) and each unit's
scaled to a mean square of 1, so that the bound is an average over the posterior, of its very mean and variance, and yet
the same at each call; at the posterior mean it would be no bound at all.
Missing values (NaN) enter the encoder as the clean mean with a flag beside them and leave no trace in any evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import Refusal
from models.families.densities import Gaussian, Mixture
from models.families.family import Batches, Evidence, Family, Progress, Recipe
from models.families.fusion import Form
from models.families.layers import (
    decoder_for,
    encoder_for,
    enlarge,
    from_channels,
    inner_shape,
    shrink,
    smooth,
    to_channels,
)
from models.families.likelihoods import Bernoulli, LocationScale, Table, likelihood_for
from models.spec import ImageSpec, InputSpec, SeriesSpec

RIDGE = 1e-2  # added to the latent covariance: collapsed units have none of their own
TABLE_RIDGE = 1e-4  # the same of normalised columns: near-exact relations between columns are what a fault breaks
TABLE_MOST = 2048  # columns up to which a full covariance is kept
NOISE_SEED = 20131220


MEANING = {
    "reconstruction_error": "mean squared error per value of the reconstruction from the posterior mean",
    "negative_elbo": "negative evidence lower bound, nats: how improbable the sample is under the model",
    "kl": "KL divergence of the posterior from the prior, nats: how much the sample says about its latent",
    "latent_distance": "Mahalanobis distance of the posterior mean from the clean latents",
    "latent_density": "negative log-density of the posterior mean among the clean latents, nats",
    "map_peak": "largest value of the map: the strangest place, in units of clean variance",
}
TABLE_MEANING = {
    "residual_distance": "Mahalanobis distance of what the reconstruction leaves over from clean residuals",
    "input_distance": "Mahalanobis distance of the values themselves from clean ones (Hotelling's T2)",
}
FUSED: dict[str, Form] = {
    "reconstruction_error": "log",
    "negative_elbo": "linear",
    "latent_density": "linear",
    "map_peak": "log",
}
TABLE_FUSED: dict[str, Form] = {"residual_distance": "log", "input_distance": "log"}


class VAE(Family):
    """See the module's mathematics."""

    centre: Tensor  # normalisation of raw values, inner shape with singleton space or time
    scale: Tensor
    noise: Tensor  # (K, L)
    residual: Tensor  # clean residual variance per value, inner shape

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
        # Not with missing values: at a column's mean a gap breaks the very relations that these distances hold it to.
        tabular = spec.kind == "vector" and spec.missing == "refuse" and spec.shape[0] <= TABLE_MOST
        super().__init__(spec, MEANING | (TABLE_MEANING if tabular else {}), TABLE_FUSED if tabular else FUSED)
        _in_range("resolution", resolution, 0, 512)
        self.resolution = resolution
        self.factor = _factor(spec, resolution)
        # What the networks see: the spec, but for larger images averaged down.
        self.inner = _averaged(spec, self.factor)
        shape = inner_shape(self.inner)
        _in_range("latent", latent, 0, 4096)
        _in_range("width", width, 0, 4096)
        _in_range("beta", beta, 0, math.inf)
        _in_range("warmup", warmup, 0, 1)
        _in_range("free_bits", free_bits, 0, math.inf)
        if noises < 2 or noises % 2:
            raise Refusal(f"Argument noises is {noises}; it must be even and at least 2, as noises come in pairs.")
        self.latent = latent or _default_latent(spec)
        self.width = width or {"image": 16, "series": 32, "vector": 128}[spec.kind]
        self.beta, self.warmup, self.free_bits = beta, warmup, free_bits
        self.likelihood, self.variance, self.sigma, self.noises = likelihood, variance, sigma, noises
        self.distribution = likelihood_for(self.inner, shape, likelihood, variance, sigma)
        total = self.distribution.total if isinstance(self.distribution, Table) else 0
        extra = shape[0] if spec.missing == "allow" else 0
        self.encoder = encoder_for(self.inner, 2 * self.latent, self.width, extra)
        self.decoder = decoder_for(self.inner, self.latent, self.distribution.outputs, self.width, total)
        per_channel = (shape[0],) + (1,) * (len(shape) - 1)
        self.register_buffer("centre", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))
        half = torch.randn(noises // 2, self.latent, generator=torch.Generator().manual_seed(NOISE_SEED))
        half = half / half.square().mean(0).sqrt()
        self.register_buffer("noise", torch.cat([half, -half]))
        self.register_buffer("residual", torch.ones(shape))
        self.latents = Gaussian(self.latent, RIDGE)
        self.clusters = Mixture(self.latent, RIDGE)
        self.residuals = Gaussian(shape[0], TABLE_RIDGE) if tabular else None
        self.inputs = Gaussian(shape[0], TABLE_RIDGE) if tabular else None

    @property
    def latent_size(self) -> int:
        return self.latent

    @property
    def recipe(self) -> Recipe:
        match self.inner:
            case ImageSpec():
                big = self.inner.height * self.inner.width > 64 * 64
                return Recipe(steps=1200, batch=32 if big else 128, rate=2e-3)
            case SeriesSpec():
                return Recipe(steps=2000, batch=128, rate=2e-3)
            case _:
                return Recipe(steps=3000, batch=128, rate=2e-3)

    def notes(self) -> tuple[str, ...]:
        if self.factor == 1:
            return ()
        side = self.factor
        return (
            f"Squares of {side}x{side} pixels are averaged before the networks see an image, so a defect of a pixel or "
            "two may be lost. For fine defects take --set resolution=0, or cut the images by --tile.",
        )

    def start(self, batches: Batches) -> None:
        """Mean and spread of each channel or column over the fit split."""
        axes: tuple[int, ...] = ()
        count = mean = square = torch.zeros(())
        levels = 2.0**self.spec.depth - 1 if isinstance(self.spec, ImageSpec) else 0.0
        table = self.distribution if isinstance(self.distribution, Table) else None
        rest, plain = (table.rest, table.plain) if table is not None else (self.distribution, slice(None))
        for batch in batches():
            x = self._seen(batch).double()
            if table is not None:
                table.check(x)
            axes = (0, *range(2, x.dim()))
            seen = ~x.isnan()
            values = torch.where(seen, x, 0.0)
            count = count + seen.sum(axes)
            mean = mean + values.sum(axes)
            square = square + values.square().sum(axes)
            if isinstance(rest, Bernoulli) and not levels and bool((values - values.clamp(0, 1))[:, plain].any()):
                raise Refusal("Likelihood bernoulli needs values from 0 to 1, and these data go beyond; use gaussian.")
        count = count.clamp_min(1)
        mean = mean / count
        spread = (square / count - mean.square()).clamp_min(0).sqrt()
        if isinstance(rest, Bernoulli):
            mean[plain], spread[plain] = 0.0, levels or 1.0
        # A constant column has no scale of its own; in raw units any change of it is large.
        constant = spread <= 1e-6 * mean.abs() + 1e-12
        spread = torch.where(constant, torch.ones_like(spread), spread)
        self.centre.copy_(mean.view_as(self.centre))
        self.scale.copy_(spread.view_as(self.scale))
        rounding = (1.0 / spread.min()) ** 2 / 12 if levels else torch.tensor(1e-4)
        if isinstance(rest, LocationScale):
            rest.floor.copy_(rounding.clamp(1e-6, 1e-2))
        if table is not None:
            table.centre.copy_(mean)
            table.scale.copy_(spread)

    def players(self) -> dict[str, nn.Module]:
        return {"vae": self}

    def loss(self, x: Tensor, player: str, at: Progress) -> dict[str, Tensor]:
        raw, y, seen = self._values(x)
        mean, log_variance = self._posterior(y, seen)
        noise = torch.randn(mean.shape, generator=at.generator, device=at.generator.device).to(mean)
        out = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        nats = -(self.distribution.log_prob(y, raw, out).float() * seen).flatten(1).sum(1).mean()
        unit = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).float()
        kl = unit.sum(1).mean()
        charged = unit.mean(0).clamp_min(self.free_bits).sum() if self.free_bits else kl
        weight = self.beta * min(1.0, at.share / self.warmup) if self.warmup else self.beta
        values = y[0].numel()
        return {"total": (nats + weight * charged) / values, "reconstruction": nats / values, "kl": kl}

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Clean latents and residuals."""
        latents, residuals, inputs = [], [], []
        seen_count, square = torch.zeros_like(self.residual).double(), torch.zeros_like(self.residual).double()
        for batch in batches():
            raw, y, seen = self._values(batch)
            mean, _ = self._posterior(y, seen)
            out = self.decoder(mean)
            latents.append(mean)
            seen_count += seen.double().sum(0)
            square += (self.distribution.error(y, raw, out) * seen).double().sum(0)
            if self.residuals is not None:
                residuals.append(y - self.distribution.mean(out))
                inputs.append(y)
        self.latents.fit(torch.cat(latents))
        self.clusters.fit(torch.cat(latents))
        if self.residuals is not None and self.inputs is not None:
            self.residuals.fit(torch.cat(residuals))
            self.inputs.fit(torch.cat(inputs))
        # Shrunk towards the sample's mean: one pixel's residual over a few hundred samples is itself noisy, and a
        # place that was always reconstructed perfectly must not make the map explode.
        own = square / seen_count.clamp_min(1)
        overall = own.mean().clamp_min(1e-8)
        self.residual.copy_(own * 0.9 + overall * 0.1)

    def evidence(self, x: Tensor) -> Evidence:
        raw, y, seen = self._values(x)
        mean, log_variance = self._posterior(y, seen)
        spread = (0.5 * log_variance).exp()
        observed = seen.flatten(1).sum(1).clamp_min(1.0)
        centre = self.decoder(mean)
        error = self.distribution.error(y, raw, centre) * seen
        # A partly observed sample's nats are scaled up to a full one's, so that both can be held against one threshold.
        share = observed / float(math.prod(y.shape[1:]))
        nats = torch.zeros_like(observed)
        for k in range(self.noises):
            out = self.decoder(mean + spread * self.noise[k])
            nats = nats - (self.distribution.log_prob(y, raw, out) * seen).flatten(1).sum(1)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        heat = from_channels(error / self.residual, self.inner)
        if isinstance(self.inner, ImageSpec):
            heat = smooth(heat.mean(-1), self.inner)
        peak = heat.flatten(1).amax(1)
        if isinstance(self.spec, ImageSpec):
            heat = enlarge(heat[:, None], self.factor, (self.spec.height, self.spec.width))[:, 0]
        terms = {
            "reconstruction_error": error.flatten(1).sum(1) / observed,
            "negative_elbo": nats / self.noises / share + kl,
            "kl": kl,
            "latent_distance": self.latents.distance(mean),
            "latent_density": self.clusters.density(mean),
            "map_peak": peak,
        }
        if self.residuals is not None and self.inputs is not None:
            terms["residual_distance"] = self.residuals.distance(y - self.distribution.mean(centre))
            terms["input_distance"] = self.inputs.distance(y)
        return Evidence(terms, heat)

    def log_jacobian(self) -> float | None:
        if not isinstance(self.distribution, LocationScale) or self.factor > 1:
            return None
        return float(self.scale.double().log().expand(self.residual.shape).sum())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, y, seen = self._values(x)
        return self._posterior(y, seen)

    def decode(self, z: Tensor) -> Tensor:
        mean = self.distribution.mean(self.decoder(z))
        values = mean * self.scale + self.centre
        if isinstance(self.spec, ImageSpec):
            values = enlarge(values, self.factor, (self.spec.height, self.spec.width))
        return from_channels(values, self.spec)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.latent, generator=generator, device=generator.device)
        return self.decode(z.to(self.centre.device))

    def _seen(self, x: Tensor) -> Tensor:
        """Raw (B, *shape) -> raw as the networks see it, channels first."""
        raw = to_channels(x, self.spec)
        return shrink(raw, self.factor) if self.factor > 1 else raw

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw (B, *shape) -> raw, normalised and observed (1 or 0), channels first; missing values at the mean."""
        raw = self._seen(x)
        if self.spec.missing == "allow":
            seen = (~raw.isnan()).to(raw.dtype)
            raw = torch.where(raw.isnan(), self.centre.expand_as(raw), raw)
        else:
            seen = torch.ones_like(raw)
        return raw, (raw - self.centre) / self.scale, seen

    def _posterior(self, y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, L)."""
        inputs = torch.cat([y, seen], dim=1) if self.spec.missing == "allow" else y
        mean, log_variance = self.encoder(inputs).chunk(2, dim=1)
        # Bounded so that no single sample can overflow exp; +-10 nats is far beyond any useful posterior.
        return mean, 10.0 * torch.tanh(log_variance / 10.0)


def _default_latent(spec: InputSpec) -> int:
    match spec:
        case ImageSpec():
            return 32
        case SeriesSpec():
            return max(4, min(16, 2 * len(spec.columns)))
        case _:
            return max(2, min(32, len(spec.columns) // 2))


def _factor(spec: InputSpec, resolution: int) -> int:
    """Pixels of an image that one pixel of the networks' input stands for, along each side."""
    if not isinstance(spec, ImageSpec) or not resolution:
        return 1
    return math.ceil(max(spec.height, spec.width) / max(resolution, 16))


def _averaged(spec: InputSpec, factor: int) -> InputSpec:
    if not isinstance(spec, ImageSpec) or factor == 1:
        return spec
    return replace(spec, height=math.ceil(spec.height / factor), width=math.ceil(spec.width / factor))


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        raise Refusal(f"Argument {name} is {value}; it must lie between {low:g} and {high:g}.")
