"""From raw batches to what networks see, and back: layout, averaging of large images, mean 0 and spread 1.

    y = (x - centre) / scale,      per channel or column, learned from the fit split

`Normaliser` is what families share that normalise every value in this way; a likelihood that wants another centre and
scale takes the moments of the same look (`moments`, `usable`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vaegis.models.families.family import Batches
from vaegis.models.families.parts.layers import (
    averaged,
    averaging,
    enlarge,
    from_channels,
    inner_shape,
    shrink,
    to_channels,
)
from vaegis.models.spec import ImageSpec, InputSpec


class Normaliser(nn.Module):
    """Between the spec's layout in raw units and normalised arrays, channels first."""

    centre: Tensor  # (C, 1, 1), (C, 1) or (D,), raw units
    scale: Tensor

    def __init__(self, spec: InputSpec, resolution: int = 0) -> None:
        """`resolution`: pixels of an image's longer side that the networks see, at most; 0 averages none."""
        super().__init__()
        self.spec = spec
        self.factor = averaging(spec, resolution)
        self.inner = averaged(spec, self.factor)
        self.shape = inner_shape(self.inner)  # of one sample as the networks see it
        # Distance between neighbouring raw values, 0 where values are real numbers.
        self.level = 1.0 if isinstance(spec, ImageSpec) else 0.0
        per_channel = (self.shape[0],) + (1,) * (len(self.shape) - 1)
        self.register_buffer("centre", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))

    def fit(self, batches: Batches) -> None:
        """Mean and spread of each channel or column over a pass; missing values are left out."""
        mean, spread = moments(self.arrange(batch.x) for batch in batches())
        spread = usable(mean, spread)
        self.centre.copy_(mean.view_as(self.centre))
        self.scale.copy_(spread.view_as(self.scale))

    def arrange(self, x: Tensor) -> Tensor:
        """Raw (B, *shape) -> raw as the networks see it, channels first, float32."""
        raw = to_channels(x, self.spec)
        return shrink(raw, self.factor) if self.factor > 1 else raw

    def normalise(self, raw: Tensor) -> Tensor:
        """What `arrange` gives -> normalised (B, C, ...)."""
        return (raw - self.centre) / self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Raw (B, *shape) -> normalised (B, C, ...)."""
        return self.normalise(self.arrange(x))

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw (B, *shape) -> normalised, 0 where missing, and the mask: 1 where a value was observed, else 0."""
        y = self(x)
        if self.spec.missing == "refuse":
            return y, torch.ones_like(y)
        mask = (~y.isnan()).to(y.dtype)
        return torch.where(y.isnan(), torch.zeros_like(y), y), mask

    def denormalise(self, y: Tensor) -> Tensor:
        """Normalised (B, C, ...) -> raw (B, *shape), float32."""
        values = y * self.scale + self.centre
        if isinstance(self.spec, ImageSpec):
            values = enlarge(values, self.factor, (self.spec.height, self.spec.width))
        return from_channels(values, self.spec)

    def full_size(self, heat: Tensor) -> Tensor:
        """A map of the networks' input, (B, h, w) or (B, C, T) or (B, D) -> that of the sample."""
        if isinstance(self.spec, ImageSpec):
            return enlarge(heat[:, None], self.factor, (self.spec.height, self.spec.width))[:, 0]
        return from_channels(heat, self.spec)

    def rounding(self) -> float:
        """Variance of what raw values were rounded by, in normalised units; 0 where values are real numbers. Values
        that repeat exactly, as those of a constant background, would have an infinite density without it."""
        return float((self.level / self.scale.double()).square().mean()) / 12

    def log_jacobian(self) -> float | None:
        """Nats from a density of normalised values to one of raw values, for a sample; None for averaged images."""
        if self.factor > 1:
            return None
        return float(self.scale.double().log().expand(self.shape).sum())

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the averaging before the fit."""
        return averaging_notes(self.factor)


def averaging_notes(side: int) -> tuple[str, ...]:
    """What a user should know where squares of `side` pixels are averaged; nothing of a single pixel."""
    if side == 1:
        return ()
    return (
        f"Squares of {side}x{side} pixels are averaged before the networks see an image, so a defect of a pixel or "
        "two may be lost. For fine defects take --set resolution=0, or cut the images by --tile.",
    )


def moments(arrays: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel or column over (B, C, ...) arrays, each (C,) in double precision;
    missing values are left out."""
    count = mean = square = torch.zeros((), dtype=torch.float64)
    for array in arrays:
        x = array.double()
        axes = (0, *range(2, x.dim()))
        mask = ~x.isnan()
        values = torch.where(mask, x, 0.0)
        count = count + mask.sum(axes)
        mean = mean + values.sum(axes)
        square = square + values.square().sum(axes)
    count = count.clamp_min(1)
    mean = mean / count
    return mean, (square / count - mean.square()).clamp_min(0).sqrt()


def usable(mean: Tensor, spread: Tensor) -> Tensor:
    """Spreads that values can be divided by. A constant column has no scale of its own; in raw units any change of it
    is large."""
    return torch.where(spread <= 1e-6 * mean.abs() + 1e-12, torch.ones_like(spread), spread)
