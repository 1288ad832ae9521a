"""Numerals: what a csv file writes between the digits of its numbers.

    1234567.8   1,234,567.8   1.234.567,8   1 234 567,8   1'234'567.8

A comma or point before exactly three digits may be either; only a cell that fits one reading alone decides it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pyarrow as pa  # pyarrow.compute where it is used: 46 MiB that a service without text tables should not pay

from vaegis.models.errors import Refusal
from vaegis.models.sources.options import SourceOptions

_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NUMERAL = re.compile(r"[-+]?[\d.,][\d.,'’ \u00a0\u202f]*(?:[eE][-+]?\d+)?")
_DATE = re.compile(r"\d{1,2}\.\d{1,2}\.\d{2,4}(?:\D.*)?|\d{4}\.\d{1,2}\.\d{1,2}(?:\D.*)?")
_SPACES = " \u00a0\u202f"
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+")
_SHORT = re.compile(r"[-+]?[1-9]\d\d|[-+]?[1-9]\d{0,2}(?:\.\d{3})+")  # 992, 1.009
_THREE_DIGITS = re.compile(r"[,;\t|\n][-+]?[1-9]\d\d[,;\t|\n]")
_CELLS = 200  # cells that are looked at where none is doubtful
_NONE = frozenset(("", "nan", "-nan", "na", "n/a", "#n/a", "null", "none", "<na>"))


@dataclass(frozen=True)
class Numerals:
    """How numbers are written."""

    decimal: str = "."
    thousands: str | None = None

    @property
    def plain(self) -> bool:
        """Whether numbers are written as programs write them."""
        return self == Numerals()

    @property
    def pattern(self) -> str:
        """A regular expression of such a number, as Python and Arrow understand it."""
        return _pattern(self.decimal, self.thousands)

    def value(self, cell: str) -> float:
        """The number that a cell is."""
        return float(self._bare(cell))

    def _bare(self, cell: str) -> str:
        for mark in _same(self.thousands):
            cell = cell.replace(mark, "")
        return cell.replace(self.decimal, ".")

    def fits(self, column: pa.Array, nulls: Sequence[str]) -> pa.Array:
        """Per cell of a column of text, whether it is such a number, or none at all."""
        import pyarrow.compute as pc

        return pc.fill_null(pc.match_substring_regex(_cells(column, nulls), f"^{self.pattern}$"), True)

    def misfits(self, column: pa.Array, nulls: Sequence[str]) -> pa.Array:
        """The cells that are no such number."""
        import pyarrow.compute as pc

        return column.filter(pc.invert(self.fits(column, nulls)))

    def numbers(self, column: pa.Array, name: str, nulls: Sequence[str]) -> pa.Array:
        """A column of text as float64.

        Raises:
            Refusal: a cell is no number of this style, thousands that are not by three among it.
        """
        import pyarrow.compute as pc

        fits = self.fits(column, nulls)
        if not pc.all(fits, min_count=0).as_py():
            bad = column.filter(pc.invert(fits))[0].as_py()
            raise Refusal(
                f"Column {name!r} holds {bad!r}, which is no number with {self}; correct it or leave it empty."
            )
        cells = _cells(column, nulls)
        for mark in _same(self.thousands):
            cells = pc.replace_substring(cells, mark, "")
        return pc.replace_substring(cells, self.decimal, ".").cast(pa.float64())

    def applied(self, batch: pa.RecordBatch, names: Sequence[str], nulls: Sequence[str]) -> pa.RecordBatch:
        """The batch with these columns of text as numbers.

        Raises:
            Refusal: a cell is no number.
        """
        for name in names:
            i = batch.schema.names.index(name)
            batch = batch.set_column(i, name, self.numbers(batch.column(i), name, nulls))
        return batch

    def __str__(self) -> str:
        text = f"--decimal {self.decimal}"
        if self.thousands is None:
            return text
        mark = "space" if self.thousands in _SPACES else '"\'"' if self.thousands == "'" else self.thousands
        return f"{text} --thousands {mark}"


_STYLES = (
    Numerals(),
    Numerals(","),
    Numerals(".", ","),
    Numerals(",", "."),
    Numerals(".", "'"),
    Numerals(",", "'"),
    Numerals(".", " "),
    Numerals(",", " "),
)


def is_number(cell: str) -> bool:
    """Whether a cell is a number in any style."""
    return _NUMERAL.fullmatch(cell.strip()) is not None and any(c.isdigit() for c in cell)


def settle(
    name: str, header: Sequence[str], lines: Sequence[str], sep: str, options: SourceOptions, notes: list[str]
) -> Numerals:
    """The style of the numbers in `lines`: what the options say, else the one reading that all cells allow.

    Raises:
        Refusal: more than one reading is possible; options that exclude each other.
    """
    decimal, thousands = options.decimal, options.thousands
    _check(decimal, thousands)
    if decimal is not None:
        return Numerals(decimal, thousands)
    styles = [s for s in _STYLES if thousands is None or s.thousands == thousands]
    if not styles:
        return Numerals(".", thousands)
    first = _columns(header, lines[: max(20, _CELLS // max(1, len(header)))], sep)
    if thousands is None and not _doubtful(first, lines, sep):
        return Numerals()
    # Every line is evidence. A column whose first cells are numbers may hold bad ones further on.
    cells = {
        i: list(filter(_numeral, v)) for i, v in _columns(header, lines, sep).items() if all(map(_numeral, first[i]))
    }
    odd = [i for i in cells if not all(map(_PLAIN.fullmatch, cells[i]))]
    if not odd and thousands is None:
        for i in cells:
            _refuse_hidden_thousands(name, header[i], cells[i])
        return Numerals()
    readings = _readings(cells, odd, styles)
    if len(readings) > 1 and Numerals(",") in readings and any(_DATE.fullmatch(c[0]) for c in first.values() if c):
        readings = [Numerals(",")]  # nobody who writes 31.12.2026 puts commas between thousands
    if thousands is not None:
        return readings[0] if readings else Numerals("," if thousands == "." else ".", thousands)
    if not readings or readings[0].plain:
        return Numerals()
    at, example = next((i, c) for i in odd for c in cells[i] if not _PLAIN.fullmatch(c))
    if len(readings) > 1:
        ways = " or ".join(f"{style.value(example):.10g} ({style})" for style in readings)
        raise Refusal(
            f"Column {header[at]!r} of {name} holds {example!r}, which may be {ways}; say which with these options, "
            "or write numbers with a point and nothing between thousands."
        )
    number = f"{readings[0].value(example):.10g}"
    notes.append(f"Numbers of {name} such as {example!r} are read with {readings[0]}: that is {number}.")
    return readings[0]


def _doubtful(first: Mapping[int, Sequence[str]], lines: Sequence[str], sep: str) -> bool:
    """Whether any number may be written otherwise than programs write them; most files are done with here."""
    text = "\n".join(("", *lines, ""))
    marks = "\"'’\u00a0\u202f" + ("" if sep == "," else ",")
    if any(mark in text for mark in marks):
        return True
    numbers = [cells for cells in first.values() if cells and all(map(_numeral, cells))]
    if not all(_PLAIN.fullmatch(cell) for cells in numbers for cell in cells):
        return True
    return any(all(map(_SHORT.fullmatch, cells)) for cells in numbers) and _THREE_DIGITS.search(text) is not None


def _readings(columns: Mapping[int, Sequence[str]], odd: Sequence[int], styles: Sequence[Numerals]) -> list[Numerals]:
    """The styles that every cell allows; of those by which all cells are the same numbers, the first."""
    readings: dict[tuple[float, ...], Numerals] = {}
    for style in styles:
        fits = re.compile(style.pattern).fullmatch
        if all(fits(cell) for cells in columns.values() for cell in cells):
            readings.setdefault(tuple(style.value(cell) for i in odd for cell in columns[i]), style)
    return list(readings.values())


def _columns(header: Sequence[str], lines: Sequence[str], sep: str) -> dict[int, list[str]]:
    """Per column, the cells of whole rows that hold anything."""
    rows = [row for row in csv.reader(lines, delimiter=sep) if len(row) == len(header)]
    return {i: [v for row in rows if (v := row[i].strip()).lower() not in _NONE] for i in range(len(header))}


def _refuse_hidden_thousands(name: str, column: str, cells: Sequence[str]) -> None:
    """992, 999, 1.009: points that come only with a fourth digit stand between thousands."""
    dotted = [c for c in cells if "." in c]
    whole = [c for c in cells if "." not in c]
    if len(dotted) < 2 or not all(map(_GROUPED.fullmatch, dotted)):
        return
    if sum(re.fullmatch(r"[-+]?[1-9]\d\d", c) is not None for c in whole) < 2:
        return
    if all(re.fullmatch(r"[-+]?\d{1,3}", c) for c in whole):
        raise Refusal(
            f"Column {column!r} of {name} holds {dotted[0]!r} beside {whole[0]!r}, as if a point stood between "
            "thousands; say so with --thousands ., or with --decimal . that it is a decimal point."
        )


def _check(decimal: str | None, thousands: str | None) -> None:
    if decimal not in (None, ".", ","):
        raise Refusal(f"--decimal {decimal} is no decimal mark; write . or ,.")
    if thousands is not None and (len(thousands) != 1 or thousands not in ".,'’_" + _SPACES):
        raise Refusal(f"--thousands {thousands!r} does not stand between thousands; write . or , or ' or a space.")
    if decimal is not None and decimal == thousands:
        raise Refusal(f"--decimal and --thousands are both {decimal!r}; they must differ.")


def _numeral(cell: str) -> bool:
    return _NUMERAL.fullmatch(cell) is not None and _DATE.fullmatch(cell) is None


def _cells(column: pa.Array, nulls: Sequence[str]) -> pa.Array:
    import pyarrow.compute as pc

    cells = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(cells, value_set=pa.array(nulls)), pa.scalar(None, pa.string()), cells)


def _same(thousands: str | None) -> str:
    """The characters that this one stands for: a space may be one that does not break, an apostrophe a curved one."""
    if thousands is None:
        return ""
    return _SPACES if thousands in _SPACES else "'’" if thousands in "'’" else thousands


@cache
def _pattern(decimal: str, thousands: str | None) -> str:
    d = re.escape(decimal)
    whole = r"\d+"
    if thousands is not None:
        whole = rf"(?:[1-9]\d{{0,2}}(?:[{re.escape(_same(thousands))}]\d{{3}})+|\d+)"
    return rf"[-+]?(?:{whole}(?:{d}\d*)?|{d}\d+)(?:[eE][-+]?\d+)?"
