"""What a user may say about a source, beside where it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vaegis.models.errors import Refusal
from vaegis.models.spec import Kind


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; every field is one command-line option."""

    kind: Kind | None = None  # what the data are, where their form does not say it
    key: str | None = None  # which array of an .npz
    columns: tuple[str, ...] = ()  # the features, in this order; () = every numeric column that remains
    exclude: tuple[str, ...] = ()  # columns that are no features
    timestamp: str | None = None  # the timestamp column, where its name does not say it
    sep: str | None = None  # field separator of csv files; None = detected
    decimal: str | None = None  # . or , in the numbers of csv files; None = detected
    thousands: str | None = None  # what stands between thousands there; None = detected, or nothing
    encoding: str | None = None  # of csv files; None = UTF-8, or what the first bytes say
    comment: str | None = None  # lines of csv files that begin so are no rows; None = detected, or none
    skip: int | None = None  # lines above the header of csv files; None = a `sep=` line, if there is one
    skip_after_header: int | None = None  # rows below the header that are no data; None = one of units, if there is one
    na: tuple[str, ...] = ()  # cells of csv files that stand for "no value", beside the usual ones
    rows: tuple[int | None, int | None] | None = None  # [A, B) of rows (of each table) or samples (arrays, folders)
    group_by: str | None = None  # column, npz key, `folder` or regular expression: never split within a group
    calibrate_by: str | None = None  # the same, for groups that are calibrated apart
    labels: str | None = None  # how labels are given; a label column is no feature
    condition: str | None = None  # how the condition of each sample is given; such a column is no feature

    @property
    def label_column(self) -> str | None:
        """The column that holds labels, where `labels` names one."""
        return self.labels.removeprefix("column:") if self.labels and self.labels.startswith("column:") else None

    @property
    def condition_column(self) -> str | None:
        """The column that holds conditions, where `condition` names one."""
        how = self.condition or ""
        return how.removeprefix("column:") if how.startswith("column:") else None


def parse_rows(text: str) -> tuple[int | None, int | None]:
    """`A:B` as (A, B), the first row and the one after the last; either may be left out.

    Raises:
        Refusal: anything else, negative numbers and empty ranges among it.
    """
    match = re.fullmatch(r"\s*([0-9]*)\s*:\s*([0-9]*)\s*", text)
    if match is None:
        raise Refusal(f"--rows {text!r} is not a range; write A:B, for example 0:400, 400: or :400, counting from 0.")
    first, last = (int(part) if part else None for part in match.groups())
    if last is not None and last <= (first or 0):
        raise Refusal(f"--rows {text!r} holds no row: B must be greater than A.")
    return first, last


def span(rows: tuple[int | None, int | None] | None, length: int) -> tuple[int, int]:
    """`rows` within a length: first and one past the last; equal where nothing is left."""
    if rows is None:
        return 0, length
    first = min(rows[0] or 0, length)
    last = length if rows[1] is None else min(rows[1], length)
    return first, max(first, last)


def natural_key(path: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key under which part_2 comes before part_10, folder by folder."""
    pieces = tuple(
        (0, int(piece), "") if piece.isdigit() else (1, 0, piece.casefold())
        for folder in path.split("/")
        for piece in [*re.split(r"([0-9]+)", folder), "/"]
        if piece
    )
    return pieces, path


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a sentence: `a, b, c and 4 more`."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
