"""Builds the service from settings, and the HTTP app around it. Nothing here runs at import."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from vaegis.models.inputs.options import Limits
from vaegis.models.runtime.sessions import Cuda, device_in_use
from vaegis.service import tracing
from vaegis.service.decoding.pool import Decoders
from vaegis.service.http.access import AccessGate, is_loopback
from vaegis.service.http.connection import REFUSED
from vaegis.service.http.context import Service
from vaegis.service.http.envelope import Envelope
from vaegis.service.http.oip import repository
from vaegis.service.http.oip import route as oip
from vaegis.service.http.openapi import Api, documentation
from vaegis.service.http.problems import install
from vaegis.service.http.rates import Rates, SharedBuckets
from vaegis.service.http.routes import health, models
from vaegis.service.http.score import route as score
from vaegis.service.http.tracing import Tracing
from vaegis.service.metrics import SHARED, Metrics
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.judging import Judging
from vaegis.service.serving.live import Live
from vaegis.service.serving.open_versions import Opener
from vaegis.service.serving.served import OpenVersions
from vaegis.service.serving.shadow import Shadows
from vaegis.service.settings import Settings
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True)
class Application:
    """The service as one ASGI app, and what the process around it needs of it."""

    asgi: ASGIApp  # the outermost layer
    api: FastAPI  # the innermost one, for routes to be added before the first request
    live: Live


def create_app(settings: Settings, worker: int = 0) -> Application:
    """The app, with its store open and its device tried.

    Args:
        worker: the number of this process among those that share a socket.

    Raises:
        Refusal: the store or the device that the settings name cannot be used.
    """
    release = version("vaegis")
    spans = tracing.provider(release)
    registry = Registry.open(settings)
    try:
        service = _service(settings, registry, release, worker)
    except BaseException:
        registry.close()
        raise
    api = _api(service, release, spans)
    return Application(_layers(api, service, spans), api, service.live)


def _service(settings: Settings, registry: Registry, release: str, worker: int) -> Service:
    """Everything behind the routes, from the inside outwards."""
    device, versions = device_in_use(settings.device), OpenVersions()
    metrics = Metrics(versions, device, release, worker)
    opener = Opener(
        versions,
        settings.device,
        settings.threads,
        settings.model_bytes,
        lanes=settings.lanes,
        cuda=Cuda(settings.cuda_graphs, settings.home / "tensorrt" if settings.tensorrt else None),
        seconds=settings.open_seconds,
        changed=metrics.look,
        failed=metrics.fail_to_open,
        call_sizes=metrics.call_sizes,
    )
    shadows = Shadows(opener.open, metrics)
    live = Live(registry, versions, opener, shadows, device)
    decoders = Decoders(settings.decoders, settings.decoder_memory_bytes, settings.decode_seconds, metrics.lose_decoder)
    judging = Judging(
        live,
        Admission(settings.queue_samples, settings.queue_bytes, settings.concurrency),
        observers=(metrics, shadows),
        samples_read=metrics.samples_read,
        answer_bytes=settings.max_answer_bytes,
    )
    return Service(settings, registry, live, metrics, decoders, judging)


def _api(service: Service, release: str, spans: TracerProvider | None) -> FastAPI:
    """The routes that are not hot, and what begins and ends with the app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        # Beside the requests: what is not open yet is opened by whoever asks for it, and /readyz tells.
        opening = threading.Thread(target=service.live.run, name="vaegis-models", daemon=True)
        opening.start()
        yield {REFUSED: service.metrics.reject}
        service.live.stop()
        service.decoders.close()
        service.registry.close()
        if spans is not None:
            spans.shutdown()
        structlog.get_logger("vaegis").info("stopped")

    api = Api(release, lifespan)
    api.router.routes += [*documentation(), score.route(), *oip.routes()]
    for router in (models.router(service), repository.router(service), health.router(service)):
        api.include_router(router)
    install(api)
    return api


def _layers(api: ASGIApp, service: Service, spans: TracerProvider | None) -> ASGIApp:
    """What every request passes through before FastAPI, whose own layers the scoring routes have no use for."""
    settings = service.settings
    limits = Limits(pixels=settings.max_pixels, samples=settings.max_samples, bytes=settings.max_array_bytes)
    hot = score.ScorePath(oip.InferPath(api, service, limits), service, limits)
    gate = AccessGate(Keys(service.registry.database), always=not is_loopback(settings.host))
    shared = os.environ.get(SHARED)  # a folder, where this is one of several workers
    rates = Rates(settings.rate, SharedBuckets(Path(shared) / "rates") if shared else None)
    whole = Envelope(hot, gate, rates, service.metrics, settings.max_body_bytes, settings.queue_bytes)
    return whole if spans is None else Tracing(whole, spans)
