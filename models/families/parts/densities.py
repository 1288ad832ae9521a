"""Where clean samples lie in a space of L values: one Gaussian, or a mixture of them.

    distance(v) = |F^T (v - m)|,   F F^T = (C + ridge I)^-1                                 Mahalanobis
    density(v)  = -log sum_k w_k N(v; m_k, (F_k F_k^T)^-1)                                  nats

The Cholesky factor of the precision is what is stored: scoring is then a product, where a covariance would need a
triangular solve, which ONNX does not have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

COMPONENTS = (1, 2, 4, 8)  # tried; the best by BIC is kept
PATIENCE = 3  # numbers of components in a row that BIC likes less than an earlier one, after which no more are tried
MIXTURE_MOST = 8000  # points a mixture is fitted on
TINY = 1e-12  # a variance of nothing has no inverse
POINTS_PER_VALUE = 2  # that a component must have on average for each of the L values


Covariance = Literal["full", "tied", "diag"]


class Gaussian(nn.Module):
    """The mean and covariance of clean vectors, gathered batch by batch."""

    mean: Tensor  # (L,)
    factor: Tensor  # (L, L)

    def __init__(self, size: int, ridge: float, shrink: float = 0.0) -> None:
        """`ridge` is added to the variances: the least spread that clean vectors are credited with, squared. `shrink`
        is the share by which the covariance is drawn towards the mean variance times the unit matrix."""
        super().__init__()
        self.ridge, self.shrink = ridge, shrink
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))

    def fit(self, vectors: Tensor) -> None:
        """From clean (n, L)."""
        values = vectors.double()
        mean = values.mean(0)
        away = values - mean
        covariance = away.T @ away / len(values)
        unit = torch.eye(len(mean), dtype=torch.float64, device=values.device)
        even = covariance.diagonal().mean().clamp_min(TINY) * unit
        covariance = (1 - self.shrink) * covariance + self.shrink * even + self.ridge * unit
        self.mean.copy_(mean)
        self.factor.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)))

    def distance(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distance of (B, L), (B,)."""
        return ((vectors - self.mean) @ self.factor).square().sum(1).sqrt()


class Mixture(nn.Module):
    """A Gaussian mixture by EM (scikit-learn), its number of components by BIC among those `tried`.

    It always holds the largest number, those not used with weight 0, so that weights of one model load into another;
    `trim` drops them.
    """

    means: Tensor  # (K, L)
    factors: Tensor  # (K, L, L)
    constants: Tensor  # (K,) log w_k + log|F_k| - L/2 log 2 pi

    def __init__(
        self, size: int, ridge: float, tried: Sequence[int] = COMPONENTS, covariance: Covariance = "full"
    ) -> None:
        """`covariance`: of each component its own (full), one for all (tied), or of variances alone (diag)."""
        super().__init__()
        self.size, self.ridge, self.tried, self.covariance = size, ridge, tuple(tried), covariance
        most = max(self.tried)
        self.register_buffer("means", torch.zeros(most, size))
        self.register_buffer("factors", torch.eye(size).repeat(most, 1, 1))
        self.register_buffer("constants", torch.full((most,), -1e30))
        self.constants[0] = -0.5 * size * math.log(2 * math.pi)

    def fit(self, vectors: Tensor) -> None:
        """From clean (n, L); the same vectors give the same mixture."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        points = vectors.double().cpu().numpy()
        if len(points) > MIXTURE_MOST:
            points = points[np.linspace(0, len(points) - 1, MIXTURE_MOST).astype(np.int64)]
        n, size = points.shape
        # A covariance of its own takes points for each of its values; variances alone take a few.
        needed = POINTS_PER_VALUE * (size if self.covariance == "full" else 1)
        best, lowest, waited = None, math.inf, 0
        for k in self.tried:
            if best is not None and (n < k * needed or waited == PATIENCE):
                break
            with warnings.catch_warnings():
                # A mixture that EM had not quite settled after its iterations is still judged by its BIC.
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture = GaussianMixture(k, covariance_type=self.covariance, reg_covar=self.ridge, random_state=0)
                mixture.fit(points)
            criterion = mixture.bic(points)
            waited += 1
            if criterion < lowest:
                best, lowest, waited = mixture, criterion, 0
        assert best is not None
        used = len(best.weights_)
        factors = torch.from_numpy(best.precisions_cholesky_)
        factors = factors.diag_embed() if self.covariance == "diag" else factors.expand(used, size, size)
        self.constants.fill_(-1e30)
        self.means[:used] = torch.from_numpy(best.means_)
        self.factors[:used] = factors
        self.constants[:used] = (
            torch.from_numpy(best.weights_).log()
            + torch.diagonal(factors, dim1=1, dim2=2).log().sum(1)
            - 0.5 * size * math.log(2 * math.pi)
        )

    def trim(self) -> int:
        """Drops the components that are not used; how many are left."""
        used = int((self.constants > -1e29).sum())
        for name in ("means", "factors", "constants"):
            self.register_buffer(name, getattr(self, name)[:used].clone())
        self.tried = (used,)
        return used

    def joint(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k + log N(v; component k) of (B, L), (K, B), and F_k^T (v - m_k), (K, B, L)."""
        away = torch.einsum("kbl,klm->kbm", vectors[None] - self.means[:, None], self.factors)
        return self.constants[:, None] - 0.5 * away.square().sum(2), away

    def density(self, vectors: Tensor) -> Tensor:
        """Negative log-density of (B, L) in nats, (B,)."""
        return -torch.logsumexp(self.joint(vectors)[0], dim=0)
