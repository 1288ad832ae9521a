"""How much a key may ask: a bucket of samples that refills at the key's rate and holds a second's worth.

What a request costs is known only when it was read, so it is admitted while there is one sample left, and pays for the
others afterwards: a large one leaves the bucket in debt, and the key waits until that is made good. Over time no key
gets more than its rate. A request costs its samples, and at least one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from models.errors import Refusal

EPSILON = 1e-6  # what rounding may take from a sample
KEPT = 10_000  # buckets; beyond that, full ones are forgotten


class TooMany(Refusal):
    """A key asks for more than its rate."""

    status = 429
    title = "Too many requests"

    def __init__(self, sentence: str, seconds: int) -> None:
        super().__init__(sentence)
        self.retry_after = seconds


@dataclass
class _Bucket:
    level: float  # samples; below 0 in debt
    at: float  # when it was that


class Rates:
    """The buckets of one process. Called on the event loop only."""

    def __init__(self, default: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`default`: samples a second of keys that have no rate of their own, and of callers without a key; 0 sets no
        bounds."""
        self._default, self._clock = default, clock
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, caller: str, rate: float | None) -> None:
        """Lets a caller begin a request, which costs one sample.

        Raises:
            TooMany: its bucket is empty.
        """
        per_second = self._default if rate is None else rate
        if not per_second:
            return
        bucket = self._filled(caller, per_second)
        if bucket.level < 1 - EPSILON:
            seconds = math.ceil((1 - bucket.level) / per_second)
            raise TooMany(
                f"This key may ask for {per_second:g} samples a second and has had them; come back in {seconds} s, or "
                "ask whoever runs the service for a higher rate.",
                seconds,
            )
        bucket.level -= 1

    def charge(self, caller: str, rate: float | None, samples: int) -> None:
        """Takes what an admitted request of several samples has cost beside that."""
        per_second = self._default if rate is None else rate
        if per_second and samples > 1:
            self._filled(caller, per_second).level -= samples - 1

    def _filled(self, caller: str, rate: float) -> _Bucket:
        now, most = self._clock(), max(1.0, rate)
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= KEPT:
                self._buckets = {k: b for k, b in self._buckets.items() if b.level < 1}
            bucket = self._buckets[caller] = _Bucket(most, now)
        bucket.level = min(most, bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        return bucket
