"""The score file: a row per sample, or per time step of a series, as Parquet, CSV or JSON lines.

Written aside and renamed when whole, so that a file that is there is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.scorer import UNJUDGED, Verdicts

FORMS = (".parquet", ".csv", ".jsonl")


def schema(terms: Sequence[str]) -> pa.Schema:
    """The columns, in order; `terms` without `score`."""
    return pa.schema(
        [
            ("item", pa.string()),
            ("index", pa.int64()),
            ("timestamp", pa.string()),
            ("status", pa.string()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("p_tail", pa.float64()),
            ("anomalous", pa.bool_()),
            ("warmup", pa.bool_()),
            *((t, pa.float64()) for t in terms if t != "score"),
            ("error", pa.string()),
        ]
    )


def table(verdicts: Verdicts, form: pa.Schema) -> pa.Table:
    """The verdicts of a block; what is unjudged has nulls where a number or verdict would stand."""
    block, n = verdicts.block, len(verdicts)
    unjudged = np.array([s == UNJUDGED for s in verdicts.status], bool)

    def numbers(values: NDArray[np.float64]) -> pa.Array:
        return pa.array(values, pa.float64(), mask=np.isnan(values))

    stamps = [None if t is None else str(t) for t in block.timestamps] if block.timestamps is not None else [None] * n
    columns: dict[str, Any] = {
        "item": pa.array(list(block.items), pa.string()),
        "index": pa.array(block.index, pa.int64()),
        "timestamp": pa.array(stamps, pa.string()),
        "status": pa.array(verdicts.status, pa.string()),
        "score": numbers(verdicts.evidence["score"]),
        "p_value": numbers(verdicts.p_values[verdicts.decision.decide_by]),
        "p_tail": numbers(verdicts.p_tail),
        "anomalous": pa.array(verdicts.anomalous, pa.bool_(), mask=unjudged),
        "warmup": pa.nulls(n, pa.bool_()) if block.warmup is None else pa.array(block.warmup, pa.bool_()),
        **{t: numbers(v) for t, v in verdicts.evidence.items() if t != "score"},
        "error": pa.array([verdicts.errors.get(i) for i in range(n)], pa.string()),
    }
    return pa.table([columns[name] for name in form.names], schema=form)


@contextmanager
def writing(named: str) -> Iterator[None]:
    """Says in a sentence why what the user named, such as `--out FILE`, cannot be written."""
    try:
        yield
    except OSError as error:
        raise Refusal(f"{named} cannot be written: {error.strerror}. Name another place or free space.") from error


class ScoreFile:
    """Takes verdicts block by block; use as a context manager."""

    def __init__(self, path: Path, terms: Sequence[str]) -> None:
        """Opens a file beside `path`.

        Raises:
            Refusal: an ending that is none of the three forms; a place that cannot be written.
            Conflict: `path` is a folder.
        """
        if path.suffix not in FORMS:
            raise Refusal(f"--out {path.name} ends in {path.suffix or 'nothing'}; name a {', '.join(FORMS)} file.")
        if path.is_dir():
            raise Conflict(f"--out {path} is a folder; name a file.")
        self._path, self._aside = path, path.with_name(f".{path.name}.partial")
        self._schema = schema(terms)
        with writing(f"--out {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self._aside, "wb")  # noqa: SIM115 (closed in __exit__)
        self._writer: Any = None
        if path.suffix == ".parquet":
            self._writer = pq.ParquetWriter(self._handle, self._schema)
        elif path.suffix == ".csv":
            self._writer = pa_csv.CSVWriter(self._handle, self._schema)

    def write(self, verdicts: Verdicts) -> None:
        """Appends a block's rows.

        Raises:
            Refusal: the disk is full.
        """
        rows = table(verdicts, self._schema)
        with writing(f"--out {self._path}"):
            if self._writer is not None:
                self._writer.write_table(rows)
                return
            for row in rows.to_pylist():
                self._handle.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            with writing(f"--out {self._path}"), self._handle:
                if kind is not None:
                    return
                if self._writer is not None:
                    self._writer.close()
                self._handle.flush()
                os.fsync(self._handle.fileno())
                os.replace(self._aside, self._path)
        finally:
            self._aside.unlink(missing_ok=True)
