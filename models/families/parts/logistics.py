"""Mixtures of K logistic distributions for the values of a place, channel after channel.

    F(v) = sum_k w_k sigma((v - m_k) / s_k),     sigma(a) = 1 / (1 + exp(-a))

    real values    log f(v) = logsumexp_k (log w_k - u - log s_k - 2 softplus(-u)),   u = (v - m_k) / s_k
    whole numbers  P(v) = F(v + 1/2) - F(v - 1/2); the lowest takes all that lies below it, the highest all above, so
                   that the levels' probabilities sum to 1 (Salimans et al. 2017, arXiv:1701.05517)

For a > b, sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), whose logarithm is three well-behaved terms: no
probability is too small for it, however far a value lies from every component.

Channels of a place follow one another: the means of channel c are moved by a linear function of the channels before it,
the same at every place. So the colours of a pixel, or the sensors of one moment, may depend on each other, and each
value still has a log-probability of its own. With the network's outputs per channel this is exact for any number of
channels; coefficients from the network, as in PixelCNN++, would be C^2/2 further outputs a place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_SCALE = 1e-3  # of a logistic, in units of clean variation
LEAST_LEVELS = 0.1  # the same of whole numbers, in levels
SMALL = 0.1  # below which 1 - exp(-w) is taken by its series: float32 has no exact expm1 in a graph


class Logistics(nn.Module):
    """Reads `outputs` numbers per place for C channels."""

    shift: Tensor  # (K,) where the components start

    def __init__(self, channels: int, components: int, top: float) -> None:
        """`top`: the highest of the whole numbers that values are, from 0; 0 where they are real numbers."""
        super().__init__()
        self.channels, self.components, self.top = channels, components, top
        self.outputs = 3 * channels * components
        self.register_buffer("shift", torch.linspace(-1, 1, components + 2)[1:-1] * 1.5, persistent=False)
        # Of each channel's means from the channels before it; one channel has none before it.
        self.before = nn.Parameter(torch.zeros(channels, channels)) if channels > 1 else None

    def log_prob(self, numbers: Tensor, y: Tensor, raw: Tensor, scale: Tensor) -> Tensor:
        """Nats of every value, (B, C, *places).

        Args:
            numbers: (B, outputs, *places) of the network.
            y: normalised values (B, C, *places).
            raw: the same in raw units; only whole numbers need them.
            scale: raw units per normalised one, (C, 1, ...); only whole numbers need them.
        """
        weights, means, scales = self._parts(numbers, scale)
        if self.before is not None:
            moved = torch.einsum("cd,bd...->bc...", self.before.tril(-1), y)
            means = means + moved[:, :, None]
        u = (y[:, :, None] - means) / scales
        if not self.top:
            logs = -u - scales.log() - 2 * functional.softplus(-u)
        else:
            half = (0.5 / scale)[None, :, None] / scales
            # Averages of pixels that are all at the end are within rounding of it.
            lowest, highest = (raw < 0.25)[:, :, None], (raw > self.top - 0.25)[:, :, None]
            above = torch.where(highest, 0.0, functional.softplus(-u - half))
            below = torch.where(lowest, 0.0, functional.softplus(u - half))
            logs = torch.where(lowest | highest, 0.0, _log_1m_exp(2 * half)) - above - below
        return torch.logsumexp(weights + logs, dim=2)

    def draw(self, numbers: Tensor, uniform: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        """Normalised values (B, C) of one place from its numbers (B, outputs) and uniform (B, C, 2) in (0, 1)."""
        weights, means, scales = self._parts(numbers[:, :, None], scale)
        passed = weights[..., 0].exp().cumsum(2) < uniform[:, :, :1]
        chosen = functional.one_hot(passed.sum(2).clamp_max(self.components - 1), self.components).to(means)
        values: list[Tensor] = []
        for c in range(self.channels):
            mean = (means[:, c, :, 0] * chosen[:, c]).sum(1)
            if self.before is not None and c:
                mean = mean + torch.stack(values, dim=1) @ self.before[c, :c]
            spread = (scales[:, c, :, 0] * chosen[:, c]).sum(1)
            u = uniform[:, c, 1]
            value = mean + spread * (u.log() - (1 - u).log())
            if self.top:
                level = (value * scale.flatten()[c] + centre.flatten()[c]).round().clamp(0.0, self.top)
                value = (level - centre.flatten()[c]) / scale.flatten()[c]
            values.append(value)
        return torch.stack(values, dim=1)

    def _parts(self, numbers: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales, each (B, C, K, *places)."""
        parts = numbers.float().reshape(-1, 3, self.channels, self.components, *numbers.shape[2:])
        weights, means, raw = parts[:, 0], parts[:, 1], parts[:, 2]
        over = (1,) * (numbers.dim() - 2)
        least = LEAST_LEVELS / scale.reshape(-1, 1, *over) if self.top else torch.tensor(LEAST_SCALE)
        return weights.log_softmax(2), means + self.shift.view(-1, *over), functional.softplus(raw) + least


def _log_1m_exp(w: Tensor) -> Tensor:
    """log(1 - exp(-w)) for w > 0."""
    little, much = w.clamp_max(SMALL), w.clamp_min(SMALL)
    series = little.log() - little / 2 + little.square() / 24 - little.square().square() / 2880
    return torch.where(w < SMALL, series, (1 - (-much).exp()).log())
