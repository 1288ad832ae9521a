"""Builds the HTTP app from settings. Nothing here runs at import."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vaegis.models.runtime.sessions import Cuda
from vaegis.service import tracing
from vaegis.service.decoding.pool import Decoders
from vaegis.service.http.access import OPEN_FOLDER, Gate, is_loopback
from vaegis.service.http.connection import REFUSED
from vaegis.service.http.context import Service
from vaegis.service.http.envelope import Envelope
from vaegis.service.http.oip import route as oip
from vaegis.service.http.openapi import complete
from vaegis.service.http.problems import install
from vaegis.service.http.rates import Rates, SharedBuckets
from vaegis.service.http.routes import health, models
from vaegis.service.http.score import route as score
from vaegis.service.http.tracing import Tracing
from vaegis.service.metrics import SHARED, Metrics
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.live import Live
from vaegis.service.settings import Settings
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

_DESCRIPTION = """
Anomaly detection by VAE reconstruction scoring: clean images, sensor series or tables in, calibrated verdicts out.

1. See which models there are: `GET /v1/models`, and what one takes: `GET /v1/models/{model}`.
2. Score samples: `POST /v1/models/{model}/score`.

Every verdict has a **p-value**: the share of clean samples that would look at least as strange. A sample is anomalous
where that is at most **alpha**, the rate of false alarms you ask for. Every error is `application/problem+json` with a
sentence that says what to do. If the service has keys, send one as `Authorization: Bearer KEY`.
"""
_TAGS = [
    {"name": "Scoring", "description": "Samples in, verdicts out."},
    {"name": "Models", "description": "What there is, what it takes, which version answers."},
    {"name": oip.TAG, "description": "Version 2, with binary tensors and the model repository; see docs/oip.md."},
    {"name": "Operation", "description": "For whoever runs the service."},
]


def create_app(settings: Settings, worker: int = 0) -> FastAPI:
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
        live = Live(
            registry,
            settings.device,
            settings.threads,
            settings.model_bytes,
            lanes=settings.lanes,
            cuda=Cuda(settings.cuda_graphs, settings.home / "tensorrt" if settings.tensorrt else None),
        )
    except BaseException:
        registry.close()
        raise
    metrics = Metrics(live, release, worker)
    decoders = Decoders(
        settings.decoders,
        settings.decoder_memory_bytes,
        settings.decode_seconds,
        lambda reason: metrics.decoders_lost.labels(reason).inc(),
    )
    gate = Gate(Keys(registry.database), always=not is_loopback(settings.host))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        # Beside the requests: what is not open yet is opened by whoever asks for it, and /readyz tells.
        opening = threading.Thread(target=_serve_models, args=(live,), name="vaegis-models", daemon=True)
        opening.start()
        yield {REFUSED: lambda reason: metrics.rejected.labels(reason).inc()}
        live.stop()
        decoders.close()
        registry.close()
        if spans is not None:
            spans.shutdown()
        structlog.get_logger("vaegis").info("stopped")

    app = FastAPIOffline(
        redoc_url=None,
        static_url=OPEN_FOLDER.rstrip("/"),
        title="Vaegis",
        summary="Is this clean product?",
        description=_DESCRIPTION,
        version=release,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are our own
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},  # schemas show beside their routes
    )
    assert isinstance(app, FastAPI)
    app.router.routes += [score.route(), *oip.routes()]
    app.router.routes.append(Route("/", _to_docs))
    app.include_router(models.router)
    app.include_router(oip.router)
    app.include_router(health.router)
    app.openapi = lambda: complete(app)  # type: ignore[method-assign]
    install(app)
    admission = Admission(settings.queue_samples, settings.queue_bytes, settings.concurrency)
    service = Service(settings, registry, live, metrics, decoders, admission)
    shared = os.environ.get(SHARED)  # a folder, where this is one of several workers
    rates = Rates(settings.rate, SharedBuckets(Path(shared) / "rates") if shared else None)
    layers = app.build_middleware_stack

    def build() -> ASGIApp:
        # Around FastAPI's own layers, which the scoring routes have no use for.
        inside = score.ScorePath(oip.InferPath(layers(), service), service)
        whole = Envelope(inside, gate, rates, metrics, settings.max_body_bytes, settings.queue_bytes)
        return whole if spans is None else Tracing(whole, spans)

    app.build_middleware_stack = build  # type: ignore[method-assign]
    app.state.service = service
    return app


def _serve_models(live: Live) -> None:
    live.start()
    live.watch()


async def _to_docs(_: Request) -> Response:
    """Whoever opens the bare address in a browser wants the documentation."""
    return RedirectResponse("/docs")
