"""Anomalous rows of a series -> events, by a k-of-n debounce.

One strange row is noise; an event begins when k of the last n rows are anomalous and ends when fewer are. It spans
its first to its last anomalous row. Guilty channels are those whose map values within the event are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vaegis.models.blocks import Block
    from vaegis.models.scorer import Verdicts

K, N = 3, 5

Timestamp = str | int | float  # as the source gives it


@dataclass(frozen=True, kw_only=True)
class Event:
    """A stretch of anomalous rows within one item."""

    item: str | None = None  # as `Block.items`
    start: int  # row within the item
    end: int  # row within the item, inclusive
    start_timestamp: Timestamp | None = None
    end_timestamp: Timestamp | None = None
    peak: int  # row of the largest score
    peak_score: float  # largest score within
    channels: tuple[str, ...]  # guilty channels, guiltiest first; empty without maps


@dataclass(frozen=True)
class _Row:
    """An anomalous row."""

    number: int
    score: float
    timestamp: Timestamp | None
    map: NDArray[np.float32] | None  # (C,)


@dataclass
class _Stretch:
    """An event that may go on."""

    first: _Row
    last: _Row
    peak: _Row
    blame: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # (C,) sum of the rows' maps

    def add(self, row: _Row) -> None:
        self.last = row
        if row.score > self.peak.score:
            self.peak = row
        if row.map is not None:
            self.blame = row.map.astype(np.float64) + (self.blame if len(self.blame) else 0.0)


class Debounce:
    """Collects the events of one item from its rows, front to back."""

    def __init__(self, columns: Sequence[str], k: int = K, n: int = N, item: str | None = None) -> None:
        self._columns, self._k, self._n, self._item = tuple(columns), k, n, item
        self._recent: list[int] = []  # numbers of the anomalous rows among the last n
        self._waiting: list[_Row] = []  # those of them that belong to no event yet
        self._stretch: _Stretch | None = None

    @property
    def quiet(self) -> bool:
        """Whether no event goes on, so that a row that is not anomalous changes nothing."""
        return self._stretch is None

    def add(
        self,
        row: int,
        anomalous: bool,
        score: float,
        channels: NDArray[np.float32] | None,
        timestamp: Timestamp | None = None,
    ) -> Event | None:
        """Takes the next row; returns an event that this row has ended. `channels` is the row's map, (C,)."""
        self._recent = [r for r in self._recent if r > row - self._n]
        if anomalous:
            self._recent.append(row)
            self._waiting = [w for w in self._waiting if w.number > row - self._n]
            self._waiting.append(_Row(row, score, timestamp, channels))
        if len(self._recent) < self._k:
            return self.close()
        for waiting in self._waiting:
            if self._stretch is None:
                self._stretch = _Stretch(waiting, waiting, waiting)
            self._stretch.add(waiting)
        self._waiting = []
        return None

    def close(self) -> Event | None:
        """Ends what goes on: at the end of the item, or when too few rows are anomalous."""
        stretch, self._stretch = self._stretch, None
        if stretch is None:
            return None
        order = np.argsort(-stretch.blame, kind="stable").tolist() if len(stretch.blame) else []
        return Event(
            item=self._item,
            start=stretch.first.number,
            end=stretch.last.number,
            start_timestamp=stretch.first.timestamp,
            end_timestamp=stretch.last.timestamp,
            peak=stretch.peak.number,
            peak_score=stretch.peak.score,
            channels=tuple(self._columns[i] for i in order),
        )


class EventTracker:
    """Collects the events of a series from its blocks, front to back, in memory that does not grow with them.

    Rows of one item lie together, over as many blocks as they take. A gap in their numbers ends an event.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._debounce = Debounce(columns)
        self._next: tuple[str | None, int] | None = None  # the item and number of the row that would go on

    def add(self, verdicts: Verdicts) -> list[Event]:
        """Takes the next block; returns the events that have ended."""
        block = verdicts.block
        rows, scores = block.index.tolist(), verdicts.evidence["score"].tolist()
        ended: list[Event | None] = []
        for i, (item, row, anomalous) in enumerate(zip(block.items, rows, verdicts.anomalous.tolist(), strict=True)):
            if self._next != (item, row):
                ended.append(self._debounce.close())
                self._debounce = Debounce(self._columns, item=item)
            self._next = item, row + 1
            if anomalous or not self._debounce.quiet:
                channels = None if verdicts.maps is None else verdicts.maps[i]
                timestamp = None if block.timestamps is None else block.timestamps[i]
                ended.append(self._debounce.add(row, anomalous, scores[i], channels, timestamp))
        return [event for event in ended if event is not None]

    def close(self) -> list[Event]:
        """Ends what goes on, at the end of the series."""
        last = self._debounce.close()
        return [] if last is None else [last]


def in_time(block: Block) -> bool:
    """Whether the samples of a series' block are rows in order of time; windows given one by one are not."""
    return block.place is not None


def events(verdicts: Verdicts, columns: Sequence[str]) -> list[Event]:
    """The events of a series that lies in one block; `columns` name its channels."""
    if not in_time(verdicts.block):
        return []
    tracker = EventTracker(columns)
    return tracker.add(verdicts) + tracker.close()
