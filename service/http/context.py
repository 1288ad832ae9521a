"""What the routes of one app share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from vaegis.service.decoding.pool import Decoders
from vaegis.service.metrics import Metrics
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.live import Live
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry


@dataclass(frozen=True)
class Service:
    """Everything a route may need."""

    settings: Settings
    registry: Registry
    live: Live
    metrics: Metrics
    decoders: Decoders
    admission: Admission


def service_of(request: Request) -> Service:
    """The service that a request came to; for routes to depend on."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
