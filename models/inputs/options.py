"""What shapes the input of a graph, and how much a sample or request may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vaegis.models.spec import Missing


@dataclass(frozen=True)
class InputOptions:
    """How samples become the array a graph eats; every field is one option of `vaegis fit`."""

    size: tuple[int, int] | None = None  # images are resized to (height, width)
    tile: int | None = None  # images are cut into squares of this side
    overlap: int | None = None  # pixels that neighbouring tiles share
    window: int | None = None  # rows per window of a series
    stride: int = 1  # rows between the starts of neighbouring windows
    missing: Missing = "refuse"  # "allow": NaN is a missing value
    invariances: tuple[str, ...] = ()  # changes that are declared harmless
    roi: Path | None = None  # mask image: only where it is not 0 is inspected


@dataclass(frozen=True)
class Limits:
    """What one file or request may hold; more is refused before it is decoded."""

    pixels: int = 64_000_000  # of one image
    samples: int = 100_000  # images, rows or vectors in one request
    bytes: int = 256 << 20  # of one file, and of one request once it is an array


LIMITS = Limits()
