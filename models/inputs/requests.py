"""Bytes of an HTTP request -> a block. Every function raises a `Refusal` whose sentence the service sends as it is.

What makes the whole request wrong (its form, its columns, its size) is raised; what is wrong with one sample only (a
broken image, a NaN) stays with that sample in the block's `errors`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.blocks import Block, plain
from vaegis.models.errors import Malformed, Refusal, TooLarge, UnsupportedType
from vaegis.models.inputs.conditions import declare
from vaegis.models.inputs.images import Mask, fitted_roi, image_block, take_image
from vaegis.models.inputs.options import LIMITS, Limits
from vaegis.models.inputs.rows import (
    Rows,
    batch_values,
    match_columns,
    sample_block,
    to_float32,
)
from vaegis.models.inputs.stream import row_blocks
from vaegis.models.inputs.timestamps import AscendingTimestamps, as_given
from vaegis.models.inputs.unpacked_size import check_arrow
from vaegis.models.inputs.uploads import ALL, check_bytes, check_count, join
from vaegis.models.pixels import Unreadable, conform
from vaegis.models.sources.arrays import read_header
from vaegis.models.sources.options import listed
from vaegis.models.sources.tables import numeric
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec, VectorSpec, describe


def from_json(
    spec: InputSpec,
    body: Mapping[str, Any],
    *,
    roi: Mask | None = None,
    limits: Limits = LIMITS,
    truths: bool = True,
) -> Block:
    """`{"data": nested numbers, "columns"?, "timestamps"?, "items"?, "condition"?}`.

    Images are integers, (N, H, W) or (N, H, W, C); vectors (N, D); a series (T, C), or windows (N, T, C) of the model's
    length. `columns` puts columns in place by name: missing ones are refused, others passed over. null is a missing
    value. `items` names samples; consecutive rows of a series with the same name are one series. `condition` says what
    each sample (each row, of a series) was made as.

    Raises:
        Malformed: no data, ragged or empty data, or values that are not numbers.
        Refusal: missing columns, another shape than the model's, timestamps that do not ascend.
        TooLarge: more samples than the limit.
    """
    if not isinstance(body, Mapping):
        raise Malformed('The body must be a JSON object {"data": [...]}.')
    if "data" not in body:
        raise Malformed('The body holds no "data"; send {"data": nested numbers}.')
    values = numbers(body["data"], small=not truths and spec.dtype == np.uint8)
    items = _strings(body.get("items"), "items")
    stamps = body.get("timestamps")
    if stamps is not None and (not isinstance(stamps, list) or not all(_is_stamp(v) for v in stamps)):
        raise Malformed('"timestamps" must be a list of strings or numbers, one per row.')
    if isinstance(spec, ImageSpec):
        block = _images(spec, _pixels(values, spec), roi, limits, items)
    else:
        block = _rows(spec, values, _strings(body.get("columns"), "columns"), stamps, items, limits)
    words = body.get("condition")
    if words is None:
        return block
    if not isinstance(words, list) or not all(isinstance(v, (str, int)) and not isinstance(v, bool) for v in words):
        raise Malformed('"condition" must be a list of names, one per sample.')
    return declare(block, spec, [str(v) for v in words])


def from_raw(spec: InputSpec, body: bytes, *, roi: Mask | None = None, limits: Limits = LIMITS) -> Block:
    """The bare tensor, little-endian: uint8 or uint16 images (N, H, W, C) of the model's size (of a tile's, where it
    tiles), float32 vectors (N, D), or the float32 rows (T, C) of one series. N or T follows from the length.

    Raises:
        Malformed: empty, or not a whole number of samples.
        TooLarge: more samples than the limit.
    """
    shape = (len(spec.columns),) if isinstance(spec, SeriesSpec) else spec.shape
    dtype = spec.dtype.newbyteorder("<")
    size = math.prod(shape) * dtype.itemsize
    what = {"image": "image", "series": "row", "vector": "vector"}[spec.kind]
    if not body or len(body) % size:
        raise Malformed(
            f"The body has {len(body)} bytes; the model takes {size} bytes per {what} ({dtype.name}, shape "
            f"{shape}), one "
            "or more."
        )
    check_count(len(body) // size, what, limits)
    values = np.frombuffer(body, dtype).reshape(-1, *shape)
    if isinstance(spec, ImageSpec):
        return _images(spec, values, roi, limits, None)
    return _rows(spec, values, None, None, None, limits)


def from_npy(spec: InputSpec, body: bytes, *, roi: Mask | None = None, limits: Limits = LIMITS) -> Block:
    """An .npy file of the shapes that `from_json` takes.

    Raises:
        Malformed: no .npy, or one whose length does not fit its header.
        Refusal: an object array, or another shape or type than the model's.
        TooLarge: more samples or bytes than the limit.
    """
    file = io.BytesIO(body)
    try:
        header = read_header(file, "The array")
    except ValueError as error:
        raise Malformed("The body is not an .npy file; write it with numpy.save(file, array).") from error
    if header.nbytes != len(body) - header.offset:
        raise Malformed(
            f"The .npy announces {header.nbytes} bytes of data (shape {header.shape}, {header.dtype}) and holds "
            f"{len(body) - header.offset}; send the whole file."
        )
    if header.dtype.kind not in "biuf":
        raise Refusal(f"The array holds {header.dtype}, which is not numeric; the model takes {describe(spec)}.")
    flat = np.frombuffer(body, header.dtype, offset=header.offset)
    values = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return from_array(spec, values.astype(values.dtype.newbyteorder("="), copy=False), roi=roi, limits=limits)


def from_array(spec: InputSpec, values: NDArray[Any], *, roi: Mask | None = None, limits: Limits = LIMITS) -> Block:
    """An array in memory, of the shapes that `from_json` takes.

    Raises:
        Malformed: it is empty.
        Refusal: another shape or type than the model's.
        TooLarge: more samples or bytes than the limit.
    """
    if values.size == 0:
        raise Malformed(f"The array is empty: its shape is {values.shape}.")
    if isinstance(spec, ImageSpec):
        return _images(spec, _pixels(values, spec), roi, limits, None)
    return _rows(spec, values, None, None, None, limits)


def from_arrow(spec: InputSpec, body: bytes, *, limits: Limits = LIMITS) -> Block:
    """An Arrow IPC stream of a table: columns by name, whatever their order; others are passed over.

    The model's timestamp column, where the table has it, is handed back with the rows.

    Raises:
        Malformed: no Arrow stream, or no rows.
        Refusal: missing or non-numeric columns, timestamps that do not ascend.
        UnsupportedType: the model takes images.
        TooLarge: more rows than the limit, or more bytes once they are unpacked.
    """
    if isinstance(spec, ImageSpec):
        raise UnsupportedType(
            "The model takes images, which an Arrow stream does not hold; send files (multipart), an .npy, or "
            "raw bytes."
        )
    check_arrow(body, limits)
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            schema, batches = reader.schema, list(reader)
            given = schema.names
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Malformed("The body is not an Arrow IPC stream; write it with pyarrow.ipc.new_stream.") from error
    places = match_columns(spec.columns, given, "The table")
    names = [given[i] for i in places]
    for name in names:
        if given.count(name) > 1:
            raise Refusal(f"The table has column {name!r} more than once; give each column its own name.")
        if not numeric(schema.field(name).type):
            raise Refusal(
                f"Column {name!r} of the table holds {schema.field(name).type}; the model takes numbers there."
            )
    count = sum(batch.num_rows for batch in batches)
    if count == 0:
        raise Malformed("The table is empty: it has no rows.")
    check_count(count, "row", limits)
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    whole = table.to_batches()[0]
    stamps = None
    if isinstance(spec, SeriesSpec) and spec.timestamp in given:
        column = whole.column(given.index(spec.timestamp))
        stamps = as_given(column)
        AscendingTimestamps("the table").check(column, stamps, 0)
    return _rows(spec, batch_values(whole, names), None, stamps, None, limits)


def _bytes(data: Any) -> NDArray[np.uint8] | None:
    """Nested lists of whole numbers from 0 to 255 as an array; None where they are anything else."""
    try:
        shape, level = [len(data)], data
        while isinstance(level[0][0], list):
            shape.append(_length(level))
            level = list(chain.from_iterable(level))
        shape.append(_length(level))
        return np.frombuffer(bytearray(chain.from_iterable(level)), np.uint8).reshape(shape)
    except (TypeError, ValueError, IndexError, KeyError):
        return None


def _length(lists: list[Any]) -> int:
    (length,) = set(map(len, lists))
    return length


def numbers(data: Any, small: bool = False) -> NDArray[Any]:
    """Nested lists, as JSON has them, as an array; null becomes NaN.

    Args:
        small: numbers of 8 bits are expected, and the text holds no true or false, which Python takes for 1 and 0: such
            lists are read faster, with the same result.

    Raises:
        Malformed: empty or ragged lists, or values that are not numbers.
    """
    if not isinstance(data, list):
        raise Malformed(f'"data" is {_named(data)}; send nested lists of numbers.')
    if small and (quick := _bytes(data)) is not None:
        return quick
    try:
        values = np.array(data)
        if values.dtype == object:
            # A null, or an integer beyond 64 bits; anything else has no business here.
            flat = values.reshape(-1).tolist()
            wrong = next((v for v in flat if v is not None and not isinstance(v, (int, float))), None)
            if wrong is not None:
                raise Malformed(f'"data" holds {_named(wrong)} where a number belongs.')
            values = np.array([math.nan if v is None else float(v) for v in flat]).reshape(values.shape)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Malformed(
            '"data" is ragged: lists of one level must have the same length, and hold numbers only.'
        ) from error
    if values.dtype.kind not in "iuf":
        what = {"U": "text", "b": "true or false"}.get(values.dtype.kind, str(values.dtype))
        raise Malformed(f'"data" holds {what} where numbers belong.')
    if values.size == 0:
        raise Malformed(f'"data" is empty: its shape is {values.shape}.')
    return values


def _pixels(values: NDArray[Any], spec: ImageSpec) -> NDArray[Any]:
    """Integers of any type as (N, H, W, C) pixels of 8 or 16 bits."""
    if values.ndim not in (3, 4):
        raise Refusal(
            f"The data have shape {values.shape}; images must be (N, H, W) or (N, H, W, C). The model takes "
            f"{describe(spec)}."
        )
    if values.dtype not in (np.uint8, np.uint16):
        if values.dtype.kind not in "iu":
            raise Refusal(f"The data are {values.dtype}; images must be whole numbers, 0 to {2**spec.depth - 1}.")
        top = 2**spec.depth - 1
        if values.min() < 0 or values.max() > top:
            wrong = values.min() if values.min() < 0 else values.max()
            raise Refusal(f"The data hold {wrong}; a pixel of {spec.depth} bits is 0 to {top}.")
        values = values.astype(spec.dtype)
    return values if values.ndim == 4 else values[..., None]


def _images(
    spec: ImageSpec, values: NDArray[Any], roi: Mask | None, limits: Limits, items: Sequence[str] | None
) -> Block:
    n = len(values)
    check_count(n, "image", limits)
    if not spec.tile:
        check_bytes(n * math.prod(spec.shape) * spec.dtype.itemsize, limits)
    if values.shape[1] * values.shape[2] > limits.pixels:
        raise TooLarge(f"Images of {values.shape[1]}x{values.shape[2]} pixels are more than the {limits.pixels} taken.")
    _check_items(items, n)
    mask = fitted_roi(spec, roi)
    if spec.tile:
        parts_of_images = [take_image(items[i] if items else None, i, one, spec, mask) for i, one in enumerate(values)]
        block = image_block(parts_of_images, spec)
        if not block.count.any():
            raise Refusal(block.errors[0])
        return block
    try:
        parts = conform(values, spec)
    except Unreadable as error:
        raise Refusal(f"No image of the request fits the model: {error}.") from error
    if mask is not None:
        parts = np.where(mask[..., None], parts, parts.dtype.type(0))
    return plain(parts, items)


def _rows(
    spec: SeriesSpec | VectorSpec,
    values: NDArray[Any],
    columns: Sequence[str] | None,
    stamps: Sequence[Any] | None,
    items: Sequence[str] | None,
    limits: Limits,
) -> Block:
    width = len(spec.columns)
    if values.ndim == 1 and isinstance(spec, VectorSpec) and len(values) == width > 1:
        values = values[None]
    elif values.ndim == 1 and width == 1:
        values = values[:, None]
    windows = isinstance(spec, SeriesSpec) and values.ndim == 3
    if values.ndim != 2 and not windows:
        form = "(N, D)" if isinstance(spec, VectorSpec) else "(T, C), one row per time step"
        raise Refusal(f"The data have shape {values.shape}; they must be {form}. The model takes {describe(spec)}.")
    if columns is not None:
        if len(columns) != values.shape[-1]:
            raise Refusal(f'"columns" names {len(columns)} columns, and the data have {values.shape[-1]}.')
        if len(set(columns)) < len(columns):
            raise Refusal(f'"columns" names a column twice: {listed(columns)}.')
        values = values[..., match_columns(spec.columns, columns, '"columns"')]
    if values.shape[-1] != width:
        raise Refusal(
            f"The data have {values.shape[-1]} columns, and the model takes {width}: {listed(spec.columns)}. Name them "
            'with "columns" if there are more.'
        )
    n = len(values)
    check_count(n, "window" if windows else "row" if isinstance(spec, SeriesSpec) else "vector", limits)
    if stamps is not None and len(stamps) != n:
        raise Refusal(f'"timestamps" has {len(stamps)} entries, and the data have {n} rows.')
    rows = to_float32(values)
    if isinstance(spec, VectorSpec):
        _check_items(items, n)
        return _named_block(sample_block(Rows(None, 0, rows), spec), items, stamps)
    if windows:
        _check_items(items, n)
        if rows.shape[1] != spec.window:
            raise Refusal(f"The windows have {rows.shape[1]} rows, and the model takes {spec.window}.")
        return _named_block(sample_block(Rows(None, 0, rows), spec), items, stamps)
    if items is not None and len(items) == 1:
        items = [*items] * n
    _check_items(items, n)
    series_blocks: list[Block] = []
    for low, high in _runs(items, n):
        item = items[low] if items is not None else None
        some = stamps[low:high] if stamps is not None else None
        if some is not None:
            _check_order(item, some)
        series_blocks += row_blocks([Rows(item, 0, rows[low:high], some)], spec, ALL)
    return join(series_blocks)


def _named_block(block: Block, items: Sequence[str] | None, stamps: Sequence[Any] | None) -> Block:
    return replace(block, items=items if items is not None else block.items, timestamps=stamps)


def _runs(items: Sequence[str] | None, n: int) -> list[tuple[int, int]]:
    """[low, high) of consecutive rows of one item."""
    if items is None:
        return [(0, n)]
    cuts = [0, *(i for i in range(1, n) if items[i] != items[i - 1]), n]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _check_order(item: str | None, stamps: Sequence[Any]) -> None:
    if len({isinstance(v, str) for v in stamps}) > 1:
        raise Malformed('"timestamps" mixes text and numbers; send one of them.')
    AscendingTimestamps(item or "the series").check(pa.array(stamps), stamps, 0)


def _check_items(items: Sequence[str] | None, n: int) -> None:
    if items is not None and len(items) != n:
        raise Refusal(f'"items" has {len(items)} entries, and the data have {n} samples.')


def _strings(value: Any, name: str) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise Malformed(f'"{name}" must be a list of strings.')
    return value


def _is_stamp(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _named(value: Any) -> str:
    """A JSON value in words, cut short."""
    if value is None:
        return "null"
    kind = {str: "the text", bool: "the truth value", dict: "an object", list: "a list"}.get(type(value), "the number")
    return kind if isinstance(value, (dict, list)) else f"{kind} {str(value)[:40]!r}"
