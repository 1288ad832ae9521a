"""Gaussian mixture by expectation maximisation (Dempster, Laird and Rubin 1977; scikit-learn's `GaussianMixture`).

x is a sample of D values, y the same normalised and laid out in a row. Where D is large, only its q principal
components t = U^T (y - mean) (`principal.py`) are given to the mixture, and what they leave over, r = y - mean - U t,
is a Gaussian of the same variance s2 everywhere; else t = y, q = D and there is no r:

    p(y)                    = sum_k w_k N(t; m_k, C_k) . N(r; 0, s2 I)       the second factor over D - q values
    r_k                     = w_k N(t; m_k, C_k) / sum_j w_j N(t; m_j, C_j)  responsibility of component k
    negative_log_likelihood = -log p(y)                                      nats, exact; higher = stranger
    typicality              = |-log p(y) - clean mean| / clean standard deviation
    map                     = g_d^2 / sum_k r_k P_k,dd, over its clean mean;  g = -d log p(y) / dy    per value
    map_peak                = max of the smoothed map

P_k is the precision of y under component k. Of one Gaussian g_d^2 / P_dd is the square of what y_d has beyond what all
other values make expected of it, in standard deviations of that; of several it is weighed by responsibility. So the map
says which value does not go with the others, where the terms of the Mahalanobis sum, which may be negative, share that
out among all that it is related to.

The number of components is given, or the best of 1 to 10 by BIC. `encode` gives the responsibilities: the component's
number is the largest one's, and what a number alone would hide, that a sample lies between two kinds of product, stays
to be seen. Its log-variance is that of "the sample is of component k", r_k (1 - r_k). There is no way back from them to
a sample, and so no decoder; new samples are drawn by `sampler.onnx`: its first noise chooses the component, the others
lay t within it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from vaegis.models.bundle import SAMPLER
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Plan, in_range
from vaegis.models.families.fusion import Form, terms_for
from vaegis.models.families.parts.closed_form import ClosedForm
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, sizes_in_range
from vaegis.models.families.parts.densities import Covariance, Mixture
from vaegis.models.families.parts.layers import smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.principal import Principal
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.families.parts.typicality import LIKELIHOOD_MEANING, Typicality
from vaegis.models.spec import ImageSpec, InputSpec

COVARIANCES = ("full", "tied", "diag")
COMPONENTS_MOST = 10  # that BIC chooses among
WHOLE_MOST = 64  # values up to which nothing is reduced unasked
REDUCED = 32  # principal components beyond
REDUCE_MOST = 512  # values that a covariance of its own is kept of
LEAST_VARIANCE = 1e-6  # of a responsibility, whose logarithm is given

MEANING = {**LIKELIHOOD_MEANING, "map_peak": MAP_PEAK_MEANING}
FUSED: dict[str, dict[str, Form]] = {
    "image": {"negative_log_likelihood": "linear", "map_peak": "log"},
    "series": {"negative_log_likelihood": "linear", "map_peak": "log"},
    "vector": {"negative_log_likelihood": "linear"},
    "varied": {"negative_log_likelihood": "linear"},
}


class GaussianMixture(ClosedForm):
    """See the module's mathematics."""

    takes_missing = False

    precision: Tensor  # P_k,dd, (K, D)
    usual: Tensor  # clean mean of g_d^2 / sum_k r_k P_k,dd, inner shape
    roots: Tensor  # (K, q, q), of the covariances: C_k = root^T root

    def __init__(
        self,
        spec: InputSpec,
        *,
        components: int = 0,
        covariance: str = "full",
        reduce: int = 0,
        ridge: float = 1e-4,
        resolution: int = 64,
    ) -> None:
        """Nothing is learned yet.

        Args:
            components: of the mixture; 0 chooses by BIC.
            covariance: full (each component its own), tied (one for all) or diag (variances alone).
            reduce: q, the principal components that the mixture is over; 0 takes the values themselves where they are
                no more than 64, else 32 components. As many as there are values reduces nothing.
            ridge: added to the variances, in units of clean variance, > 0: near-exact relations are not overrated.
            resolution: pixels of an image's longer side that are seen, at most; larger images are averaged down inside
                the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range.
        """
        super().__init__(spec, MEANING, terms_for(FUSED, spec))
        in_range("components", components, 0, 256)
        sizes_in_range(resolution=resolution)
        if covariance not in COVARIANCES:
            raise Refusal(f"Argument covariance is {covariance!r}; choose {', '.join(COVARIANCES)}.")
        if not 0 < ridge < math.inf:
            raise Refusal(f"Argument ridge is {ridge}; a variance must be above 0, such as 1e-4.")
        self.normaliser = Normaliser(spec, resolution)
        self.values = math.prod(self.normaliser.shape)
        in_range("reduce", reduce, 0, min(self.values, REDUCE_MOST))
        self.reduce = reduce or (self.values if self.values <= WHOLE_MOST else REDUCED)
        self.components, self.covariance, self.ridge, self.resolution = components, covariance, ridge, resolution
        self.principal = Principal(self.values, self.reduce) if self.reduce < self.values else None
        tried = (components,) if components else range(1, COMPONENTS_MOST + 1)
        self.clusters = Mixture(self.reduce, ridge, tuple(tried), cast(Covariance, covariance)).double()
        self.register_buffer("roots", torch.eye(self.reduce).repeat(max(tried), 1, 1))
        self.register_buffer("precision", torch.ones(max(tried), self.values))
        self.register_buffer("usual", torch.ones(self.normaliser.shape))
        self.typicality = Typicality()

    @property
    def latent_size(self) -> int:
        """A single component tells samples apart by nothing, and is no latent space."""
        return self.components if self.components > 1 else 0

    @property
    def decodes(self) -> bool:
        return False

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """The mixture, in the last look: it shows how clean product is declared to vary."""

        def rows() -> Iterator[Tensor]:
            for batch in batches():
                yield self.normaliser(batch.x).flatten(1).double()

        if self.principal is not None:
            self.principal.fit(rows, rounding=self.normaliser.rounding())
        points = torch.cat([self._split(y)[0] for y in rows()])
        if len(points) < self.components:
            raise Refusal(
                f"Argument components is {self.components}, and there are {len(points)} samples to fit them on; "
                "give fewer components or more clean samples."
            )
        self.clusters.fit(points)
        self.components = self.clusters.trim()
        self.register_buffer("roots", torch.linalg.inv(self.clusters.factors).to(self.roots.dtype))
        self.register_buffer("precision", self._precisions().to(self.usual.dtype))
        clean, squares = [], MeanSquares(self.usual)
        for y in rows():
            nats, slope, shares = self._density(y)
            clean.append(nats)
            squares.add(self._surprise(slope, shares))
        self.typicality.fit(torch.cat(clean))
        self.usual.copy_(squares.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        nats, slope, shares = self._density(self.normaliser(batch.x).flatten(1).double())
        heat = self._surprise(slope, shares) / self.usual
        if isinstance(self.normaliser.inner, ImageSpec):
            heat = smooth(heat.mean(1), self.normaliser.inner)
        terms = {
            "negative_log_likelihood": nats.float(),
            "typicality": self.typicality(nats).float(),
            "map_peak": heat.flatten(1).amax(1),
        }
        return Evidence(terms, self.normaliser.full_size(heat))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.latent_size:
            raise Refusal("This mixture has one component, and so no latent space; fit one with --set components=2.")
        _, _, shares = self._density(self.normaliser(batch.x).flatten(1).double())
        return shares.float(), (shares * (1 - shares)).clamp_min(LEAST_VARIANCE).log().float()

    @torch.no_grad()
    def sample(self, draw: Draw) -> Tensor:
        return self.draw(draw.normal(1 + self.reduce).to(self.usual.device))

    def more_graphs(self) -> dict[str, Plan]:
        return {SAMPLER: Plan(MixtureSampler(self), {"noise": torch.zeros(3, 1 + self.reduce)}, ("sample",))}

    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, 1 + q) -> samples (B, *shape) in raw units, without r."""
        share = 0.5 * (1 + torch.erf(noise[:, :1] / math.sqrt(2)))
        above = self._weights().cumsum(0).float()
        below = torch.cat([torch.full_like(above[:1], -1.0), above[:-1]])
        above = torch.cat([above[:-1], torch.full_like(above[:1], 2.0)])
        choice = ((share > below) & (share <= above)).to(noise.dtype)
        t = choice @ self.clusters.means.float() + torch.einsum("bk,bq,kqr->br", choice, noise[:, 1:], self.roots)
        if self.principal is not None:
            t = (t.double() @ self.principal.axes.double().T + self.principal.mean).float()
        return self.normaliser.denormalise(t.view(-1, *self.normaliser.shape))

    def _weights(self) -> Tensor:
        """w, (K,)."""
        clusters = self.clusters
        logs = clusters.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        return (clusters.constants - logs + 0.5 * clusters.size * math.log(2 * math.pi)).exp()

    def _precisions(self) -> Tensor:
        """P_k,dd, (K, D)."""
        factors = self.clusters.factors
        if self.principal is None:
            return factors.square().sum(2)
        axes = self.principal.axes
        inside = torch.stack([(axes @ factor).square().sum(1) for factor in factors])
        return inside + (1 - axes.square().sum(1)) / self.principal.noise

    def _surprise(self, slope: Tensor, shares: Tensor) -> Tensor:
        """g (B, D) and responsibilities (B, K) -> the map before its scale, inner layout."""
        squares = slope.float().square() / (shares.float() @ self.precision)
        return squares.view(-1, *self.normaliser.shape)

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised (B, D) -> t (B, q) and r (B, D)."""
        if self.principal is None:
            return y, torch.zeros_like(y)
        centred = y - self.principal.mean
        t = self.principal.scores(centred)
        return t, centred - t @ self.principal.axes.T

    def _density(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (B, D) in double precision -> -log p (B,), g (B, D) and responsibilities (B, K)."""
        t, residual = self._split(y)
        joint, standardised = self.clusters.joint(t)
        nats = -torch.logsumexp(joint, dim=0)
        shares = joint.softmax(0)
        slope = torch.einsum("kb,kbm,klm->bl", shares, standardised, self.clusters.factors)
        if self.principal is not None:
            noise, rest = self.principal.noise, self.values - self.reduce
            nats = nats + 0.5 * (residual.square().sum(1) / noise + rest * (2 * math.pi * noise).log())
            slope = slope @ self.principal.axes.T + residual / noise
        return nats, slope, shares.T


class MixtureSampler(nn.Module):
    """`noise` -> `sample`."""

    def __init__(self, family: GaussianMixture) -> None:
        super().__init__()
        self.family = family

    def forward(self, noise: Tensor) -> Tensor:
        return self.family.draw(noise)
