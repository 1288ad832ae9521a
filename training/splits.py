"""Clean samples -> fit / validate / calibrate, with no copy and no group on two sides.

Samples are ordered by a seeded digest of their content, so the same data split the same way wherever they lie and
however they are named. Of copies the first is taken and the others are left out. Rows of codes are draws instead, see
`vaegis.models.derived.copies`: each state's rows are parted at random, in the same shares. A series is cut into
contiguous blocks with one window of rows left out between blocks of different splits: windows that overlap, or nearly
touch, are not independent; a window that came before follows the first of its kind. Items too short to be cut stay
whole, and windows given as such, (N, T, C), are samples like any other.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Samples
from vaegis.models.derived.calibrating import independent
from vaegis.models.derived.copies import Copies, copies_of, overlapping
from vaegis.models.errors import Refusal
from vaegis.models.spec import SeriesSpec

LEAST = 20  # clean samples below which nothing can be learned and held out
CALIBRATE_SHARE, CALIBRATE_LEAST, CALIBRATE_MOST = 0.2, 99, 0.4
VALIDATE_SHARE, VALIDATE_LEAST, VALIDATE_MOST = 0.12, 40, 0.2

# Blocks of a series in order of time; fit and calibrate recur, so that slow drift reaches both.
LONG, MEDIUM, SHORT = "FFFCFFFCVV", "FFCCFFCCVV", "FFCCV"


@dataclass(frozen=True)
class Split:
    """Sample numbers, ascending, of each side."""

    fit: NDArray[np.int64]
    validate: NDArray[np.int64]
    calibrate: NDArray[np.int64]
    effective: int  # independent samples among `calibrate`
    # What statistics of clean evidence are learned from once the weights are settled; None takes `fit`. For a series
    # cut into blocks validate too: it holds the latest rows, and a covariance that never saw them takes drift for
    # strangeness.
    settled: NDArray[np.int64] | None = None

    @property
    def last_look(self) -> NDArray[np.int64]:
        """Samples that `Family.finish` sees."""
        return self.fit if self.settled is None else self.settled

    def counts(self) -> dict[str, int]:
        return {"fit": len(self.fit), "validate": len(self.validate), "calibrate": len(self.calibrate)}


def split(samples: Samples, seed: int, copies: Copies | None = None) -> Split:
    """Splits clean samples.

    Args:
        copies: those among them, where they are known.

    Raises:
        Refusal: too few samples or groups.
    """
    copies = copies_of(samples) if copies is None else copies
    # Windows that all start their item were given as such: samples of their own, with nothing between them.
    row = samples.row if overlapping(samples) else None
    window = samples.spec.window if isinstance(samples.spec, SeriesSpec) else 1
    units: list[bytes] | None = None
    if row is not None and samples.groups is None:
        cut = _by_blocks(samples, row, window, copies)
        if cut is not None:
            return cut
        units = _whole_items(samples, row, window)
    counted = copies.counted
    n = len(counted)
    if n < LEAST:
        raise Refusal(_too_few(len(samples), n))
    if copies.draws and samples.groups is None:
        sides = _draws(samples, copies, _wanted(n), seed)
    else:
        units = units or _units(samples, copies)
        sides = _assign([units[i] for i in counted.tolist()], _wanted(n), seed)
    fit, validate, calibrate = (counted[sides == s] for s in range(3))
    if not len(fit) or not len(validate) or not len(calibrate):
        distinct = len(set(units or ()))
        what = "groups" if samples.groups is not None else "distinct samples"
        raise Refusal(
            f"The {len(samples)} clean samples form {distinct} {what} that must stay whole, too few for fit, validate "
            "and calibrate. Add clean samples from more of them."
        )
    return Split(fit, validate, calibrate, independent(samples, calibrate, copies))


def _wanted(n: int) -> list[int]:
    """How many of n samples shall be on each side."""
    calibrate = min(max(math.ceil(CALIBRATE_SHARE * n), CALIBRATE_LEAST), math.floor(CALIBRATE_MOST * n))
    validate = min(max(math.ceil(VALIDATE_SHARE * n), VALIDATE_LEAST), math.floor(VALIDATE_MOST * n))
    return [n - calibrate - validate, validate, calibrate]


def _too_few(n: int, distinct: int) -> str:
    if n == distinct:
        return f"{n} clean samples were given; fitting needs at least {LEAST}. Add clean samples."
    return (
        f"The {n} clean samples form {distinct} distinct samples, the others are copies; fitting needs at least "
        f"{LEAST} distinct ones. Add clean samples that are not copies."
    )


def _units(samples: Samples, copies: Copies) -> list[bytes]:
    """What must stay together, per sample: its group, or copies of one content.

    Groups that share a copy are one, unless rows are draws: then equal rows are none of each other.
    """
    content = copies.contents or tuple(samples.content(i) for i in range(len(samples)))
    if samples.groups is None:
        return list(content)
    keys = [b"g" + g.encode() for g in samples.groups]
    if copies.draws:
        return keys
    parent: dict[bytes, bytes] = {}

    def root(key: bytes) -> bytes:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for key, own in zip(keys, content, strict=True):
        parent[root(b"c" + own)] = root(key)
    return [root(k) for k in keys]


def _draws(samples: Samples, copies: Copies, wanted: list[int], seed: int) -> NDArray[np.int8]:
    """A side per counted row of codes: each state's rows are parted at random, in the shares of the whole.

    States stand in a seeded random order, their rows one after the other, and every n-th goes to calibrate, from a
    random start; every m-th of the others to validate. So a state of c rows gives c times the share, rounded up or down
    at random.
    """
    assert copies.contents is not None
    salt, rng = _salt(seed), np.random.default_rng(seed % 2**64)
    original = copies.original[copies.counted]
    states, place = np.unique(original, return_inverse=True)
    digests = [_salted(copies.contents[i], salt) for i in states.tolist()]
    turn = np.empty(len(states), np.int64)
    turn[sorted(range(len(states)), key=lambda i: digests[i])] = np.arange(len(states))
    line = np.lexsort((rng.random(len(place)), turn[place]))
    sides = np.zeros(len(line), np.int8)
    for side, share in ((2, wanted[2] / sum(wanted)), (1, wanted[1] / (wanted[0] + wanted[1]))):
        steps = np.floor((np.arange(len(line) + 1)) * share + rng.random())
        sides[line[np.diff(steps) > 0]] = side
        line = line[np.diff(steps) == 0]
    return sides


def _salt(seed: int) -> bytes:
    return seed.to_bytes(8, "little", signed=True)


def _salted(content: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, key=salt).digest()


def _assign(units: list[bytes], wanted: list[int], seed: int) -> NDArray[np.int8]:
    """A side per sample, whole units at a time.

    Units stand in a seeded random order, each as long as it has samples, and two cuts part the line: a unit goes where
    its middle lies. So a sample lands in the calibrate split equally often whether it has copies or none, on which the
    false-alarm rate rests. Where a few large units leave a side empty, the largest are dealt out first instead.
    """
    sizes: dict[bytes, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    salt = _salt(seed)
    order = sorted(sizes, key=lambda u: _salted(u, salt))
    side: dict[bytes, int] = {}
    done = 0
    for unit in order:
        middle = done + sizes[unit] / 2
        side[unit] = 2 if middle < wanted[2] else 1 if middle < wanted[2] + wanted[1] else 0
        done += sizes[unit]
    if len(set(side.values())) < 3:
        have = [0, 0, 0]
        for unit in sorted(order, key=lambda u: -sizes[u]):
            side[unit] = max(range(3), key=lambda s: (wanted[s] - have[s]) / max(wanted[s], 1))
            have[side[unit]] += sizes[unit]
    return np.array([side[u] for u in units], np.int8)


def _items(samples: Samples) -> list[tuple[int, int]]:
    """First and end sample of each item. Not np.unique: there can be many windows but few items."""
    items = np.asarray(samples.items)
    starts = [0, *(np.flatnonzero(items[1:] != items[:-1]) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(items)], strict=True))


def _by_blocks(samples: Samples, row: NDArray[np.int64], window: int, copies: Copies) -> Split | None:
    """A split of series into blocks; None where the items are too short to be cut.

    Copies of a window go where the first is. Where that would empty a side, as for a signal that repeats itself
    exactly, they stay where they are, and only count once.
    """
    spans = _items(samples)
    lengths = [int(row[end - 1] - row[start]) + window for start, end in spans]
    windows = sum(length // window for length in lengths)
    enough = windows * CALIBRATE_SHARE >= CALIBRATE_LEAST
    sides = np.full(len(row), -1, np.int8)
    for (start, end), length in zip(spans, lengths, strict=True):
        pattern = (LONG if enough else MEDIUM) if length >= 10 * 4 * window else SHORT
        at = row[start:end] - row[start]
        for side, low, high in _blocks(pattern, length, window):
            sides[start:end][(at >= low) & (at + window <= high)] = side
    parted = sides[copies.original]
    if len(set(parted.tolist()) - {-1}) == 3:
        sides = parted
    fit, validate, calibrate = (np.flatnonzero(sides == s) for s in range(3))
    if min(len(fit), len(validate), len(calibrate)) == 0:
        return None
    settled = np.sort(np.concatenate([fit, validate]))
    return Split(fit, validate, calibrate, independent(samples, calibrate, copies), settled)


def _whole_items(samples: Samples, row: NDArray[np.int64], window: int) -> list[bytes]:
    """Many items little longer than a window stay whole; a unit per sample, equal for copies of an item."""
    spans = _items(samples)
    if len(spans) < LEAST:
        rows = sum(int(row[end - 1] - row[start]) + window for start, end in spans)
        raise Refusal(
            f"The clean series hold {rows} rows, too few for fit, validate and calibrate blocks with windows of "
            f"{window} rows. Add clean rows or set a shorter --window."
        )
    units: list[bytes] = []
    for start, end in spans:
        content = hashlib.blake2b(digest_size=16)
        for i in range(start, end):
            content.update(samples.content(i))
        units += [content.digest()] * (end - start)
    return units


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
    cuts = []
    for i, (letter, low, high) in enumerate(runs):
        gap = min(window, (high - low) // 4) if i + 1 < len(runs) else 0
        cuts.append(("FVC".index(letter), low, high - gap))
    return cuts
