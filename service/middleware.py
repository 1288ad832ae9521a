"""What holds for every request: its id, its key, its size, its line in the log, its time, its last-resort answer."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import Malformed, Refusal, TooLarge
from service import errors
from service.auth import ANYBODY, Gate, is_open
from service.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
PROBES = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: logged only where debug is
GONE = 499  # in logs and metrics only: the client left before its answer


class Envelope:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        metrics: Metrics,
        max_body_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._gate, self._metrics, self._most, self._clock = app, gate, metrics, max_body_bytes, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock(), 0
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["vaegis.request_id"] = request_id
        log = structlog.get_logger("vaegis.access")

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._admit(scope, headers, receive, sending)
            except ClientDisconnect:
                status = status or GONE
            except Exception:
                log.exception("unexpected failure", method=scope["method"])
                if not status:
                    await errors.unexpected(scope)(scope, receive, sending)
            finally:
                self._record(scope, status or GONE, self._clock() - started, log)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it before anything reads it."""
        try:
            scope["vaegis.caller"] = ANYBODY if is_open(scope["path"]) else await self._gate.caller(headers)
            length = headers.get("content-length", "0")
            if not length.isdigit():
                raise Malformed(f"The Content-Length {length[:40]!r} is not a number of bytes.")
            if int(length) > self._most:
                raise self._too_large()
        except Refusal as refusal:
            await errors.refused(scope, refusal)(scope, receive, send)
            return
        got = 0

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._most:
                # Not as a refusal: FastAPI takes other exceptions of a body being read for broken JSON.
                raise HTTPException(413, str(self._too_large()))
            return message

        await self._app(scope, receiving, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than {self._most} bytes, the most this service takes. Send fewer samples at a "
            "time, or raise VAEGIS_MAX_BODY_BYTES."
        )

    def _record(self, scope: Scope, status: int, seconds: float, log: structlog.stdlib.BoundLogger) -> None:
        # A plain route leaves no trace of itself in the scope.
        route = scope.get("vaegis.route") or getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
        self._metrics.requests.labels(method, route, str(status)).observe(seconds)
        reason = scope.get("vaegis.rejected")
        if reason:
            self._metrics.rejected.labels(reason).inc()
        facts = {"model": scope.get("vaegis.model"), "samples": scope.get("vaegis.samples"), "reason": reason}
        quiet = route in PROBES and status < 400
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **{k: v for k, v in facts.items() if v is not None},
        )
