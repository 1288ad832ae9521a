"""Maps to files: a PNG per image on the bundle's fixed colour scale, or one Parquet table of a series or table."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vaegis.models.bundle import Bundle
from vaegis.models.errors import Conflict
from vaegis.models.outputs.atomic import atomic_files, writing
from vaegis.models.outputs.colours import to_png
from vaegis.models.outputs.table_file import close_quietly
from vaegis.models.scorer import Verdicts
from vaegis.models.spec import ImageSpec

TABLE = "maps.parquet"


class MapFiles:
    """Takes verdicts with maps block by block; use as a context manager. The files are in the folder when it ends."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Checks the folder, which need not exist.

        Raises:
            Conflict: `folder` is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise Conflict(f"--maps {folder} is a file; name a folder.")
        self._folder, self._spec, self._scale = folder, bundle.spec, bundle.calibration.map_range
        self._named = f"--maps {folder}"
        self._open = ExitStack()
        self._aside = folder  # where the files are written until the end
        self._table: Any = None

    def write(self, verdicts: Verdicts) -> None:
        """Writes the maps of a block; what is unjudged has none.

        Raises:
            Refusal: the disk is full.
        """
        with writing(self._named):
            if self._table is None:
                self._write_pictures(verdicts)
            else:
                self._write_rows(verdicts)

    def _write_pictures(self, verdicts: Verdicts) -> None:
        assert verdicts.maps is not None
        block = verdicts.block
        for item, index, picture in zip(block.items, block.index.tolist(), verdicts.maps, strict=True):
            if picture is not None:
                path = self._aside / picture_name(item, index)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(to_png(picture, self._scale))

    def _write_rows(self, verdicts: Verdicts) -> None:
        assert verdicts.maps is not None
        block = verdicts.block
        judged = [i for i, m in enumerate(verdicts.maps) if m is not None]
        if not judged:
            return
        values = np.stack([np.atleast_2d(verdicts.maps[i]).mean(0) for i in judged])  # type: ignore[arg-type]
        items, index = pa.array([block.items[i] for i in judged], pa.string()), pa.array(block.index[judged])
        channels = [pa.array(values[:, c]) for c in range(values.shape[1])]
        self._table.write_table(pa.table([items, index, *channels], schema=self._table.schema))

    def __enter__(self) -> Self:
        """Opens a folder beside or in the one named.

        Raises:
            Refusal: it cannot be written there.
        """
        with writing(self._named), ExitStack() as opening:
            self._aside = opening.enter_context(atomic_files(self._folder))
            if not isinstance(self._spec, ImageSpec):
                channels = [(c, pa.float32()) for c in self._spec.columns]
                schema = pa.schema([("item", pa.string()), ("index", pa.int64()), *channels])
                # Opened here: what goes wrong within pyarrow's own files has no reason that could be told.
                file = opening.enter_context((self._aside / TABLE).open("wb"))
                self._table = pq.ParquetWriter(file, schema)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._named), self._open:
            if kind is not None:
                close_quietly(self._table)
                self._open.pop_all().__exit__(kind, error, trace)
            elif self._table is not None:
                self._table.close()


def picture_name(item: str | None, index: int) -> str:
    """`part_2.png` of an image file; `test.npz.7.png` of an array."""
    name = item or "sample"
    name = name if Path(name).suffix not in (".npz", ".npy", "") else f"{name}.{index}"
    return name if Path(name).suffix == ".png" else f"{name}.png"
