"""An invertible map f of rows of D values, with its log-determinant: z = f(y), z ~ N(0, I) of clean y.

    -log p(y) = sum_d (z_d^2 / 2 + log(2 pi) / 2) - log|det dz/dy|      nats

y is first whitened by the clean covariance, C^(-1/2) y (the symmetric root, which keeps each latent nearest its own
column), and then goes through zuko's transforms of single values, each moved given other values: `spline` (neural
spline coupling, Durkan et al. 2019, arXiv:1906.04032), `realnvp` (affine coupling) or `maf` (masked autoregressive,
Papamakarios et al. 2017, arXiv:1705.07057).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.nn import MLP
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform
from zuko.utils import unpack

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
RIDGE = 1e-4  # added to the covariance of normalised columns: near-exact relations are what a fault breaks
ORDER_SEED = 20150521

Univariate = Callable[..., Any]  # parameters -> zuko's transform of single values
Shapes = Sequence[tuple[int, ...]]  # of those parameters, for one value


def negative_log_density(z: Tensor, shares: Tensor) -> Tensor:
    """-log p(y), (B,), of latents and the shares of their log-determinant, both (B, ...). In float32, whatever the
    precision of the networks."""
    return (0.5 * z.float().square() + HALF_LOG_2PI - shares.float()).flatten(1).sum(1)


class Vectors(nn.Module):
    """(B, D) -> z of the same shape, and the shares of its log-determinant: whitening, then the transforms in a row."""

    root: Tensor  # (D, D), C^(1/2): from whitened to normalised values
    inverse_root: Tensor  # (D, D)
    share: Tensor  # of log|det C^(-1/2)|, for each value

    def __init__(self, size: int, transform: str, layers: int, width: int, bins: int) -> None:
        super().__init__()
        self.register_buffer("root", torch.eye(size))
        self.register_buffer("inverse_root", torch.eye(size))
        self.register_buffer("share", torch.zeros(()))
        form, shapes = _univariate(transform, bins)
        generator = torch.Generator().manual_seed(ORDER_SEED)
        order = torch.arange(size)
        parts: list[nn.Module] = []
        for layer in range(layers):
            # Each second transform takes the order of the one before it backwards, so that every value is moved given
            # every other one by some transform.
            order = torch.randperm(size, generator=generator) if layer % 2 == 0 else order.flip(0)
            # A single value has nothing to be moved by: zuko's masked transform is then one of that value alone.
            masked = transform == "maf" or size == 1
            parts.append((Masked if masked else Pair)(order, form, shapes, width))
        self.parts = nn.ModuleList(parts)

    @torch.no_grad()
    def whiten(self, values: Tensor) -> None:
        """Learns the covariance of normalised vectors (n, D), whose mean is 0."""
        values = values.double()
        covariance = values.T @ values / len(values)
        variance, axes = torch.linalg.eigh(covariance + RIDGE * torch.eye(len(covariance), dtype=torch.float64))
        self.root.copy_(axes * variance.sqrt() @ axes.T)
        self.inverse_root.copy_(axes / variance.sqrt() @ axes.T)
        self.share.copy_(-0.5 * variance.log().mean())

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> z and the shares of the log-determinant, each (B, D)."""
        z, total = y @ self.inverse_root, torch.zeros_like(y[:, 0])
        for part in self.parts:
            z, log_det = part(z)
            total = total + log_det
        # How a sample's log-determinant lies over its columns is not asked for.
        return z, self.share + (total / z.shape[1])[:, None].expand_as(z)

    def inverse(self, z: Tensor) -> Tensor:
        for part in reversed(self.parts):
            z = part.inverse(z)  # type: ignore[operator]
        return z @ self.root


class Pair(nn.Module):
    """A coupling: the second half of the values, moved by what the first half says.

    zuko's own coupling finds its halves by a search that no graph can hold; the transforms and the network are zuko's.
    """

    order: Tensor  # (D,) columns, those that are given first
    back: Tensor  # (D,) its inverse

    def __init__(self, order: Tensor, univariate: Univariate, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.register_buffer("order", order.clone(), persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.univariate, self.shapes, self.given = univariate, shapes, len(order) // 2
        self.total = sum(math.prod(s) for s in shapes)
        self.network = MLP(self.given, (len(order) - self.given) * self.total, (width, width))

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor, Any]:
        """What is given, what is moved, and by which transform."""
        x = x[:, self.order]
        given, moved = x[:, : self.given], x[:, self.given :]
        numbers = unpack(self.network(given).reshape(-1, moved.shape[1], self.total), self.shapes)
        return given, moved, self.univariate(*numbers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given, moved, transform = self._halves(x)
        moved, log_det = transform.call_and_ladj(moved)
        return torch.cat([given, moved], dim=1)[:, self.back], log_det.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        given, moved, transform = self._halves(z)
        return torch.cat([given, transform.inv(moved)], dim=1)[:, self.back]


class Masked(nn.Module):
    """zuko's masked autoregressive transform: each value, moved by what those before it in the order say."""

    def __init__(self, order: Tensor, univariate: Univariate, shapes: Shapes, width: int) -> None:
        super().__init__()
        self.transform = MaskedAutoregressiveTransform(
            len(order), order=order.argsort(), univariate=univariate, shapes=shapes, hidden_features=(width, width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.transform().call_and_ladj(x)
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        x: Tensor = self.transform().inv(z)
        return x


def _univariate(transform: str, bins: int) -> tuple[Univariate, Shapes]:
    if transform == "spline":
        return MonotonicRQSTransform, [(bins,), (bins,), (bins - 1,)]
    return MonotonicAffineTransform, [(), ()]
