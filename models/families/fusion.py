"""Several evidence terms -> one score.

Each chosen term e_j is standardised on clean validation samples. Errors and distances, which are positive and closer
to log-normal than to normal, go through a logarithm; log-densities do not:

    u_j = log(e_j / centre_j) / spread_j      or      (e_j - centre_j) / spread_j

and the score is their mean: how many clean standard deviations the sample lies above clean ones, on average over the
terms. It is one-sided, since what is reconstructed unusually well is no defect; what is unusually plain shows as a low
density of its latent instead. A quadratic form of the same terms was tried and ranked worse (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from vaegis.models.spec import ImageSpec, InputSpec

TINY = 1e-30  # an error of exactly 0 has no logarithm
LEAST_SPREAD = 0.02  # of a logarithm: finer differences between errors are within float32's rounding of long sums

Form = Literal["log", "linear"]


def terms_for(table: Mapping[str, Mapping[str, Form]], spec: InputSpec, whole: bool = True) -> Mapping[str, Form]:
    """Of the terms that a family fuses by kind of input those for a spec.

    Those of `missing` where not `whole`, since distances between values are then no evidence. Those of `varied` where
    images may vary as declared: what tells how the product lies or is lit then says nothing of defects, and one pixel's
    clean residuals are those of every part of the product that may come to lie there.
    """
    if not whole:
        return table["missing"]
    return table["varied" if isinstance(spec, ImageSpec) and spec.invariances else spec.kind]


class Fusion(nn.Module):
    """Fitted on the validate split before export; its buffers travel in the graph."""

    centre: Tensor  # (J,)
    spread: Tensor  # (J,)

    def __init__(self, terms: Mapping[str, Form]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.logarithm = tuple(form == "log" for form in terms.values())
        self.register_buffer("centre", torch.ones(len(self.terms)))
        self.register_buffer("spread", torch.ones(len(self.terms)))

    def fit(self, terms: dict[str, Tensor]) -> None:
        """Learns from clean evidence, term -> (n,)."""
        for j, (term, logarithm) in enumerate(zip(self.terms, self.logarithm, strict=True)):
            values = terms[term].double()
            values = values.clamp_min(TINY).log() if logarithm else values
            centre = values.mean()
            # Relative to the centre for a log-density: its own scale is that of its nats.
            least = LEAST_SPREAD if logarithm else 1e-6 * float(centre.abs()) + 1e-9
            self.centre[j] = centre.exp() if logarithm else centre
            self.spread[j] = max(float(values.std()) if len(values) > 1 else 1.0, least)

    def forward(self, terms: dict[str, Tensor]) -> Tensor:
        """Term -> (B,) to score (B,)."""
        columns = []
        for j, (term, logarithm) in enumerate(zip(self.terms, self.logarithm, strict=True)):
            value, centre = terms[term], self.centre[j]
            # A ratio before the logarithm: near 1, where clean samples lie, it loses no digits in float32.
            away = (value / centre).clamp_min(TINY).log() if logarithm else value - centre
            columns.append(away / self.spread[j])
        return torch.stack(columns, dim=1).mean(dim=1)
