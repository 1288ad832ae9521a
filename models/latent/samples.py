"""Parts that a decoder made -> samples, and floats -> what the kind holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Block, sample_maps
from vaegis.models.spec import ImageSpec, InputSpec


def as_raw(values: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
    """Decoded values in the kind's own type: pixels rounded and within their range, other values float32."""
    if isinstance(spec, ImageSpec):
        return np.asarray(np.clip(np.rint(values), 0, 2**spec.depth - 1), spec.dtype)
    return np.asarray(values, np.float32)


def assembled(block: Block, parts: NDArray[Any], spec: InputSpec) -> list[NDArray[np.float32] | None]:
    """Part values -> sample values, None where a sample has no part: an image (H, W, C), whose tiles are averaged where
    they overlap; of a series the row (C,), the mean over the windows that cover it; a vector (D,); a window (T, C)."""
    if not isinstance(spec, ImageSpec) or block.extents is None:
        return sample_maps(block, parts.astype(np.float32))
    layers = [sample_maps(block, parts[..., c].astype(np.float32)) for c in range(spec.channels)]
    whole: list[NDArray[np.float32] | None] = []
    for one in zip(*layers, strict=True):
        there = [layer for layer in one if layer is not None]
        whole.append(np.stack(there, axis=-1) if there else None)
    return whole


def stacked(values: Sequence[NDArray[Any] | None], chosen: Sequence[int]) -> NDArray[Any]:
    """The chosen samples' values as one array; each must have some."""
    whole = [values[i] for i in chosen]
    return np.stack([one for one in whole if one is not None])
