"""One serving process: uvicorn around the app, with an end that clients do not notice."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import cast

import structlog
import uvicorn
from prometheus_client import disable_created_metrics

from vaegis.models.errors import Refusal
from vaegis.service import logs
from vaegis.service.app import Application, create_app
from vaegis.service.http.connection import deadlines
from vaegis.service.processes.tls import Certificate, context_of
from vaegis.service.serving.live import Live
from vaegis.service.settings import Settings

COLLECT_AFTER = 50_000  # more objects made than freed
LEAVING_SECONDS = 0.5  # how long requests are still taken on open connections, each answer closing its own
OVERTIME_SECONDS = 5.0  # after VAEGIS_SHUTDOWN_SECONDS a process that has not ended is ended


class WebServer(uvicorn.Server):
    """Takes no new connection once it is asked to end, and lets clients leave the open ones.

    A client that keeps its connection open may send the next request at the very moment that the connection is closed,
    and cannot know whether it was taken. So for a moment every answer says that its connection closes; then those left
    are idle ones.
    """

    def __init__(self, config: uvicorn.Config, live: Live, seconds: float) -> None:
        """`seconds`: that accepted requests get to finish."""
        super().__init__(config)
        self._live, self._seconds = live, seconds
        self._ending: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.end()
        super().handle_exit(sig, frame)

    def end(self) -> None:
        """Has the process end, by itself or, where something in it does not, after its grace."""
        self.should_exit = True
        if self._ending is None:
            self._ending = threading.Thread(target=_end_late, args=(self._seconds,), name="vaegis-end", daemon=True)
            self._ending.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._live.leave()
        waiting = [listening.dup() for listening in sockets or []]
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        if not self.force_exit:
            state = self.server_state
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            for listening in waiting:
                await self._accept_rest(listening)
            if state.connections:
                await asyncio.sleep(LEAVING_SECONDS)
        await super().shutdown(sockets)

    async def _accept_rest(self, listening: socket.socket) -> None:
        """Accepts the connections that the system has already made, which it would reset, and closes the socket."""
        listening.setblocking(False)
        connections = []
        with listening, suppress(BlockingIOError):
            while True:
                connections.append(listening.accept()[0])
        loop = asyncio.get_running_loop()
        for connection in connections:
            with suppress(OSError):  # its client has left
                await loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def server_of(app: Application, settings: Settings, certificate: Certificate | None = None) -> WebServer:
    """What serves the app on a socket that `run` is given."""
    config = uvicorn.Config(
        app.asgi,
        ws="none",
        proxy_headers=False,  # nothing here asks who is behind the proxy
        log_config=None,
        access_log=False,
        server_header=False,
        http=deadlines(settings),  # type: ignore[arg-type]  # called to make a protocol, like its class
        ssl_context_factory=None if certificate is None else lambda config, default: certificate.listening,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return WebServer(config, app.live, settings.shutdown_seconds)


def serve(
    settings: Settings,
    listening: socket.socket,
    worker: int = 0,
    lifeline: int | None = None,
    ready: Callable[[str], object] = lambda device: None,
) -> None:
    """Answers on a bound socket until SIGTERM or Ctrl+C; every accepted request is answered first.

    SIGHUP has the certificate read again, and everything looked up in the store again.

    Args:
        worker: the number of this process among those that share the socket.
        lifeline: a file that comes to its end when the process that started this one has ended; this one then ends too.
        ready: called with the device in use, when nothing can be refused any more.

    Raises:
        Refusal: the store, the device or the certificate that the settings name cannot be used.
    """
    context = context_of(settings)
    certificate = None if context is None else Certificate(settings, context)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # times beside every counter, which nobody reads
    logs.configure(settings.log_level, settings.log_format)
    app = create_app(settings, worker)
    server = server_of(app, settings, certificate)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn's own while it runs; it repeats them here at its end
        signal.signal(number, _nothing)
    if hasattr(signal, "SIGHUP"):
        again = partial(_refresh, app.live, certificate)
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=again, daemon=True).start())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # a supervisor blocks it until here
    if lifeline is not None:
        watching = threading.Thread(target=_follow, args=(lifeline, server), daemon=True)
        watching.start()
    ready(app.live.device)
    # What is there by now stays: without it to look through, the collector's pauses are short, and with fewer of them
    # the lists of a JSON body, which reference counting frees, are not looked through as they are made.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    server.run(sockets=[listening])
    if not app.live.ended:
        os._exit(0)  # the runtime aborts a process that takes its own end while a graph is being opened


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal that has done its work."""


def _refresh(live: Live, certificate: Certificate | None) -> None:
    log = structlog.get_logger("vaegis")
    log.info("looking everything up again")
    if certificate is not None:
        try:
            certificate.renew()
            log.info("new connections are shown the certificate that was read now")
        except Refusal as refusal:
            log.error("the certificate before stays in use", reason=str(refusal))
    live.refresh()


def _follow(lifeline: int, server: WebServer) -> None:
    os.read(lifeline, 1)
    server.end()


def _end_late(seconds: float) -> None:
    """Ends the process when it should have ended by itself: a graph call under way asks nobody."""
    threading.Event().wait(seconds + LEAVING_SECONDS + OVERTIME_SECONDS)
    structlog.get_logger("vaegis").error("ended, since something in this process did not end by itself")
    os._exit(1)
