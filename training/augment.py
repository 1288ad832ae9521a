"""Declared invariances as augmentation: what may vary on a clean product without being an anomaly.

Works on raw batches in the spec's layout and returns float32 in raw units, in range. Every draw comes from the
generator that is passed in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

SHIFT = 0.1  # of the side
GAIN, OFFSET = 0.25, 0.15  # of the value, of the full range
NOISE = 0.02  # of the full range or the batch's spread


def augment(x: Tensor, spec: InputSpec, generator: torch.Generator) -> Tensor:
    """A varied copy of a raw batch (B, *shape); the batch itself where nothing is declared."""
    if not spec.invariances:
        return x
    match spec:
        case ImageSpec():
            return _image(x.float(), spec, generator)
        case SeriesSpec():
            return _table(x, spec.invariances, generator, axes=(0, 1))
        case _:
            return _table(x, spec.invariances, generator, axes=(0,))


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """In [-1, 1)."""
    return (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1).to(like)


def _image(x: Tensor, spec: ImageSpec, generator: torch.Generator) -> Tensor:
    full, n = float(2**spec.depth - 1), len(x)
    if "flip" in spec.invariances:
        choice = _uniform((n, 2), x, generator) > 0
        x = torch.where(choice[:, 0, None, None, None], x.flip(2), x)
        x = torch.where(choice[:, 1, None, None, None], x.flip(1), x)
    if {"rotation", "shift"} & set(spec.invariances):
        x = _moved(x, spec, generator)
    if "lighting" in spec.invariances:
        draw = _uniform((n, 2, 1, 1, 1), x, generator)
        x = x * (1 + GAIN * draw[:, 0]) + OFFSET * full * draw[:, 1]
    if "noise" in spec.invariances:
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        x = x + NOISE * full * noise
    return x.clamp(0, full)


def _moved(x: Tensor, spec: ImageSpec, generator: torch.Generator) -> Tensor:
    """Turned by any angle about the centre and shifted; what comes in from outside repeats the border."""
    n = len(x)
    draw = _uniform((n, 3), x, generator)
    angle = draw[:, 0] * math.pi if "rotation" in spec.invariances else torch.zeros(n).to(x)
    move = draw[:, 1:] * 2 * SHIFT if "shift" in spec.invariances else torch.zeros(n, 2).to(x)
    aspect = spec.height / spec.width
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([cos, -sin * aspect, move[:, 0], sin / aspect, cos, move[:, 1]], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(theta, [n, spec.channels, spec.height, spec.width], align_corners=False)
    moved = functional.grid_sample(x.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1)


def _table(x: Tensor, declared: tuple[str, ...], generator: torch.Generator, axes: tuple[int, ...]) -> Tensor:
    known = x.nan_to_num(0.0)
    spread = known.std(axes, keepdim=True) if len(x) > 1 else torch.ones_like(known[:1])
    per_sample = (len(x), *(1,) * (x.dim() - 2), x.shape[-1])
    if "scale" in declared:
        x = x * (1 + GAIN * _uniform(per_sample, x, generator))
    if "offset" in declared:
        x = x + spread * _uniform(per_sample, x, generator)
    if "noise" in declared:
        x = x + NOISE * spread * torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return x
