"""Networks that look at a noisy sample and say what in it is noise: a small U-Net for images and windows, a residual
network of dense layers for vectors; and a classifier of noisy samples that guides them.

The U-Net works at half the sample's resolution and below, where most of its sense lies at a quarter of the cost; the
full resolution passes by it (see `vaegis.models.families.diffusion` on what it predicts).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.families.parts.layers import inner_shape, levels, padding
from vaegis.models.spec import InputSpec

EMBEDDING = 32  # of the time
WIDEST = 4  # largest channel count, in multiples of the width


class Time(nn.Module):
    """(B,) shares of T in [0, 1] -> (B, outputs), by sines of many periods (Vaswani et al. 2017)."""

    frequency: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        half = EMBEDDING // 2
        frequency = (torch.arange(half) * (-math.log(1e4) / (half - 1))).exp() * 1000
        self.register_buffer("frequency", frequency, persistent=False)
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, outputs), nn.SiLU())

    def forward(self, share: Tensor) -> Tensor:
        angle = share[:, None] * self.frequency
        out: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions and a bypass; the time comes in between them."""

    def __init__(self, inputs: int, outputs: int, time: int, flat: int) -> None:
        super().__init__()
        conv = nn.Conv2d if flat == 2 else nn.Conv1d
        self.before, self.first = nn.GroupNorm(1, inputs), conv(inputs, outputs, 3, 1, 1)
        self.time = nn.Linear(time, outputs)
        self.between, self.second = nn.GroupNorm(1, outputs), conv(outputs, outputs, 3, 1, 1)
        self.bypass = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.first(functional.silu(self.before(x)))
        y = y + self.time(time).unflatten(1, (-1, *(1,) * (y.dim() - 2)))
        y = self.second(functional.silu(self.between(y)))
        out: Tensor = self.bypass(x) + y
        return out


class UNet(nn.Module):
    """(B, inputs, *size) and time (B,) -> (B, outputs, *size)."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, ...], width: int) -> None:
        super().__init__()
        flat = len(size)
        conv, back = (nn.Conv2d, nn.ConvTranspose2d) if flat == 2 else (nn.Conv1d, nn.ConvTranspose1d)
        depth = levels(size)
        self.size, self.pads = size, padding(size, depth)
        wide = [width * min(2**level, WIDEST) for level in range(depth)]
        self.time = Time(2 * width)
        self.stem = conv(inputs, wide[0], 4, 2, 1)
        self.down = nn.ModuleList(ResidualBlock(w, w, 2 * width, flat) for w in wide)
        self.shrink = nn.ModuleList(conv(a, b, 4, 2, 1) for a, b in zip(wide[:-1], wide[1:], strict=True))
        self.grow = nn.ModuleList(back(b, a, 4, 2, 1) for a, b in zip(wide[:-1], wide[1:], strict=True))
        self.up = nn.ModuleList(ResidualBlock(2 * w, w, 2 * width, flat) for w in wide[:-1])
        self.head = back(wide[0], outputs, 4, 2, 1)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        time = self.time(share)
        y = self.stem(functional.pad(x, self.pads, mode="replicate") if any(self.pads) else x)
        passed: list[Tensor] = []
        for level, block in enumerate(self.down):
            y = block(y, time)
            if level < len(self.shrink):
                passed.append(y)
                y = self.shrink[level](y)
        for level in reversed(range(len(self.up))):
            y = self.up[level](torch.cat([self.grow[level](y), passed[level]], dim=1), time)
        out: Tensor = self.head(functional.silu(y))
        for axis, side in enumerate(self.size):
            out = out.narrow(axis + 2, self.pads[2 * (len(self.size) - 1 - axis)], side)
        return out


class Dense(nn.Module):
    """(B, inputs) and time (B,) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int = 3) -> None:
        super().__init__()
        self.time = Time(width)
        self.stem = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        time, y = self.time(share), self.stem(x)
        for layer in self.layers:
            y = y + functional.silu(layer(y + time))
        out: Tensor = self.head(y)
        return out


def denoiser_for(spec: InputSpec, width: int, extra: int) -> nn.Module:
    """(B, C + extra, ...) and time (B,) -> (B, C, ...) for the spec's inner layout."""
    channels, *size = inner_shape(spec)
    if size:
        return UNet(channels + extra, channels, tuple(size), width)
    return Dense(channels + extra, channels, width)


class Classifier(nn.Module):
    """(B, ...) noisy samples and time (B,) -> (B, K) logits, by one hidden layer.

    It is small so that its gradient can be written down, and the graph that is exported can be guided by it:

        u = W x + a + time,   h = silu(u),   logits = V h + c
        d log softmax(logits)[k] / dx = W^T (silu'(u) * V^T (onehot_k - softmax(logits)))
    """

    def __init__(self, values: int, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.hidden, self.time, self.head = nn.Linear(values, width), Time(width), nn.Linear(width, classes)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        out: Tensor = self.head(functional.silu(self.hidden(x.flatten(1)) + self.time(share)))
        return out

    def slope(self, x: Tensor, share: Tensor, wanted: Tensor) -> Tensor:
        """Gradient of log p(wanted | x), shaped as x; `wanted` is (B,) int64."""
        u = self.hidden(x.flatten(1)) + self.time(share)
        gate = u.sigmoid()
        logits = self.head(u * gate)
        aim = functional.one_hot(wanted, self.classes).to(x.dtype) - logits.softmax(1)
        slope = (aim @ self.head.weight) * gate * (1 + u * (1 - gate))
        out: Tensor = (slope @ self.hidden.weight).view_as(x)
        return out
