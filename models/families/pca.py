"""Probabilistic principal component analysis (Tipping and Bishop 1999, J. R. Statist. Soc. B 61, 611).

x is a sample of D values, y the same normalised and laid out in a row; q components are kept (`principal.py`: U_q, l_i
and s2), W = U_q (L_q - s2 I)^(1/2):

    y = W z + mean + e,   z ~ N(0, I_q),   e ~ N(0, s2 I)        so that y ~ N(mean, W W^T + s2 I)

With a = y - mean, its scores t = U_q^T a and what they leave over, r = a - U_q t:

    reconstruction_error    = |r|^2 / D + 1e-10                              SPE (or Q), per value
    latent_distance         = (sum_i t_i^2 / l_i)^(1/2)                      the root of Hotelling's T2
    negative_log_likelihood = 1/2 (T2 + |r|^2 / s2 + sum_i log l_i + (D - q) log s2 + D log 2 pi)     nats, exact
    encode                  = the posterior N(M^-1 W^T a, s2 M^-1), M = W^T W + s2 I = L_q
    decode                  = W z + mean
    map                     = (a - W z)^2 / v, z the posterior mean, v the clean mean of the square    per value
    map_peak                = max of the smoothed map

a - W z is s2 C_q^-1 a: what each value has beyond that which all others make expected of it, but for a factor of its
own. Unlike r, it also sees a value that is strange within the components.

No step is taken: the likeliest parameters have a closed form. They are learned in the last look, which shows how clean
product is declared to vary.

Where values are missing, the o of them that were observed are Gaussian too, and with M_o = W_o^T W_o + s2 I

    z_o = M_o^-1 W_o^T a_o,   r_o = a_o - W_o z_o
    -log p(y_o) = 1/2 (|z_o|^2 + |r_o|^2 / s2 + log|M_o| + (o - q) log s2 + o log 2 pi)

scaled up by D / o; the distance is then |z_o| and the error |r_o|^2 / o, which for a complete sample of well-kept
components are what stands above. M_o differs from sample to sample, so the graph solves it by elimination, unrolled
over the q components. Its parameters come from expectation maximisation over what was observed (Tipping and Bishop).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence
from vaegis.models.families.fusion import Form, terms_for
from vaegis.models.families.parts.closed_form import ClosedForm
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, sizes_in_range
from vaegis.models.families.parts.layers import smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.principal import COMPONENTS_MOST, Principal
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.spec import ImageSpec, InputSpec

ROUNDING = 1e-10  # squared error per value that single precision cannot tell from 0: relations may hold exactly
GAPS_MOST = 64  # components where values may be missing: the graph has a step for each

MEANING = {
    "reconstruction_error": "mean squared error per value of what the principal components leave over (SPE, Q)",
    "latent_distance": "Mahalanobis distance within the principal components: the root of Hotelling's T2",
    "negative_log_likelihood": "negative log-likelihood, nats: how improbable the sample is under the model",
    "map_peak": MAP_PEAK_MEANING,
}
# The Gaussian's density says all there is to say of a table's row. Of images, which are far from Gaussian, its weights
# for the three are too trusting: they rank better taken one by one.
FUSED: dict[str, dict[str, Form]] = {
    "image": {"reconstruction_error": "log", "latent_distance": "log", "map_peak": "log"},
    "series": {"reconstruction_error": "log", "latent_distance": "log", "map_peak": "log"},
    "vector": {"negative_log_likelihood": "linear"},
    "varied": {"reconstruction_error": "log"},
}


class PCA(ClosedForm):
    """See the module's mathematics."""

    residual: Tensor  # clean mean square of a - W z, inner shape

    def __init__(self, spec: InputSpec, *, latent: int = 0, share: float = 0.0, resolution: int = 64) -> None:
        """Nothing is learned yet.

        Args:
            latent: q, the components kept; 0 chooses by `share`.
            share: of the clean variance that the components hold together, in [0, 1); 0 chooses by BIC.
            resolution: pixels of an image's longer side that are seen, at most; larger images are averaged down inside
                the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range, or samples of a single value.
        """
        super().__init__(spec, MEANING, terms_for(FUSED, spec))
        sizes_in_range(resolution=resolution)
        self.normaliser = Normaliser(spec, resolution)
        self.values = math.prod(self.normaliser.shape)
        if self.values < 2:
            raise Refusal("A sample of 1 value has no principal components; give more columns, or fit a mixture.")
        self.gaps = spec.missing == "allow"
        most = min(self.values - 1, GAPS_MOST if self.gaps else self.values)
        if not 0 <= latent <= most:
            why = (
                " where values may be missing"
                if most == GAPS_MOST
                else f", one less than a sample's {self.values} values"
            )
            raise Refusal(f"Argument latent is {latent}; it must lie between 0 and {most}{why}.")
        if not 0 <= share < 1:
            raise Refusal(f"Argument share is {share}; it must be at least 0 and below 1, such as 0.9.")
        self.latent, self.share, self.resolution = latent, share, resolution
        self.principal = Principal(self.values, latent)
        self.register_buffer("residual", torch.ones(self.normaliser.shape))

    @property
    def latent_size(self) -> int:
        return self.latent

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """The components, and how clean residuals vary."""

        def rows() -> Iterator[Tensor]:
            for batch in batches():
                yield self.normaliser(batch.x).flatten(1)

        self.principal.fit(rows, self.share, GAPS_MOST if self.gaps else COMPONENTS_MOST, self.normaliser.rounding())
        if self.gaps:
            self.principal.refine(rows)
        self.latent = self.principal.components
        squares = MeanSquares(self.residual, least=ROUNDING)
        for batch in batches():
            squares.add(self._residual(batch.x)[0].square(), ~self.normaliser(batch.x).isnan())
        self.residual.copy_(squares.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        residual, terms = self._residual(batch.x)
        heat = lift(residual.float().square()) / self.residual
        if isinstance(self.normaliser.inner, ImageSpec):
            heat = smooth(heat.mean(1), self.normaliser.inner)
        terms = {name: value.float() for name, value in terms.items()}
        return Evidence({**terms, "map_peak": heat.flatten(1).amax(1)}, self.normaliser.full_size(heat))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        a, mask = self._centred(batch.x)
        gaussian = self.principal
        if self.gaps:
            mean, inverse, _ = self._posterior(a, mask, inverse=True)
            return mean.float(), inverse.diagonal(dim1=1, dim2=2).log().float()
        mean = gaussian.scores(a) * (gaussian.variance - gaussian.noise).sqrt() / gaussian.variance
        return mean.float(), (gaussian.noise / gaussian.variance).log().expand_as(mean).float()

    def decode(self, latents: Batch) -> Tensor:
        y = latents.x.double() @ self.principal.loadings().T + self.principal.mean
        return self.normaliser.denormalise(y.float().view(-1, *self.normaliser.shape))

    @torch.no_grad()
    def sample(self, draw: Draw) -> Tensor:
        return self.decode(Batch(draw.normal(self.latent).to(self.residual.device)))

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw (B, *shape) -> a and its mask (1 where observed), each (B, D) in double precision; a is 0 where
        missing."""
        a = self.normaliser(x).flatten(1).double() - self.principal.mean
        if not self.gaps:
            return a, torch.ones_like(a)
        mask = (~a.isnan()).double()
        return torch.where(a.isnan(), 0.0, a), mask

    def _residual(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """a - W z, inner layout, and the terms but for the map's; double precision."""
        a, mask = self._centred(x)
        gaussian = self.principal
        if self.gaps:
            z, _, logs = self._posterior(a, mask)
            residual = (a - z @ gaussian.loadings().T) * mask
            error, distance = residual.square().sum(1), z.square().sum(1)
            count = mask.sum(1)
            constant = logs + count * (gaussian.noise.log() + math.log(2 * math.pi))
            scale = self.values / count.clamp_min(1)
        else:
            scores = gaussian.scores(a)
            residual = a - scores @ gaussian.axes.T
            error, distance = residual.square().sum(1), (scores.square() / gaussian.variance).sum(1)
            residual = residual + (scores * gaussian.noise / gaussian.variance) @ gaussian.axes.T
            count = mask.sum(1)
            logs = gaussian.variance.log().sum() + (self.values - self.latent) * gaussian.noise.log()
            constant = logs + self.values * math.log(2 * math.pi)
            scale = torch.ones_like(error)
        terms = {
            "reconstruction_error": lift(error / count.clamp_min(1)),
            "latent_distance": distance.sqrt(),
            "negative_log_likelihood": 0.5 * (distance + error / gaussian.noise + constant) * scale,
        }
        return residual.view(-1, *self.normaliser.shape), terms

    def _posterior(self, a: Tensor, mask: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Over what was observed: z_o (B, q), s2 M_o^-1 where `inverse` asks for it, and log|M_o / s2| (B,)."""
        w = self.principal.loadings() / self.principal.noise.sqrt()
        unit = torch.eye(self.latent, dtype=w.dtype, device=w.device)
        matrix = (mask[:, None] * w.T) @ w + unit
        right = ((a / self.principal.noise.sqrt()) @ w)[:, :, None]
        solution, logs = eliminate(matrix, torch.cat([right, unit.expand_as(matrix)], dim=2) if inverse else right)
        return solution[:, :, 0], solution[:, :, 1:], logs


def lift(squares: Tensor) -> Tensor:
    """Squared errors + `ROUNDING`. Written so because the exporter takes so small a summand for 0 and drops it."""
    return (squares / ROUNDING + 1) * ROUNDING


def eliminate(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Positive definite (B, q, q) and (B, q, r) -> matrix^-1 right and log|matrix|, by Gauss and Jordan's elimination.

    A positive definite matrix needs no pivoting; and unrolled it is made of products alone, where ONNX has no solve.
    """
    size = matrix.shape[1]
    whole, logs = torch.cat([matrix, right], dim=2), torch.zeros_like(matrix[:, 0, 0])
    unit = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    for i in range(size):
        pivot = whole[:, i, i]
        logs = logs + pivot.log()
        whole = whole - (whole[:, :, i] - unit[i])[:, :, None] * (whole[:, i] / pivot[:, None])[:, None, :]
    return whole[:, :, size:], logs
