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
from service.auth import ANYBODY, Caller, Gate, is_open
from service.errors import Full
from service.metrics import Metrics
from service.protocol import CUT_OFF
from service.ratelimit import Rates

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
PROBES = ("/healthz", "/readyz", "/metrics")  # asked every few seconds: logged only where debug is
GONE = 499  # in logs and metrics only: the client left before its answer


class Envelope:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        rates: Rates,
        metrics: Metrics,
        max_body_bytes: int,
        waiting_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._gate, self._rates, self._metrics, self._clock = app, gate, rates, metrics, clock
        self._most, self._most_waiting = max_body_bytes, waiting_bytes
        self._waiting = 0  # bytes of all bodies that are held now

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
                self._record(scope, scope.get(CUT_OFF) or status or GONE, self._clock() - started, log)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it before anything reads it."""
        caller: Caller | None = None
        try:
            if is_open(scope["path"]):
                scope["vaegis.caller"] = ANYBODY
            else:
                scope["vaegis.caller"] = caller = await self._gate.caller(headers)
                self._rates.admit(caller.key, caller.rate)
            length = headers.get("content-length", "0")
            if not length.isdigit():
                raise Malformed(f"The Content-Length {length[:40]!r} is not a number of bytes.")
            if int(length) > self._most:
                raise self._too_large()
            if self._waiting + int(length) > self._most_waiting:
                raise self._too_many()
        except Refusal as refusal:
            await errors.refused(scope, refusal)(scope, receive, send)
            return
        got = 0

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            more = len(message.get("body", b""))
            got += more
            self._waiting += more
            # Not as refusals: FastAPI takes other exceptions of a body being read for broken JSON.
            if got > self._most:
                raise HTTPException(413, str(self._too_large()))
            if self._waiting > self._most_waiting:
                raise HTTPException(429, str(self._too_many()), {"Retry-After": "1"})
            return message

        try:
            await self._app(scope, receiving, send)
        finally:
            self._waiting -= got
            if caller is not None:
                self._rates.charge(caller.key, caller.rate, scope.get("vaegis.samples", 1))

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than {self._most} bytes, the most this service takes. Send fewer samples at a "
            "time, or raise VAEGIS_MAX_BODY_BYTES."
        )

    def _too_many(self) -> Full:
        return Full(
            f"The bodies of all requests may take {self._most_waiting} bytes together, and this one would go beyond "
            "that. Try again in a moment, or raise VAEGIS_QUEUE_BYTES."
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
