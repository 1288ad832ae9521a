"""Opens versions, within a budget of memory.

What a version takes is estimated: the larger of twice its graph's bytes (weights, and their packed copies) and the
growth of the process while it was opened and first run. That growth is seen from outside, so other work at the same
moment counts in it; a version never counts for less than its file says.

A version is opened and first run aside, within a time limit. Whatever goes wrong is a refusal of that version alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog

from vaegis.models.bundle import SCORE, open_bundle
from vaegis.models.calibration import ALL
from vaegis.models.errors import Damaged, NotFound, Refusal, Unfit
from vaegis.models.runtime.sessions import Cuda, Device
from vaegis.models.scorer import Scorer
from vaegis.models.texts import printable
from vaegis.models.trial import SECONDS
from vaegis.service.errors import TooBig
from vaegis.service.serving.aside import Aside
from vaegis.service.serving.batching import Batcher
from vaegis.service.serving.served import OpenVersions, Served
from vaegis.service.store.registry import Resolved

STOP_SECONDS = 2.0  # that openings get to end once their graphs are stopped
COPIES = 2  # of a graph's bytes, at least, that an open session holds


class Opener:
    """Opens versions and closes the least recently used ones when memory runs out. Safe between threads.

    Closing only forgets: requests under way hold the version they began with until they are answered.
    """

    def __init__(
        self,
        versions: OpenVersions,
        device: Device,
        threads: int,
        budget: int,
        clock: Callable[[], float] = time.monotonic,
        lanes: int = 1,
        seconds: float = SECONDS,
        cuda: Cuda = Cuda(),
        changed: Callable[[], None] = lambda: None,
        failed: Callable[[Resolved], None] = lambda resolved: None,
        call_sizes: Callable[[Resolved], Callable[[int], None]] = lambda resolved: lambda size: None,
    ) -> None:
        """
        Args:
            versions: the table that is kept.
            threads: of one graph call; 0 = one, so that calls side by side do not wait for each other's threads.
            budget: bytes of all open versions together.
            lanes: graph calls of one version that may run at the same time on the CPU.
            seconds: that opening a version and running it first may take.
            cuda: what is done on a GPU beyond running there.
            changed: called after a version was opened or closed.
            failed: called after one could not be opened.
            call_sizes: gives what is called with the size of every graph call of a version.
        """
        self._device, self._threads, self._budget, self._clock = device, threads or 1, budget, clock
        self._lanes, self._cuda = lanes, cuda
        self._changed, self._failed, self._call_sizes = changed, failed, call_sizes
        self._seconds = seconds
        self._versions = versions
        self._used: dict[str, float] = {}  # place -> when it was last asked for
        self._opening: dict[str, threading.Lock] = {}
        self._endless: dict[str, Unfit] = {}  # place -> why it is not tried again
        self._scorers: set[Scorer] = set()  # those being opened
        self._openings: list[Aside[Served]] = []  # that have not ended
        self._lock = threading.Lock()

    def peek(self, place: str) -> Served | None:
        """The version, if it is open."""
        served = self._versions.get(place)
        if served is not None:
            self._used[place] = self._clock()
        return served

    def open(self, resolved: Resolved) -> Served:
        """The version, opened if it is not; two that ask at once wait for one opening.

        Raises:
            Refusal: the bundle is damaged, needs more memory than all versions together may have, cannot be opened or
                does not come to an end.
        """
        place = resolved.place
        served = self.peek(place)
        if served is not None:
            return served
        with self._lock:
            turn = self._opening.setdefault(place, threading.Lock())
        with turn:
            served = self.peek(place)
            if served is None:
                if place in self._endless:
                    raise self._endless[place]
                size = self._expected(resolved)
                self._make_room(size, place)
                served = self._load_aside(resolved, size)
                self._used[place] = self._clock()
                self._versions.add(served)
                self._make_room(0, place)
                self._changed()
        with self._lock:
            self._opening.pop(place, None)
        return served

    def retry(self) -> None:
        """From now on versions that did not come to an end are tried again when they are asked for."""
        self._endless.clear()

    def stop(self) -> bool:
        """Ends every graph call under way, so that none is there when the process ends; whether all openings ended."""
        for scorer in (*self._scorers, *(s.scorer for s in self._versions.all())):
            scorer.graph.stop()
        deadline = time.monotonic() + STOP_SECONDS
        return all(o.ended(max(0.0, deadline - time.monotonic())) for o in self._openings)

    def close(self, name: str) -> None:
        """Closes every version of a model."""
        self._forget([s.resolved.place for s in self._versions.all() if s.resolved.name == name])

    def fits(self, resolved: Resolved) -> bool:
        """Whether a version can be opened without closing another.

        Raises:
            TooBig: it cannot be opened at all.
        """
        return self._expected(resolved) + sum(s.bytes for s in self._versions.all()) <= self._budget

    def _expected(self, resolved: Resolved) -> int:
        try:
            size = COPIES * (resolved.path / SCORE).stat().st_size
        except OSError:
            return 0  # opening it says what is wrong
        if size > self._budget:
            raise TooBig(
                f"Version {resolved.version} of {resolved.name} needs about {_mib(size)} MiB, more than the "
                f"{_mib(self._budget)} MiB that all open models may take together. Raise VAEGIS_MODEL_BYTES on the "
                "service."
            )
        return size

    def _make_room(self, size: int, keep: str) -> None:
        """Closes the least recently used versions until `size` more bytes fit; `keep` stays."""
        versions = self._versions.all()
        total, goners = size + sum(s.bytes for s in versions), []
        for served in sorted(versions, key=lambda s: self._used.get(s.resolved.place, 0.0)):
            if total <= self._budget:
                break
            if served.resolved.place != keep:
                total -= served.bytes
                goners.append(served.resolved.place)
        self._forget(goners)

    def _forget(self, places: list[str]) -> None:
        self._versions.remove(places)
        for place in places:
            self._used.pop(place, None)
        if places:
            self._changed()

    def _load_aside(self, resolved: Resolved, expected: int) -> Served:
        opening = Aside(lambda: self._load(resolved, expected), "vaegis-opening")
        self._openings = [*(o for o in self._openings if not o.ended()), opening]
        try:
            return opening.result(self._seconds)
        except Refusal:
            self._failed(resolved)
            raise
        except TimeoutError:
            self._failed(resolved)
            for scorer in [s for s in self._scorers if s.bundle.path == resolved.path]:
                scorer.graph.stop()
            refusal = self._endless[resolved.place] = Unfit(
                f"Version {resolved.version} of {resolved.name} did not open and answer for the first time within "
                f"{self._seconds:g} seconds. Promote another version; if the machine is slow, raise "
                "VAEGIS_OPEN_SECONDS."
            )
            raise refusal from None
        except Exception as error:
            self._failed(resolved)
            structlog.get_logger("vaegis.live").error(
                "version cannot be opened", model=resolved.name, version=resolved.version, exc_info=error
            )
            raise Damaged(
                f"Version {resolved.version} of {resolved.name} cannot be opened ({type(error).__name__}: "
                f"{printable(str(error))[:200]}). Promote another version; the log has more."
            ) from error

    def _load(self, resolved: Resolved, expected: int) -> Served:
        before = _resident()
        try:
            scorer = Scorer(open_bundle(resolved.path), self._device, self._threads, spin=False, cuda=self._cuda)
        except NotFound as error:
            raise Damaged(
                f"The bundle of {resolved.name} version {resolved.version} is not in VAEGIS_HOME any more; import it "
                "again or restore the home from a backup."
            ) from error
        lanes = 1 if scorer.device == "cuda" else self._lanes
        self._scorers.add(scorer)
        try:
            pace = scorer.graph.warm()
        finally:
            self._scorers.discard(scorer)
        batcher = Batcher(scorer, pace, lanes, self._call_sizes(resolved))
        clean = scorer.calibration.groups[ALL].terms["score"].values
        low, middle, high = np.quantile(clean, (0.25, 0.5, 0.75)).tolist()
        return Served(resolved, scorer, middle, (high - low) or 1.0, max(expected, _resident() - before), batcher)


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _mib(size: int) -> int:
    return -(-size // 2**20)
