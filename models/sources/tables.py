"""Tables in csv and Parquet files: their schema, the role of each column, and their rows as a stream.

A table is never held whole. csv types are inferred from its first block, then fixed: integers become floats, since a
later block may hold 1.5 where the first held 1, and timestamps stay text, since they are handed back as given.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pacsv

from vaegis.models.errors import Refusal
from vaegis.models.sources.cells import TableRows, holds_numbers, with_numbers
from vaegis.models.sources.dialects import LOOK_AHEAD, NULLS, Dialect, detect
from vaegis.models.sources.numerals import Numerals
from vaegis.models.sources.options import SourceOptions, listed
from vaegis.models.sources.plain_text import PlainText
from vaegis.models.spec import Kind

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
TIMESTAMP_NAMES = ("timestamp", "time", "datetime", "date")
_BLOCK = 1 << 20
_BATCH = 8192  # rows of Parquet at a time
_DATE_AND_TIME = re.compile(r"(?:\d{4}[-/]\d\d?[-/]\d\d?|\d\d?\.\d\d?\.\d{4})[ T]\d\d?:\d\d")
_AS_DETECTED = SourceOptions()


@dataclass(frozen=True)
class TableFiles:
    """csv and Parquet files below a folder, in natural order; or one such file. Each is an item."""

    path: Path
    options: SourceOptions
    kind: Kind
    root: Path  # what the names are relative to
    files: tuple[str, ...]  # POSIX paths
    originals: Mapping[str, str] = field(default_factory=dict)  # of names that are not UTF-8
    notes: tuple[str, ...] = ()  # what of the folder is passed over
    unreadable: tuple[str, ...] = ()  # what of it cannot be read at all

    def names(self) -> tuple[str, ...]:
        """Every item."""
        return self.files

    def open(self, name: str) -> Table:
        """The named item, its schema read.

        Raises:
            Refusal: not a readable table.
        """
        return open_table(name, self.root / self.originals.get(name, name), self.options)


@dataclass(frozen=True)
class Table:
    """One table: where it is and the types of its columns."""

    name: str  # how messages call it
    where: Path | bytes
    dialect: Dialect | None  # None = Parquet
    schema: pa.Schema  # as inferred from the first block, or as the Parquet file says
    sample: dict[str, str]  # first value of each text column, for messages
    spoilt: frozenset[str] = frozenset()  # columns of text of which most cells of the first block are numbers
    nulls: tuple[str, ...] = tuple(NULLS)  # cells that stand for "no value"

    def column(self, name: str, option: str) -> str:
        """`name`, if the table has it.

        Raises:
            Refusal: it has not.
        """
        if name not in self.schema.names:
            raise Refusal(f"{self.name} has no column {name!r} for {option}; it has {listed(self.schema.names)}.")
        return name

    def is_numeric(self, name: str) -> bool:
        """Whether a column can be a feature: it holds numbers, but for some cells perhaps."""
        return name in self.spoilt or numeric(self.schema.field(name).type)

    def pieces(
        self, columns: Sequence[str], stamp: str | None = None, words: Sequence[str] = ()
    ) -> Iterator[TableRows]:
        """The rows, front to back, as `batches` gives them; a cell of `columns` that is no number costs itself alone.

        Raises:
            Refusal: a row cannot be read.
        """
        if self.dialect is None:
            yield from (TableRows(batch) for batch in self.batches(columns, stamp, words))
            return
        numbers = [name for name in dict.fromkeys(columns) if self.is_numeric(name)]
        names, types = self._types(columns, stamp, words)
        types |= {name: pa.float64() for name in numbers if name in self.spoilt}
        rows = 0
        if not self.dialect.style.thousands:  # else Arrow takes none of them for a number
            try:
                for batch in self._csv(names, types):
                    rows += batch.num_rows
                    yield TableRows(batch)
                return
            except _BadCell:
                pass
        # From the block with the first bad cell on, numbers are read as text, and one by one where they are none.
        for batch in self._csv(names, types | dict.fromkeys(numbers, pa.string())):
            known = min(rows, batch.num_rows)
            rows -= known
            if known < batch.num_rows:
                yield with_numbers(batch.slice(known), numbers, self.dialect.style, self.nulls)

    def batches(
        self, columns: Sequence[str], stamp: str | None = None, words: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """The rows, front to back, with these columns only.

        In a csv, `stamp` keeps whole numbers whole (nanoseconds do not fit a float), and `words` stay as written.

        Raises:
            Refusal: a row cannot be read, or a value is not of its column's type.
        """
        names, types = self._types(columns, stamp, words)
        if self.dialect is not None:
            style = self.dialect.style
            # Arrow knows decimal commas, but nothing between thousands.
            texts = [n for n in names if style.thousands and types[n] not in (pa.string(), pa.bool_())]
            for batch in self._csv(names, types | dict.fromkeys(texts, pa.string())):
                yield style.applied(batch, texts, NULLS)
            return
        try:
            with _parquet(self.where) as file:
                yield from file.iter_batches(batch_size=_BATCH, columns=names)
        except (pa.ArrowException, OSError) as error:
            raise Refusal(f"{self.name} cannot be read on ({_first_line(error, self.where)}); correct it.") from error

    def _types(
        self, columns: Sequence[str], stamp: str | None, words: Sequence[str]
    ) -> tuple[list[str], dict[str, pa.DataType]]:
        """The names of the columns to be read, and the types of all of them."""
        names = list(dict.fromkeys([*columns, *([stamp] if stamp is not None else []), *words]))
        types = {field.name: _fixed(field.type) for field in self.schema}
        if stamp is not None and pa.types.is_integer(self.schema.field(stamp).type):
            types[stamp] = pa.int64()
        return names, types | dict.fromkeys(words, pa.string())

    def _csv(self, names: Sequence[str], types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        assert self.dialect is not None
        try:
            with _open_csv(self.name, self.where, self.dialect, self.nulls, types, names) as reader:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            kind = _BadCell if "conversion error" in str(error) else Refusal
            raise kind(f"{self.name} cannot be read on ({_first_line(error, self.where)}); correct it.") from error


class _BadCell(Refusal):
    """A cell is not of its column's type."""


@dataclass(frozen=True)
class Roles:
    """What each column of a table is for."""

    features: tuple[str, ...]
    timestamp: str | None
    notes: tuple[str, ...]  # what was decided without being asked


def open_table(name: str, where: Path | bytes, options: SourceOptions = _AS_DETECTED) -> Table:
    """A csv or Parquet file, or its bytes, with its schema. The content decides which it is.

    Raises:
        Refusal: neither, empty, without a header, or with a column name twice; a dialect that is not certain.
    """
    nulls, spoilt = (*NULLS, *options.na), frozenset[str]()
    head = _head(name, where)
    if not head:
        raise Refusal(f"{name} is empty; give a csv with a header line, or a Parquet file.")
    try:
        if head.startswith(b"PAR1"):
            with _parquet(where) as file:
                schema, dialect = file.schema_arrow, None
                sample: dict[str, str] = {}
        else:
            dialect = detect(name, head, options)
            _check_header(name, head, dialect)
            with _open_csv(name, where, dialect, nulls) as reader:
                schema, sample, spoilt = _first_block(reader, dialect.style, nulls)
        columns = schema.names
    except UnicodeDecodeError as error:
        raise Refusal(
            f"The column names of {name} are not UTF-8; name its encoding with --encoding, such as latin-1, or save it "
            "as UTF-8."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise Refusal(f"{name} is not a readable table ({_first_line(error, where)}).") from error
    twice = sorted({column for column in columns if columns.count(column) > 1 and column})
    if twice:
        raise Refusal(f"{name} has column {twice[0]!r} more than once; give each column its own name.")
    return Table(name, where, dialect, schema, sample, spoilt, nulls)


def roles(table: Table, options: SourceOptions) -> Roles:
    """Which columns are features and which is the timestamp.

    Raises:
        Refusal: a named column is missing, a feature is not numeric, or no feature is left.
    """
    names = table.schema.names
    stamp = timestamp_column(table, options, options.columns)
    others = {
        option: name
        for option, name in (
            ("--labels", options.label_column),
            ("--group-by", options.group_by),
            ("--calibrate-by", options.calibrate_by),
            ("--condition", options.condition_column),
        )
        if name is not None
    }
    for option, name in [*others.items(), *(("--exclude", name) for name in options.exclude)]:
        table.column(name, option)
    if stamp is None and options.timestamp is None:
        stamp = _dated_column(table, {*others.values(), *options.exclude, *options.columns})
    notes = list(table.dialect.notes) if table.dialect is not None else []
    if stamp is not None and options.timestamp is None:
        notes.append(f"Column {stamp!r} is taken as the timestamp.")
    if options.columns:
        features = tuple(table.column(name, "--columns") for name in options.columns)
        for name in features:
            if features.count(name) > 1:
                raise Refusal(f"--columns names {name!r} twice.")
            for option, other in [
                *others.items(),
                ("--timestamp", stamp),
                *(("--exclude", e) for e in options.exclude),
            ]:
                if name == other:
                    raise Refusal(f"Column {name!r} is given to --columns and to {option}; take it out of one of them.")
    else:
        left_out = {stamp, *others.values(), *options.exclude}
        features = tuple(name for name in names if not _nameless(name) and name not in left_out)
        if any(_nameless(name) for name in names):
            notes.append(f"A column of {table.name} without a name (an index, usually) is left out.")
    for name in features:
        if not table.is_numeric(name):
            value = f" ({table.sample[name]!r}, for one)" if name in table.sample else ""
            raise Refusal(
                f"Column {name!r} of {table.name} is not numeric{value}; leave it out with --exclude {name!r}, or "
                "name it with --timestamp, --group-by or --labels if that is what it is."
            )
    if not features:
        raise Refusal(f"{table.name} has no numeric column left to learn from; it has {listed(names)}.")
    return Roles(features, stamp, tuple(notes))


def timestamp_column(table: Table, options: SourceOptions, features: Sequence[str] = ()) -> str | None:
    """The timestamp column: the one named, else one called timestamp, time, datetime or date that is neither a feature
    nor excluded.

    Raises:
        Refusal: the table has no column of the name given.
    """
    if options.timestamp is not None:
        return table.column(options.timestamp, "--timestamp")
    lower = {name.lower(): name for name in reversed(table.schema.names)}
    candidates = [lower[name] for name in TIMESTAMP_NAMES if name in lower]
    return next((name for name in candidates if name not in features and name not in options.exclude), None)


def _dated_column(table: Table, others: Collection[str]) -> str | None:
    """The one column of text that is for nothing else, where it begins with a date and time."""
    texts = [name for name in table.sample if name not in others]
    return texts[0] if len(texts) == 1 and _DATE_AND_TIME.match(table.sample[texts[0]]) else None


def numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a feature; one that is empty throughout its first block can."""
    t = pa.types
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind) or t.is_null(kind)
    )


def _nameless(name: str) -> bool:
    """Whether a column is a data frame's unnamed index: no feature, and nothing a user could name."""
    return not name or name.startswith("__index_level_")


def _fixed(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_boolean(kind):
        return pa.bool_()
    return pa.float64() if numeric(kind) else pa.string()


def _head(name: str, where: Path | bytes) -> bytes:
    if isinstance(where, bytes):
        return where[:LOOK_AHEAD]
    try:
        with where.open("rb") as file:
            return file.read(LOOK_AHEAD)
    except OSError as error:
        raise Refusal(f"{name} cannot be opened ({error.strerror}).") from error


def _check_header(name: str, head: bytes, dialect: Dialect) -> None:
    with PlainText(name, io.BytesIO(head), dialect.encoding, dialect.comment, dialect.skip, "replace") as text:
        line = text.read(LOOK_AHEAD * 4).decode().lstrip("\r\n").splitlines()[:1]
    cells = [cell.strip() for cell in next(csv.reader(line, delimiter=dialect.sep), [])]
    if cells and all(re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", cell) for cell in cells):
        # A table saved without names may well have the header 0,1,2,...; any other numbers are data.
        if cells == [str(i) for i in range(len(cells))]:
            return
        raise Refusal(
            f"The first line of {name} holds numbers ({listed(cells, 3)}) where column names belong; add a header line."
        )


def _first_block(
    reader: pacsv.CSVStreamingReader, style: Numerals, nulls: Sequence[str]
) -> tuple[pa.Schema, dict[str, str], frozenset[str]]:
    """The schema, the first value of each column of text, and the columns of text that are mostly numbers."""
    schema = reader.schema
    texts = [i for i, field in enumerate(schema) if not numeric(field.type)]
    batch = next(iter(reader), None) if texts else None
    if batch is None or batch.num_rows == 0:
        return schema, {}, frozenset()
    sample: dict[str, str] = {}
    spoilt: set[str] = set()
    for i in texts:
        column, name = batch.column(i), schema.names[i]
        if pa.types.is_string(column.type) and holds_numbers(column, style, nulls):
            spoilt.add(name)
        if style.thousands and pa.types.is_string(column.type):
            # Arrow takes no number with something between its thousands for one.
            column = style.misfits(column, nulls)
        if len(column):
            sample[name] = str(column[0].as_py())
        else:
            schema = schema.set(i, pa.field(name, pa.float64()))
    return schema, sample, frozenset(spoilt)


def _open_csv(
    name: str,
    where: Path | bytes,
    dialect: Dialect,
    nulls: Sequence[str],
    types: dict[str, pa.DataType] | None = None,
    columns: Sequence[str] | None = None,
) -> pacsv.CSVStreamingReader:
    file: pa.NativeFile | io.BufferedReader = _file(where)
    skip = dialect.skip
    if dialect.encoding != "utf-8" or dialect.comment is not None:
        raw = io.BytesIO(where) if isinstance(where, bytes) else where.open("rb")
        file, skip = io.BufferedReader(PlainText(name, raw, dialect.encoding, dialect.comment, skip), _BLOCK), 0
    return pacsv.open_csv(
        file,
        read_options=pacsv.ReadOptions(
            block_size=_BLOCK, skip_rows=skip, skip_rows_after_names=dialect.skip_after_header
        ),
        parse_options=pacsv.ParseOptions(delimiter=dialect.sep),
        convert_options=pacsv.ConvertOptions(
            column_types=types,
            include_columns=columns,
            strings_can_be_null=False,
            null_values=nulls,
            decimal_point=dialect.style.decimal,
        ),
    )


def _file(where: Path | bytes) -> pa.NativeFile:
    # By its bytes: as text Arrow takes no name that is not UTF-8.
    return pa.BufferReader(where) if isinstance(where, bytes) else pa.OSFile(os.fsencode(where))


def _parquet(where: Path | bytes) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # only here: a service that is sent no Parquet does without its memory

    # Without pre-buffering, and through a small buffer, a row group is read page by page.
    return pq.ParquetFile(_file(where), pre_buffer=False, buffer_size=_BLOCK)


def _first_line(error: BaseException, where: Path | bytes) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Arrow's messages may quote the path that they were given; a user sees the item's name instead.
    return (text if isinstance(where, bytes) else text.replace(str(where), "the file")).rstrip(".")
