"""How large the squares that clean samples leave over are, value by value: what a map is measured in.

    s_d^2 = 0.9 m_d + 0.1 m,      m_d the clean mean square at value d, m their mean over all d

One value's own mean over a few hundred samples is itself noisy, and a value that was always reconstructed perfectly
must not make the map explode: so each is shrunk towards the mean of all, which is never taken to be 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK = 0.1  # the share of the mean over all values
LEAST = 1e-8  # that mean, at least


def shrunk(squares: Tensor) -> Tensor:
    """Clean mean squares, a value each, drawn towards their mean."""
    return squares * (1 - SHRINK) + squares.mean().clamp_min(LEAST) * SHRINK


class MeanSquares:
    """Gathers them over a pass in double precision: `add` each batch, then `shrunk`."""

    def __init__(self, like: Tensor, least: float = 0.0) -> None:
        """`like`: a tensor with a value for each. `least` is added to every square."""
        self._least = least
        self._sum, self._count = torch.zeros_like(like).double(), torch.zeros_like(like).double()

    def add(self, squares: Tensor, mask: Tensor | None = None) -> None:
        """Takes note of (B, ...) squares, 0 where missing; `mask` is 1 where a value was observed, None where all
        were."""
        self._sum += squares.double().sum(0) + self._least * len(squares)
        self._count += len(squares) if mask is None else mask.double().sum(0)

    def shrunk(self) -> Tensor:
        """s^2 of each value."""
        return shrunk(self._sum / self._count.clamp_min(1))
