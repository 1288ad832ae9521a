"""Shadows: a second version scores the traffic of a champion beside it, and the two are compared.

The answer never waits: an answered request is put into a short queue, and dropped, and counted, where the queue is
full. One thread of the lowest priority works it off. Verdicts of a shadow are never returned.

How alike the two rank samples is told by the correlation of their p-values for `score`, each within its own
calibration. It is kept as sums, which add up over time and over worker processes.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog

from vaegis.models.blocks import plain
from vaegis.models.calibration import decide
from vaegis.models.errors import Refusal
from vaegis.models.scorer import UNJUDGED, Verdicts
from vaegis.service.serving.observers import Timing
from vaegis.service.serving.served import Served
from vaegis.service.store.registry import Resolved

QUEUE = 1024  # requests that may wait for a shadow
PAUSE = 0.05  # seconds in which they gather
NICE = 10
QUEUE_BYTES = 64 * 2**20  # and their samples
OUTCOMES = ("agree", "only_shadow", "only_champion", "unjudged", "dropped")
MOMENTS = ("p", "q", "pp", "qq", "pq")  # of the p-values p (champion) and q (shadow)


class Tally(Protocol):
    """Takes the counts of comparisons."""

    def count_shadow(
        self, champion: Resolved, shadow: Resolved, outcomes: dict[str, int], moments: dict[str, float]
    ) -> None: ...


@dataclass(frozen=True)
class ShadowComparison:
    """A champion and its shadow on the same samples."""

    samples: dict[str, int]  # by outcome: agree, only_shadow or only_champion flags it, unjudged by either, dropped
    rank_correlation: float | None  # None where it is not defined: too few samples, or all alike


@dataclass(frozen=True)
class _Offer:
    champion: Served
    shadow: Resolved
    verdicts: Verdicts

    @property
    def bytes(self) -> int:
        return self.verdicts.block.parts.nbytes


class Shadows:
    """The shadows of one process. Safe between threads."""

    def __init__(self, open_version: Callable[[Resolved], Served], tally: Tally, queue_most: int = QUEUE) -> None:
        self._open, self._tally = open_version, tally
        self._of: dict[str, Resolved] = {}  # place of a champion -> its shadow
        self._queue: queue.Queue[_Offer | None] = queue.Queue(queue_most)
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._logged: set[str] = set()  # places whose failure was logged

    def assign(self, champion: Resolved, shadow: Resolved | None) -> None:
        """From now on this is the champion's shadow; None ends it."""
        if shadow is None:
            self._of.pop(champion.place, None)
            return
        self._of[champion.place] = shadow
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vaegis-shadow", daemon=True)
                self._thread.start()

    def verdicts_given(self, served: Served, verdicts: Verdicts, timing: Timing) -> None:
        """Has an answered request scored by the shadow of its version, if there is one. Never waits."""
        if not self._of:
            return
        shadow = self._of.get(served.resolved.place)
        if shadow is None:
            return
        offer = _Offer(served, shadow, verdicts)
        # A threshold is in the unit of one version: it says nothing about another.
        if verdicts.decision.alpha is None or self._bytes + offer.bytes > QUEUE_BYTES:
            self._drop(offer)
            return
        self._reserve(offer.bytes)
        try:
            self._queue.put_nowait(offer)
        except queue.Full:
            self._reserve(-offer.bytes)
            self._drop(offer)

    def stop(self) -> None:
        """Ends the thread; what waits is dropped."""
        self._stopped.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _work(self) -> None:
        if sys.platform == "linux":  # where a priority can be a single thread's
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (offer := self._queue.get()) is not None and not self._stopped.wait(PAUSE):
            offers = [offer]
            with suppress(queue.Empty):
                while (more := self._queue.get_nowait()) is not None:
                    offers.append(more)
            for together in _alike(offers):
                self._reserve(-sum(o.bytes for o in together))
                try:
                    self._compare(together)
                except Exception as error:  # noqa: BLE001 - whatever a version on trial does, the thread must go on
                    self._fail(together, error)

    def _compare(self, together: list[_Offer]) -> None:
        first = together[0]
        shadow, ours = self._open(first.shadow), first.verdicts.decision
        decision = decide(shadow.scorer.calibration, ours.alpha, None, ours.decide_by, ours.group)
        block = first.verdicts.block
        if len(together) > 1:
            block = plain(np.concatenate([o.verdicts.block.parts for o in together]))
        theirs = shadow.scorer.verdicts(block, decision)
        outcomes, moments = compare([o.verdicts for o in together], theirs)
        self._tally.count_shadow(first.champion.resolved, first.shadow, outcomes, moments)

    def _fail(self, together: list[_Offer], error: Exception) -> None:
        for offer in together:
            self._drop(offer)
        shadow = together[0].shadow
        if shadow.place not in self._logged:
            self._logged.add(shadow.place)
            structlog.get_logger("vaegis.shadow").error(
                "the shadow cannot score",
                model=shadow.name,
                version=shadow.version,
                reason=str(error),
                exc_info=None if isinstance(error, Refusal) else error,
            )

    def _reserve(self, more: int) -> None:
        with self._lock:
            self._bytes += more

    def _drop(self, offer: _Offer) -> None:
        self._tally.count_shadow(offer.champion.resolved, offer.shadow, {"dropped": len(offer.verdicts)}, {})


def _alike(offers: list[_Offer]) -> list[list[_Offer]]:
    """Requests that one batch can be made of: of the same versions and decision, each sample a part of its own."""
    alike: dict[object, list[_Offer]] = {}
    for i, offer in enumerate(offers):
        block = offer.verdicts.block
        whole = block.place is None and block.groups is None and block.conditions is None and (block.count == 1).all()
        places = (offer.champion.resolved.place, offer.shadow.place)
        alike.setdefault((*places, offer.verdicts.decision) if whole else i, []).append(offer)
    return list(alike.values())


def compare(ours: list[Verdicts], theirs: Verdicts) -> tuple[dict[str, int], dict[str, float]]:
    """Samples by outcome, and the sums of their p-values and products.

    Args:
        ours: one after the other, on the same samples as `theirs`.
    """
    status = [s for v in ours for s in v.status]
    judged = np.array([UNJUDGED not in pair for pair in zip(status, theirs.status, strict=True)], dtype=bool)
    a, b = np.concatenate([v.anomalous for v in ours])[judged], theirs.anomalous[judged]
    outcomes = {
        "agree": int((a == b).sum()),
        "only_shadow": int((b & ~a).sum()),
        "only_champion": int((a & ~b).sum()),
        "unjudged": int((~judged).sum()),
    }
    p, q = np.concatenate([v.p_values["score"] for v in ours])[judged], theirs.p_values["score"][judged]
    products = {"p": p, "q": q, "pp": p * p, "qq": q * q, "pq": p * q}
    return outcomes, {name: float(values.sum()) for name, values in products.items()}


def correlation(n: float, moments: dict[str, float]) -> float | None:
    """Pearson's correlation of p and q from their sums over n samples; None where either does not vary."""
    if n < 2:
        return None
    p, q = moments["p"] / n, moments["q"] / n
    across = moments["pq"] / n - p * q
    spread = (moments["pp"] / n - p * p) * (moments["qq"] / n - q * q)
    if spread <= 1e-18:
        return None
    return float(min(1.0, max(-1.0, across / spread**0.5)))
