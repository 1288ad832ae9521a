"""Maps as pictures, on a bundle's fixed colour scale: the same colour means the same strangeness in every image."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Anchors from black over purple and orange to pale yellow: lightness rises throughout, so that it reads in grey too.
_ANCHORS = np.array(
    [[4, 4, 20], [60, 15, 95], [135, 35, 105], [205, 70, 70], [245, 135, 40], [250, 205, 80], [252, 250, 190]], float
)
PALETTE: NDArray[np.uint8] = np.stack(
    [np.interp(np.linspace(0, 6, 256), np.arange(7), _ANCHORS[:, c]) for c in range(3)], axis=1
).astype(np.uint8)


def colour(values: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Map values -> RGB, (..., 3). `scale` is `Calibration.map_range`; three times its span reaches the top colour."""
    low, high = scale
    span = max(high - low, 1e-12) * 3.0
    level = np.nan_to_num(np.clip((values - low) / span, 0.0, 1.0), nan=1.0)  # what is no number is strangest
    return np.asarray(PALETTE[(level * 255).astype(np.uint8)])


def to_png(values: NDArray[np.float32], scale: tuple[float, float]) -> bytes:
    """A map as PNG: (H, W) as it lies; a vector's or time step's (D,) as one row."""
    picture = colour(np.atleast_2d(values), scale)
    out = io.BytesIO()
    Image.fromarray(picture, "RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()
