"""Networks that families share: encoders and decoders for images, windows and vectors, in one calling form.

Inside a family arrays lie as `(B, C, H, W)`, `(B, C, T)` or `(B, D)`; `to_channels` and `from_channels` go between
that and the spec's layout.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

SMALLEST = 8  # spatial size at which strided convolutions give way to a dense layer
WIDEST = 8  # largest channel count, in multiples of the width


def to_channels(x: Tensor, spec: InputSpec) -> Tensor:
    """(B, *spec.shape) -> channels first, as real numbers: float32, or float64 where those are given."""
    x = x if x.is_floating_point() else x.float()
    match spec:
        case ImageSpec():
            return x.permute(0, 3, 1, 2)
        case SeriesSpec():
            return x.permute(0, 2, 1)
        case _:
            return x


def from_channels(x: Tensor, spec: InputSpec) -> Tensor:
    """The inverse of `to_channels`, for (B, C, ...)."""
    match spec:
        case ImageSpec():
            return x.permute(0, 2, 3, 1)
        case SeriesSpec():
            return x.permute(0, 2, 1)
        case _:
            return x


def inner_shape(spec: InputSpec) -> tuple[int, ...]:
    """Of one sample, channels first."""
    match spec:
        case ImageSpec():
            return (spec.channels, spec.height, spec.width)
        case SeriesSpec():
            return (len(spec.columns), spec.window)
        case _:
            return spec.shape


def levels(size: tuple[int, ...]) -> int:
    """Halvings that bring the larger side to about `SMALLEST`; two at least."""
    return max(2, math.ceil(math.log2(max(size) / SMALLEST) - 1e-9))


def padding(size: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """What brings each side to a multiple of 2**halvings, in `functional.pad` order (last side first, both ends)."""
    unit = 2**halvings
    pads: list[int] = []
    for side in reversed(size):
        extra = -side % unit
        pads += [extra // 2, extra - extra // 2]
    return tuple(pads)


class ConvEncoder(nn.Module):
    """(B, inputs, *size) -> (B, outputs) by strided convolutions and one dense layer."""

    def __init__(self, inputs: int, size: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if len(size) == 2 else (nn.Conv1d, nn.BatchNorm1d)
        depth = levels(size)
        self.pads = padding(size, depth)
        layers: list[nn.Module] = []
        channels = inputs
        for level in range(depth):
            wider = width * min(2**level, WIDEST)
            layers += [conv(channels, wider, 4, 2, 1, bias=False), norm(wider), nn.SiLU()]
            channels = wider
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Linear(channels * _cells(size, self.pads, depth), outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, self.pads, mode="replicate") if any(self.pads) else x
        out: Tensor = self.dense(self.convolutions(x).flatten(1))
        return out


class ConvDecoder(nn.Module):
    """(B, inputs) -> (B, outputs, *size): the mirror of `ConvEncoder`."""

    def __init__(self, inputs: int, size: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        conv, norm = (nn.ConvTranspose2d, nn.BatchNorm2d) if len(size) == 2 else (nn.ConvTranspose1d, nn.BatchNorm1d)
        depth = levels(size)
        self.pads, self.size = padding(size, depth), size
        sides = _padded(size, self.pads)
        self.start = (width * min(2 ** (depth - 1), WIDEST), *(s // 2**depth for s in sides))
        self.dense = nn.Linear(inputs, math.prod(self.start))
        layers: list[nn.Module] = [nn.SiLU()]
        channels = self.start[0]
        for level in reversed(range(depth)):
            narrower = width * min(2 ** max(level - 1, 0), WIDEST)
            last = level == 0
            layers.append(conv(channels, outputs if last else narrower, 4, 2, 1, bias=last))
            if not last:
                layers += [norm(narrower), nn.SiLU()]
            channels = narrower
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.convolutions(self.dense(z).unflatten(1, self.start))
        for axis, side in enumerate(self.size):
            before = self.pads[2 * (len(self.size) - 1 - axis)]
            x = x.narrow(axis + 2, before, side)
        return x


class MLP(nn.Module):
    """(B, inputs) -> (B, outputs) through dense layers."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            layers += [nn.Linear(inputs if level == 0 else width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def encoder_for(spec: InputSpec, outputs: int, width: int, extra: int = 0) -> nn.Module:
    """A network (B, C + extra, ...) -> (B, outputs) for the spec's inner layout."""
    channels, *size = inner_shape(spec)
    if size:
        return ConvEncoder(channels + extra, tuple(size), outputs, width)
    return MLP(channels + extra, outputs, width)


def decoder_for(spec: InputSpec, inputs: int, per_value: int, width: int, outputs: int = 0) -> nn.Module:
    """A network (B, inputs) -> (B, C * per_value, ...) or, for vectors, (B, outputs or D * per_value)."""
    channels, *size = inner_shape(spec)
    if size:
        return ConvDecoder(inputs, tuple(size), channels * per_value, width)
    return MLP(inputs, outputs or channels * per_value, width)


def averaging(spec: InputSpec, resolution: int) -> int:
    """Pixels of an image that one pixel of the networks' input stands for, along each side, so that its longer side
    is `resolution` at most; 0 averages none."""
    if not isinstance(spec, ImageSpec) or not resolution:
        return 1
    return math.ceil(max(spec.height, spec.width) / max(resolution, 16))


def averaged(spec: InputSpec, factor: int) -> InputSpec:
    """The spec of what is left after `shrink` by the factor."""
    if not isinstance(spec, ImageSpec) or factor == 1:
        return spec
    return replace(spec, height=math.ceil(spec.height / factor), width=math.ceil(spec.width / factor))


def shrink(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) averaged over squares of `factor` pixels; the border is repeated where it does not divide."""
    if factor == 1:
        return x
    high, wide = -x.shape[2] % factor, -x.shape[3] % factor
    x = functional.pad(x, (0, wide, 0, high), mode="replicate") if high or wide else x
    return functional.avg_pool2d(x, factor)


def enlarge(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) back to (B, C, *size), between the averages by straight lines."""
    if factor == 1:
        return x
    shape = (x.shape[2] * factor, x.shape[3] * factor)
    return functional.interpolate(x, size=shape, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


def smooth(x: Tensor, spec: InputSpec) -> Tensor:
    """A small binomial blur of a map (B, ...) along space or time: single-value noise is not a defect."""
    match spec:
        case ImageSpec():
            row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
            y = functional.pad(x[:, None], (2, 2, 2, 2), mode="replicate")
            return functional.conv2d(functional.conv2d(y, row.view(1, 1, 5, 1)), row.view(1, 1, 1, 5))[:, 0]
        case _:
            return x


def _padded(size: tuple[int, ...], pads: tuple[int, ...]) -> tuple[int, ...]:
    n = len(size)
    return tuple(s + pads[2 * (n - 1 - i)] + pads[2 * (n - 1 - i) + 1] for i, s in enumerate(size))


def _cells(size: tuple[int, ...], pads: tuple[int, ...], depth: int) -> int:
    return math.prod(side // 2**depth for side in _padded(size, pads))
