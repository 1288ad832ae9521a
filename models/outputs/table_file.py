"""A table of stated columns as a Parquet, csv or JSON-lines file, written block by block and whole or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.outputs.atomic import atomic_file, writing

FORMS = (".parquet", ".csv", ".jsonl")


class TableFile:
    """Takes rows block by block; use as a context manager."""

    def __init__(self, path: Path, schema: pa.Schema, option: str = "--out", forms: Sequence[str] = FORMS) -> None:
        """Checks the path.

        Args:
            schema: the columns, in order.
            option: what names the file on the command line.
            forms: the endings that it may have.

        Raises:
            Refusal: another ending.
            Conflict: `path` is a folder.
        """
        if path.suffix not in forms:
            endings = f"{', '.join(forms[:-1])} or {forms[-1]}"
            raise Refusal(f"{option} {path.name or path} ends in {path.suffix or 'nothing'}; name a {endings} file.")
        if path.is_dir():
            raise Conflict(f"{option} {path} is a folder; name a file.")
        self._path, self._schema, self._named = path, schema, f"{option} {path}"
        self._open = ExitStack()
        self._file: Any = None
        self._writer: Any = None

    def write(self, columns: Mapping[str, Any]) -> None:
        """Appends rows, given as a column each.

        Raises:
            Refusal: the disk is full.
        """
        rows = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        with writing(self._named):
            if self._writer is not None:
                self._writer.write_table(rows)
                return
            for row in rows.to_pylist():
                self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> Self:
        """Opens a file beside the path.

        Raises:
            Refusal: it cannot be written there.
        """
        with writing(self._named), ExitStack() as opening:
            self._file = opening.enter_context(atomic_file(self._path))
            if self._path.suffix == ".parquet":
                self._writer = pq.ParquetWriter(self._file, self._schema)
            elif self._path.suffix == ".csv":
                self._writer = pa_csv.CSVWriter(self._file, self._schema)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._named), self._open:
            if kind is not None:
                close_quietly(self._writer)
                self._open.pop_all().__exit__(kind, error, trace)
            elif self._writer is not None:
                self._writer.close()


def close_quietly(writer: Any) -> None:
    """Closes a pyarrow writer whose file is given up, which else complains when it is collected."""
    if writer is not None:
        with suppress(OSError, pa.ArrowException):
            writer.close()
