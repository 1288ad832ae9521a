"""Cells of a csv file's number columns that hold none: found one by one, so that a row is lost and not a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from vaegis.models.sources.numerals import Numerals

_INFINITE = r"^[-+]?[iI][nN][fF]([iI][nN][iI][tT][yY])?$"
MOSTLY = 0.5  # share of numbers above which a column of text is one of numbers with bad cells


@dataclass(frozen=True)
class TableRows:
    """Consecutive rows of a table. A bad cell is null in its batch."""

    batch: pa.RecordBatch
    bad: Mapping[tuple[int, str], str] = field(default_factory=dict)  # (row of the piece, column) -> the cell's text


def numbers_of(column: pa.Array, style: Numerals, nulls: Sequence[str]) -> tuple[pa.Array, dict[int, str]]:
    """A column of text as float64, and the cells that are neither a number of this style nor a null, by row."""
    import pyarrow.compute as pc

    cells = pc.utf8_trim_whitespace(column)
    infinite = pc.fill_null(pc.match_substring_regex(cells, _INFINITE), False)
    fits = style.fits(cells, nulls)
    bad = {i: str(column[i].as_py()) for i in pc.indices_nonzero(pc.invert(pc.or_(fits, infinite))).to_pylist()}
    finite = style.numbers(pc.if_else(pc.and_(fits, pc.invert(infinite)), cells, None), "", nulls)
    return pc.coalesce(finite, pc.if_else(infinite, cells, None).cast(pa.float64())), bad


def holds_numbers(column: pa.Array, style: Numerals, nulls: Sequence[str]) -> bool:
    """Whether most cells of a column of text that are not empty are numbers."""
    import pyarrow.compute as pc

    _, bad = numbers_of(column, style, nulls)
    empty = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(nulls, pa.string()))
    filled = len(column) - (pc.sum(pc.or_kleene(empty, column.is_null())).as_py() or 0)
    return bool(len(bad) < (1 - MOSTLY) * filled)


def with_numbers(batch: pa.RecordBatch, names: Sequence[str], style: Numerals, nulls: Sequence[str]) -> TableRows:
    """A batch whose columns of these names are text, with the numbers that they hold."""
    bad: dict[tuple[int, str], str] = {}
    for name in names:
        column, texts = numbers_of(batch.column(name), style, nulls)
        batch = batch.set_column(batch.schema.names.index(name), name, column)
        bad |= {(row, name): text for row, text in texts.items()}
    return TableRows(batch, bad)
