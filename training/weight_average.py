"""An exponential moving average of a family's parameters, for families whose last step is noisier than its neighbours.

    a_s = k_s a_{s-1} + (1 - k_s) w_s,      k_s = min(keep, (1 + s) / (10 + s))

after step s = 1, 2, ...: the first steps are forgotten sooner than `keep` would, or a short fit would still remember
its random beginning (the warm-up of TensorFlow's moving average). Buffers, batch statistics among them, are not
averaged. The average belongs to the loop and not to the family, so a bundle holds one set of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Of one family's parameters; of none, and without effect, where `keep` is 0."""

    def __init__(self, family: nn.Module, keep: float) -> None:
        self.keep = keep
        self._parameters = dict(family.named_parameters()) if keep else {}
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """After the step-th step, from 1."""
        keep = min(self.keep, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self._parameters[name].detach(), 1 - keep)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The family has the averaged parameters while this lasts, and then its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
