"""The span of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vaegis.service.tracing import CURRENT, Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

UNTRACED = ("/healthz", "/readyz", "/metrics")


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

        token = CURRENT.set(Trace(self._tracer, trace.set_span_in_context(span)))
        try:
            await self._app(scope, receive, sending)
        finally:
            CURRENT.reset(token)
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
