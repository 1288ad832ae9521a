"""One serving process: uvicorn around the app, with an end that clients do not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics

from service import logs
from service.app import create_app
from service.protocol import deadlines
from service.settings import Settings
from service.state import Service
from service.tls import certificate

LEAVING_SECONDS = 0.5  # how long answers still come, each asking its client to connect anew elsewhere
OVERTIME_SECONDS = 5.0  # after VAEGIS_SHUTDOWN_SECONDS a process that has not ended is ended


class Server(uvicorn.Server):
    """Lets clients move on before it closes.

    A client that keeps its connection open may send the next request at the very moment that the connection is closed,
    and cannot know whether it was taken. So for a moment every answer says that its connection closes; then those left
    are idle ones.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        service.live.leave()
        if not self.force_exit:
            state = self.server_state
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            await asyncio.sleep(LEAVING_SECONDS)
        await super().shutdown(sockets)


def serve(
    settings: Settings,
    listening: socket.socket,
    worker: int = 0,
    lifeline: int | None = None,
    ready: Callable[[str], object] = lambda device: None,
) -> None:
    """Answers on a bound socket until SIGTERM or Ctrl+C; every accepted request is answered first.

    SIGHUP looks everything up in the store again.

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
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=service.live.refresh, daemon=True).start())
    if lifeline is not None:
        watching = threading.Thread(target=_follow, args=(lifeline, server, settings.shutdown_seconds), daemon=True)
        watching.start()
    ready(service.live.device)
    server.run(sockets=[listening])


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal that has done its work."""


def _follow(lifeline: int, server: Server, seconds: float) -> None:
    os.read(lifeline, 1)
    server.should_exit = True
    threading.Event().wait(seconds + LEAVING_SECONDS + OVERTIME_SECONDS)
    os._exit(1)
