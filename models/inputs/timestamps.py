"""Timestamps: handed back as given, and watched for order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.errors import Refusal


class Unordered(Refusal):
    """Timestamps that do not ascend; the whole call is refused, whichever item has them."""


class AscendingTimestamps:
    """Watches that the timestamps of one item ascend, from batch to batch."""

    def __init__(self, item: str) -> None:
        self.item = item
        self.last: Any = None  # comparable value of the last row
        self.shown: Any = None  # the same, as given

    def check(self, column: pa.Array, stamps: Sequence[Any], start: int) -> None:
        """Compares a batch whose first row is `start`.

        Raises:
            Unordered: a timestamp is missing, repeated, or before the one above it.
        """
        if column.null_count or "" in stamps:
            row = next(i for i, value in enumerate(stamps) if value in (None, "")) + start
            raise Unordered(f"Row {row} of {self.item} has no timestamp; fill it in, or leave the row out.")
        values = comparable(column)
        if values is None or len(values) == 0:
            return
        if self.last is not None and type(self.last) is type(values[0]) and not self.last < values[0]:
            self._refuse(start, self.shown, stamps[0], self.last == values[0])
        falls = np.flatnonzero(~(values[:-1] < values[1:]))
        if len(falls):
            i = int(falls[0]) + 1
            self._refuse(start + i, stamps[i - 1], stamps[i], bool(values[i - 1] == values[i]))
        self.last, self.shown = values[-1], stamps[-1]

    def _refuse(self, row: int, before: Any, here: Any, same: bool) -> None:
        if same:
            raise Unordered(
                f"Rows {row - 1} and {row} of {self.item} have the same timestamp {here!r}; drop duplicates."
            )
        raise Unordered(
            f"The timestamps of {self.item} are not in order: row {row} has {here!r} after {before!r}. Sort the "
            "rows by time, or put separate runs into separate files."
        )


def comparable(column: pa.Array) -> NDArray[Any] | None:
    """Timestamps as numbers that sort; None where the text is in no form that sorts."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ns"))
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        return np.asarray(column.view(pa.int64() if column.type.bit_width == 64 else pa.int32()).to_numpy())
    for form in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.time64("ns")):
        try:
            return np.asarray(column.cast(form).view(pa.int64()).to_numpy())
        except pa.ArrowException:
            continue
    return None


def as_given(column: pa.Array) -> list[Any]:
    """Timestamps as JSON-able values: numbers stay numbers, text stays text, dates and times become ISO text."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_text(kind):
        return list(column.to_pylist())
    if pa.types.is_decimal(kind):
        return list(column.cast(pa.float64(), safe=False).to_pylist())
    text = column.cast(pa.string()).to_pylist()
    return [None if v is None else re.sub(r"\.0+(?=$|Z|[+-])", "", str(v).replace(" ", "T", 1)) for v in text]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
