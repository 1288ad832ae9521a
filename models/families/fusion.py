"""Several evidence terms -> one score.

Each chosen term e_j is standardised on clean validation samples. Errors and distances, which are positive and closer
to log-normal than to normal, go through a logarithm; log-densities do not:

    u_j = log(e_j / centre_j) / spread_j      or      (e_j - centre_j) / spread_j

and the score is the negative log-density of u under a normal distribution with the clean samples' covariance, up to a
constant:

    score = 1/2 u^T P u

It is two-sided: a sample that is reconstructed better, or lies nearer to the latent's centre, than clean product ever
does is strange too. P is shrunk towards independence (Ledoit and Wolf's target, with a fixed share), because terms
such as `kl` and `negative_elbo` are nearly collinear and an unshrunk inverse would weigh their noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

SHRINK = 0.3
TINY = 1e-30  # an error of exactly 0 has no logarithm

Form = Literal["log", "linear"]


class Fusion(nn.Module):
    """Fitted on the validate split before export; its buffers travel in the graph."""

    centre: Tensor  # (J,)
    spread: Tensor  # (J,)
    factor: Tensor  # (J, J): P = factor @ factor.T

    def __init__(self, terms: Mapping[str, Form]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.logarithm = tuple(form == "log" for form in terms.values())
        n = len(self.terms)
        self.register_buffer("centre", torch.ones(n))
        self.register_buffer("spread", torch.ones(n))
        self.register_buffer("factor", torch.eye(n))

    def fit(self, terms: dict[str, Tensor]) -> None:
        """Learns from clean evidence, term -> (n,)."""
        for j, (term, logarithm) in enumerate(zip(self.terms, self.logarithm, strict=True)):
            values = terms[term].double()
            values = values.clamp_min(TINY).log() if logarithm else values
            self.centre[j] = values.mean().exp() if logarithm else values.mean()
            self.spread[j] = values.std().clamp_min(1e-6) if len(values) > 1 else 1.0
        u = self._standard(terms).double()
        covariance = u.T @ u / len(u)
        covariance = (1 - SHRINK) * covariance + SHRINK * torch.eye(len(self.terms), dtype=torch.float64)
        self.factor.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)))

    def forward(self, terms: dict[str, Tensor]) -> Tensor:
        """Term -> (B,) to score (B,)."""
        return 0.5 * (self._standard(terms) @ self.factor).square().sum(dim=1)

    def _standard(self, terms: dict[str, Tensor]) -> Tensor:
        """u, (B, J). A ratio before the logarithm: near 1, where clean samples lie, it loses no digits in float32."""
        columns = []
        for j, (term, logarithm) in enumerate(zip(self.terms, self.logarithm, strict=True)):
            value, centre = terms[term], self.centre[j]
            away = (value / centre).clamp_min(TINY).log() if logarithm else value - centre
            columns.append(away / self.spread[j])
        return torch.stack(columns, dim=1)
