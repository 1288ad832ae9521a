"""A spool: samples for a fit in a mapped file, and what is known of each."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from vaegis.models.spec import InputSpec, SeriesSpec

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]


class Coded(Sequence[str]):
    """Many strings, few of them different: four bytes each."""

    def __init__(self, words: Sequence[str], codes: Codes) -> None:
        self.words = words
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        return Coded(self.words, self.codes[i]) if isinstance(i, slice) else self.words[int(self.codes[i])]


class WordCoder:
    """Collects strings into a `Coded`."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.codes = array("i")  # four bytes each, however many there are

    def code(self, word: str) -> int:
        return self.known.setdefault(word, len(self.known))

    def add(self, word: str, times: int = 1) -> None:
        self.codes.extend(repeat(self.code(word), times))

    def extend(self, codes: Codes) -> None:
        """Adds words by their codes."""
        self.codes.frombytes(codes.tobytes())

    def done(self) -> Coded:
        return Coded(list(self.known), np.array(self.codes, np.int32))


@dataclass(eq=False)
class Spooled:
    """`vaegis.models.blocks.Samples` on a mapped file: of parts, or for series of rows that windows are cut from."""

    spec: InputSpec
    digest: str
    items: Sequence[str]
    first: Ints
    count: Ints
    groups: Sequence[str] | None
    calibration_groups: Sequence[str] | None
    row: Ints | None
    skipped: Sequence[tuple[str, str]]
    mapped: NDArray[Any]  # (parts, *spec.shape), or (rows, columns) of a series
    starts: Ints | None  # series only: first row of each window in `mapped`
    conditions: Ints | None = None  # (parts,)

    def __len__(self) -> int:
        return len(self.first)

    def take(self, parts: Ints) -> NDArray[Any]:
        """The named parts, (len(parts), *spec.shape), a fresh array in the spec's dtype."""
        if self.starts is None:
            return np.array(self.mapped[parts])
        assert isinstance(self.spec, SeriesSpec)
        return np.array(self.mapped[self.starts[parts][:, None] + np.arange(self.spec.window)])

    def content(self, i: int) -> bytes:
        """A 16-byte digest of sample i: copies of a sample have equal digests."""
        parts = self.take(np.arange(self.first[i], self.first[i] + self.count[i]))
        return hashlib.blake2b(parts.tobytes(), digest_size=16).digest()


def digest_head(spec: InputSpec) -> bytes:
    """What a digest of samples starts with: how the bytes that follow are to be read."""
    return json.dumps([spec.kind, list(spec.shape), spec.dtype.str]).encode()


def append(file: IO[bytes], values: NDArray[Any]) -> None:
    """Writes values at the end of a spool."""
    if values.size:
        file.write(np.ascontiguousarray(values).data)


def mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A spool as a read-only array."""
    return np.memmap(path, dtype, "r", 0, shape)
