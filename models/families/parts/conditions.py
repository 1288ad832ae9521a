"""Conditions as networks read them: one-hot vectors beside their other inputs (Sohn, Lee and Yan 2015)."""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(condition: Tensor | None, count: int, like: Tensor) -> Tensor:
    """(B,) numbers of `count` conditions -> (B, count), in the type and on the device of a tensor."""
    assert condition is not None
    return (condition[:, None] == torch.arange(count, device=like.device)).to(like.dtype)


def beside(y: Tensor, vectors: Tensor) -> Tensor:
    """(B, C, ...) with (B, K) vectors as K further channels, the same at every place."""
    channels = vectors[(..., *(None,) * (y.dim() - 2))]
    return torch.cat([y, channels.expand(-1, -1, *y.shape[2:])], dim=1)
