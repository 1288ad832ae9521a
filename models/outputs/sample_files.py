"""Samples to files: pictures in a folder, rows of a table, or arrays of an .npz.

An .npz is held in memory until it is whole; pictures and tables are written aside as they come.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.outputs.atomic import atomic_file, atomic_files, explain, writing
from vaegis.models.outputs.table_file import TableFile
from vaegis.models.sources.images import SUFFIXES
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec, VectorSpec

TABLES = (".parquet", ".csv")


class SampleFiles(Protocol):
    """What samples are written to."""

    def write(
        self,
        values: NDArray[Any],
        items: Sequence[str | None],
        index: NDArray[np.int64],
        timestamps: Sequence[Any] | None = None,
        notes: Sequence[str | None] | None = None,
        **about: NDArray[Any],
    ) -> None:
        """Appends samples: (n, H, W, C), (n, T, C) windows, or rows (n, D).

        Args:
            timestamps: (n,) of rows.
            notes: (n,) what must be said of a sample.
            about: name -> values of the same shape.

        Raises:
            Refusal: the disk is full.
        """
        ...


@contextmanager
def sample_files(out: Path, spec: InputSpec, about: Sequence[str] = ()) -> Iterator[SampleFiles]:
    """Opens what takes samples; the files are there when the block ends, whole, and not at all if it raises.

    Args:
        out: a folder (images: a PNG each) or a file: .npz for every kind (arrays `x` and those about it), .parquet or
            .csv for vectors and rows of a series.
        about: names of further values of a sample's own shape, such as `difference`: arrays of an .npz, columns
            `NAME.COLUMN` of a table, folders of pictures.

    Raises:
        Refusal: a form that the kind cannot take; it cannot be written there.
        Conflict: `out` is a folder and the form a file.
    """
    named = f"--out {out}"
    if out.suffix == ".npz":
        if out.is_dir():
            raise Conflict(f"{named} is a folder; name a file.")
        with explain(named, atomic_file(out)) as file:
            arrays = _Arrays(("x", *about))
            yield arrays
            with writing(named):
                np.savez_compressed(file, **cast(Any, arrays.joined()))
    elif isinstance(spec, ImageSpec):
        _check_pictures(out, spec)
        with explain(named, atomic_files(out)) as folder:
            with writing(named):
                for name in about:
                    (folder / name).mkdir()
            yield _Pictures(folder, named)
    else:
        with TableFile(out, _table_schema(spec, about), forms=TABLES) as table:
            yield _Rows(table, spec)


class _Arrays:
    """Keeps samples for an .npz."""

    def __init__(self, names: Sequence[str]) -> None:
        self._chunks: dict[str, list[NDArray[Any]]] = {name: [] for name in names}

    def write(
        self,
        values: NDArray[Any],
        items: Sequence[str | None],
        index: NDArray[np.int64],
        timestamps: Sequence[Any] | None = None,
        notes: Sequence[str | None] | None = None,
        **about: NDArray[Any],
    ) -> None:
        """Keeps the values; an array has no names, times and notes."""
        for name, array in {"x": values, **about}.items():
            self._chunks[name].append(array)

    def joined(self) -> dict[str, NDArray[Any]]:
        """Every array whole; none where nothing was written."""
        return {name: np.concatenate(chunks) for name, chunks in self._chunks.items() if chunks}


class _Pictures:
    """Writes a PNG per sample, and one in a folder of its own for each value about it."""

    def __init__(self, folder: Path, named: str) -> None:
        self._folder, self._named = folder, named
        self._names: set[str] = set()

    def write(
        self,
        values: NDArray[Any],
        items: Sequence[str | None],
        index: NDArray[np.int64],
        timestamps: Sequence[Any] | None = None,
        notes: Sequence[str | None] | None = None,
        **about: NDArray[Any],
    ) -> None:
        """Writes the pictures; a picture has no notes."""
        for i, picture in enumerate(values):
            name = self._name(items[i], int(index[i]))
            self._save(self._folder / name, picture)
            for folder, pictures in about.items():
                self._save(self._folder / folder / name, pictures[i])

    def _name(self, item: str | None, index: int) -> str:
        """`part_2.png` of an image file; `test.npz.7.png` of an array; a number where there is no name."""
        name = item if item is not None else f"{index:04d}"
        path = Path(name) if Path(name).suffix not in (".npz", ".npy") else Path(f"{name}.{index}")
        path = path.with_name(path.name + ("" if path.suffix == ".png" else ".png"))
        if path.as_posix() in self._names:
            path = path.with_name(f"{path.stem}.{index}.png")
        self._names.add(path.as_posix())
        return path.as_posix()

    def _save(self, path: Path, picture: NDArray[Any]) -> None:
        with writing(self._named):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture))


class _Rows:
    """Writes a row per vector, time step, or row of a window."""

    def __init__(self, table: TableFile, spec: SeriesSpec | VectorSpec) -> None:
        self._table, self._spec = table, spec

    def write(
        self,
        values: NDArray[Any],
        items: Sequence[str | None],
        index: NDArray[np.int64],
        timestamps: Sequence[Any] | None = None,
        notes: Sequence[str | None] | None = None,
        **about: NDArray[Any],
    ) -> None:
        """Writes the rows; those of a window share its item, index, timestamp and note."""
        span = values.shape[1] if values.ndim == 3 else 1
        texts = {
            "item": items,
            "timestamp": [None if t is None else str(t) for t in timestamps or [None] * len(values)],
            "note": notes if notes is not None else [None] * len(values),
        }
        columns: dict[str, Any] = {
            name: pa.array([text for text in column for _ in range(span)], pa.string())
            for name, column in texts.items()
        }
        columns["index"] = pa.array(np.repeat(index, span))
        for prefix, array in {"": values, **{f"{name}.": a for name, a in about.items()}}.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
            for c, channel in enumerate(self._spec.columns):
                columns[prefix + channel] = pa.array(rows[:, c], from_pandas=True)
        self._table.write(columns)


def _table_schema(spec: SeriesSpec | VectorSpec, about: Sequence[str]) -> pa.Schema:
    channels = [*spec.columns, *(f"{name}.{c}" for name in about for c in spec.columns)]
    fields = [("item", pa.string()), ("index", pa.int64()), ("timestamp", pa.string())]
    return pa.schema([*fields, *((c, pa.float32()) for c in channels), ("note", pa.string())])


def _check_pictures(out: Path, spec: ImageSpec) -> None:
    if out.suffix in (*TABLES, *SUFFIXES) or (out.exists() and not out.is_dir()):
        raise Refusal(f"--out {out.name} cannot hold images; name a folder, for a PNG each, or an .npz.")
    if spec.channels not in (1, 3) or (spec.depth == 16 and spec.channels == 3):
        raise Refusal(f"A PNG cannot hold {spec.channels} channels of {spec.depth} bits; name an .npz for --out.")


def png(picture: NDArray[Any]) -> bytes:
    """(H, W, 1 or 3) pixels of 8 bits, or (H, W, 1) of 16."""
    plain = picture[..., 0] if picture.shape[-1] == 1 else picture
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plain)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def signed(difference: NDArray[Any], spec: ImageSpec) -> NDArray[Any]:
    """A difference of pixels as a picture: mid-grey where there is none, lighter where there was more; half the range
    reaches white."""
    middle = 2 ** (spec.depth - 1)
    return np.asarray(np.clip(np.rint(difference) + middle, 0, 2**spec.depth - 1), spec.dtype)
