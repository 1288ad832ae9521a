"""Copies among clean samples: what says the same twice is no further evidence, unless it was drawn twice.

A frozen camera, over-sampling and a partition written twice give copies. Calibration that counts them promises more
than it can hold, so of images, windows and rows of measurements a copy is the same sample: it counts once, on one side.

The rows of a table of codes (mode, door, alarm) are different. Few states exist, and each of them comes up again and
again: rows are draws, equal or not, and all count. A table is taken for one where more than half of its rows have an
equal and every column holds few values, short ones. Where each state of ten or more comes up a multiple of g > 1 times,
the whole table was written g times: one g-th of the rows of each state counts.

Windows of a series overlap, and a machine at rest gives equal ones in a row. They all stay in calibration, as those do
that overlap; the number of independent ones counts none that was there before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Samples
from vaegis.models.spec import SeriesSpec, VectorSpec

FEW_VALUES = 20  # of a column: as many a column of codes may hold, however few its rows are
STATES_PER_VALUE = 4  # a column of codes among others holds no more than one value for so many states
ROWS_PER_VALUE = 50  # a column holds few values where each comes up so often on average
CODE_DIGITS = 4  # significant digits that a code has at most, unless it is a whole number
STATES_TO_DIVIDE = 10  # below, all counts may share a divisor by chance: under 1 in 1,000 from here on
_CHUNK = 2**21  # values hashed at once

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Copies:
    """Which clean samples say the same, and which of them count."""

    original: Ints  # (n,) number of the first sample with the same content: its own where there is none before
    counted: Ints  # numbers of the samples that count, ascending
    draws: bool = False  # rows of codes: equal ones are draws of one state
    writings: int = 1  # how often a table of codes was written as a whole
    contents: tuple[bytes, ...] | None = None  # (n,) digest of each sample; None of a series

    def __len__(self) -> int:
        return len(self.original)

    @property
    def distinct(self) -> int:
        """How many different contents there are."""
        return int((self.original == np.arange(len(self))).sum())


def copies_of(samples: Samples) -> Copies:
    """Compares all samples with each other."""
    if overlapping(samples):
        return Copies(_equal_windows(samples), np.arange(len(samples), dtype=np.int64))
    contents = tuple(samples.content(i) for i in range(len(samples)))
    first: dict[bytes, int] = {}
    original = np.array([first.setdefault(c, i) for i, c in enumerate(contents)], np.int64)
    copies = Copies(original, _once(samples, original), contents=contents)
    if not isinstance(samples.spec, VectorSpec) or not len(samples):
        return copies
    states, place, sizes = np.unique(original, return_inverse=True, return_counts=True)
    writings = int(np.gcd.reduce(sizes)) if len(states) >= STATES_TO_DIVIDE else 1
    once = _rank(place) < (sizes // writings)[place]  # the first g-th of each state
    if not _codes(samples, states, sizes // writings):
        return copies
    return Copies(original, np.flatnonzero(once), True, writings, contents)


def overlapping(samples: Samples) -> bool:
    """Whether samples are windows that were cut from series; given as such, each is the first of its item."""
    return samples.row is not None and bool(samples.row.any())


def remarks(samples: Samples, copies: Copies) -> Iterator[str]:
    """Sentences on what equals what, for whoever gave the samples."""
    n, again = len(copies), len(copies) - copies.distinct
    if not again:
        return
    if copies.draws:
        if copies.writings > 1:
            yield (
                f"Every state of this table of codes comes up a multiple of {copies.writings} times: its {n} rows were "
                f"written {copies.writings} times over, and {len(copies.counted)} of them count."
            )
        yield (
            f"Most rows are equal to others and no column holds many values: {len(copies.counted)} rows are taken as "
            f"draws of {copies.distinct} states, and all count."
        )
    elif overlapping(samples):
        yield (
            f"Of {n} windows {again} are copies of earlier ones. A copy is no further evidence: it lies on the side of "
            "the first, and does not count as independent."
        )
    else:
        what = "rows" if samples.spec.kind == "vector" else "samples"
        yield (
            f"Of {n} clean {what} {again} are copies of others: {copies.distinct} are distinct. A copy is no further "
            "evidence, so each distinct one counts once, on one side. Add clean samples that are not copies."
        )


def _once(samples: Samples, original: Ints) -> Ints:
    """The first sample of each content in each condition and calibration group, which change what it says."""
    keys = [original]
    if samples.conditions is not None:
        keys.append(samples.conditions[samples.first])
    if samples.calibration_groups is not None:
        keys.append(np.unique(np.asarray(samples.calibration_groups), return_inverse=True)[1])
    if len(keys) == 1:
        return np.unique(original)
    return np.sort(np.unique(np.stack(keys), axis=1, return_index=True)[1])


def _codes(samples: Samples, states: Ints, sizes: Ints) -> bool:
    """Whether rows are codes, by their states and how often each comes up."""
    rows = int(sizes.sum())
    if len(states) < 2 or 2 * int(sizes[sizes > 1].sum()) <= rows:
        return False
    most = max(FEW_VALUES, len(states) // STATES_PER_VALUE, rows // ROWS_PER_VALUE)
    for column in samples.take(samples.first[states]).astype(np.float64).T:
        values = np.unique(column[np.isfinite(column)])
        if len(values) > most or not _short(values):
            return False
    return True


def _short(values: NDArray[np.float64]) -> bool:
    """Whether values are whole numbers, or of few digits: what was measured seldom is."""
    if np.array_equal(values, np.round(values)):
        return True
    size = np.abs(values[values != 0])
    unit = 10.0 ** (np.floor(np.log10(size)) - CODE_DIGITS + 1)
    # Single precision keeps seven digits of what was written.
    return bool((np.abs(np.round(size / unit) * unit - size) <= 1e-6 * size).all())


def _rank(place: Ints) -> Ints:
    """(n,) how many equal ones came before."""
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    rank = np.empty(len(place), np.int64)
    rank[order] = np.arange(len(place)) - np.repeat(starts, np.diff(np.append(starts, len(place))))
    return rank


def _equal_windows(samples: Samples) -> Ints:
    """The first equal of each window. There can be millions: a cheap hash tells which may be equal at all."""
    assert isinstance(samples.spec, SeriesSpec)
    n = len(samples)
    width = int(np.prod(samples.spec.shape)) * samples.spec.dtype.itemsize // 4
    weights = np.random.default_rng(0).integers(0, 2**64, width, np.uint64)
    step = max(1, _CHUNK // width)
    cuts = [*range(0, n, step), n]
    hashes = np.empty(n, np.uint64)
    for low, high in pairwise(cuts):
        raw = np.ascontiguousarray(samples.take(samples.first[low:high]), samples.spec.dtype)
        hashes[low:high] = raw.reshape(high - low, -1).view(np.uint32).astype(np.uint64) @ weights
    _, place, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    original = np.arange(n, dtype=np.int64)
    first: dict[bytes, int] = {}
    for i in np.flatnonzero(sizes[place] > 1).tolist():
        original[i] = first.setdefault(samples.content(i), i)
    return original
