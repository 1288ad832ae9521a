"""The HTTP/1.1 protocol of every connection: uvicorn's, with a deadline for each thing that a client may be slow at.

uvicorn alone waits for ever for a client that sends its request a byte at a time, or does not read its answer. Here one
timer per process looks at all connections a few times a second and cuts off those whose client

- did not send a whole head in time, or more of a head than is read (431);
- did not send its body in time, or in the mean fewer bytes a second than it must (408); while the service itself does
  not read, no time runs;
- does not read its answer.

Connections beyond the most are answered 503 at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from vaegis.service.http.one_write import OneWrite
from vaegis.service.http.problems import PROBLEM, body
from vaegis.service.settings import Settings

HEAD_BYTES = 65_536  # of a request line and its headers, or of a chunked body's trailers
GRACE_SECONDS = 5.0  # before a rate is asked for; how long a client is given to read why it was cut off
EXTRA = 64  # connections beyond the most that are told so with patience; further ones may see a reset instead
CUT_OFF = "vaegis.cut_off"  # in a request's scope: the status it was cut off with
REFUSED = "vaegis_refused"  # in the app's state: what counts refusals by reason

IDLE, HEAD, BODY, CUT = range(4)


@dataclass
class Deadlines:
    """What clients are given, and the timer that holds them to it; one per server."""

    header_seconds: float
    body_seconds: float
    body_rate: float  # bytes a second
    connections: int
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """A connection's protocol: what uvicorn asks its `http` setting for."""
        return Connection(self, config, server_state, app_state, _loop)

    def watch(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        """Looks at all connections now and then, as long as there are some."""
        if self.timer is None:
            every = min(1.0, self.header_seconds / 4, self.body_seconds / 4)
            self.timer = loop.call_later(every, self._look, loop, connections, every)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Any], passed: float) -> None:
        self.timer = None
        now = loop.time()
        for connection in list(connections):
            connection.check(now, passed)
        if connections:
            self.watch(loop, connections)


def deadlines(settings: Settings) -> Deadlines:
    """The protocol of a server with these settings, for uvicorn's `http`."""
    return Deadlines(
        settings.header_seconds, settings.body_seconds, settings.body_bytes_per_second, settings.connections
    )


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with the time and size of each phase measured."""

    def __init__(
        self,
        most: Deadlines,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most = most
        self._phase = HEAD
        self._since = self.loop.time()  # when the phase began
        self._waited = 0.0  # for the body, while it was read
        self._got = 0  # bytes in the phase
        self._unread = 0  # bytes since the head began, or since the last piece of the body
        self._begun = False  # a request line, or a piece of one, is there
        self._unsent: tuple[int, float] | None = None  # bytes the client has not taken, and when they were that many

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = OneWrite(transport, self.loop)  # type: ignore[assignment]
        self._most.watch(self.loop, self.connections)
        over = len(self.connections) - self._most.connections
        if over > 0:
            many = f"{self._most.connections} connections are open, the most this service takes. Try again in a moment."
            self._refuse(503, "Busy", many, "connections", patient=over <= EXTRA)

    def data_received(self, data: bytes) -> None:
        if self._phase == CUT:
            return
        if self._phase == IDLE:
            self._enter(HEAD)
            self._begun = False
        self._got += len(data)
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEAD_BYTES and self._phase in (HEAD, BODY):
            self._refuse_head()

    def on_message_begin(self) -> None:
        if self._phase != HEAD:
            self._enter(HEAD)  # the next request came in one piece with the end of the last
        self._begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._unread > HEAD_BYTES and sum(len(n) + len(v) for n, v in self.headers) + len(self.url) > HEAD_BYTES:
            raise ValueError("more head than is read")  # ends the parsing; answered by send_400_response
        self._enter(BODY)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = IDLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase == BODY:
            self._enter(BODY)  # the answer did not need the body: what is left of it has little time

    def send_400_response(self, msg: str) -> None:
        """Called where the parser gives up."""
        if self._unread > HEAD_BYTES and self._phase == HEAD:
            self._refuse_head()
        else:
            what = "What was sent is no HTTP/1.1 request. Send one, and https only where the service speaks it."
            self._refuse(400, "Malformed request", what, "malformed_request")

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a client may ask for another protocol, and is answered in this one."""

    def check(self, now: float, passed: float) -> None:
        """Cuts the client off where it was too slow; called by the timer, `passed` seconds after the last time."""
        if self.transport.is_closing():
            # Closed once all is sent, unless that does not get on.
            if not self._takes(now):
                self.transport.abort()
        elif not self._takes(now):
            self.transport.abort()
        elif self._phase == HEAD:
            if now - self._since > self._most.header_seconds and not self._answering():
                self._late(f"The head of the request was not whole after {self._most.header_seconds:g} s", "slow_head")
        elif self._phase == BODY:
            self._check_body(now, passed)
        elif self._phase == CUT and now - self._since > GRACE_SECONDS:
            self.transport.abort()

    def _check_body(self, now: float, passed: float) -> None:
        if self.cycle is None or self.cycle.response_complete:
            if now - self._since > GRACE_SECONDS:
                self.transport.abort()
            return
        if not self.flow.read_paused:
            self._waited += passed
        if self._waited > self._most.body_seconds:
            self._late(f"The body was not whole after {self._most.body_seconds:g} s", "slow_body")
        elif self._got < self._most.body_rate * (self._waited - GRACE_SECONDS):
            self._late(f"The body came with fewer than {self._most.body_rate:g} bytes a second", "slow_body")

    def _takes(self, now: float) -> bool:
        """Whether the client reads what is sent to it, at the rate at which it must send."""
        left = self.transport.get_write_buffer_size()
        if not left:
            self._unsent = None
            return True
        if self._unsent is None or left > self._unsent[0]:
            self._unsent = (left, now)
            return True
        before, since = self._unsent
        if now - since <= GRACE_SECONDS:
            return True
        if before - left < self._most.body_rate * (now - since):
            return False
        self._unsent = (left, now)
        return True

    def _answering(self) -> bool:
        """Whether an earlier request of the connection still waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _enter(self, phase: int) -> None:
        self._phase, self._since = phase, self.loop.time()
        self._waited, self._got, self._unread = 0.0, 0, 0

    def _late(self, what: str, reason: str) -> None:
        if self._phase == HEAD and not self._begun:
            self.transport.close()  # nothing was asked
        else:
            self._refuse(408, "Too slow", f"{what}; send it faster, or in smaller pieces.", reason)

    def _refuse_head(self) -> None:
        large = f"The head of the request is larger than {HEAD_BYTES} bytes; send fewer or shorter headers."
        self._refuse(431, "Too large", large, "large_head")

    def _refuse(self, status: int, title: str, detail: str, reason: str, patient: bool = True) -> None:
        """Answers in place of the app, and closes the connection."""
        refused: Callable[[str], None] | None = self.app_state.get(REFUSED)
        if refused is not None:
            refused(reason)
        mine = self.cycle if self._phase == BODY else None
        if self.pipeline or (mine.response_started if mine is not None else self._answering()):
            self.transport.abort()  # another answer is on its way: this one would be read as a part of it
            return
        if mine is not None:
            mine.scope[CUT_OFF] = status  # type: ignore[literal-required]
            mine.disconnected = True
            mine.message_event.set()
        request_id = mine.scope.get("vaegis.request_id", "") if mine is not None else ""
        content = orjson.dumps(body(title, status, detail, str(request_id)))
        head = [
            STATUS_LINE[status],
            b"content-type: " + PROBLEM.encode() + b"\r\n",
            b"content-length: %d\r\nconnection: close\r\n" % len(content),
            b"retry-after: 1\r\n" if status == 503 else b"",
        ]
        self.transport.write(b"".join([*head, b"\r\n", content]))
        self._unset_keepalive_if_required()
        self._enter(CUT)
        # Half closed, and the rest read away: closed at once, what still comes in would undo the answer.
        if patient and self.transport.can_write_eof():
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()
