"""Dialects: how a csv file writes its table, as options say it, or as its first lines leave no doubt of.

A dialect that can be read in two ways is refused with the options that decide it: a decimal comma taken for one between
thousands would give numbers, and wrong ones.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vaegis.models.errors import Refusal
from vaegis.models.sources.numerals import Numerals, is_number, settle
from vaegis.models.sources.options import SourceOptions

SEPARATORS = (",", ";", "\t", "|")
LOOK_AHEAD = 1 << 16  # bytes of a file by which its dialect is known
_LINES = 50  # lines that are looked at for all but the numerals
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What stands for "no value" in a csv; all of it reads as NaN.
NULLS = ["", "NaN", "nan", "-nan", "-NaN", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>"]


@dataclass(frozen=True)
class Dialect:
    """How a csv file writes its table."""

    sep: str  # between fields
    style: Numerals = Numerals()  # how it writes numbers
    encoding: str = "utf-8"
    comment: str | None = None  # lines that begin so are no rows
    skip: int = 0  # lines above the header, comments among them or not
    skip_after_header: int = 0  # rows below the header that are no data, such as one of units
    notes: tuple[str, ...] = ()  # what was decided without an option


def detect(name: str, head: bytes, options: SourceOptions) -> Dialect:
    """The dialect of a file that begins with `head`, at most `LOOK_AHEAD` bytes of it.

    Raises:
        Refusal: it can be read in more than one way, or an option does not fit.
    """
    notes: list[str] = []
    encoding = options.encoding or _encoding(name, head, notes)
    lines = _decoded(name, head, encoding).removeprefix("\ufeff").splitlines()
    if len(head) >= LOOK_AHEAD and len(lines) > 1:
        del lines[-1]  # cut short by the end of the look-ahead
    skip, sep = options.skip or 0, options.sep
    if options.skip is None and lines and (match := re.fullmatch(r'"?sep=(.)"?', lines[0].strip(" \r"), re.I)):
        skip, sep = 1, sep or match[1]
        notes.append(f"The first line of {name} says that {match[1]!r} separates its fields.")
    lines = lines[skip:]
    comment = options.comment or _comment(name, lines, sep, notes)
    lines = [line for line in lines if line.strip() and not (comment and line.startswith(comment))]
    if sep is None:
        sep = separator(lines[:20])
        if options.skip is None:
            _refuse_preamble(name, lines[:20], skip)
    rows = list(csv.reader(lines[:_LINES], delimiter=sep))
    after = options.skip_after_header
    if after is None:
        after = _units(name, rows, notes)
    style = settle(name, rows[0] if rows else [], lines[1 + after :], sep, options, notes)
    return Dialect(sep, style, encoding, comment, skip, after, tuple(notes))


def detect_separator(head: bytes) -> str:
    """Which of , ; tab | separates the fields of a file that begins so."""
    lines = [line for line in head.decode("utf-8", "replace").splitlines() if line.strip()]
    # The last line may be cut short by the end of the look-ahead.
    return separator(
        lines[:20] if len(lines) <= 20 and len(head) < LOOK_AHEAD else lines[: max(1, len(lines) - 1)][:20]
    )


def separator(lines: Sequence[str]) -> str:
    """Which of , ; tab | cuts every line into equally many fields, most of them."""

    def merit(sep: str) -> tuple[bool, int]:
        cells = [len(row) for row in csv.reader(lines, delimiter=sep)]
        return len(set(cells)) == 1 and cells[0] > 1, cells[0] if cells else 0

    return max(SEPARATORS, key=merit)


def _encoding(name: str, head: bytes, notes: list[str]) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            notes.append(f"{name} is read as {encoding.upper()}, as its first bytes say.")
            return encoding
    if b"\x00" in head:
        for encoding, zeros in (("utf-16-le", head[1:200:2]), ("utf-16-be", head[0:200:2])):
            if zeros and zeros.count(0) > 0.9 * len(zeros):
                raise Refusal(
                    f"{name} looks like UTF-16 text without a byte order mark; read it with --encoding {encoding}, or "
                    "save it as UTF-8."
                )
        raise Refusal(f"{name} is neither csv text nor Parquet; give one of them.")
    return "utf-8"


def _decoded(name: str, head: bytes, encoding: str) -> str:
    try:
        "".encode(encoding)  # refuses what is no encoding of text, such as base64
        return codecs.getincrementaldecoder(encoding)("replace").decode(head)
    except LookupError as error:
        raise Refusal(f"--encoding {encoding} is unknown; write utf-8, utf-16, latin-1 or cp1252.") from error
    except UnicodeError as error:
        raise Refusal(f"{name} is not {encoding.upper()} ({error}); name its encoding with --encoding.") from error


def _comment(name: str, lines: Sequence[str], sep: str | None, notes: list[str]) -> str | None:
    """`#` where lines above the header begin with it; a header may begin so too, and then numbers follow it."""
    if not lines or not lines[0].startswith("#"):
        return None
    rest = [line for line in lines if line.strip() and not line.startswith("#")][:_LINES]
    if not rest:
        return None
    rows = list(csv.reader(rest, delimiter=sep or separator(rest[:20])))
    if any(is_number(cell) for cell in rows[0]) or len(rows[0]) == 1 < len(rows[-1]):
        return None
    notes.append(f"Lines of {name} that begin with '#' are read as comments.")
    return "#"


def _refuse_preamble(name: str, lines: Sequence[str], skip: int) -> None:
    for sep in SEPARATORS:
        cells = [len(row) for row in csv.reader(lines, delimiter=sep)]
        if len(cells) < 4 or cells[-1] < 2 or cells[0] == cells[-1]:
            continue
        first = next(i for i, count in enumerate(cells) if count == cells[-1])
        if len(cells) - first < 3 or len(set(cells[first:])) > 1 or cells[0] > cells[-1]:
            continue
        if not any(is_number(cell) for cell in next(csv.reader([lines[first]], delimiter=sep))):
            raise Refusal(
                f"{name} begins with {'a line' if first == 1 else f'{first} lines'} above its header "
                f"({lines[0][:60]!r}); pass over what is no part of the table with --skip {skip + first}."
            )


def _units(name: str, rows: Sequence[Sequence[str]], notes: list[str]) -> int:
    """1 where the row below the header breaks every column of numbers or times, else 0."""
    if len(rows) < 4:
        return 0
    body = [row for row in rows[2:_LINES] if len(row) == len(rows[0])]
    columns = [[row[i].strip() for row in body] for i in range(len(rows[0]))] if body else []
    units = [cell.strip() for cell in rows[1]]
    if len(units) != len(columns):
        return 0
    numbers = [i for i, cells in enumerate(columns) if any(cells) and all(c[:1].isdigit() or _signed(c) for c in cells)]
    words = [units[i] for i in numbers if units[i]]
    # A sensor that fails in the first row breaks its own column alone, and says so in other words than a unit's.
    if (
        len(numbers) < 2
        or not words
        or any(u[:1].isdigit() or _signed(u) or u in NULLS[1:] or u[0] == "#" for u in words)
    ):
        return 0
    if len(words) < max(1, len(numbers) - 1):
        return 0
    notes.append(f"The row below the header of {name} ({', '.join(units[:6])}) is read as units, and passed over.")
    return 1


def _signed(cell: str) -> bool:
    return cell == "" or (cell[0] in "+-.," and cell[1:2].isdigit()) or cell in NULLS
