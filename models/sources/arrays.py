"""Arrays in .npy and .npz files, read front to back in chunks whatever their size or compression.

Nothing here unpickles: the .npy header is parsed with numpy's public functions, and object arrays are refused.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vaegis.models.errors import Refusal
from vaegis.models.sources.folders import printable
from vaegis.models.sources.options import SourceOptions, listed, span
from vaegis.models.spec import Kind

CHUNK = 8 << 20  # bytes read at a time
LARGEST = 2**62  # bytes that an array may be said to hold: sizes stay within what addresses them
# All that a broken .npz can raise when read. Encryption, and a compression that zipfile lacks, are its RuntimeErrors.
UNREADABLE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, MemoryError,
)  # fmt: skip
with contextlib.suppress(ImportError):  # zipfile does without it where Python was built without it
    import lzma

    UNREADABLE += (lzma.LZMAError,)


@dataclass(frozen=True)
class Header:
    """What an .npy header says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int  # bytes before the data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ArrayFile:
    """One array of an .npy or .npz file. Its samples lie along the first axis."""

    path: Path
    options: SourceOptions
    kind: Kind
    key: str | None  # None in an .npy
    header: Header
    notes: tuple[str, ...] = ()  # what a user should know of how it is read
    unreadable: tuple[str, ...] = ()  # what of the source cannot be read at all

    @property
    def name(self) -> str:
        """The item that its samples come from."""
        return printable(self.path.name)

    def names(self) -> tuple[str, ...]:
        """The one item: the file's name."""
        return (self.name,)

    @property
    def span(self) -> tuple[int, int]:
        """First sample and one past the last, after `rows`."""
        return span(self.options.rows, self.header.shape[0])

    def chunks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(number of its first sample, samples in the array's own dtype), in order, a few MB at a time.

        Raises:
            Refusal: the file ends early or its checksum is wrong.
        """
        first, last = self.span
        yield from _chunks(self.path, self.key, self.header, first, last)

    def vector(self, key: str) -> NDArray[Any]:
        """Another array of the same .npz, one value per sample (before `rows`).

        Raises:
            Refusal: no such key, or not one value per sample.
        """
        if self.key is None:
            raise Refusal(f"{self.path.name} holds one array, so {key!r} cannot be a key of it; use an .npz.")
        header = member_header(self.path, key)
        n = self.header.shape[0]
        check_vector(self.path.name, key, header.shape, header.dtype, n)
        parts = [chunk for _, chunk in _chunks(self.path, key, header, 0, n)]
        return np.concatenate(parts) if parts else np.empty(header.shape, header.dtype)


def check_vector(name: str, key: str, shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> None:
    """Refuses an array that does not hold a number or text for each of n samples.

    Raises:
        Refusal: another length, or another kind of values.
    """
    if not shape or shape[0] != n:
        raise Refusal(f"Array {key!r} of {name} has shape {shape}; it must hold {n} values, one per sample.")
    if dtype.kind not in "biufUS":
        raise Refusal(f"Array {key!r} of {name} holds {dtype}; give integers or strings.")


def open_array(path: Path, options: SourceOptions) -> ArrayFile:
    """The array that `options.key` names, else `x`, else the first.

    Raises:
        Refusal: not an array file, no such key, an object array, or a form that fits no kind.
    """
    key: str | None = None
    if path.suffix.lower() == ".npy":
        if options.key is not None:
            raise Refusal(f"--key {options.key} was given, but {path.name} is an .npy and holds one unnamed array.")
        header = _file_header(path)
    else:
        names = member_names(path)
        if not names:
            raise Refusal(f"{path.name} is empty: it holds no array. Save one with numpy.savez(file, x=array).")
        if options.key is not None and options.key not in names:
            raise Refusal(f"{path.name} holds no array {options.key!r}; --key may be {listed(names)}.")
        key = options.key or ("x" if "x" in names else names[0])
        header = member_header(path, key)
    kind = array_kind(_title(path, key), header.shape, header.dtype, options.kind)
    if header.shape[0] == 0:
        raise Refusal(f"{_title(path, key)} is empty: its shape is {header.shape}. Give at least one sample.")
    source = ArrayFile(path, options, kind, key, header)
    first, last = source.span
    if first == last:
        raise Refusal(f"--rows leaves nothing of {path.name}, which holds {header.shape[0]} samples.")
    return source


def array_kind(title: str, shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Kind | None) -> Kind:
    """What an array of this form holds.

    Raises:
        Refusal: nothing that the interface knows, or not the wanted kind.
    """
    form = f"{title} holds {dtype} of shape {shape}"
    if 0 in shape[1:]:
        raise Refusal(f"{form}, whose samples have no values; give at least one for each.")
    pixels = dtype in (np.uint8, np.uint16)
    if dtype.kind not in "biuf":
        raise Refusal(f"{form}, which is not numeric; give uint8 or uint16 images, or floats.")
    if wanted is None:
        if pixels and len(shape) in (3, 4):
            return "image"
        if not pixels and len(shape) == 3:
            return "series"
        if not pixels and len(shape) in (1, 2):
            return "vector"
        if len(shape) == 4:
            raise Refusal(f"{form}; images must be uint8 or uint16. Convert it, for example (x * 255).astype('uint8').")
        raise Refusal(
            f"{form}, which could be several things; say --kind vector or --kind series, or give images as (N, H, W)."
        )
    if wanted == "image":
        if len(shape) not in (3, 4):
            raise Refusal(f"{form}, which is no image array: give uint8 or uint16 of shape (N, H, W) or (N, H, W, C).")
    elif wanted == "series":
        if len(shape) not in (1, 2, 3):
            raise Refusal(f"{form}, which is no series: give (rows, columns), or windows as (N, T, columns).")
    elif len(shape) not in (1, 2):
        raise Refusal(f"{form}, which is no table of vectors: give (N, D).")
    return wanted


def member_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz, in their order.

    Raises:
        Refusal: not a zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except UNREADABLE as error:
        raise Refusal(f"{path.name} is not a readable .npz ({error}); save it again with numpy.savez.") from error


def member_header(path: Path, key: str) -> Header:
    """Header of one array of an .npz.

    Raises:
        Refusal: no such key, not an array, or an object array.
    """
    names = member_names(path)
    if key not in names:
        raise Refusal(f"{path.name} holds no array {key!r}; it holds {listed(names)}.")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            return read_header(file, _title(path, key))
    except UNREADABLE as error:
        raise Refusal(f"{_title(path, key)} cannot be read ({error}); save it again with numpy.savez.") from error


def read_header(file: IO[bytes], title: str) -> Header:
    """The .npy header at the front of `file`, which is left at the data.

    Raises:
        Refusal: an object or structured array.
        ValueError: not an .npy at all.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version[0]}.{version[1]} is not read here")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except Exception as error:  # the header is Python text, and numpy lets through what parsing broken text raises
        raise ValueError(f"its header cannot be read: {error}") from error
    if min(shape, default=0) < 0 or math.prod(max(n, 1) for n in shape) * max(dtype.itemsize, 1) > LARGEST:
        raise ValueError(f"no array has the shape {shape} that its header names")
    if dtype.hasobject:
        raise Refusal(
            f"{title} is an object array, which could run code when read. Save plain numbers: "
            "x.astype('float32'), with rows of equal length."
        )
    if dtype.names is not None:
        raise Refusal(f"{title} is a structured array; save its numbers as a plain (N, D) array, or as a Parquet file.")
    return Header(tuple(int(n) for n in shape), dtype, bool(fortran), file.tell())


def _file_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            header = read_header(file, path.name)
    except (ValueError, EOFError, OSError) as error:
        raise Refusal(f"{path.name} is not a readable .npy ({error}); save it again with numpy.save.") from error
    size = path.stat().st_size - header.offset
    if size < header.nbytes:
        raise Refusal(f"{path.name} ends early: {header.nbytes} bytes of data are announced and {size} are there.")
    return header


def _chunks(path: Path, key: str | None, header: Header, first: int, last: int) -> Iterator[tuple[int, NDArray[Any]]]:
    if not header.shape:
        raise Refusal(f"{_title(path, key)} is a single value, not an array of samples.")
    row = math.prod(header.shape[1:]) * header.dtype.itemsize
    step = max(1, CHUNK // max(1, row))
    if key is None:
        mapped = np.memmap(path, header.dtype, "r", header.offset, header.shape, "F" if header.fortran else "C")
        for at in range(first, last, step):
            yield at, np.array(mapped[at : min(at + step, last)], order="C")
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            read_header(file, _title(path, key))
            if header.fortran and len(header.shape) > 1:
                yield from _turned(file, header, first, last, step)
            else:
                _skip(file, first * row)
                for at in range(first, last, step):
                    chunk = np.empty((min(step, last - at), *header.shape[1:]), header.dtype)
                    _fill(file, chunk.reshape(-1).view(np.uint8).data)
                    yield at, chunk
    except UNREADABLE as error:
        raise Refusal(f"{_title(path, key)} is damaged ({error}); save it again with numpy.savez.") from error


def _turned(file: IO[bytes], header: Header, first: int, last: int, step: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Chunks of an array stored column by column, by way of a temporary file: its rows lie scattered."""
    with tempfile.TemporaryFile() as spool:
        buffer = memoryview(bytearray(min(CHUNK, max(1, header.nbytes))))
        for at in range(0, header.nbytes, len(buffer)):
            piece = buffer[: min(len(buffer), header.nbytes - at)]
            _fill(file, piece)
            spool.write(piece)
        spool.flush()
        mapped = np.memmap(spool, header.dtype, "r", 0, header.shape, "F")
        for at in range(first, last, step):
            yield at, np.array(mapped[at : min(at + step, last)], order="C")


def _fill(file: IO[bytes], buffer: memoryview) -> None:
    while buffer:
        piece = file.read(min(len(buffer), CHUNK))
        if not piece:
            raise EOFError("it ends early")
        buffer[: len(piece)] = piece
        buffer = buffer[len(piece) :]


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        piece = file.read(min(count, CHUNK))
        if not piece:
            raise EOFError("it ends early")
        count -= len(piece)


def _title(path: Path, key: str | None) -> str:
    return path.name if key is None else f"Array {key!r} of {path.name}"
