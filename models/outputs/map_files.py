"""Maps to files: a PNG per image on the bundle's fixed colour scale, or one Parquet table of a series or table."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vaegis.models.bundle import Bundle
from vaegis.models.errors import Conflict
from vaegis.models.outputs.colours import to_png
from vaegis.models.outputs.score_file import writing
from vaegis.models.scorer import Verdicts
from vaegis.models.spec import ImageSpec


class MapFiles:
    """Takes verdicts with maps block by block; use as a context manager."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Makes the folder.

        Raises:
            Conflict: `folder` is a file.
            Refusal: it cannot be made.
        """
        if folder.exists() and not folder.is_dir():
            raise Conflict(f"--maps {folder} is a file; name a folder.")
        with writing(f"--maps {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._spec, self._scale = folder, bundle.spec, bundle.calibration.map_range
        self._table: Any = None
        if not isinstance(self._spec, ImageSpec):
            fields = [("item", pa.string()), ("index", pa.int64()), *((c, pa.float32()) for c in self._spec.columns)]
            self._schema = pa.schema(fields)
            self._table = pq.ParquetWriter(folder / "maps.parquet", self._schema)

    def write(self, verdicts: Verdicts) -> None:
        """Writes the maps of a block; what is unjudged has none.

        Raises:
            Refusal: the disk is full.
        """
        with writing(f"--maps {self._folder}"):
            self._write(verdicts)

    def _write(self, verdicts: Verdicts) -> None:
        assert verdicts.maps is not None
        block = verdicts.block
        shown = [i for i, m in enumerate(verdicts.maps) if m is not None]
        if self._table is None:
            for i in shown:
                picture = verdicts.maps[i]
                assert picture is not None
                self._place(block.items[i], int(block.index[i])).write_bytes(to_png(picture, self._scale))
            return
        if not shown:
            return
        values = np.stack([np.atleast_2d(verdicts.maps[i]).mean(0) for i in shown])  # type: ignore[arg-type]
        columns = [pa.array(values[:, c]) for c in range(values.shape[1])]
        items, index = pa.array([block.items[i] for i in shown], pa.string()), pa.array(block.index[shown])
        self._table.write_table(pa.table([items, index, *columns], schema=self._schema))

    def _place(self, item: str | None, index: int) -> Path:
        """`part_2.png` of an image file; `test.npz.7.png` of an array."""
        name = item or "sample"
        path = self._folder / (name if Path(name).suffix not in (".npz", ".npy", "") else f"{name}.{index}")
        path = path.with_name(path.name + ("" if path.suffix == ".png" else ".png"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._table is not None:
            self._table.close()
