"""Synthetic anomalies, made of clean samples alone: what a fresh model is tried on before any real defect is at hand,
and what the product's defaults are chosen by.

Images and windows: parts of other clean samples in the wrong place (CutPaste, Li et al. 2021, arXiv:2104.04015), and
what handling and sensors do. Tables: the kinds of ADBench (Han et al. 2022, arXiv:2206.09426) without the trivial
uniform one, and single values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaegis.models.spec import Kind

Array = NDArray[np.float64]

PATCH = (0.12, 0.35)  # of an image's side
FAINT = 0.25  # of the way to white or black
LOCAL = 5.0  # times the variance, as in ADBench
WHOLE_MOST = 20  # whole numbers that a table's column may hold to be taken for counts or codes


class Defect(NamedTuple):
    """One kind of synthetic anomaly."""

    says: str  # what was done, for people
    make: Callable[[Array, np.random.Generator], Array]  # clean (n, *shape) -> as many anomalies
    unless: str = ""  # the declared invariance under which it is no defect


def make_defects(
    kind: Kind, clean: NDArray[Any], seed: int, invariances: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Name of a defect -> as many anomalies as clean samples were given, (n, *shape), of their type and range.

    Args:
        clean: raw samples without missing values, two at least.
        invariances: what clean product was declared to vary in; what they allow is left out.
    """
    defects = {}
    for number, (name, defect) in enumerate(DEFECTS[kind].items()):
        if defect.unless in invariances:
            continue
        values = defect.make(clean.astype(np.float64), np.random.default_rng([seed, number]))
        if np.issubdtype(clean.dtype, np.integer):
            values = np.clip(np.rint(values), 0, np.iinfo(clean.dtype).max)
        elif kind == "vector":
            _keep_codes(values, clean)
        defects[name] = values.astype(clean.dtype)
    return defects


def _keep_codes(values: Array, clean: NDArray[Any]) -> None:
    """Columns of counts or codes stay such, within the range of the clean ones."""
    for c in range(clean.shape[1]):
        levels = np.unique(clean[:, c])
        if len(levels) <= WHOLE_MOST and bool((levels == np.rint(levels)).all()):
            values[:, c] = np.clip(np.rint(values[:, c]), levels[0], levels[-1])


def _others(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each sample another one."""
    return (np.arange(n) + rng.integers(1, max(2, n), n)) % n


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random rectangle within (H, W)."""
    high, wide = (min(s, max(2, round(s * rng.uniform(*PATCH)))) for s in shape)
    return int(rng.integers(0, shape[0] - high + 1)), int(rng.integers(0, shape[1] - wide + 1)), high, wide


def _patch(x: Array, rng: np.random.Generator) -> Array:
    """A patch of another sample, in another place."""
    out = x.copy()
    for i, j in enumerate(_others(len(x), rng)):
        top, left, high, wide = _box(x.shape[1:3], rng)
        y, z = rng.integers(0, x.shape[1] - high + 1), rng.integers(0, x.shape[2] - wide + 1)
        out[i, top : top + high, left : left + wide] = x[j, y : y + high, z : z + wide]
    return out


def _missing(x: Array, rng: np.random.Generator) -> Array:
    """A patch that shows nothing but its own mean: detail that is not there."""
    out = x.copy()
    for i in range(len(x)):
        top, left, high, wide = _box(x.shape[1:3], rng)
        part = out[i, top : top + high, left : left + wide]
        part[:] = part.mean((0, 1))
    return out


def _stain(x: Array, rng: np.random.Generator) -> Array:
    """A faint patch, darker or brighter."""
    out, full = x.copy(), 255.0 if x.max() < 256 else 65535.0
    for i in range(len(x)):
        top, left, high, wide = _box(x.shape[1:3], rng)
        part = out[i, top : top + high, left : left + wide]
        part += FAINT * ((full if rng.random() < 0.5 else 0.0) - part)
    return out


def _scratch(x: Array, rng: np.random.Generator) -> Array:
    """A thin line from one point to another."""
    out, top = x.copy(), x.max()
    for i in range(len(x)):
        ends = rng.uniform(0.1, 0.9, (2, 2)) * np.array(x.shape[1:3])
        steps = np.linspace(ends[0], ends[1], 4 * max(x.shape[1:3])).astype(np.int64)
        out[i, steps[:, 0], steps[:, 1]] = top * rng.choice([0.0, 0.5, 1.0])
    return out


def _joined(x: Array, rng: np.random.Generator) -> Array:
    """The upper half of one sample and the lower half of another, shifted sideways: parts that do not belong."""
    out, half = x.copy(), x.shape[1] // 2
    for i, j in enumerate(_others(len(x), rng)):
        out[i, half:] = np.roll(x[j, half:], rng.choice([-1, 1]) * max(1, x.shape[2] // 10), axis=1)
    return out


def _double(x: Array, rng: np.random.Generator) -> Array:
    """Two samples over one another."""
    return np.asarray(0.5 * (x + x[_others(len(x), rng)]))


def _moved(x: Array, rng: np.random.Generator) -> Array:
    """Shifted by a sixth of a side or more, what goes out on one side coming in on the other."""
    out = x.copy()
    for i in range(len(x)):
        high, wide = (max(1, round(s * rng.uniform(1 / 6, 1 / 3))) * int(rng.choice([-1, 1])) for s in x.shape[1:3])
        out[i] = np.roll(x[i], (high, wide), axis=(0, 1))
    return out


def _turned(x: Array, rng: np.random.Generator) -> Array:
    """By a quarter or a half, or a half only where an image is not square."""
    out, square = x.copy(), x.shape[1] == x.shape[2]
    for i in range(len(x)):
        out[i] = np.rot90(x[i], int(rng.integers(1, 4)) if square else 2)
    return out


def _one_channel(x: Array, rng: np.random.Generator, change: Callable[[Array, Array, float], Array]) -> Array:
    """Windows (n, T, C) with one channel changed; `change` takes it, another window's and the channel's spread."""
    out, spread = x.copy(), x.std((0, 1))
    for i, j in enumerate(_others(len(x), rng)):
        c = rng.integers(x.shape[2])
        out[i, :, c] = change(x[i, :, c], x[j, :, c], float(spread[c]))
    return out


def _uncoupled(x: Array, rng: np.random.Generator) -> Array:
    """A channel that follows another window than its neighbours."""
    return _one_channel(x, rng, lambda own, other, spread: other)


def _drift(x: Array, rng: np.random.Generator) -> Array:
    """A channel that lies two clean standard deviations off."""
    return _one_channel(x, rng, lambda own, other, spread: own + 2 * spread * rng.choice([-1, 1]))


def _spike(x: Array, rng: np.random.Generator) -> Array:
    """One value of one channel far off."""

    def change(own: Array, other: Array, spread: float) -> Array:
        own = own.copy()
        own[rng.integers(len(own))] += 4 * spread * rng.choice([-1, 1])
        return own

    return _one_channel(x, rng, change)


def _noisy(x: Array, rng: np.random.Generator) -> Array:
    """A channel with the noise of a loose contact."""
    return _one_channel(x, rng, lambda own, other, spread: own + spread * rng.standard_normal(len(own)))


def _dependency(x: Array, rng: np.random.Generator) -> Array:
    """Half of the columns taken from another sample: each value is usual, and they do not go together."""
    out, others = x.copy(), _others(len(x), rng)
    for i, j in enumerate(others):
        columns = rng.permutation(x.shape[1])[: max(1, x.shape[1] // 2)]
        out[i, columns] = x[j, columns]
    return out


def _local(x: Array, rng: np.random.Generator) -> Array:
    """Spread around the mean with `LOCAL` times the clean covariance, as a Gaussian has it."""
    # Sums of clean samples with normal weights have the clean covariance, whatever the number of columns.
    weights = rng.standard_normal((len(x), len(x))) * np.sqrt(LOCAL / len(x))
    return np.asarray(x.mean(0) + weights @ (x - x.mean(0)))


def _clustered(x: Array, rng: np.random.Generator) -> Array:
    """All moved one way, by a little more than a clean standard deviation in every column."""
    return np.asarray(x + 1.5 * x.std(0) * rng.choice([-1.0, 1.0], x.shape[1]))


def _single(x: Array, rng: np.random.Generator) -> Array:
    """One column three clean standard deviations off."""
    out, column = x.copy(), rng.integers(0, x.shape[1], len(x))
    out[np.arange(len(x)), column] += 3 * x.std(0)[column] * rng.choice([-1, 1], len(x))
    return out


DEFECTS: dict[Kind, dict[str, Defect]] = {
    "image": {
        "patch": Defect("a patch of another sample, in another place", _patch),
        "missing": Defect("a patch smoothed to its own mean: detail that is not there", _missing),
        "stain": Defect("a patch made a quarter darker or brighter", _stain),
        "scratch": Defect("a thin straight line", _scratch),
        "joined": Defect("the lower half of another sample, a little to the side", _joined),
        "moved": Defect("the whole image shifted by a sixth of its side or more", _moved, "shift"),
        "turned": Defect("the whole image turned by a quarter or a half", _turned, "rotation"),
        "double": Defect("two samples over one another", _double),
    },
    "series": {
        "uncoupled": Defect("one channel taken from another window", _uncoupled),
        "drift": Defect("one channel two clean standard deviations off", _drift, "offset"),
        "spike": Defect("one value of one channel four clean standard deviations off", _spike),
        "noisy": Defect("one channel with noise of a clean standard deviation", _noisy, "noise"),
    },
    "vector": {
        "dependency": Defect("half of the columns taken from another sample", _dependency),
        "local": Defect("spread as clean samples are, with five times their variance", _local),
        "clustered": Defect("every column one and a half clean standard deviations off, all the same way", _clustered),
        "single": Defect("one column three clean standard deviations off", _single),
    },
}
