"""What the routes of one app share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request

from service.errors import Busy
from service.live import Live
from service.metrics import Metrics
from service.settings import Settings
from service.store.registry import Registry


@dataclass
class Turns:
    """How many requests are scored at once, and how many may wait for that."""

    at_once: int
    queue: int
    limiter: anyio.CapacityLimiter = field(init=False)
    _inside: int = 0

    def __post_init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(self.at_once)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Counts a request while it is received, waits and is scored. Called on the event loop only.

        Raises:
            Busy: too many wait already.
        """
        if self._inside >= self.at_once + self.queue:
            raise Busy(
                f"{self._inside} requests are being answered or wait, the most this service takes. Try again in a "
                "moment, or raise VAEGIS_QUEUE."
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


@dataclass(frozen=True)
class Service:
    """Everything a route may need."""

    settings: Settings
    registry: Registry
    live: Live
    metrics: Metrics
    turns: Turns


def service_of(request: Request) -> Service:
    """The service that a request came to; for routes to depend on."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
