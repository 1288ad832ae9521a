"""Samples to files: pictures in a folder, rows of a table, or arrays of an .npz.

An .npz is held in memory until it is whole; pictures and tables are written aside as they come.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.outputs.atomic import atomic_file, atomic_files, writing
from vaegis.models.outputs.table_file import TableFile
from vaegis.models.sources.images import SUFFIXES
from vaegis.models.spec import ImageSpec, InputSpec

TABLES = (".parquet", ".csv")


class SampleFiles:
    """Takes samples with something about each; use as a context manager.

    `out` is a folder (images: a PNG each) or a file: .npz for every kind (arrays `x` and those about it), .parquet or
    .csv for vectors and rows of a series.
    """

    def __init__(self, out: Path, spec: InputSpec, about: Sequence[str] = ()) -> None:
        """Checks that `out` can hold such samples.

        Args:
            about: names of further values of a sample's own shape, such as `difference`: arrays of an .npz, columns
                `NAME.COLUMN` of a table, folders of pictures.

        Raises:
            Refusal: a form that the kind cannot take.
            Conflict: `out` is a folder and the form a file.
        """
        self._out, self._spec, self._about = out, spec, tuple(about)
        self._arrays: dict[str, list[NDArray[Any]]] | None = None
        self._table: TableFile | None = None
        self._open = ExitStack()
        self._aside = out  # where pictures are written until the end
        self._names: set[str] = set()
        if out.suffix == ".npz":
            if out.is_dir():
                raise Conflict(f"--out {out} is a folder; name a file.")
            self._arrays = {"x": [], **{name: [] for name in about}}
        elif isinstance(spec, ImageSpec):
            if out.suffix in (*TABLES, *SUFFIXES) or (out.exists() and not out.is_dir()):
                raise Refusal(f"--out {out.name} cannot hold images; name a folder, for a PNG each, or an .npz.")
            if spec.channels not in (1, 3) or (spec.depth == 16 and spec.channels == 3):
                raise Refusal(
                    f"A PNG cannot hold {spec.channels} channels of {spec.depth} bits; name an .npz for --out."
                )
        else:
            columns = [*spec.columns, *(f"{name}.{c}" for name in about for c in spec.columns)]
            fields = [("item", pa.string()), ("index", pa.int64()), ("timestamp", pa.string())]
            fields += [(c, pa.float32()) for c in columns] + [("note", pa.string())]
            self._table = TableFile(out, pa.schema(fields), forms=TABLES)

    def write(
        self,
        values: NDArray[Any],
        items: Sequence[str | None],
        index: NDArray[np.int64],
        stamps: Sequence[Any] | None = None,
        notes: Sequence[str | None] | None = None,
        **about: NDArray[Any],
    ) -> None:
        """Appends samples: (n, H, W, C), (n, T, C) windows, or rows (n, D).

        Args:
            notes: what must be said of a sample.
            about: name -> values of the same shape.

        Raises:
            Refusal: the disk is full, or windows for a table.
        """
        if self._arrays is not None:
            for name, array in {"x": values, **about}.items():
                self._arrays[name].append(array)
            return
        if self._table is None:
            for i, picture in enumerate(values):
                name = self._name(items[i], int(index[i]))
                self._save(self._aside / name, picture)
                for what in self._about:
                    self._save(self._aside / what / name, about[what][i])
            return
        if values.ndim == 3:
            span = values.shape[1]
            items, index = [i for i in items for _ in range(span)], np.repeat(index, span)
            notes = [n for n in notes for _ in range(span)] if notes is not None else None
            values, about = (
                values.reshape(-1, values.shape[2]),
                {k: v.reshape(-1, v.shape[2]) for k, v in about.items()},
            )
        n = len(values)
        columns: dict[str, Any] = {
            "item": pa.array(list(items), pa.string()),
            "index": pa.array(index),
            "timestamp": pa.array([None if t is None else str(t) for t in stamps or [None] * n], pa.string()),
            "note": pa.array(list(notes) if notes is not None else [None] * n, pa.string()),
        }
        assert not isinstance(self._spec, ImageSpec)
        for c, name in enumerate(self._spec.columns):
            columns[name] = pa.array(values[:, c].astype(np.float32), from_pandas=True)
            columns |= {f"{k}.{name}": pa.array(v[:, c].astype(np.float32), from_pandas=True) for k, v in about.items()}
        self._table.write(columns)

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
        with writing(f"--out {self._out}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture))

    def __enter__(self) -> Self:
        """Opens a file beside `out`, or a folder beside or in it.

        Raises:
            Refusal: it cannot be written there.
        """
        with writing(f"--out {self._out}"), ExitStack() as opening:
            if self._table is not None:
                opening.enter_context(self._table)
            elif self._arrays is not None:
                self._out.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._aside = opening.enter_context(atomic_files(self._out))
                for name in self._about:
                    (self._aside / name).mkdir(exist_ok=True)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(f"--out {self._out}"):
            self._open.__exit__(kind, error, trace)
        if self._arrays is not None and kind is None:
            save_npz(self._out, {k: np.concatenate(v) for k, v in self._arrays.items() if v})


def save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays, whole or not at all.

    Raises:
        Refusal: the disk is full, the folder cannot be written.
    """
    with writing(f"--out {path}"), atomic_file(path) as file:
        np.savez_compressed(file, **cast(Any, dict(arrays)))


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
