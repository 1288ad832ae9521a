"""Arrays that are in memory already, read as those of an .npz are: the same samples give the same model either way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Refusal
from vaegis.models.sources.arrays import CHUNK, Header, array_kind, check_vector
from vaegis.models.sources.folders import printable
from vaegis.models.sources.options import SourceOptions, listed, span
from vaegis.models.spec import Kind


@dataclass(frozen=True, eq=False)
class ArrayMemory:
    """One of some named arrays. Its samples lie along the first axis."""

    path: Path  # what messages call it; there need be no such file
    options: SourceOptions
    kind: Kind
    key: str
    arrays: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...] = ()  # what a user should know of how it is read
    unreadable: tuple[str, ...] = ()  # what of the source cannot be read at all

    @property
    def header(self) -> Header:
        """What an .npy of the array would say."""
        array = self.arrays[self.key]
        return Header(array.shape, array.dtype, False, 0)

    @property
    def name(self) -> str:
        """The item that its samples come from."""
        return printable(self.path.name)

    def names(self) -> tuple[str, ...]:
        """The one item."""
        return (self.name,)

    @property
    def span(self) -> tuple[int, int]:
        """First sample and one past the last, after `rows`."""
        return span(self.options.rows, len(self.arrays[self.key]))

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(number of its first sample, samples in the array's own dtype), in order, a few MB at a time."""
        array, (first, last) = self.arrays[self.key], self.span
        step = max(1, CHUNK // max(1, math.prod(array.shape[1:]) * array.itemsize))
        for at in range(first, last, step):
            yield at, np.array(array[at : min(at + step, last)], order="C")

    def vector(self, key: str) -> NDArray[Any]:
        """Another of the arrays, one value per sample (before `rows`).

        Raises:
            Refusal: no such key, or not one value per sample.
        """
        if key not in self.arrays:
            raise Refusal(f"{self.path.name} holds no array {key!r}; it holds {listed(list(self.arrays))}.")
        values = self.arrays[key]
        check_vector(self.path.name, key, values.shape, values.dtype, len(self.arrays[self.key]))
        return values


def open_arrays(
    arrays: NDArray[Any] | Mapping[str, NDArray[Any]], options: SourceOptions, name: str = "arrays"
) -> ArrayMemory:
    """A source of samples in memory.

    Args:
        arrays: the samples, or arrays by key as an .npz holds them. The samples are then what `options.key` names, else
            `x`, else the first; the others may hold a group, condition or label per sample.
        name: what messages call it, and the item that the samples come from.

    Raises:
        Refusal: no such key, or a form that fits no kind.
    """
    named = arrays if isinstance(arrays, Mapping) else {"x": arrays}
    if not named:
        raise Refusal(f"{name} is empty: it holds no array.")
    if options.key is not None and options.key not in named:
        raise Refusal(f"{name} holds no array {options.key!r}; the key may be {listed(list(named))}.")
    key = options.key or ("x" if "x" in named else next(iter(named)))
    array, title = named[key], f"Array {key!r} of {name}"
    if not array.shape:
        raise Refusal(f"{title} is a single value, not an array of samples.")
    kind = array_kind(title, array.shape, array.dtype, options.kind)
    if not len(array):
        raise Refusal(f"{title} is empty: its shape is {array.shape}. Give at least one sample.")
    source = ArrayMemory(Path(name), options, kind, key, named)
    first, last = source.span
    if first == last:
        raise Refusal(f"The rows asked for leave nothing of {name}, which holds {len(array)} samples.")
    return source
