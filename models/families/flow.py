"""Normalising flow: the exact density of a sample (Rezende and Mohamed 2015, arXiv:1505.05770).

x is a sample of D values, y the same normalised, z = f(y) with f invertible and z ~ N(0, I):

    -log p(y)               = sum_d (z_d^2 / 2 + log(2 pi) / 2) - log|det dz/dy|
    negative_log_likelihood = -log p(y)                                                   nats; higher = stranger
    typicality              = |-log p(y) - clean mean| / clean standard deviation          (`typicality.py`)
    map                     = m / clean mean of m, per pixel, step or column
    map_peak                = max of the smoothed map

of images and windows     m = (y - f^-1(r z / 2|z|))^2,  r^2 the clean mean of |z|^2
of vectors                m = z^2

Clean latents lie close to a sphere of radius r, and a defect's far outside. To bring the latent back along its ray,
well inside the sphere (on it, nothing of a clean sample but rounding errors would move), and see what that changes in
the sample says where. z^2 itself does not: convolutions have told it of its surroundings, and most of what a defect
does there shows at background pixels beside it, whose scales are the smallest. The latents of a vector stay with their
columns.

Vectors: y is first whitened by the clean covariance, C^(-1/2) y (the symmetric root, which keeps each latent nearest
its own column), so that the flow begins as a Gaussian with all correlations and learns what is not Gaussian. Then
zuko's transforms: `spline` (neural spline coupling, Durkan et al. 2019, arXiv:1906.04032), `realnvp` (affine coupling)
or `maf` (masked autoregressive, Papamakarios et al. 2017, arXiv:1705.07057). A coupling moves half of the values given
the other half and is inverted in two passes; an autoregressive transform needs D passes in a row, so a `maf` offers no
decoder. Images and windows: the multi-scale coupling flow of `coupling.py`.

Values that are whole numbers (images) have a density only once they are spread: uniform noise of one level is added in
training (uniform dequantisation, Theis et al. 2016, arXiv:1511.01844). At scoring the stored value stands, which is the
centre of its interval, so that evidence repeats. Normal noise of `noise` clean standard deviations is added too:
without it the density of values that repeat, such as a constant background or a sensor at rest, grows without bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Progress, Recipe, in_range
from vaegis.models.families.parts.coupling import MultiScale
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, sizes_in_range
from vaegis.models.families.parts.layers import smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.families.parts.transforms import Vectors, negative_log_density
from vaegis.models.families.parts.typicality import LIKELIHOOD_MEANING, Typicality, fused_likelihood
from vaegis.models.spec import ImageSpec, InputSpec

TRANSFORMS = ("auto", "spline", "realnvp", "maf")
PULL = 0.5  # of the clean radius, to which the map brings latents back
FIRST_LOOK = 512  # samples that activation norms are set from
NOISE_SEED = 20150521
NOISE = {"image": 0.03, "series": 0.1, "vector": 0.03}
WIDTHS = {"image": 32, "series": 32, "vector": 64}
LAYERS = 4

MEANING = {**LIKELIHOOD_MEANING, "map_peak": MAP_PEAK_MEANING}


class Flow(Family):
    """See the module's mathematics."""

    takes_missing = False

    radius: Tensor  # root of the clean mean of |z|^2
    usual: Tensor  # clean mean of m per value, inner shape

    def __init__(
        self,
        spec: InputSpec,
        *,
        transform: str = "auto",
        layers: int = 0,
        width: int = 0,
        bins: int = 8,
        noise: float = -1.0,
        resolution: int = 64,
    ) -> None:
        """Builds the flow.

        Args:
            transform: spline, realnvp or maf for vectors; realnvp for images and windows. auto takes spline where it
                can.
            layers: transforms of a vector, or couplings a level of an image or window; 0 chooses by the input.
            width: channels, or units, of the networks within; 0 chooses by the input.
            bins: of a spline, at least 2.
            noise: standard deviation of the normal noise added in training, in units of clean variation, in [0, 1];
                -1 chooses by the input: 0.1 for windows, whose sensors may be at rest, else 0.03.
            resolution: pixels of an image's longer side that the flow sees, at most; larger images are averaged
                down inside the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range, or a transform that the input does not allow.
        """
        super().__init__(spec, MEANING, fused_likelihood(spec, "log"))
        sizes_in_range(layers=layers, width=width, resolution=resolution)
        in_range("bins", bins, 2, 64)
        noise = NOISE[spec.kind] if noise == -1 else noise
        in_range("noise", noise, 0, 1)
        vector = spec.kind == "vector"
        if transform not in TRANSFORMS:
            raise Refusal(f"Argument transform is {transform!r}; choose {', '.join(TRANSFORMS)}.")
        if transform in ("spline", "maf") and not vector:
            raise Refusal(f"Transform {transform!r} takes vectors, not {spec.kind}; choose realnvp, or leave it out.")
        self.transform = {"auto": "spline" if vector else "realnvp"}.get(transform, transform)
        self.layers, self.width = layers or LAYERS, width or WIDTHS[spec.kind]
        self.bins, self.noise, self.resolution = bins, noise, resolution
        self.normaliser = Normaliser(spec, resolution)
        shape = self.normaliser.shape
        self.flow: Vectors | MultiScale
        if vector:
            self.flow = Vectors(shape[0], self.transform, self.layers, self.width, bins)
        else:
            self.flow = MultiScale(shape, self.layers, self.width)
        self.register_buffer("radius", torch.ones(()))
        self.register_buffer("usual", torch.ones(shape))
        self.typicality = Typicality()

    @property
    def recipe(self) -> Recipe:
        match self.normaliser.inner:
            case ImageSpec(height=height, width=width):
                return Recipe(steps=1200, batch=32 if height * width > 64 * 64 else 64, rate=2e-3)
            case _:
                return Recipe(steps=2000, batch=128, rate=2e-3)

    @property
    def latent_size(self) -> int:
        return math.prod(self.normaliser.shape)

    @property
    def decodes(self) -> bool:
        return self.transform != "maf"

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def log_jacobian(self) -> float | None:
        return self.normaliser.log_jacobian()

    def start(self, batches: Batches) -> None:
        """Normalisation, and where the flow begins: the covariance of vectors, or activation norms."""
        self.normaliser.fit(batches)
        generator = torch.Generator().manual_seed(NOISE_SEED)
        if isinstance(self.flow, Vectors):
            self.flow.whiten(torch.cat([self.normaliser(batch.x) for batch in batches()]))
            return
        first: list[Tensor] = []
        for batch in batches():
            first.append(self._dequantise(self.normaliser(batch.x), generator))
            if sum(map(len, first)) >= FIRST_LOOK:
                break
        self.flow.initialise(torch.cat(first)[:FIRST_LOOK])

    def players(self) -> dict[str, nn.Module]:
        return {"flow": self}

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        y = self._dequantise(self.normaliser(batch.x), at.generator)
        nats, _ = self._nats(y)
        return {"total": nats.mean() / y[0].numel()}

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """What clean likelihoods and latents are like."""
        clean, lengths = [], []
        for batch in batches():
            nats, z = self._nats(self.normaliser(batch.x))
            clean.append(nats)
            lengths.append(z.double().square().flatten(1).sum(1))
        self.typicality.fit(torch.cat(clean))
        self.radius.copy_(torch.cat(lengths).mean().sqrt())
        moved = MeanSquares(self.usual)
        for batch in batches():
            y = self.normaliser(batch.x)
            moved.add(self._moved(y, self.flow(y)[0]))
        self.usual.copy_(moved.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        y = self.normaliser(batch.x)
        nats, z = self._nats(y)
        heat = self._moved(y, z) / self.usual
        if isinstance(self.normaliser.inner, ImageSpec):
            heat = smooth(heat.mean(1), self.normaliser.inner)
        terms = {
            "negative_log_likelihood": nats,
            "typicality": self.typicality(nats),
            "map_peak": heat.flatten(1).amax(1),
        }
        return Evidence(terms, self.normaliser.full_size(heat))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The one latent that gives the sample, whose log-variance is reported as 0: that of the prior."""
        z, _ = self.flow(self.normaliser(batch.x))
        return z.flatten(1), torch.zeros_like(z).flatten(1)

    def decode(self, latents: Batch) -> Tensor:
        return self.normaliser.denormalise(self.flow.inverse(latents.x.reshape(-1, *self.normaliser.shape)))

    @torch.no_grad()
    def sample(self, draw: Draw) -> Tensor:
        return self.decode(Batch(draw.normal(self.latent_size).to(self.usual.device)))

    def _nats(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-density (B,) and latents of normalised y."""
        z, shares = self.flow(y)
        return negative_log_density(z, shares), z

    def _moved(self, y: Tensor, z: Tensor) -> Tensor:
        """m of the module's mathematics, shaped as y."""
        if isinstance(self.flow, Vectors):
            return z.square()
        length = z.float().square().flatten(1).sum(1).sqrt().clamp_min(1e-8)
        back = self.flow.inverse(z * (PULL * self.radius / length).view(-1, *(1,) * (z.dim() - 1)))
        return (y - back).square()

    def _dequantise(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """y with the noise of training."""
        level = self.normaliser.level
        if level:
            uniform = torch.rand(y.shape, generator=generator, device=generator.device).to(y) - 0.5
            y = y + level * uniform / self.normaliser.scale
        if self.noise:
            normal = torch.randn(y.shape, generator=generator, device=generator.device).to(y)
            y = y + self.noise * normal
        return y
