"""The score file: a row per sample, or per time step of a series, as Parquet, csv or JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.outputs.table_file import TableFile
from vaegis.models.scorer import UNJUDGED, Verdicts


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


def columns(verdicts: Verdicts) -> dict[str, Any]:
    """The verdicts of a block; what is unjudged has nulls where a number or verdict would stand."""
    block, n = verdicts.block, len(verdicts)
    unjudged = np.array([s == UNJUDGED for s in verdicts.status], bool)

    def numbers(values: NDArray[np.float64]) -> pa.Array:
        return pa.array(values, pa.float64(), mask=np.isnan(values))

    stamps = [None if t is None else str(t) for t in block.timestamps] if block.timestamps is not None else [None] * n
    return {
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


class ScoreFile:
    """Takes verdicts block by block; use as a context manager."""

    def __init__(self, path: Path, terms: Sequence[str]) -> None:
        """Checks the path; see `TableFile`."""
        self._table = TableFile(path, schema(terms))

    def write(self, verdicts: Verdicts) -> None:
        """Appends a block's rows.

        Raises:
            Refusal: the disk is full.
        """
        self._table.write(columns(verdicts))

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.__exit__(kind, error, trace)
