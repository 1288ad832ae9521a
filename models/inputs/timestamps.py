"""Timestamps: handed back as given, and watched for order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.errors import Refusal

_HOUR = 3_600_000_000_000  # nanoseconds
_OFFSET = re.compile(r"(?:Z|[+-]\d\d:?\d\d)$")


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
            self._refuse(start, self.shown, stamps[0], self.last - values[0])
        falls = np.flatnonzero(~(values[:-1] < values[1:]))
        if len(falls):
            i = int(falls[0]) + 1
            self._refuse(start + i, stamps[i - 1], stamps[i], values[i - 1] - values[i])
        self.last, self.shown = values[-1], stamps[-1]

    def _refuse(self, row: int, before: Any, here: Any, back: Any) -> None:
        """Refuses a row that is `back` before the one above it."""
        if back == 0:
            raise Unordered(
                f"Rows {row - 1} and {row} of {self.item} have the same timestamp {here!r}; where several machines "
                "share the file, put each into its own; else drop duplicates."
            )
        if isinstance(here, str) and _HOUR // 2 <= int(back) <= _HOUR and not _OFFSET.search(here):
            raise Unordered(
                f"The timestamps of {self.item} go back from {before!r} to {here!r} in row {row}, as a local clock "
                "does at the end of summer time. Write them in UTC or with their offset (02:30:00+01:00), or leave the "
                "column out with --exclude, which keeps every row."
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
    column = _year_first(column)
    for form in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.time64("ns")):
        try:
            return np.asarray(column.cast(form).view(pa.int64()).to_numpy())
        except pa.ArrowException:
            continue
    return None


def _year_first(column: pa.Array) -> pa.Array:
    """31.12.2026 23:59:59,5 and 2026/12/31 as ISO text; where points part a date, the day comes first everywhere."""
    import pyarrow.compute as pc

    first = next((str(v) for v in column[:1].to_pylist()), "")
    if re.match(r"\d{1,2}\.\d{1,2}\.\d{4}", first):
        column = pc.replace_substring_regex(column, r"^(\d)\.", r"0\1.")
        column = pc.replace_substring_regex(column, r"^(\d\d)\.(\d)\.", r"\1.0\2.")
        column = pc.replace_substring_regex(column, r"^(\d\d)\.(\d\d)\.(\d{4})", r"\3-\2-\1")
        column = pc.replace_substring_regex(column, r"[ T](\d):", r" 0\1:")
        return pc.replace_substring_regex(column, r",(\d+)$", r".\1")
    if re.match(r"\d{4}/\d{2}/\d{2}", first):
        return pc.replace_substring(column, "/", "-", max_replacements=2)
    return column


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
