"""What families with a likelihood say of it beside its value, learned from clean samples in a last look.

    typicality = |nll - m| / s                      m, s the mean and standard deviation of the clean nll
    standing   = (h_d - m_d) / s_d                  of the share h_d that place d has in the nll, over clean samples

A clean sample is not the likeliest one. In many dimensions nearly all samples of a density lie where it is far from its
maximum, and one that is likelier than all of them, an empty image say, is as strange as one that is less likely
(Nalisnick et al. 2019, arXiv:1906.02994).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vaegis.models.families.fusion import Form
from vaegis.models.families.parts.residuals import shrunk
from vaegis.models.spec import InputSpec

LIKELIHOOD_MEANING = {
    "negative_log_likelihood": "negative log-likelihood, nats: how improbable the sample is under the model",
    "typicality": "distance of the likelihood from that of clean samples, either way, in their standard deviations",
}


def fused_likelihood(spec: InputSpec, peak: Form) -> Mapping[str, Form]:
    """What the score of a family fuses that gives exact likelihoods and a map; `peak` is the form of the map's.

    An image that is plainer than clean ones (nothing on the belt, a dead camera) is likelier than they are, so for
    images likelihood counts either way. Windows and rows have no such end: their likelihood is highest at the middle
    of the clean ones. The map's peak stays even where images may vary as declared, though each of its places then holds
    many parts of the product: the sum alone would say too little of a defect.
    """
    return {"typicality" if spec.kind == "image" else "negative_log_likelihood": "linear", "map_peak": peak}


class Typicality(nn.Module):
    """Of a sample's negative log-likelihood."""

    expected: Tensor  # (2,): mean and standard deviation of clean ones, nats

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expected", torch.tensor([0.0, 1.0]))

    def fit(self, nats: Tensor) -> None:
        """From clean (n,)."""
        values = nats.double()
        self.expected.copy_(torch.stack([values.mean(), values.std(correction=0).clamp_min(1e-6)]))

    def forward(self, nats: Tensor) -> Tensor:
        """(B,) -> (B,), in clean standard deviations."""
        return (nats - self.expected[0]).abs() / self.expected[1]


class Standing(nn.Module):
    """How far above clean ones the share of each place in a likelihood lies, in clean standard deviations."""

    mean: Tensor  # of one sample's places
    spread: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self._sums: list[Tensor] = []

    def add(self, shares: Tensor) -> None:
        """Takes note of clean (B, *shape)."""
        values = shares.double()
        sums = [torch.tensor(float(len(values))), values.sum(0), values.square().sum(0)]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums

    def settle(self) -> None:
        """Learns from all that was added."""
        count, total, square = self._sums
        mean = total / count
        self.mean.copy_(mean)
        # Where clean samples never vary, a place's own variance is 0.
        self.spread.copy_(shrunk((square / count - mean.square()).clamp_min(0)).sqrt())
        self._sums = []

    def forward(self, shares: Tensor) -> Tensor:
        return (shares - self.mean) / self.spread
