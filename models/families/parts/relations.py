"""How the values of clean samples stand to one another: a Gaussian over the values of one place.

    distance(x) = sqrt(1/S sum_s |F^T (v_s - m)|^2),   F F^T = C^-1       mean Mahalanobis distance over S places

A place is what a covariance can learn: a row of a table, the channels at one step of a window, a whole image averaged
down to a coarse grid. Families ask it about what their reconstruction leaves over, or about the values themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaegis.models.families.parts.densities import Gaussian
from vaegis.models.families.parts.layers import inner_shape, shrink
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

RELATED_MOST = 256  # values of an image's coarse grid: their covariance stays small and a few hundred samples teach it
TABLE_MOST = 2048  # columns or channels up to which a full covariance is kept
TABLE_RIDGE = 1e-4  # added to the variance of columns: near-exact relations between them are what a fault breaks
IMAGE_SHRINK = 0.1  # of an image's coarse covariance, towards its mean variance: some cells hardly vary when clean

RESIDUAL_MEANING = "Mahalanobis distance of what the reconstruction leaves over from clean residuals"


def relatable(spec: InputSpec) -> bool:
    """Whether such distances are evidence: at its mean a missing value breaks the very relations they hold it to."""
    return spec.missing == "refuse" and (spec.kind == "image" or spec.shape[-1] <= TABLE_MOST)


def related(x: Tensor, spec: InputSpec) -> Tensor:
    """Channels-first (B, C, ...) -> (B, S, V): S places that each hold V values whose relations a covariance can learn:
    the columns of a vector, the channels at each step of a window, an image averaged down to `RELATED_MOST` values."""
    match spec:
        case ImageSpec():
            return shrink(x, _coarseness(spec)).flatten(1)[:, None]
        case SeriesSpec():
            return x.permute(0, 2, 1)
        case _:
            return x[:, None]


def related_values(spec: InputSpec) -> int:
    """V of `related`."""
    if isinstance(spec, ImageSpec):
        side = _coarseness(spec)
        return spec.channels * math.ceil(spec.height / side) * math.ceil(spec.width / side)
    return inner_shape(spec)[0]


class Relations(Gaussian):
    """Learned from clean samples, batch by batch: `add` each, then `settle`."""

    def __init__(self, spec: InputSpec) -> None:
        """`spec`: of the samples as the networks see them."""
        ridge, shrink_ = (0.0, IMAGE_SHRINK) if spec.kind == "image" else (TABLE_RIDGE, 0.0)
        super().__init__(related_values(spec), ridge, shrink_)
        self._added: list[Tensor] = []

    def add(self, places: Tensor) -> None:
        """Takes note of clean (B, S, V) that `related` gave."""
        self._added.append(places.flatten(0, 1))

    def settle(self) -> None:
        """Learns from all that was added."""
        self.fit(torch.cat(self._added))
        self._added = []

    def away(self, places: Tensor) -> Tensor:
        """Distances of (B, S, V) from clean ones, over the S places together, (B,)."""
        return self.distance(places.flatten(0, 1)).view(places.shape[:2]).square().mean(1).sqrt()


def _coarseness(spec: ImageSpec) -> int:
    side = 1
    while spec.channels * math.ceil(spec.height / side) * math.ceil(spec.width / side) > RELATED_MOST:
        side += 1
    return side
