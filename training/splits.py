"""Clean samples -> fit / validate / calibrate, with no copy and no group on two sides.

Samples are ordered by a seeded digest of their content, so the same data split the same way wherever they lie and
however they are named. A series is cut into contiguous blocks with one window of rows left out between blocks of
different splits: windows that overlap, or nearly touch, are not independent.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.blocks import Samples
from models.errors import Refusal
from models.spec import SeriesSpec

LEAST = 20  # clean samples below which nothing can be learned and held out
CALIBRATE_SHARE, CALIBRATE_LEAST, CALIBRATE_MOST = 0.2, 99, 0.4
VALIDATE_SHARE, VALIDATE_LEAST, VALIDATE_MOST = 0.12, 40, 0.2

# Blocks of a series in order of time; each split recurs, so that slow drift reaches all three.
LONG, MEDIUM, SHORT = "FFFCFFFCVV", "FFCCFFCCVV", "FFCCV"


@dataclass(frozen=True)
class Split:
    """Sample numbers, ascending, of each side."""

    fit: NDArray[np.int64]
    validate: NDArray[np.int64]
    calibrate: NDArray[np.int64]
    effective: int  # independent samples among `calibrate`

    def counts(self) -> dict[str, int]:
        return {"fit": len(self.fit), "validate": len(self.validate), "calibrate": len(self.calibrate)}


def split(samples: Samples, seed: int) -> Split:
    """Splits clean samples.

    Raises:
        Refusal: too few samples or groups.
    """
    if isinstance(samples.spec, SeriesSpec) and samples.row is not None and samples.groups is None:
        return _by_blocks(samples, samples.row, samples.spec.window)
    n = len(samples)
    if n < LEAST:
        raise Refusal(f"{n} clean samples were given; fitting needs at least {LEAST}. Add clean samples.")
    units = _units(samples)
    calibrate = min(max(math.ceil(CALIBRATE_SHARE * n), CALIBRATE_LEAST), math.floor(CALIBRATE_MOST * n))
    validate = min(max(math.ceil(VALIDATE_SHARE * n), VALIDATE_LEAST), math.floor(VALIDATE_MOST * n))
    wanted = [n - calibrate - validate, validate, calibrate]
    sides = _assign(units, wanted, seed)
    fit, held, last = (np.flatnonzero(sides == s) for s in range(3))
    if not len(fit) or not len(held) or not len(last):
        distinct = len(set(units))
        what = "groups" if samples.groups is not None else "distinct samples"
        raise Refusal(
            f"The {n} clean samples form {distinct} {what} that must stay whole, too few for fit, validate and "
            "calibrate. Add clean samples from more of them."
        )
    effective = len(last)
    if isinstance(samples.spec, SeriesSpec) and samples.row is not None:
        effective = _apart(samples, last, samples.row, samples.spec.window)
    return Split(fit, held, last, effective)


def _units(samples: Samples) -> list[bytes]:
    """What must stay together, per sample: its group, or copies of one content; groups that share a copy are one."""
    content = [samples.content(i) for i in range(len(samples))]
    if samples.groups is None:
        return content
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = [b"g" + g.encode() for g in samples.groups]
    for key, one in zip(keys, content, strict=True):
        parent[root(b"c" + one)] = root(key)
    return [root(k) for k in keys]


def _assign(units: list[bytes], wanted: list[int], seed: int) -> NDArray[np.int8]:
    """A side per sample: whole units, largest first, each to the side furthest from what it should hold."""
    sizes: dict[bytes, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    salt = seed.to_bytes(8, "little", signed=True)
    order = sorted(sizes, key=lambda u: (-sizes[u], hashlib.blake2b(u, digest_size=16, key=salt).digest()))
    have = [0, 0, 0]
    side: dict[bytes, int] = {}
    for unit in order:
        best = max(range(3), key=lambda s: (wanted[s] - have[s]) / max(wanted[s], 1))
        side[unit] = best
        have[best] += sizes[unit]
    return np.array([side[u] for u in units], np.int8)


def _by_blocks(samples: Samples, row: NDArray[np.int64], window: int) -> Split:
    items = np.asarray(samples.items)
    # Not np.unique: items keep the source's order, and there can be many windows but few items.
    starts = [0, *(np.flatnonzero(items[1:] != items[:-1]) + 1).tolist()]
    ends = [*starts[1:], len(items)]
    lengths = [int(row[e - 1]) + window for e in ends]
    windows = sum(length // window for length in lengths)
    enough = windows * CALIBRATE_SHARE >= CALIBRATE_LEAST
    sides = np.full(len(items), -1, np.int8)
    for start, end, length in zip(starts, ends, lengths, strict=True):
        pattern = (LONG if enough else MEDIUM) if length >= 10 * 4 * window else SHORT
        for side, low, high in _blocks(pattern, length, window):
            inside = (row[start:end] >= low) & (row[start:end] + window <= high)
            sides[start:end][inside] = side
    fit, held, last = (np.flatnonzero(sides == s) for s in range(3))
    if min(len(fit), len(held), len(last)) == 0:
        raise Refusal(
            f"The clean series hold {sum(lengths)} rows, too few for fit, validate and calibrate blocks with windows "
            f"of {window} rows. Add clean rows or set a shorter --window."
        )
    return Split(fit, held, last, _apart(samples, last, row, window))


def _blocks(pattern: str, length: int, window: int) -> list[tuple[int, int, int]]:
    """(side, first row, end row) of each run of equal letters, one window shorter than its share where another follows.

    The gap shrinks with blocks too short to afford it, but stays at least a quarter of a block.
    """
    runs: list[tuple[str, int, int]] = []
    for i, letter in enumerate(pattern):
        low, high = length * i // len(pattern), length * (i + 1) // len(pattern)
        if runs and runs[-1][0] == letter:
            runs[-1] = (letter, runs[-1][1], high)
        else:
            runs.append((letter, low, high))
    made = []
    for i, (letter, low, high) in enumerate(runs):
        gap = min(window, (high - low) // 4) if i + 1 < len(runs) else 0
        made.append(("FVC".index(letter), low, high - gap))
    return made


def _apart(samples: Samples, chosen: NDArray[np.int64], row: NDArray[np.int64], window: int) -> int:
    """How many of the chosen windows fit side by side without overlap."""
    count, item, free = 0, None, -1
    for i in chosen.tolist():
        if samples.items[i] != item or row[i] >= free:
            item, free = samples.items[i], int(row[i]) + window
            count += 1
    return count


def parts_of(samples: Samples, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """The parts of the chosen samples, in order."""
    first, count = samples.first[chosen], samples.count[chosen]
    if (count == 1).all():
        return first
    return np.concatenate([np.arange(f, f + c) for f, c in zip(first, count, strict=True)])
