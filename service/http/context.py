"""What the routes of one app share."""

from __future__ import annotations

from dataclasses import dataclass

from vaegis.service.decoding.pool import Decoders
from vaegis.service.metrics import Metrics
from vaegis.service.serving.judging import Judging
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
    judging: Judging
