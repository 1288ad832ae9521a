"""One serving process: uvicorn around the app, with an end that clients do not notice."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import cast

import structlog
import uvicorn
from prometheus_client import disable_created_metrics

from vaegis.service import logs
from vaegis.service.app import create_app
from vaegis.service.http.connection import deadlines
from vaegis.service.http.context import Service
from vaegis.service.processes.tls import certificate
from vaegis.service.settings import Settings

COLLECT_AFTER = 50_000  # more objects made than freed
LEAVING_SECONDS = 0.5  # how long requests are still taken on open connections, each answer closing its own
OVERTIME_SECONDS = 5.0  # after VAEGIS_SHUTDOWN_SECONDS a process that has not ended is ended


class Server(uvicorn.Server):
    """Takes no new connection once it is asked to end, and lets clients leave the open ones.

    A client that keeps its connection open may send the next request at the very moment that the connection is closed,
    and cannot know whether it was taken. So for a moment every answer says that its connection closes; then those left
    are idle ones.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        service.live.leave()
        waiting = [one.dup() for one in sockets or []]
        for server in self.servers:
            server.close()
        for one in sockets or []:
            one.close()
        if not self.force_exit:
            state = self.server_state
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            for one in waiting:
                await self._accept_rest(one)
            if state.connections:
                await asyncio.sleep(LEAVING_SECONDS)
        await super().shutdown(sockets)

    async def _accept_rest(self, listening: socket.socket) -> None:
        """Accepts the connections that the system has already made, which it would reset, and closes the socket."""
        listening.setblocking(False)
        made = []
        with listening, suppress(BlockingIOError):
            while True:
                made.append(listening.accept()[0])
        loop = asyncio.get_running_loop()
        for one in made:
            with suppress(OSError):  # its client has left
                await loop.connect_accepted_socket(self._protocol, one, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def serve(
    settings: Settings,
    listening: socket.socket,
    worker: int = 0,
    lifeline: int | None = None,
    ready: Callable[[str], object] = lambda device: None,
) -> None:
    """Answers on a bound socket until SIGTERM or Ctrl+C; every accepted request is answered first.

    SIGHUP has everything looked up in the store again, and the certificate read again.

    Args:
        worker: the number of this process among those that share the socket.
        lifeline: a file that comes to its end when the process that started this one has ended; this one then ends too.
        ready: called with the device in use, when nothing can be refused any more.

    Raises:
        Refusal: the store, the device or the certificate that the settings name cannot be used.
    """
    cert, key = certificate(settings) or (None, None)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # times beside every counter, which nobody reads
    logs.configure(settings.log_level, settings.log_format)
    app = create_app(settings, worker)
    service: Service = app.state.service
    server = Server(
        uvicorn.Config(
            app,
            ws="none",
            proxy_headers=False,  # nothing here asks who is behind the proxy
            log_config=None,
            access_log=False,
            server_header=False,
            http=deadlines(settings),  # type: ignore[arg-type]  # called to make a protocol, like its class
            ssl_certfile=cert,
            ssl_keyfile=key,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn's own while it runs; it repeats them here at its end
        signal.signal(number, _nothing)
    if hasattr(signal, "SIGHUP"):
        again = partial(_refresh, service, server, cert, key)
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=again, daemon=True).start())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # a supervisor blocks it until here
    if lifeline is not None:
        watching = threading.Thread(target=_follow, args=(lifeline, server, settings.shutdown_seconds), daemon=True)
        watching.start()
    ready(service.live.device)
    # What is there by now stays: without it to look through, the collector's pauses are short, and with fewer of them
    # the lists of a JSON body, which reference counting frees, are not looked through as they are made.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    server.run(sockets=[listening])


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal that has done its work."""


def _refresh(service: Service, server: Server, cert: str | None, key: str | None) -> None:
    log = structlog.get_logger("vaegis")
    log.info("looking everything up again")
    service.live.refresh()
    if cert is not None and server.config.ssl is not None:
        try:
            server.config.ssl.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            log.error("the certificate cannot be read; the one before stays in use", reason=str(error))


def _follow(lifeline: int, server: Server, seconds: float) -> None:
    os.read(lifeline, 1)
    server.should_exit = True
    threading.Event().wait(seconds + LEAVING_SECONDS + OVERTIME_SECONDS)
    os._exit(1)
