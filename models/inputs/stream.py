"""Blocks for scoring: a source, front to back, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from vaegis.models.blocks import Block, plain
from vaegis.models.errors import Refusal
from vaegis.models.inputs.conditions import conditioned, of_source
from vaegis.models.inputs.images import (
    ImageParts,
    Mask,
    fitted_roi,
    image_block,
    take_file,
    take_image,
    unreadable,
)
from vaegis.models.inputs.options import LIMITS
from vaegis.models.inputs.rows import (
    Rows,
    RowSpec,
    Wanted,
    array_rows,
    broken_block,
    broken_rows,
    key_groups,
    sample_block,
    table_rows,
    wanted_by,
)
from vaegis.models.inputs.timeline import runs
from vaegis.models.inputs.windows import series_blocks
from vaegis.models.pixels import Pixels, Unreadable, conform, levels
from vaegis.models.sources import ArraySource, ImageFolder, Source, TableFiles, as_kind
from vaegis.models.sources.images import grouping
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

BUDGET = 32 << 20  # bytes of images in one block


def blocks(source: Source, spec: InputSpec, *, roi: Mask | None = None, rows: int = 4096) -> Iterator[Block]:
    """The samples of a source, in order, at most `rows` in a block and a few tens of MB.

    Series blocks hold consecutive rows of one item and every window that covers one of them (`place` counts from the
    block's first row, and may be negative); an array of windows (N, T, C) gives one sample per window and no `place`.
    What cannot be read or judged keeps its place, without parts and with its reason in `errors`; a table that cannot be
    read past a row ends in one such sample.

    Raises:
        Refusal: the source does not hold what the model takes, or its timestamps do not ascend; the model wants
            conditions and the source's options name none.
    """
    source = as_kind(source, spec.kind)
    table = of_source(source, spec)
    stream_of_blocks = _blocks(source, spec, roi, rows)
    yield from stream_of_blocks if table is None else conditioned(stream_of_blocks, spec, table)


def _blocks(source: Source, spec: InputSpec, roi: Mask | None, rows: int) -> Iterator[Block]:
    if isinstance(spec, ImageSpec):
        mask = fitted_roi(spec, roi)
        assert not isinstance(source, TableFiles)
        if isinstance(source, ArraySource):
            yield from _pixel_blocks(source, spec, mask, rows)
        else:
            grouped = spec.calibrate_by is not None
            for batch in batched(file_images(source, spec, mask), spec, rows):
                yield image_block(batch, spec, grouped)
        return
    assert not isinstance(source, ImageFolder)
    for chunks in row_items(source, spec, wanted_by(spec)):
        yield from row_blocks(chunks, spec, rows, holds_windows(source))


def row_blocks(chunks: Iterable[Rows], spec: RowSpec, rows: int = 4096, windows: bool = False) -> Iterator[Block]:
    """Blocks of one item's rows; `windows` if its values are windows (n, T, C) already."""
    if isinstance(spec, SeriesSpec) and not windows:
        for run in runs(chunks, spec.step):
            yield from series_blocks(run, spec, rows)
        return
    for chunk in chunks:
        if chunk.error is not None:
            yield broken_block(chunk, spec)
        for at in range(0, len(chunk.values), rows):
            yield sample_block(chunk.piece(at, at + rows), spec)


def holds_windows(source: Source) -> bool:
    """Whether a source is an array of windows (N, T, C), each a sample of its own."""
    return isinstance(source, ArraySource) and source.kind == "series" and len(source.header.shape) == 3


def row_items(source: ArraySource | TableFiles, spec: RowSpec, wanted: Wanted) -> Iterator[Iterator[Rows]]:
    """The rows of each item of a source, item after item.

    Raises:
        Refusal: windows of another length than the model's.
    """
    if isinstance(source, ArraySource):
        shape = source.header.shape
        if isinstance(spec, SeriesSpec) and holds_windows(source) and shape[1] != spec.window:
            raise Refusal(
                f"{source.path.name} holds windows of {shape[1]} rows, and the model takes {spec.window}; cut them to "
                f"{spec.window}, or give one series as (rows, columns)."
            )
        yield array_rows(source, wanted)
        return
    for name in source.names():
        lone = len(source.files) == 1
        chunks = table_rows(name, partial(source.open, name), source.options, wanted, lone)
        yield _nonempty(chunks, name, source, wanted)


def _nonempty(chunks: Iterator[Rows], name: str, source: TableFiles, wanted: Wanted) -> Iterator[Rows]:
    """The rows of a table; of one without any the reason, as a refusal where it is the only table."""
    empty = True
    for chunk in chunks:
        empty = False
        yield chunk
    if empty and not wanted.strict:
        within = " within --rows" if source.options.rows is not None else ""
        why = f"{name} has no rows{within}. Give a table that holds some."
        if len(source.files) == 1:
            raise Refusal(why)
        yield broken_rows(name, 0, wanted, why)


def file_images(source: ImageFolder, spec: ImageSpec, mask: Mask | None) -> Iterator[ImageParts]:
    """The images of a folder, decoded by a few threads (Pillow lets go of the interpreter while it decodes)."""
    group = grouping(spec.calibrate_by, "--calibrate-by") if spec.calibrate_by is not None else lambda name: None
    first, _ = source.span

    def take(numbered: tuple[int, str]) -> ImageParts:
        index, name = numbered
        try:
            data = read_image(source.place(name))
        except Unreadable as error:
            return unreadable(name, index, error, group(name))
        return take_file(name, index, data, spec, mask, group(name))

    workers = min(8, os.cpu_count() or 1)
    numbered = enumerate(source.names(), first)
    with ThreadPoolExecutor(workers, "decode") as pool:
        while some := list(islice(numbered, 4 * workers)):
            yield from pool.map(take, some)


def pixel_chunks(source: ArraySource, spec: ImageSpec, mask: Mask | None) -> Iterator[tuple[int, Pixels]]:
    """(number of its first image, parts) of an array of images that are not tiled.

    Raises:
        Refusal: the images do not fit the spec; all of an array's are alike.
    """
    for start, chunk in source.chunks():
        try:
            parts = conform(levels(chunk if chunk.ndim == 4 else chunk[..., None]), spec)
        except Unreadable as error:
            raise Refusal(f"No image of {source.path.name} fits the model: {error}.") from error
        if mask is not None:
            parts = np.where(mask[..., None], parts, parts.dtype.type(0))
        yield start, parts


def array_images(source: ArraySource, spec: ImageSpec, mask: Mask | None) -> Iterator[ImageParts]:
    """The images of an array, each cut into tiles."""
    for start, chunk in source.chunks():
        try:
            chunk = levels(chunk)
        except Unreadable as error:
            raise Refusal(f"No image of {source.name} fits the model: {error}.") from error
        for i, pixels in enumerate(chunk if chunk.ndim == 4 else chunk[..., None]):
            yield take_image(source.name, start + i, pixels, spec, mask)


def batched(stream: Iterator[ImageParts], spec: ImageSpec, rows: int) -> Iterator[list[ImageParts]]:
    """Images in lists of at most `rows` samples, and about the budget of parts."""
    most = max(1, min(rows, BUDGET // (int(np.prod(spec.shape)) * spec.dtype.itemsize)))
    run: list[ImageParts] = []
    parts = 0
    for one in stream:
        run.append(one)
        parts += max(1, one.count)
        if parts >= most:
            yield run
            run, parts = [], 0
    if run:
        yield run


def _pixel_blocks(source: ArraySource, spec: ImageSpec, mask: Mask | None, rows: int) -> Iterator[Block]:
    groups = key_groups(source, spec.calibrate_by, "--calibrate-by", strict=False)
    if spec.tile:
        for batch in batched(array_images(source, spec, mask), spec, rows):
            block = image_block(batch, spec)
            yield block if groups is None else replace(block, groups=[groups[i] for i in block.index])
        return
    for start, chunk in pixel_chunks(source, spec, mask):
        for at in range(0, len(chunk), rows):
            parts = chunk[at : at + rows]
            index = np.arange(start + at, start + at + len(parts), dtype=np.int64)
            named = [groups[i] for i in index] if groups is not None else None
            yield plain(parts, [source.name] * len(parts), index, groups=named)


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        Unreadable: it cannot be opened, is no regular file, or is too large.
    """
    try:
        if not path.is_file() and path.exists():
            raise Unreadable("it is no regular file")
        if path.stat().st_size > LIMITS.bytes:
            raise Unreadable(f"it has more than {LIMITS.bytes} bytes; make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"it cannot be opened ({error.strerror})") from error
