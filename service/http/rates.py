"""How much a key may ask: a bucket of samples that refills at the key's rate and holds a second's worth.

What a request costs is known only when it was read, so it is admitted while there is one sample left, and pays for the
others afterwards: a large one leaves the bucket in debt, and the key waits until that is made good. Over time no key
gets more than its rate. A request costs its samples, and at least one.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from vaegis.service.errors import TooMany

EPSILON = 1e-6  # what rounding may take from a sample
KEPT = 10_000  # buckets of one process; beyond that, those that owe nothing are forgotten

State = tuple[float, float]  # samples in a bucket, below 0 in debt; when it was that


class Buckets(Protocol):
    """Where the buckets are kept."""

    def locked(self) -> AbstractContextManager[None]:
        """While it lasts, nobody else reads or writes."""

    def get(self, caller: str) -> State | None:
        """None where there is none yet."""

    def put(self, caller: str, state: State) -> None: ...


class Rates:
    """Holds callers to their rates. Called on the event loop only."""

    def __init__(
        self, default: float, buckets: Buckets | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            default: samples a second of keys that have no rate of their own, and of callers without a key; 0 sets no
                bounds.
            buckets: shared with other processes; this one's own if left out.
        """
        self._default, self._buckets, self._clock = default, buckets or OwnBuckets(), clock

    def admit(self, caller: str, rate: float | None) -> None:
        """Lets a caller begin a request, which costs one sample.

        Raises:
            TooMany: its bucket is empty.
        """
        per_second = self._default if rate is None else rate
        if not per_second:
            return
        level = self._take(caller, per_second, 1, 1 - EPSILON)
        if level < 1 - EPSILON:
            seconds = math.ceil((1 - level) / per_second)
            raise TooMany(
                f"This key may ask for {per_second:g} samples a second and has had them; come back in {seconds} s, or "
                "ask whoever runs the service for a higher rate.",
                seconds,
            )

    def charge(self, caller: str, rate: float | None, samples: int) -> None:
        """Takes what an admitted request of several samples has cost beside that."""
        per_second = self._default if rate is None else rate
        if per_second and samples > 1:
            self._take(caller, per_second, samples - 1, -math.inf)

    def _take(self, caller: str, rate: float, cost: int, least: float) -> float:
        """Takes the cost where the bucket holds at least so much; what it held."""
        most = max(1.0, rate)
        with self._buckets.locked():
            now = self._clock()
            level, at = self._buckets.get(caller) or (most, now)
            level = min(most, level + max(0.0, now - at) * rate)
            self._buckets.put(caller, (level - cost if level >= least else level, now))
        return level


class OwnBuckets:
    """Buckets of one process."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def get(self, caller: str) -> State | None:
        return self._states.get(caller)

    def put(self, caller: str, state: State) -> None:
        if len(self._states) >= KEPT and caller not in self._states:
            self._states = {k: s for k, s in self._states.items() if s[0] < 1}
        self._states[caller] = state


class SharedBuckets:
    """Buckets of all worker processes, in a file that each has in its memory: which worker a connection reaches makes
    no difference to a key."""

    SLOT = struct.Struct("<16sdd")
    SLOTS = 16_384
    TRIES = 64  # slots that a key may come to lie in

    def __init__(self, path: Path) -> None:
        """Opens the file; whoever comes first makes it."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, self.SLOTS * self.SLOT.size)
        self._memory = mmap.mmap(self._file, self.SLOTS * self.SLOT.size)

    @contextmanager
    def locked(self) -> Iterator[None]:
        import fcntl

        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def get(self, caller: str) -> State | None:
        name, level, at = self.SLOT.unpack_from(self._memory, self._place(caller))
        return (level, at) if name.strip(b"\0") else None

    def put(self, caller: str, state: State) -> None:
        self.SLOT.pack_into(self._memory, self._place(caller), _named(caller), *state)

    def _place(self, caller: str) -> int:
        """Where a caller's slot is, or the first free one; the first of all where there is neither."""
        name = _named(caller)
        first = zlib.crc32(name)
        for step in range(self.TRIES):
            at = (first + step) % self.SLOTS * self.SLOT.size
            owner = self._memory[at : at + 16].rstrip(b"\0")
            if not owner or owner == name:
                return at
        return first % self.SLOTS * self.SLOT.size

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)


def _named(caller: str) -> bytes:
    return caller.encode()[:16] or b"-"
