"""A version in service, and the table of those that this process has open."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from vaegis.models.calibration import Decision
from vaegis.models.scorer import Scorer
from vaegis.service.serving.batching import Batcher
from vaegis.service.store.registry import Resolved

DecisionKey = tuple[float | None, float | None, str, str | None]  # alpha, threshold, decide_by, group


@dataclass(frozen=True)
class Served:
    """A version in service."""

    resolved: Resolved
    scorer: Scorer
    median: float  # of clean scores
    spread: float  # their interquartile range, or 1 where that is nothing
    bytes: int  # of memory, as estimated
    batcher: Batcher  # gathers its requests
    decisions: dict[DecisionKey, Decision] = field(default_factory=dict)  # remembered, since requests repeat


class OpenVersions:
    """The versions open in this process, by their place. Safe between threads.

    Whoever opens versions writes it, and whoever counts them reads it: so neither needs the other.
    """

    def __init__(self) -> None:
        self._versions: dict[str, Served] = {}
        self._lock = threading.Lock()

    def get(self, place: str) -> Served | None:
        """The version, if it is open."""
        return self._versions.get(place)

    def add(self, served: Served) -> None:
        """Adds a version that was opened."""
        with self._lock:
            self._versions[served.resolved.place] = served

    def remove(self, places: Iterable[str]) -> None:
        """Forgets versions."""
        with self._lock:
            for place in places:
                self._versions.pop(place, None)

    def all(self) -> tuple[Served, ...]:
        """The versions that are open."""
        with self._lock:
            return tuple(self._versions.values())
