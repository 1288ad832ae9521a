"""Series: windows of T rows, and the window whose verdict each row takes.

With n rows, windows start at 0, s, 2s, ... and, where these leave rows uncovered, one more ends at the last row. Row t
takes the first window that ends at or after t; rows before the first full window's end take that one and are warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Block
from vaegis.models.inputs.rows import Rows, Values, broken_block, sentence, unusable
from vaegis.models.spec import SeriesSpec

BUDGET = 64 << 20  # bytes of windows in one block


def window_starts(rows: int, window: int, stride: int) -> NDArray[np.int64]:
    """First rows of all windows of an item; none if it is shorter than one."""
    if rows < window:
        return np.empty(0, np.int64)
    starts = np.arange(0, rows - window + 1, stride, dtype=np.int64)
    return starts if starts[-1] == rows - window else np.append(starts, rows - window)


def block_rows(spec: SeriesSpec, most: int) -> int:
    """Rows of one block: its windows fit the budget, and outnumber those it shares with its neighbours."""
    size = spec.window * len(spec.columns) * 4
    return max(4 * spec.window, min(most, BUDGET * spec.stride // size))


def series_blocks(chunks: Iterable[Rows], spec: SeriesSpec, most: int = 4096) -> Iterator[Block]:
    """Blocks of consecutive rows of one item, `chunks` front to back, holding little more than one block at a time.

    A block carries every window that covers any of its rows; `place` is a window's first row relative to the block's.
    """
    step, window = block_rows(spec, most), spec.window
    source = iter(chunks)
    buffer = RowBuffer(spec)
    done = False
    broken: Rows | None = None
    at = 0  # next row to give out, counted from the item's first row read
    while True:
        # One row more than the block's last window needs: only then is no window known to end at the last row.
        while not done and buffer.end < at + step + window:
            more = next(source, None)
            if more is None or more.error is not None:
                done, broken = True, more
            else:
                buffer.add(more)
        if done and at >= buffer.end:
            break
        stop = min(at + step, buffer.end) if done else at + step
        yield buffer.block(at, stop, buffer.end if done else None)
        at = stop
        buffer.forget(at - window + 1)
    if broken is not None:
        yield broken_block(broken, spec)


class RowBuffer:
    """The rows of one item that the next blocks still need."""

    def __init__(self, spec: SeriesSpec) -> None:
        self.spec = spec
        self.item: str | None = None
        self.origin = 0  # number within the item of the first row read
        self.base = 0  # rows forgotten
        self.values: Values = np.empty((0, len(spec.columns)), np.float32)
        self.texts: dict[tuple[int, int], str] = {}
        self.stamps: list[object] | None = None
        self.groups: list[str | None] | None = None

    @property
    def end(self) -> int:
        return self.base + len(self.values)

    def add(self, rows: Rows) -> None:
        if self.end == 0:
            self.item, self.origin = rows.item, rows.start
            self.stamps = [] if rows.stamps is not None else None
            self.groups = [] if rows.calibrate is not None else None
        self.values = np.concatenate([self.values, rows.values])
        self.texts |= rows.texts
        if self.stamps is not None and rows.stamps is not None:
            self.stamps += rows.stamps
        if self.groups is not None and rows.calibrate is not None:
            self.groups += rows.calibrate

    def forget(self, before: int) -> None:
        """Drops rows before this one."""
        count = before - self.base
        if count <= 0:
            return
        self.values = self.values[count:].copy()
        self.stamps = self.stamps[count:] if self.stamps is not None else None
        self.groups = self.groups[count:] if self.groups is not None else None
        self.texts = {place: text for place, text in self.texts.items() if place[0] >= self.origin + before}
        self.base = before

    def block(self, low: int, high: int, total: int | None) -> Block:
        """Rows [low, high); `total` is the item's length, where its end has been seen."""
        spec, window = self.spec, self.spec.window
        n = high - low
        here = slice(low - self.base, high - self.base)
        items, index = [self.item] * n, np.arange(self.origin + low, self.origin + high, dtype=np.int64)
        stamps = self.stamps[here] if self.stamps is not None else None
        groups = self.groups[here] if self.groups is not None else None
        if total is not None and total < window:
            who = self.item or "The series"
            where = " between two gaps in time" if self.spec.step is not None and self.origin else ""
            why = f"{who} has {total} rows{where}, and one window takes {window}; give at least {window} rows."
            return Block(
                items=items,
                index=index,
                parts=np.empty((0, *spec.shape), np.float32),
                first=np.zeros(n, np.int64),
                count=np.zeros(n, np.int64),
                errors=dict.fromkeys(range(n), why),
                timestamps=stamps,
                warmup=np.ones(n, bool),
                groups=groups,
                place=np.empty((0, 1), np.int64),
            )
        starts = self._starts(low, high, total)
        good, blame = self._judgeable(starts)
        row = np.arange(low, high)
        chosen = np.maximum(0, -((window - 1 - row) // spec.stride)) * spec.stride
        if total is not None:
            chosen = np.minimum(chosen, total - window)
        position = np.searchsorted(starts, chosen)
        part: NDArray[np.int64] = np.cumsum(good) - good
        whose = blame[position]
        reasons = {b: self._blame(b) for b in np.unique(whose[~good[position]]).tolist()}
        return Block(
            items=items,
            index=index,
            parts=self._windows(starts[good] - self.base),
            first=part[position],
            count=good[position].astype(np.int64),
            errors={i: reasons[int(whose[i])] for i in np.flatnonzero(~good[position]).tolist()},
            timestamps=stamps,
            warmup=row < window - 1,
            groups=groups,
            place=(starts[good] - low)[:, None],
        )

    def _starts(self, low: int, high: int, total: int | None) -> NDArray[np.int64]:
        """Every window that covers a row of [low, high)."""
        window, stride = self.spec.window, self.spec.stride
        first = max(0, low - window + 1)
        last = high - 1 if total is None else min(high - 1, total - window)
        starts = np.arange(-(-first // stride) * stride, last + 1, stride, dtype=np.int64)
        if total is not None and first <= total - window < high and (total - window) % stride:
            starts = np.append(starts, total - window)
        return starts

    def _judgeable(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which windows can be judged, and per window the first row that forbids it (-1: none, -2: all is missing)."""
        window = self.spec.window
        bad = unusable(self.values, self.spec.missing).any(axis=1)
        unseen = np.isnan(self.values).all(axis=1)
        at = starts - self.base
        rows = np.flatnonzero(bad)
        following = np.append(rows, np.iinfo(np.int64).max)[np.searchsorted(rows, at)]
        observed = np.concatenate([[0], np.cumsum(~unseen)])
        empty = observed[at + window] == observed[at]
        good = (following >= at + window) & ~empty
        blame = np.where(following < at + window, following + self.base, np.where(empty, -2, -1))
        return good, blame

    def _blame(self, row: int) -> str:
        if row == -2:
            return (
                f"No value of {self.item or 'the series'} is there in the window of this row, so it cannot be judged."
            )
        values = self.values[row - self.base]
        c = int(np.flatnonzero(unusable(values, self.spec.missing))[0])
        text = self.texts.get((self.origin + row, c))
        return sentence(self.item, self.origin + row, self.spec.columns[c], float(values[c]), self.spec.missing, text)

    def _windows(self, at: NDArray[np.int64]) -> Values:
        if len(at) == 0:
            return np.empty((0, *self.spec.shape), np.float32)
        view = np.lib.stride_tricks.sliding_window_view(self.values, self.spec.window, axis=0).transpose(0, 2, 1)
        even = len(at) < 2 or bool((np.diff(at) == self.spec.stride).all())
        # Evenly placed windows stay a view on the rows: T times less memory.
        return view[at[0] : at[-1] + 1 : self.spec.stride] if even else view[at]
