"""Rows of numbers, by the spec's columns, from tables and arrays; and blocks of vectors.

Values become float32 here and nowhere else; NaN stands for "no value", and what float32 cannot hold is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.blocks import Block
from vaegis.models.errors import Refusal
from vaegis.models.inputs.timestamps import AscendingTimestamps, Unordered, as_given
from vaegis.models.sources import ArraySource
from vaegis.models.sources.options import SourceOptions, listed
from vaegis.models.sources.tables import Table, roles, timestamp_column
from vaegis.models.spec import Missing, SeriesSpec, VectorSpec

Values = NDArray[np.float32]
RowSpec = SeriesSpec | VectorSpec
Texts = Mapping[tuple[int, int], str]  # (row within the item, column) -> what a cell holds


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one item."""

    item: str | None
    start: int  # number of the first row within the item
    values: Values  # (n, *row shape), NaN where there is no value
    stamps: Sequence[Any] | None = None  # (n,) timestamps as given
    calibrate: Sequence[str | None] | None = None  # (n,) calibration groups
    together: Sequence[str | None] | None = None  # (n,) groups that must not be split
    error: str | None = None  # the item breaks off here, or cannot be opened; `values` is empty then
    texts: Texts = field(default_factory=dict)  # of cells that are no number; `values` is infinite there

    def piece(self, low: int, high: int) -> Rows:
        """The rows [low, high) of these."""
        here = slice(low, high)
        return Rows(
            self.item,
            self.start + low,
            self.values[here],
            self.stamps[here] if self.stamps is not None else None,
            self.calibrate[here] if self.calibrate is not None else None,
            self.together[here] if self.together is not None else None,
            self.error,
            self.texts,
        )


@dataclass(frozen=True)
class Wanted:
    """What is read of each row."""

    columns: tuple[str, ...]
    stamped: bool = False  # timestamps are read, and must ascend
    timestamp: str | None = None  # their column by the model; the source's options may name another
    calibrate_by: str | None = None
    group_by: str | None = None
    strict: bool = False  # a fit: what is wrong with an item is a Refusal


def wanted_by(spec: RowSpec, group_by: str | None = None, strict: bool = False) -> Wanted:
    """What a spec wants of each row."""
    if isinstance(spec, SeriesSpec):
        return Wanted(spec.columns, True, spec.timestamp, spec.calibrate_by, group_by, strict)
    # The order of a table's rows means nothing where each is a sample of its own.
    return Wanted(spec.columns, False, None, spec.calibrate_by, group_by, strict)


def numbered(count: int) -> tuple[str, ...]:
    """Names of columns that have none: 0, 1, 2, ..."""
    return tuple(str(i) for i in range(count))


def match_columns(wanted: Sequence[str], given: Sequence[str], title: str) -> list[int]:
    """Where each wanted column is among the given ones, by name; given columns nobody wants are passed over.

    A model fitted on an array without names (its columns are 0, 1, 2, ...) takes as many columns by place, and of
    another array without names not the first few: where nothing is named, nothing says that they mean the same.

    Raises:
        Refusal: columns are missing, or there are too many without names.
    """
    if len(given) > len(wanted) and tuple(given) == numbered(len(given)) and tuple(wanted) == numbered(len(wanted)):
        raise Refusal(
            f"{title} has {len(given)} columns without names, and the model takes {len(wanted)}; give those alone "
            f"(in a command: --columns {','.join(wanted[:3])}{',...' if len(wanted) > 3 else ''})."
        )
    at = {name: i for i, name in enumerate(given)}
    missing = [name for name in wanted if name not in at]
    if not missing:
        return [at[name] for name in wanted]
    if tuple(wanted) == numbered(len(wanted)) and len(given) == len(wanted):
        return list(range(len(wanted)))
    columns = "column" if len(missing) == 1 else "columns"
    raise Refusal(
        f"{title} lacks {columns} {listed(missing)}; it has {listed(given)}, the model takes {listed(wanted)}."
    )


def array_columns(source: ArraySource) -> tuple[str, ...]:
    """The columns of an array, named by their number, that --columns and --exclude leave.

    Raises:
        Refusal: an option names none of them.
    """
    shape = source.header.shape
    names = numbered(shape[-1] if len(shape) > 1 else 1)
    chosen = source.options.columns
    for option, given in (("--columns", chosen), ("--exclude", source.options.exclude)):
        if unknown := [name for name in given if name not in names]:
            raise Refusal(
                f"{option} names {listed(unknown)}, but the columns of {source.path.name} have numbers only, 0 to "
                f"{len(names) - 1}."
            )
    left = tuple(name for name in chosen or names if name not in source.options.exclude)
    if not left or len(set(left)) < len(left):
        raise Refusal(f"--columns and --exclude must leave columns of {source.path.name}, each once.")
    return left


def array_rows(source: ArraySource, wanted: Wanted) -> Iterator[Rows]:
    """Rows (n, C), or windows (n, T, C), of an array.

    Raises:
        Refusal: another number of columns, or unknown group keys.
    """
    names = array_columns(source)
    width = source.header.shape[-1] if len(source.header.shape) > 1 else 1
    if set(wanted.columns) <= set(names):
        places = [int(name) for name in wanted.columns]
    elif len(names) == len(wanted.columns):
        # Nothing in an array has a name; as many columns are taken in their order.
        places = [int(name) for name in names]
    else:
        raise Refusal(
            f"{source.path.name} has {len(names)} columns, but the model takes {len(wanted.columns)}: "
            f"{listed(wanted.columns)}."
        )
    calibrate = key_groups(source, wanted.calibrate_by, "--calibrate-by", wanted.strict)
    together = key_groups(source, wanted.group_by, "--group-by", True)
    whole = places == list(range(width))
    for start, chunk in source.chunks():
        values = chunk[:, None] if chunk.ndim == 1 else chunk
        here = slice(start, start + len(chunk))
        yield Rows(
            source.name,
            start,
            to_float32(values if whole else values[..., places]),
            None,
            calibrate[here] if calibrate is not None else None,
            together[here] if together is not None else None,
        )


def table_rows(
    name: str, opener: Callable[[], Table], options: SourceOptions, wanted: Wanted, lone: bool
) -> Iterator[Rows]:
    """Rows (n, C) of one table, which `opener` opens.

    A table that cannot be opened, does not fit the model or breaks off ends in rows that carry the `error`.

    Raises:
        Refusal: unsorted timestamps; when `strict`, whatever is wrong with the table; when `lone`, one that does not
            fit the model, since that is a wrong call and not an item that cannot be judged.
    """
    try:
        yield from _table_rows(opener(), options, wanted)
    except _Broken as broken:
        if wanted.strict:
            raise broken.refusal from broken
        yield broken_rows(name, broken.row, wanted, str(broken.refusal))
    except Unordered:
        raise
    except (Refusal, UnicodeDecodeError) as error:
        refusal = error if isinstance(error, Refusal) else Refusal(f"{name} holds text that is not UTF-8; save it so.")
        if wanted.strict or lone:
            raise refusal from (None if refusal is error else error)
        yield broken_rows(name, 0, wanted, str(refusal))


def _table_rows(table: Table, options: SourceOptions, wanted: Wanted) -> Iterator[Rows]:
    columns = features_of(table, options, wanted)
    stamp = timestamp_column(table, options, columns) if wanted.stamped else None
    others = {*table.schema.names} - {*columns, *options.exclude}
    if wanted.stamped and options.timestamp is None and wanted.timestamp in others:
        stamp = wanted.timestamp
    # Whoever chooses the columns has not asked for a timestamp: one is handed back, and need not ascend.
    ordered = options.timestamp is not None or not options.columns
    calibrate = wanted.calibrate_by
    if calibrate is not None and calibrate not in table.schema.names:
        if wanted.strict:
            table.column(calibrate, "--calibrate-by")
        calibrate = None
    if wanted.group_by is not None:
        table.column(wanted.group_by, "--group-by")
    words = [name for name in (calibrate, wanted.group_by) if name is not None]
    first, last = options.rows or (None, None)
    order = AscendingTimestamps(table.name)
    at = 0
    pieces = table.pieces(columns, stamp, words)
    while last is None or at < last:
        try:
            piece = next(pieces, None)
        except Refusal as refusal:
            raise _Broken(max(at, first or 0), refusal) from refusal
        if piece is None:
            break
        batch = piece.batch
        low = min(max((first or 0) - at, 0), batch.num_rows)
        high = batch.num_rows if last is None else min(last - at, batch.num_rows)
        start, at = at + low, at + batch.num_rows
        if low >= high:
            continue
        batch = batch.slice(low, high - low)
        stamps = as_given(batch.column(stamp)) if stamp is not None else None
        if ordered and stamp is not None and stamps is not None:
            order.check(batch.column(stamp), stamps, start)
        values, texts = batch_values(batch, columns), {}
        for (row, name), text in piece.bad.items():
            if low <= row < high:
                values[row - low, columns.index(name)] = np.inf
                texts[start + row - low, columns.index(name)] = text
        yield Rows(
            table.name,
            start,
            values,
            stamps,
            _text(batch.column(calibrate)) if calibrate is not None else None,
            _text(batch.column(wanted.group_by)) if wanted.group_by is not None else None,
            texts=texts,
        )


def features_of(table: Table, options: SourceOptions, wanted: Wanted) -> list[str]:
    """The table's own names of the wanted columns, in their order; each must be numeric.

    Raises:
        Refusal: a column is missing or holds text.
    """
    names = list(table.schema.names)
    if options.columns:
        names = [table.column(name, "--columns") for name in options.columns]
    names = [name for name in names if name not in options.exclude]
    if not set(wanted.columns) <= set(names) and wanted.columns == numbered(len(wanted.columns)):
        names = list(roles(table, options).features)
    columns = [names[i] for i in match_columns(wanted.columns, names, table.name)]
    for name in columns:
        if not table.is_numeric(name):
            value = f" ({table.sample[name]!r}, for one)" if name in table.sample else ""
            raise Refusal(f"Column {name!r} of {table.name} is not numeric{value}; the model takes numbers there.")
    return columns


class _Broken(Exception):
    """A table that cannot be read past a row."""

    def __init__(self, row: int, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.row = row
        self.refusal = refusal


def broken_rows(name: str, row: int, wanted: Wanted, why: str) -> Rows:
    """No rows: the item cannot be read from this one on."""
    return Rows(name, row, np.empty((0, len(wanted.columns)), np.float32), error=why)


def batch_values(batch: pa.RecordBatch, columns: Sequence[str]) -> Values:
    """(n, C) of the named columns of a batch."""
    values = np.empty((batch.num_rows, len(columns)), np.float32)
    with np.errstate(over="ignore"):
        for i, name in enumerate(columns):
            column = batch.column(name)
            if not pa.types.is_floating(column.type) or pa.types.is_float16(column.type):
                if pa.types.is_boolean(column.type):
                    column = column.cast(pa.int8())
                column = column.cast(pa.float64(), safe=False)
            values[:, i] = column.to_numpy(zero_copy_only=False)
    return values


def to_float32(values: NDArray[Any]) -> Values:
    """Any numbers as float32; what is too large becomes infinite, and is refused as such."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def unusable(values: Values, missing: Missing) -> NDArray[np.bool_]:
    """Which values cannot be judged: infinite ones, and NaN where nothing may be missing."""
    return np.asarray(np.isinf(values) if missing == "allow" else ~np.isfinite(values))


def sentence(
    item: str | None, row: int | None, column: str, value: float, missing: Missing, text: str | None = None
) -> str:
    """Why a value cannot be judged, with the remedy; `text` is what the cell holds where that is no number."""
    where = f"Column {column!r}" + (f" of row {row}" if row is not None else "") + (f" of {item}" if item else "")
    if text is not None:
        cell = repr(text[:60])
        if missing == "allow":
            return f"{where} is {cell}, which is no number. Correct it, or have it taken as missing with --na {cell}."
        return (
            f"{where} is {cell}, which is no number. Correct it, or fit with --missing allow and --na {cell}, which "
            "take it as missing."
        )
    if np.isnan(value):
        return f"{where} is NaN (no value). Fill it in, or fit with --missing allow, which takes NaN as missing."
    return f"{where} is infinite, or too large for a 32-bit float. Correct it" + (
        ", or make it NaN." if missing == "allow" else "."
    )


def sample_block(rows: Rows, spec: RowSpec) -> Block:
    """Samples that are one part each: vectors (n, D), or windows (n, T, C) of an array of windows."""
    values = rows.values
    n = len(values)
    flat = values.reshape(n, -1, len(spec.columns))
    bad = unusable(flat, spec.missing)
    unseen = np.asarray(np.isnan(flat).all(axis=(1, 2)) & ~bad.any(axis=(1, 2)))
    good = np.asarray(~(bad.any(axis=(1, 2)) | unseen))
    errors = {}
    for i in np.flatnonzero(~good).tolist():
        if unseen[i]:
            errors[i] = f"Sample {rows.start + i}{f' of {rows.item}' if rows.item else ''} holds no value at all."
            continue
        t, c = (int(v) for v in np.argwhere(bad[i])[0])
        row, value = rows.start + i, float(flat[i, t, c])
        errors[i] = sentence(rows.item, row, spec.columns[c], value, spec.missing, rows.texts.get((row, c)))
    return Block(
        items=[rows.item] * n,
        index=np.arange(rows.start, rows.start + n, dtype=np.int64),
        parts=values if good.all() else values[good],
        first=np.cumsum(good) - good,
        count=good.astype(np.int64),
        errors=errors,
        warmup=np.zeros(n, bool) if isinstance(spec, SeriesSpec) else None,
        groups=rows.calibrate,
    )


def broken_block(rows: Rows, spec: RowSpec) -> Block:
    """One unjudged sample that stands for what could not be read of an item."""
    assert rows.error is not None
    return Block(
        items=[rows.item],
        index=np.array([rows.start], np.int64),
        parts=np.empty((0, *spec.shape), np.float32),
        first=np.zeros(1, np.int64),
        count=np.zeros(1, np.int64),
        errors={0: rows.error},
        timestamps=[None] if isinstance(spec, SeriesSpec) else None,
        warmup=np.zeros(1, bool) if isinstance(spec, SeriesSpec) else None,
        groups=[None] if spec.calibrate_by else None,
        place=np.empty((0, 1), np.int64) if isinstance(spec, SeriesSpec) else None,
    )


def key_groups(source: ArraySource, key: str | None, option: str, strict: bool) -> list[str] | None:
    """The group of every sample of an array (before `rows`), from another array of its .npz.

    Raises:
        Refusal: when `strict`, the .npz holds no such key of one value per sample.
    """
    if key is None:
        return None
    try:
        values = source.vector(key)
        if values.ndim != 1:
            raise Refusal(f"{option} {key}: the array has shape {values.shape}; give one value per sample.")
    except Refusal:
        if strict:
            raise
        return None  # data to be scored need not carry the groups of the clean data
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()]


def _text(column: pa.Array) -> list[str | None]:
    if pa.types.is_floating(column.type):
        return [None if v is None else f"{v:g}" for v in column.to_pylist()]
    return [None if v in (None, "") else str(v) for v in column.to_pylist()]
