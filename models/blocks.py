"""Samples on their way to a graph: `Block` to be scored in passing, `Samples` to be fitted on at random.

Both separate *samples* (what a person gets a verdict for: an image, a table row, a time step) from *parts* (what the
graph eats: an image or one of its tiles, a row, a window). Sample i is judged by the strangest of the parts
`first[i] : first[i] + count[i]`. For plain images and vectors that is part i alone; for a tiled image its tiles; for
time step t the one window that the interface names. A sample with no part could not be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaegis.models.spec import InputSpec


@dataclass(frozen=True)
class Block:
    """Consecutive samples and their parts, in the spec's dtype and layout."""

    items: Sequence[str | None]  # (n,) path relative to the source, file name of an array, or None where unnamed
    index: NDArray[np.int64]  # (n,) 0-based place within the source (arrays, folders) or within the item (tables)
    parts: NDArray[Any]  # (m, *spec.shape)
    first: NDArray[np.int64]  # (n,) first part of each sample
    count: NDArray[np.int64]  # (n,) parts of each sample; 0 = unjudged
    errors: dict[int, str] = field(default_factory=dict)  # position in the block -> why it cannot be judged
    timestamps: Sequence[Any] | None = None  # (n,) as given, JSON-able (str, int or float), series only
    warmup: NDArray[np.bool_] | None = None  # (n,) series only: rows before the first full window ends
    groups: Sequence[str | None] | None = None  # (n,) calibration group of each sample
    place: NDArray[np.int64] | None = None  # (m, 2) top, left of a tile in its image; (m, 1) first row of a window
    extents: Sequence[tuple[int, int]] | None = None  # (n,) height, width of each tiled image
    conditions: NDArray[np.int64] | None = None  # (m,) number of each part's condition in the spec

    def __len__(self) -> int:
        return len(self.index)


def plain(
    parts: NDArray[Any],
    items: Sequence[str | None] | None = None,
    index: NDArray[np.int64] | None = None,
    timestamps: Sequence[Any] | None = None,
    groups: Sequence[str | None] | None = None,
) -> Block:
    """A block in which every sample is one readable part."""
    n = len(parts)
    return Block(
        items=items if items is not None else [None] * n,
        index=np.arange(n, dtype=np.int64) if index is None else index,
        parts=parts,
        first=np.arange(n, dtype=np.int64),
        count=np.ones(n, np.int64),
        timestamps=timestamps,
        groups=groups,
    )


class Samples(Protocol):
    """Every readable sample of a source, spooled to a mapped file, for random access during a fit.

    For a series a sample is a window (never one that crosses two items); rows do not appear here.
    """

    spec: InputSpec
    digest: str  # sha256 over the content, independent of file names and of the spool's place
    items: Sequence[str]  # (n,) the item each sample comes from
    first: NDArray[np.int64]  # (n,)
    count: NDArray[np.int64]  # (n,)
    groups: Sequence[str] | None  # (n,) --group-by: samples that must stay on one side of a split
    calibration_groups: Sequence[str] | None  # (n,) --calibrate-by: samples calibrated apart
    conditions: NDArray[np.int64] | None  # (m,) number of each part's condition in the spec
    row: NDArray[np.int64] | None  # (n,) series only: first row of each window within its item
    skipped: Sequence[tuple[str, str]]  # items that could not be read, and why

    def __len__(self) -> int: ...

    def take(self, parts: NDArray[np.int64]) -> NDArray[Any]:
        """The named parts, (len(parts), *spec.shape), a fresh array in the spec's dtype."""
        ...

    def content(self, i: int) -> bytes:
        """A 16-byte digest of sample i: copies of a sample have equal digests."""
        ...
