"""`load`: everything readable of a source, spooled for a fit."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Samples
from vaegis.models.errors import Refusal
from vaegis.models.inputs.conditions import fitted_numbers, of_source
from vaegis.models.inputs.images import Mask, fitted_roi
from vaegis.models.inputs.rows import Rows, RowSpec, Values, Wanted, key_groups, sentence, unusable, wanted_by
from vaegis.models.inputs.spool import Codes, Ints, Spooled, WordCoder, append, digest_head, mapped
from vaegis.models.inputs.stream import array_images, file_images, holds_windows, pixel_chunks, row_items
from vaegis.models.inputs.timeline import Clock, gap_rows
from vaegis.models.inputs.windows import window_starts
from vaegis.models.pixels import Pixels
from vaegis.models.sources import ArraySource, ImageFolder, Source, TableFiles, as_kind
from vaegis.models.sources.conditions import ConditionTable
from vaegis.models.sources.images import grouping
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

Progress = Callable[[int, int | None], None]


def load(
    source: Source, spec: InputSpec, folder: Path, *, roi: Mask | None = None, progress: Progress | None = None
) -> Samples:
    """Every readable sample of a source, spooled to a file in `folder`, which must outlive the result.

    `progress(done, total)` is called now and then, with total None where it is not known.

    Raises:
        Refusal: nothing readable; NaN or infinity in the clean data; unsorted timestamps; a sample without group.
    """
    source = as_kind(source, spec.kind)
    table = of_source(source, spec)
    folder.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda done, total: None)
    if isinstance(spec, ImageSpec):
        assert not isinstance(source, TableFiles)
        return _load_images(source, spec, folder / "parts.bin", roi, tell, table)
    assert not isinstance(source, ImageFolder)
    return _load_rows(source, spec, folder / "rows.bin", tell, table)


def _load_images(
    source: ImageFolder | ArraySource,
    spec: ImageSpec,
    path: Path,
    roi: Mask | None,
    tell: Progress,
    table: ConditionTable | None,
) -> Spooled:
    mask = fitted_roi(spec, roi)
    first, last = source.span
    digest, items = hashlib.sha256(digest_head(spec)), WordCoder()
    counts, numbers = array("q"), array("q")  # parts and number of each readable sample
    skipped: list[tuple[str, str]] = []
    with path.open("wb") as file:
        for item, start, parts, per in _image_parts(source, spec, mask, skipped):
            append(file, parts)
            for one in parts.reshape(-1, per, *spec.shape):
                # The count keeps one image of two tiles from equalling two of one.
                digest.update(per.to_bytes(8, "little"))
                digest.update(np.ascontiguousarray(one).data)
            n = len(parts) // per
            items.add(item, n)
            counts.extend(repeat(per, n))
            numbers.extend(range(start, start + n))
            tell(numbers[-1] + 1 - first, last - first)
    if not numbers:
        some = " ".join(why for _, why in skipped[:3])
        raise Refusal(f"No image of {source.path.name} can be used. {some}")
    count = np.array(counts, np.int64)
    names = items.done()
    conditions = (
        None if table is None else fitted_numbers(spec, table, names, np.array(numbers, np.int64)).repeat(count)
    )
    return Spooled(
        spec=spec,
        digest=_with_conditions(digest, conditions),
        items=names,
        first=np.cumsum(count) - count,
        count=count,
        groups=_image_groups(source, source.options.group_by, "--group-by", numbers),
        calibration_groups=_image_groups(source, spec.calibrate_by, "--calibrate-by", numbers),
        row=None,
        skipped=skipped,
        mapped=mapped(path, spec.dtype, (int(count.sum()), *spec.shape)),
        starts=None,
        conditions=conditions,
    )


def _image_parts(
    source: ImageFolder | ArraySource, spec: ImageSpec, mask: Mask | None, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, int, Pixels, int]]:
    """(item, number of the first sample, parts, parts per sample)."""
    if isinstance(source, ArraySource) and not spec.tile:
        for start, parts in pixel_chunks(source, spec, mask):
            yield source.name, start, parts, 1
        return
    stream = array_images(source, spec, mask) if isinstance(source, ArraySource) else file_images(source, spec, mask)
    for one in stream:
        if one.parts is None:
            skipped.append((str(one.item), str(one.error)))
        else:
            yield str(one.item), one.index, one.parts, len(one.parts)


def _image_groups(
    source: ImageFolder | ArraySource, how: str | None, option: str, numbers: Sequence[int]
) -> Sequence[str] | None:
    if how is None:
        return None
    coder = WordCoder()
    if isinstance(source, ArraySource):
        words = key_groups(source, how, option, strict=True)
        assert words is not None
        for i in numbers:
            coder.add(words[i])
        return coder.done()
    group = grouping(how, option)
    for i in numbers:
        name = source.files[i]
        word = group(name)
        if word is None:
            raise Refusal(f"{option} {how!r} does not match {name}; give an expression that matches every image.")
        coder.add(word)
    return coder.done()


def _load_rows(
    source: ArraySource | TableFiles, spec: RowSpec, path: Path, tell: Progress, table: ConditionTable | None
) -> Spooled:
    skipped: list[tuple[str, str]] = []
    if isinstance(source, TableFiles) and len(source.files) > 1:
        skipped = [(name, why) for name in source.files if (why := _unopenable(source, name))]
        unreadable = {name for name, _ in skipped}
        source = replace(source, files=tuple(name for name in source.files if name not in unreadable))
    group_by = source.options.group_by
    wanted = wanted_by(spec, group_by, strict=True)
    total = source.span[1] - source.span[0] if isinstance(source, ArraySource) else None
    with path.open("wb") as file:
        spool = _RowSpool(file, spec, holds_windows(source), wanted)
        for name, chunks in zip(source.names(), row_items(source, spec, wanted), strict=False):
            spool.add(name, chunks, lambda done: tell(done, total))
    first = np.concatenate(spool.first) if spool.first else np.empty(0, np.int64)
    if not len(first):
        what = f"is as long as one window of {spec.window} rows" if isinstance(spec, SeriesSpec) else "holds a row"
        some = " ".join(why for _, why in skipped[:3])
        raise Refusal(f"Nothing in {source.path.name} {what}; give more clean data. {some}".strip())
    n = len(first)
    series = isinstance(spec, SeriesSpec)
    items = spool.items.done()
    conditions = None if table is None else fitted_numbers(spec, table, items, np.concatenate(spool.index))
    if conditions is not None and not series:
        # Rows without any value are no samples but still parts of the mapped file, by whose numbers this is asked for.
        conditions, known = np.zeros(spool.done, np.int64), conditions
        conditions[first] = known
    return Spooled(
        spec=spec,
        digest=_with_conditions(spool.digest, conditions),
        items=items,
        # A series counts its windows; of a table, rows without any value are passed over.
        first=np.arange(n, dtype=np.int64) if series else first,
        count=np.ones(n, np.int64),
        groups=spool.together.done() if group_by is not None else None,
        calibration_groups=spool.calibrate.done() if spec.calibrate_by is not None else None,
        row=np.concatenate(spool.row) if series else None,
        skipped=skipped,
        mapped=mapped(path, spec.dtype, (spool.done, len(spec.columns))),
        starts=first if series else None,
        conditions=conditions,
    )


def _with_conditions(digest: hashlib._Hash, conditions: Ints | None) -> str:
    """The digest of the samples and of what they were declared as."""
    if conditions is not None:
        digest.update(b"conditions" + conditions.tobytes())
    return digest.hexdigest()


def _unopenable(source: TableFiles, name: str) -> str | None:
    try:
        source.open(name)
    except Refusal as refusal:
        return str(refusal)
    return None


class _RowSpool:
    """Writes the rows of item after item, and notes where samples begin and what groups they belong to."""

    def __init__(self, file: IO[bytes], spec: RowSpec, windows: bool, wanted: Wanted) -> None:
        self.file = file
        self.spec = spec
        self.windows = windows  # values come as windows (n, T, C)
        self.wanted = wanted
        self.digest = hashlib.sha256(digest_head(spec))
        self.items, self.together, self.calibrate = WordCoder(), WordCoder(), WordCoder()
        self.first: list[Ints] = []  # per item: first row in the file of each sample
        self.row: list[Ints] = []  # per item: the same within the item
        self.index: list[
            Ints
        ] = []  # per item: number within it of the row, or window, that gives the sample its verdict
        self.done = 0  # rows in the file

    def add(self, name: str, chunks: Iterator[Rows], tell: Callable[[int], None]) -> None:
        base, origin = self.done, 0
        observed: list[NDArray[np.bool_]] = []  # per row, whether it holds any value
        together: list[Codes] = []  # per row or window
        calibrate: list[Codes] = []
        inner = hashlib.sha256()
        clock, step = Clock(), self.spec.step if isinstance(self.spec, SeriesSpec) else None
        gaps: list[NDArray[np.bool_]] = []  # per row, whether a gap is above it
        units = 0
        for chunk in chunks:
            values = self._checked(chunk)
            flat = values.reshape(-1, len(self.spec.columns))
            origin = origin if units else chunk.start
            units += len(values)
            append(self.file, flat)
            self.done += len(flat)
            gaps.append(gap_rows(clock, chunk.stamps, step, len(values)))
            observed.append(np.asarray(~np.isnan(flat).all(axis=1)))
            if self.wanted.group_by is not None:
                together.append(self._codes(self.together, chunk, chunk.together, "--group-by"))
            if self.wanted.calibrate_by is not None:
                calibrate.append(self._codes(self.calibrate, chunk, chunk.calibrate, "--calibrate-by"))
            if self.windows:
                # A window is an item of its own, as it would be in its own file.
                for one in values:
                    self.digest.update(hashlib.sha256(np.ascontiguousarray(one).data).digest())
            else:
                (inner if isinstance(self.spec, SeriesSpec) else self.digest).update(flat.data)
            tell(self.done // (self.spec.window if isinstance(self.spec, SeriesSpec) and self.windows else 1))
        if not units:
            return
        if isinstance(self.spec, SeriesSpec) and not self.windows:
            self.digest.update(inner.digest())
        span = self.spec.window if isinstance(self.spec, SeriesSpec) else 1
        if self.windows or span == 1:
            at = np.arange(0, units * span, span, dtype=np.int64)
        else:
            assert isinstance(self.spec, SeriesSpec)
            cuts = [0, *np.flatnonzero(np.concatenate(gaps)).tolist(), units]
            pieces = zip(cuts[:-1], cuts[1:], strict=True)
            at = np.concatenate([low + window_starts(high - low, span, self.spec.stride) for low, high in pieces])
        at = at[_counts(np.concatenate(observed), at, span) > 0]
        each = at // span if self.windows else at  # the unit a sample starts with
        last = each if self.windows else at + span - 1
        if together:
            codes = np.concatenate(together)
            if not self.windows:
                # A window across two groups would lie on both sides of a split.
                changes = np.append(False, codes[1:] != codes[:-1])
                whole = _counts(changes, at + 1, span - 1) == 0
                at, each, last = at[whole], each[whole], last[whole]
            self.together.extend(codes[each])
        if calibrate:
            # A window gives the verdict of the row it ends at, so it is calibrated with that row's group.
            self.calibrate.extend(np.concatenate(calibrate)[last])
        self.items.add(name, len(at))
        self.first.append(base + at)
        self.row.append(np.zeros(len(at), np.int64) if self.windows else origin + at)
        self.index.append(origin + last)

    def _checked(self, chunk: Rows) -> Values:
        bad = unusable(chunk.values, self.spec.missing)
        if bad.any():
            place = [int(v) for v in np.argwhere(bad)[0]]
            value = float(chunk.values[tuple(place)])
            column = self.spec.columns[place[-1]]
            row = chunk.start + place[0]
            text = chunk.texts.get((row, place[-1]))
            raise Refusal(sentence(chunk.item, row, column, value, self.spec.missing, text))
        if self.spec.missing == "allow":
            # One bit pattern for "missing", so that equal samples have equal bytes.
            return np.where(np.isnan(chunk.values), np.float32(np.nan), chunk.values)
        return chunk.values

    def _codes(self, coder: WordCoder, chunk: Rows, words: Sequence[str | None] | None, option: str) -> Codes:
        assert words is not None
        for i, word in enumerate(words):
            if word is None:
                raise Refusal(f"Row {chunk.start + i} of {chunk.item} has no value for {option}; fill it in.")
        return np.array([coder.code(str(word)) for word in words], np.int32)


def _counts(flags: NDArray[np.bool_], at: Ints, span: int) -> Ints:
    """How many flags are set in each [at, at + span)."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(total[at + span] - total[at], np.int64)
