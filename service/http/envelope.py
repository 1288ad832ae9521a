"""What holds for every request: its id, its key, its size, its line in the log, its time, its last-resort answer."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vaegis.models.errors import Malformed, Refusal, TooLarge
from vaegis.service.errors import Full
from vaegis.service.http.access import ANYBODY, AccessGate, Caller, check_origin, is_open
from vaegis.service.http.connection import CUT_OFF
from vaegis.service.http.problems import of_failure, of_refusal
from vaegis.service.http.rates import Rates
from vaegis.service.metrics import Metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Asked every few seconds: logged only where debug is.
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics")
ACCESS = "vaegis.access"  # the logger of requests' lines
GONE = 499  # in logs and metrics only: the client left before its answer


class Envelope:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        gate: AccessGate,
        rates: Rates,
        metrics: Metrics,
        max_body_bytes: int,
        waiting_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._gate, self._rates, self._metrics, self._clock = app, gate, rates, metrics, clock
        self._most, self._most_waiting = max_body_bytes, waiting_bytes
        self._waiting = 0  # bytes of all bodies that are held now
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger(ACCESS)
        self._level = logging.getLogger(ACCESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = self._clock(), 0
        header = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        # No secret, so it need not come from the system: that would cost more than all else here.
        request_id = header if header and REQUEST_ID.fullmatch(header) else f"{random.getrandbits(128):032x}"
        scope["vaegis.request_id"] = request_id
        headers = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        # Every request is a task of its own, so nothing has to be unbound.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._admit(scope, Headers(scope=scope), receive, sending)
        except ClientDisconnect:
            status = status or GONE
        except Exception:  # noqa: BLE001 - the last resort: logged with its trace, answered with a sentence
            self._log.exception("unexpected failure", method=scope["method"])
            if not status:
                await of_failure(scope)(scope, receive, sending)
        finally:
            self._record(scope, scope.get(CUT_OFF) or status or GONE, self._clock() - started)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it before anything reads it."""
        caller: Caller | None = None
        try:
            if is_open(scope["path"]):
                scope["vaegis.caller"] = ANYBODY
            else:
                scope["vaegis.caller"] = caller = await self._gate.caller(headers)
                if caller is ANYBODY:
                    check_origin(scope["method"], headers)
                self._rates.admit(caller.key, caller.rate)
            length = headers.get("content-length", "0")
            if not length.isdigit():
                raise Malformed(f"The Content-Length {length[:40]!r} is not a number of bytes.")
            if int(length) > self._most:
                raise self._too_large()
            if self._waiting + int(length) > self._most_waiting:
                raise self._too_many()
        except Refusal as refusal:
            await of_refusal(scope, refusal)(scope, receive, send)
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

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # A plain route leaves no trace of itself in the scope.
        route = str(scope.get("vaegis.route") or getattr(scope.get("route"), "path", "none"))
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
        self._metrics.request(method, route, status, seconds)
        reason = scope.get("vaegis.rejected")
        if reason:
            self._metrics.reject(reason)
        level = logging.DEBUG if route in PROBES and status < 400 else logging.INFO
        if not self._level.isEnabledFor(level):
            return
        facts = {"model": scope.get("vaegis.model"), "samples": scope.get("vaegis.samples"), "reason": reason}
        self._log.log(
            level,
            "request",
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **{k: v for k, v in facts.items() if v is not None},
        )
