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

Floats = NDArray[np.float64]


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


def conditions_of(samples: Samples, parts: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(m,) numbers of the parts' conditions, where there are some."""
    return None if samples.conditions is None else samples.conditions[parts]


def parts_of(samples: Samples, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The parts of the chosen samples, in order."""
    first, count = samples.first[chosen], samples.count[chosen]
    if (count == 1).all():
        return first
    return np.concatenate([np.arange(f, f + c) for f, c in zip(first, count, strict=True)])


def strongest(values: Floats, first: NDArray[np.int64], count: NDArray[np.int64]) -> Floats:
    """Per sample the largest value of its parts; NaN if any is NaN."""
    if len(first) == 0:
        return np.empty(0)
    if (count == 1).all():
        return values[first]
    best = values[first].copy()
    for step in range(1, int(count.max())):
        more = np.flatnonzero(count > step)
        best[more] = np.maximum(best[more], values[first[more] + step])
    return best


def sample_maps(block: Block, maps: NDArray[np.float32]) -> list[NDArray[np.float32] | None]:
    """Part maps -> sample maps: tiles and windows that overlap are averaged where they do."""
    if block.place is None:
        return [maps[f] if c else None for f, c in zip(block.first, block.count, strict=True)]
    if block.extents is not None:
        return [_stitched(block, maps, i) for i in range(len(block))]
    # Windows: the map of a row is the mean over the windows that cover it.
    n, width = len(block), maps.shape[1]
    total = np.zeros((n, maps.shape[2]), np.float64)
    cover = np.zeros(n)
    for top, window in zip(block.place[:, 0].tolist(), maps, strict=True):
        low, high = max(top, 0), min(top + width, n)
        if low < high:
            total[low:high] += window[low - top : high - top]
            cover[low:high] += 1
    rows = (total / np.maximum(cover, 1)[:, None]).astype(np.float32)
    return [rows[i] if block.count[i] and cover[i] else None for i in range(n)]


def _stitched(block: Block, maps: NDArray[np.float32], i: int) -> NDArray[np.float32] | None:
    assert block.place is not None
    assert block.extents is not None
    if not block.count[i]:
        return None
    height, width = block.extents[i]
    total, cover = np.zeros((height, width)), np.zeros((height, width))
    for part in range(block.first[i], block.first[i] + block.count[i]):
        top, left = block.place[part]
        h, w = maps.shape[1:3]
        total[top : top + h, left : left + w] += maps[part]
        cover[top : top + h, left : left + w] += 1
    return (total / np.maximum(cover, 1)).astype(np.float32)
