"""Uploaded files -> a block; and blocks of several items as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal, TooLarge
from vaegis.models.inputs.images import ImageParts, Mask, fitted_roi, image_block, take_pixels, unreadable
from vaegis.models.inputs.options import LIMITS, Limits
from vaegis.models.inputs.rows import Rows, table_rows, wanted_by
from vaegis.models.inputs.stream import row_blocks
from vaegis.models.inputs.unpacked_size import check_parquet
from vaegis.models.pixels import Pixels, Unreadable, read
from vaegis.models.sources.images import looks_like_image
from vaegis.models.sources.options import SourceOptions
from vaegis.models.sources.tables import open_table
from vaegis.models.spec import ImageSpec, InputSpec, describe

ALL = 1 << 62  # a request is one block, however many rows it has

# Encoded images -> of each, in order, its pixels as the spec has them or why there are none.
Reader = Callable[[Sequence[bytes], ImageSpec, Limits], Iterable[Pixels | Unreadable]]


def read_here(files: Sequence[bytes], spec: ImageSpec, limits: Limits) -> Iterator[Pixels | Unreadable]:
    """Decodes images in this process."""
    for data in files:
        try:
            yield read(data, spec, limits.pixels)
        except Unreadable as error:
            yield error


def from_files(
    spec: InputSpec,
    files: Sequence[tuple[str, bytes]],
    *,
    roi: Mask | None = None,
    limits: Limits = LIMITS,
    reader: Reader = read_here,
) -> Block:
    """Uploaded files, in their order: an image each, or a csv or Parquet table each (its rows are samples).

    Args:
        reader: decodes the images.

    Raises:
        Malformed: no file.
        Refusal: the one table given does not fit the model; timestamps that do not ascend.
        TooLarge: more images or rows than the limit, or more bytes once the images are decoded.
    """
    if not files:
        raise Malformed('The body holds no file; send each in a form field "file".')
    check_count(len(files), "file", limits)
    if isinstance(spec, ImageSpec):
        return image_block(_images(spec, files, fitted_roi(spec, roi), limits, reader), spec)
    wanted = replace(wanted_by(spec), calibrate_by=None)  # the request names its group, not the table
    table_blocks: list[Block] = []
    rows = 0
    for name, data in files:
        if looks_like_image(data):
            raise Refusal(f"{name} is an image, and the model takes {describe(spec)}; send csv or Parquet files.")
        check_parquet(name, data, limits)
        opener = partial(open_table, name, data)
        whole: list[Rows] = []
        for chunk in table_rows(name, opener, SourceOptions(), wanted, len(files) == 1):
            rows += len(chunk.values)
            check_count(rows, "row", limits)
            whole.append(chunk)
        if not whole:
            why = f"{name} is empty: it has no rows."
            if len(files) == 1:
                raise Refusal(why)
            whole.append(Rows(name, 0, np.empty((0, len(spec.columns)), np.float32), error=why))
        table_blocks += row_blocks(whole, spec, ALL)
    return join(table_blocks)


def _images(
    spec: ImageSpec, files: Sequence[tuple[str, bytes]], mask: Mask | None, limits: Limits, reader: Reader
) -> list[ImageParts]:
    if not spec.tile:
        check_bytes(len(files) * math.prod(spec.shape) * spec.dtype.itemsize, limits)
    done: list[ImageParts] = []
    total = 0
    for i, pixels in enumerate(reader([data for _, data in files], spec, limits)):
        name = files[i][0]
        try:
            if isinstance(pixels, Unreadable):
                raise pixels
            one = take_pixels(name, i, pixels, spec, mask)
        except Unreadable as error:
            one = unreadable(name, i, error)
        done.append(one)
        total += 0 if one.parts is None else one.parts.nbytes
        check_bytes(total, limits)
    return done


def join(blocks: Sequence[Block]) -> Block:
    """Blocks end to end, as one. No item may lie in two of them, since windows would then be counted twice."""
    if len(blocks) == 1:
        return blocks[0]
    rows = np.cumsum([0, *(len(b) for b in blocks)]).tolist()
    parts = np.cumsum([0, *(len(b.parts) for b in blocks)]).tolist()
    stamped = any(b.timestamps is not None for b in blocks)
    grouped = any(b.groups is not None for b in blocks)
    return Block(
        items=[item for b in blocks for item in b.items],
        index=np.concatenate([b.index for b in blocks]),
        parts=np.concatenate([b.parts for b in blocks]),
        first=np.concatenate([b.first + p for b, p in zip(blocks, parts, strict=False)]),
        count=np.concatenate([b.count for b in blocks]),
        errors={i + r: why for b, r in zip(blocks, rows, strict=False) for i, why in b.errors.items()},
        timestamps=[t for b in blocks for t in b.timestamps or [None] * len(b)] if stamped else None,
        warmup=np.concatenate([b.warmup for b in blocks if b.warmup is not None])
        if blocks[0].warmup is not None
        else None,
        groups=[g for b in blocks for g in b.groups or [None] * len(b)] if grouped else None,
        place=np.concatenate([b.place + r for b, r in zip(blocks, rows, strict=False) if b.place is not None])
        if blocks[0].place is not None
        else None,
        conditions=np.concatenate([b.conditions for b in blocks if b.conditions is not None])
        if blocks[0].conditions is not None
        else None,
    )


def check_count(count: int, what: str, limits: Limits) -> None:
    if count > limits.samples:
        raise TooLarge(f"{count} {what}s are more than the {limits.samples} that one request may hold; send fewer.")


def check_bytes(count: int, limits: Limits) -> None:
    """Holds a small file that decodes to much, or many of them, to the limit.

    Raises:
        TooLarge: more bytes than the limit.
    """
    if count > limits.bytes:
        raise TooLarge(
            f"The samples take {count} bytes once they are decoded to what the model takes, more than the "
            f"{limits.bytes} of one request; send fewer at a time."
        )
