"""Several evidence terms -> one score.

Each chosen term e_j is standardised on clean validation samples, after a logarithm where it is positive (errors and
distances are closer to log-normal than to normal):

    u_j = (g_j(e_j) - centre_j) / spread_j

and the score is the negative log-density of u under a normal distribution with the clean samples' covariance, up to a
constant:

    score = 1/2 (u - m)^T P (u - m)

It is two-sided: a sample that is reconstructed better, or lies nearer to the latent's centre, than clean product ever
does is strange too. P is shrunk towards independence (Ledoit and Wolf's target, with a fixed share), because terms
such as `kl` and `negative_elbo` are nearly collinear and an unshrunk inverse would weigh their noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHRINK = 0.3


class Fusion(nn.Module):
    """Fitted on the validate split before export; its buffers travel in the graph."""

    centre: Tensor  # (J,)
    spread: Tensor  # (J,)
    logarithm: Tensor  # (J,) bool
    factor: Tensor  # (J, J): P = factor @ factor.T

    def __init__(self, terms: Sequence[str]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        n = len(self.terms)
        self.register_buffer("centre", torch.zeros(n))
        self.register_buffer("spread", torch.ones(n))
        self.register_buffer("logarithm", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("factor", torch.eye(n))

    def fit(self, terms: dict[str, Tensor]) -> None:
        """Learns from clean evidence, term -> (n,)."""
        values = torch.stack([terms[t].double() for t in self.terms], dim=1)
        positive = (values > 0).all(dim=0)
        values = torch.where(positive, values.clamp_min(1e-30).log(), values)
        centre = values.mean(dim=0)
        spread = values.std(dim=0).clamp_min(1e-9) if len(values) > 1 else torch.ones_like(centre)
        u = (values - centre) / spread
        covariance = u.T @ u / max(len(u), 1)
        covariance = (1 - SHRINK) * covariance + SHRINK * torch.eye(len(centre), dtype=torch.float64)
        self.logarithm.copy_(positive)
        self.centre.copy_(centre)
        self.spread.copy_(spread)
        self.factor.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)))

    def forward(self, terms: dict[str, Tensor]) -> Tensor:
        """Term -> (B,) to score (B,)."""
        values = torch.stack([terms[t] for t in self.terms], dim=1)
        values = torch.where(self.logarithm, values.clamp_min(1e-30).log(), values)
        u = (values - self.centre) / self.spread
        return 0.5 * (u @ self.factor).square().sum(dim=1)
