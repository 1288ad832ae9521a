"""Anomalous rows of a series -> events, by a k-of-n debounce.

One strange row is noise; an event begins when k of the last n rows are anomalous and ends when fewer are. It spans
its first to its last anomalous row. Guilty channels are those whose map values within the event are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

K, N = 3, 5


@dataclass(frozen=True)
class Event:
    """A stretch of anomalous rows within one item."""

    start: int  # row within the item
    end: int  # row within the item, inclusive
    peak_score: float  # largest score within
    peak: int  # row of it
    channels: tuple[str, ...]  # guilty channels, guiltiest first; empty without maps


class Debounce:
    """Collects the events of one item from consecutive blocks of its rows."""

    def __init__(self, columns: Sequence[str], k: int = K, n: int = N) -> None:
        self._columns, self._k, self._n = tuple(columns), k, n
        self._recent: list[int] = []  # anomalous rows among the last n
        self._open: dict[str, Any] | None = None
        self._held: list[tuple[int, float, NDArray[np.float32] | None]] = []  # anomalous rows not yet in an event

    def add(self, row: int, anomalous: bool, score: float, channels: NDArray[np.float32] | None) -> Event | None:
        """The next row; returns an event that this row has ended. `channels` is the row's map, (C,)."""
        self._recent = [r for r in self._recent if r > row - self._n]
        if anomalous:
            self._recent.append(row)
            self._held = [h for h in self._held if h[0] > row - self._n]
            self._held.append((row, score, channels))
        active = len(self._recent) >= self._k
        if active:
            if self._open is None:
                self._open = {"start": self._held[0][0], "end": row, "score": -np.inf, "peak": row, "map": 0.0}
            for held, value, where in self._held:
                self._open["end"] = held
                if value > self._open["score"]:
                    self._open["score"], self._open["peak"] = value, held
                if where is not None:
                    self._open["map"] = self._open["map"] + where.astype(np.float64)
            self._held = []
            return None
        return self.close()

    def close(self) -> Event | None:
        """Ends what is open: at the end of the item, or when too few rows are anomalous."""
        found, self._open = self._open, None
        if found is None:
            return None
        blame = np.atleast_1d(found["map"])
        order: list[int] = np.argsort(-blame, kind="stable").tolist() if blame.shape == (len(self._columns),) else []
        return Event(
            start=found["start"],
            end=found["end"],
            peak_score=float(found["score"]),
            peak=found["peak"],
            channels=tuple(self._columns[i] for i in order),
        )
