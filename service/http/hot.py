"""What the hot routes share: they are answered by ASGI middleware, past FastAPI's own layers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from vaegis.models.errors import Refusal
from vaegis.service.http.problems import of_framework_error, of_refusal
from vaegis.service.tracing import stage

JSON = [(b"content-type", b"application/json")]

ATTENDED_AFTER = 0.05  # seconds of waiting before it is looked whether the client is still there

Headers = list[tuple[bytes, bytes]]
Content = tuple[bytes, Headers]  # of an answer
Result = TypeVar("Result")


async def reply(scope: Scope, receive: Receive, send: Send, work: Awaitable[Content]) -> None:
    """Sends what the work gives, a body and its headers, or the error that it raises."""
    try:
        content, headers = await work
    except Refusal as refusal:
        await of_refusal(scope, refusal)(scope, receive, send)
        return
    except HTTPException as error:
        await of_framework_error(scope, error)(scope, receive, send)
        return
    length = str(len(content)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", length)]})
    await send({"type": "http.response.body", "body": content})


class HotExchange:
    """A request of a hot route, for `vaegis.service.serving.judging` to answer; its protocol adds the reader."""

    __slots__ = ("address", "arrived", "key", "receive", "scope")

    def __init__(self, address: str, arrived: float, scope: Scope, receive: Receive) -> None:
        self.address, self.arrived, self.scope, self.receive = address, arrived, scope, receive
        self.key: str = scope["vaegis.request_id"]

    def body(self) -> Awaitable[bytes]:
        """See `received`."""
        return received(self.receive)

    def count(self, samples: int) -> None:
        """Tells the layers around the route how many samples the request holds."""
        self.scope["vaegis.samples"] = samples

    def attend(self, work: Coroutine[Any, Any, Result]) -> Awaitable[Result]:
        """See `attended`."""
        return attended(self.receive, work)


async def attended(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Does the work, unless the client leaves first: then what is left of it is dropped.

    Raises:
        ClientDisconnect: the client left.
    """
    loop, ours = asyncio.get_running_loop(), asyncio.current_task()
    assert ours is not None
    watching: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        ours.cancel()

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    timer = loop.call_later(ATTENDED_AFTER, begin)  # most answers are there before it pays to look
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        ours.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


async def received(receive: Receive) -> bytes:
    """The body of a request.

    Raises:
        ClientDisconnect: the client left.
    """
    parts: list[bytes] = []
    with stage("receive"):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)
