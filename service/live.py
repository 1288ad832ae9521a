"""The models in service: addresses -> open scorers.

What an address stands for is asked of the registry at most once a second, so that a promotion by any process is seen
without a restart. A version's graph is opened once, aside; requests under way keep the one they began with.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from models.bundle import open_bundle
from models.calibration import ALL
from models.errors import Damaged, NotFound, Refusal
from models.scorer import Device, Scorer, open_session
from service.errors import NotReady
from service.store.registry import Registry, Resolved

FRESH_SECONDS = 1.0
ADDRESSES_MOST = 4096  # remembered; forgotten all together beyond that

# Identity over one float, opset 13: tells at the start where graphs will run.
PROBE = bytes.fromhex(
    "080812003a3b0a100a017812017922084964656e74697479120570726f62655a0f0a0178120a0a08080112040a020801620f"
    "0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Served:
    """A version in service."""

    resolved: Resolved
    scorer: Scorer
    median: float  # of clean scores
    spread: float  # their interquartile range, or 1 where that is nothing


class Live:
    """Opens versions when they are first asked for and keeps the most recently used ones. Safe between threads."""

    def __init__(
        self,
        registry: Registry,
        device: Device,
        threads: int,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`most`: versions open at the same time.

        Raises:
            Refusal: the device was asked for and cannot be had.
        """
        self._registry, self._wanted, self._threads, self._most, self._clock = registry, device, threads, most, clock
        _, self.device = open_session(PROBE, device, 1)
        self._known: dict[str, tuple[float, Resolved]] = {}
        self._open: OrderedDict[str, Served] = OrderedDict()  # by name, version and digest; least recently used first
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._failed: dict[str, str] = {}  # model -> why its champion cannot be opened
        self._waiting: tuple[str, ...] | None = None  # champions still to be opened at the start; None = not begun

    def peek(self, address: str) -> Served | None:
        """What `get` would return, where that needs no waiting."""
        held = self._known.get(address)
        if held is None or held[0] <= self._clock():
            return None
        with self._lock:
            served = self._open.get(_place(held[1]))
            if served is not None:
                self._open.move_to_end(_place(held[1]))
            return served

    def get(self, address: str) -> Served:
        """The version that an address stands for, open.

        Raises:
            NotFound: no such model, version or alias.
            Refusal: the bundle is damaged, or the store cannot be reached.
        """
        resolved = self._registry.resolve(address)
        try:
            served = self.open(resolved)
        except Refusal as error:
            if "@" not in address:  # a damaged version that nobody is served by default does not make us unready
                self._failed[address] = str(error)
            raise
        self._failed.pop(address, None)
        if len(self._known) >= ADDRESSES_MOST:
            self._known = {}
        self._known[address] = (self._clock() + FRESH_SECONDS, resolved)
        return served

    def open(self, resolved: Resolved) -> Served:
        """A version, opened if it is not; two that ask at once wait for one opening."""
        place = _place(resolved)
        with self._lock:
            if place in self._open:
                self._open.move_to_end(place)
                return self._open[place]
            turn = self._opening.setdefault(place, threading.Lock())
        with turn:
            with self._lock:
                if place in self._open:
                    return self._open[place]
            served = self._load(resolved)
            with self._lock:
                self._open[place] = served
                self._opening.pop(place, None)
                while len(self._open) > self._most:
                    self._open.popitem(last=False)
            return served

    def start(self) -> None:
        """Opens the champions, so that the first requests need not wait; one that fails is named by `check`."""
        log = structlog.get_logger("vaegis.live")
        models = [m.name for m in self._registry.list() if "champion" in m.aliases][: self._most]
        self._waiting = tuple(models)
        for name in models:
            try:
                served = self.get(name)
                log.info("model in service", model=name, version=served.resolved.version, device=served.scorer.device)
            except Refusal as error:
                log.error("model cannot be served", model=name, reason=str(error))
            self._waiting = self._waiting[1:]

    def check(self) -> None:
        """Whether everything that should be in service is.

        Raises:
            Refusal: the store does not answer, models are still being opened, or one cannot be.
        """
        self._registry.ping()
        if self._waiting is None or self._waiting:
            raise NotReady(f"Models are still being opened: {', '.join((self._waiting or ('all',))[:10])}.")
        for name, reason in list(self._failed.items()):
            raise NotReady(f"Model {name} cannot be served: {reason}")

    def served(self) -> tuple[Served, ...]:
        """The versions that are open."""
        with self._lock:
            return tuple(self._open.values())

    def _load(self, resolved: Resolved) -> Served:
        try:
            scorer = Scorer(open_bundle(resolved.path), self._wanted, self._threads, spin=False)
        except NotFound as error:
            raise Damaged(
                f"The bundle of {resolved.name} version {resolved.version} is not in VAEGIS_HOME any more; import it "
                "again or restore the home from a backup."
            ) from error
        # The first run of a graph allocates and compiles: better here than within somebody's request.
        first = np.zeros(1, np.int64) if scorer.spec.conditions else None
        scorer.graph.run(np.zeros((1, *scorer.spec.shape), scorer.spec.dtype), maps=True, conditions=first)
        clean = scorer.calibration.groups[ALL].terms["score"].values
        low, middle, high = np.quantile(clean, (0.25, 0.5, 0.75)).tolist()
        return Served(resolved, scorer, middle, (high - low) or 1.0)


def _place(resolved: Resolved) -> str:
    return f"{resolved.name}@{resolved.version}/{resolved.digest}"
