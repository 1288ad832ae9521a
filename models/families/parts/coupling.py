"""A multi-scale coupling flow for images and windows, in the manner of RealNVP (Dinh et al. 2017, arXiv:1605.08803) and
Glow (Kingma and Dhariwal 2018, arXiv:1807.03039).

x is an array of C channels over space or time, z of the same shape what it becomes. A level is

    squeeze     2x2 pixels, or 2 steps, become channels: (C, H, W) -> (4C, H/2, W/2)
    K times     activation norm      x -> (x + b) exp(a), per channel, set from data in `initialise`
                mixing               x -> Q x over the channels of each cell, Q a random rotation that stays as it is:
                                     its inverse is its transpose and its log-determinant is 0, where Glow's learned
                                     one needs a triangular solve that ONNX does not have
                affine coupling      (u, v) -> (u, (v + t(u)) exp(s(u))),   s = bound tanh(raw / bound)
    split       half of the channels are done; the rest go through the next level

and then everything goes back to where it came from. So each latent lies in the cell of the values it was made from,
and so does its share of log|det dz/dx|: both are arrays of the shape of x.

A side that does not divide is padded with zeros that the flow never moves: cells with padding are not mixed, and
shifts and scales are 0 there. What remains is an exact bijection of the real values alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.families.parts.layers import levels, padding

BOUND = 2.0  # of a coupling's log-scale
LEAST_SPREAD = 1e-3  # that activation norm divides by


class MultiScale(nn.Module):
    """(B, C, *size) -> z of the same shape, and its log-determinant place by place."""

    def __init__(self, shape: tuple[int, ...], steps: int, width: int) -> None:
        """`steps` couplings a level, whose networks are `width` channels wide."""
        super().__init__()
        channels, *size = shape
        self.size = tuple(size)
        depth = levels(self.size)
        self.pads = padding(self.size, depth)
        real = functional.pad(torch.ones(1, *shape), self.pads)
        self.top = Level(real, depth, steps, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and the shares of log|det dz/dx|, each (B, C, *size)."""
        x = functional.pad(x, self.pads) if any(self.pads) else x
        z, shares = self.top(x, torch.zeros_like(x))
        return self._crop(z), self._crop(shares)

    def inverse(self, z: Tensor) -> Tensor:
        """(B, C, *size) back to x."""
        z = functional.pad(z, self.pads) if any(self.pads) else z
        return self._crop(self.top.inverse(z))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Sets every activation norm so that it sees x (B, C, *size) leave with mean 0 and spread 1."""
        for module in self.modules():
            if isinstance(module, ActNorm):
                module.fresh = True
        self(x)

    def _crop(self, x: Tensor) -> Tensor:
        for axis, side in enumerate(self.size):
            x = x.narrow(axis + 2, self.pads[2 * (len(self.size) - 1 - axis)], side)
        return x


class Level(nn.Module):
    """One level and, within it, those below."""

    def __init__(self, real: Tensor, depth: int, steps: int, width: int) -> None:
        """`real` (1, C, *size): 1, or 0 where there is padding."""
        super().__init__()
        real = squeeze(real)
        self.steps = nn.ModuleList(FlowStep(real, width) for _ in range(steps))
        self.below = Level(real.chunk(2, dim=1)[0], depth - 1, steps, width) if depth > 1 else None

    def forward(self, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        x, shares = squeeze(x), squeeze(shares)
        for step in self.steps:
            x, shares = step(x, shares)
        if self.below is not None:
            passed, done = x.chunk(2, dim=1)
            some, rest = shares.chunk(2, dim=1)
            passed, some = self.below(passed, some)
            x, shares = torch.cat([passed, done], dim=1), torch.cat([some, rest], dim=1)
        return unsqueeze(x), unsqueeze(shares)

    def inverse(self, z: Tensor) -> Tensor:
        z = squeeze(z)
        if self.below is not None:
            passed, done = z.chunk(2, dim=1)
            z = torch.cat([self.below.inverse(passed), done], dim=1)
        for step in reversed(self.steps):
            z = step.inverse(z)  # type: ignore[operator]
        return unsqueeze(z)


class FlowStep(nn.Module):
    """Activation norm, mixing and coupling."""

    def __init__(self, real: Tensor, width: int) -> None:
        super().__init__()
        channels = real.shape[1]
        self.norm = ActNorm(real)
        self.mix = Mixing(real)
        self.coupling = Coupling(real[:, channels // 2 :], channels, width)

    def forward(self, x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = self.norm(x)
        x = self.mix(x)
        x, logs = self.coupling(x)
        # The first half is what the coupling leaves as it is.
        return x, shares + scale + functional.pad(logs, (0, 0) * (x.dim() - 2) + (x.shape[1] // 2, 0))

    def inverse(self, z: Tensor) -> Tensor:
        return self.norm.inverse(self.mix.inverse(self.coupling.inverse(z)))


class ActNorm(nn.Module):
    """An offset and a scale for each channel, learned from where the first batch puts them."""

    real: Tensor  # (1, C, *size)

    def __init__(self, real: Tensor) -> None:
        super().__init__()
        self.register_buffer("real", real.clone(), persistent=False)
        self.padded = not bool(real.all())
        shape = (real.shape[1],) + (1,) * (real.dim() - 2)
        self.offset = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.fresh = False

    def _set(self, x: Tensor) -> None:
        axes = (0, *range(2, x.dim()))
        count = (self.real.sum(axes, keepdim=True) * len(x)).clamp_min(1)
        mean = x.sum(axes, keepdim=True) / count
        spread = (((x - mean) * self.real).square().sum(axes, keepdim=True) / count).sqrt()
        self.offset.copy_(-mean[0])
        self.log_scale.copy_(-spread[0].clamp_min(LEAST_SPREAD).log())
        self.fresh = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fresh:
            self._set(x)
        y = (x + self.offset) * self.log_scale.exp()
        return (y * self.real, self.log_scale * self.real) if self.padded else (y, self.log_scale)

    def inverse(self, z: Tensor) -> Tensor:
        x = z * (-self.log_scale).exp() - self.offset
        return x * self.real if self.padded else x


class Mixing(nn.Module):
    """A rotation of the channels of each cell that has no padding, drawn at random and kept."""

    rotation: Tensor  # Q, (C, C)
    whole: Tensor  # (1, 1, *size)

    def __init__(self, real: Tensor) -> None:
        super().__init__()
        channels = real.shape[1]
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(channels, channels))[0])
        whole = real.amin(1, keepdim=True)
        self.register_buffer("whole", whole, persistent=False)
        self.padded = not bool(whole.all())

    def forward(self, x: Tensor) -> Tensor:
        return self._turn(self.rotation, x)

    def inverse(self, z: Tensor) -> Tensor:
        return self._turn(self.rotation.T, z)

    def _turn(self, q: Tensor, x: Tensor) -> Tensor:
        conv = functional.conv2d if x.dim() == 4 else functional.conv1d
        turned = conv(x, q.reshape(*q.shape, *(1,) * (x.dim() - 2)))
        return torch.where(self.whole > 0, turned, x) if self.padded else turned


class Coupling(nn.Module):
    """The second half of the channels, shifted and scaled by what the first half says."""

    real: Tensor  # (1, C - C/2, *size) of the second half

    def __init__(self, real: Tensor, channels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("real", real.clone(), persistent=False)
        self.padded = not bool(real.all())
        conv = nn.Conv2d if real.dim() == 4 else nn.Conv1d
        moved = real.shape[1]
        last = conv(width, 2 * moved, 3, padding=1)
        # Near the identity at first, but not at it: a weight of 0 would let no gradient through to those before.
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(0.1)
        self.network = nn.Sequential(
            conv(channels - moved, width, 3, padding=1), nn.ReLU(), conv(width, width, 1), nn.ReLU(), last
        )

    def _shift_and_scale(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(u).chunk(2, dim=1)
        logs = BOUND * torch.tanh(raw / BOUND)
        return (shift * self.real, logs * self.real) if self.padded else (shift, logs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, v = x.chunk(2, dim=1)
        shift, logs = self._shift_and_scale(u)
        return torch.cat([u, (v + shift) * logs.exp()], dim=1), logs

    def inverse(self, z: Tensor) -> Tensor:
        u, v = z.chunk(2, dim=1)
        shift, logs = self._shift_and_scale(u)
        return torch.cat([u, v * (-logs).exp() - shift], dim=1)


def squeeze(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4C, H/2, W/2); (B, C, T) -> (B, 2C, T/2)."""
    if x.dim() == 3:
        channels, time = x.shape[1:]
        return x.reshape(-1, channels, time // 2, 2).permute(0, 1, 3, 2).reshape(-1, 2 * channels, time // 2)
    channels, high, wide = x.shape[1:]
    cells = x.reshape(-1, channels, high // 2, 2, wide // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return cells.reshape(-1, 4 * channels, high // 2, wide // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of `squeeze`."""
    if x.dim() == 3:
        channels, time = x.shape[1:]
        return x.reshape(-1, channels // 2, 2, time).permute(0, 1, 3, 2).reshape(-1, channels // 2, 2 * time)
    channels, high, wide = x.shape[1:]
    cells = x.reshape(-1, channels // 4, 2, 2, high, wide).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(-1, channels // 4, 2 * high, 2 * wide)
