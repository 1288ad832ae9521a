"""OpenTelemetry traces: where the time of a request went.

Off unless the standard settings name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`); the extra `otel` brings what sends to it. A request is one span, continued from
the caller's `traceparent`, with a span within for each stage: receive, decode, queue, infer, render.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vaegis.models.errors import Refusal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
UNTRACED = ("/healthz", "/readyz", "/metrics")


@dataclass(frozen=True)
class _Trace:
    tracer: Tracer
    parent: Context


_current: ContextVar[_Trace | None] = ContextVar("vaegis_trace", default=None)
_off: AbstractContextManager[None] = nullcontext()


def provider(version: str) -> TracerProvider | None:
    """What makes and sends spans, as the environment asks for; None where it does not.

    Raises:
        Refusal: it asks for what is not installed, or for a protocol that is not spoken.
    """
    named = next((e for e in ENDPOINTS if os.environ.get(e)), None)
    if named is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise Refusal(
            f"Traces cannot be sent by {protocol[:40]!r}; set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, and "
            f"{named} to the collector's HTTP port (4318 by default)."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise Refusal(
            f"{named} is set, but what sends traces is not installed. Install it with `pip install 'vaegis[otel]'`, or "
            "unset the variable."
        ) from error
    told = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = "vaegis"
    made = TracerProvider(resource=Resource.create(told))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


class Tracing:
    """ASGI middleware around the whole app: a span for each request."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app, self._tracer = app, provider.get_tracer("vaegis")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        from opentelemetry import propagate, trace

        carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        span = self._tracer.start_span(
            scope["method"],
            propagate.extract(carrier),
            trace.SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        )
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _current.set(_Trace(self._tracer, trace.set_span_in_context(span)))
        try:
            await self._app(scope, receive, sending)
        finally:
            _current.reset(token)
            route = scope.get("vaegis.route") or getattr(scope.get("route"), "path", "")
            span.update_name(f"{scope['method']} {route}".rstrip())
            facts = {
                "http.route": route,
                "http.response.status_code": status or None,
                "vaegis.request_id": scope.get("vaegis.request_id"),
                "vaegis.model": scope.get("vaegis.model"),
                "vaegis.samples": scope.get("vaegis.samples"),
            }
            span.set_attributes({k: v for k, v in facts.items() if v})
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
            span.end()


def stage(name: str) -> AbstractContextManager[None]:
    """Around what shall be a span of its own, where the request is traced."""
    current = _current.get()
    return _off if current is None else _stage(current, name)


@contextmanager
def _stage(current: _Trace, name: str) -> Iterator[None]:
    with current.tracer.start_as_current_span(name, current.parent):
        yield


def passed(name: str, began: float, ended: float) -> None:
    """A span of what has happened already: the seconds ago that it began and ended."""
    current = _current.get()
    if current is None:
        return
    now = time.time_ns()
    span = current.tracer.start_span(name, current.parent, start_time=now - int(began * 1e9))
    span.end(now - int(ended * 1e9))
