"""`vaegis serve`: the HTTP service."""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import typer

from vaegis.models.errors import Refusal

OTHER_FILES = 320  # open beside the connections: the store, models, decoders, connections being refused


def serve(
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on. Any other than loopback needs a key (vaegis keys create).",
            show_default="127.0.0.1",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.", show_default="8000")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that answer on the port.", show_default="1")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cuda|cpu", help="cuda is strict; auto takes the GPU where it works.", show_default="auto"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=0, help="CPU threads of one graph call; 0 means one.", show_default="0"),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="Least severe lines.", show_default="info")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="console|json", help="For people or for machines.", show_default="console")
    ] = None,
) -> None:
    """Answer over HTTP with the registered models.

    Open http://127.0.0.1:8000/docs in a browser to see and try everything. Every option is also an environment
    variable, such as VAEGIS_PORT; docs/operations.md lists them with many more. Ctrl+C or SIGTERM lets the requests
    under way finish first.
    """
    from vaegis.service.settings import read_settings

    settings = read_settings(
        host=host,
        port=port,
        workers=workers,
        device=device,
        threads=threads,
        log_level=log_level,
        log_format=log_format,
    )

    from vaegis.service import logs
    from vaegis.service.http.access import check_exposure
    from vaegis.service.processes.tls import context_of
    from vaegis.service.store.keys import Keys
    from vaegis.service.store.registry import Registry

    logs.configure(settings.log_level, settings.log_format)
    with Registry.open(settings) as registry:
        check_exposure(settings.host, Keys(registry.database))
    _allow_open_files(settings.connections + OTHER_FILES)
    scheme = "https" if context_of(settings) else "http"
    listening = _listen(settings.host, settings.port)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{scheme}://{shown}:{listening.getsockname()[1]}"
    greeting = f"Vaegis listens on {url} (documentation: {url}/docs, {{}}). Ctrl+C ends it."
    if settings.workers == 1:
        from vaegis.service.processes.web import serve as serve_here

        serve_here(settings, listening, ready=lambda device: typer.echo(greeting.format(f"device: {device}")))
        return
    from vaegis.service.processes.supervisor import Workers

    typer.echo(greeting.format(f"workers: {settings.workers}"))
    raise typer.Exit(Workers(settings, listening, settings.workers).run())


def _allow_open_files(wanted: int) -> None:
    """Raises the limit of open files of this process and of the workers it starts, as far as the system lets it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        Refusal: the address is not ours, the port is taken, or it may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise Refusal(
            f"Port {port} on {host} cannot be listened on ({error.strerror}). Give another with --port, or "
            "--port 0 for a free one."
        ) from error
    listening.set_inheritable(True)
    return listening
