"""What the hot routes share: they are answered by ASGI middleware, past FastAPI's own layers."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from models.errors import Refusal
from service import errors
from service.tracing import stage

# Smaller bodies and answers are dealt with at once: handing them to a thread takes longer, and holds the same lock.
INLINE_BYTES, INLINE_SAMPLES = 1 << 19, 256
JSON = [(b"content-type", b"application/json")]

Headers = list[tuple[bytes, bytes]]


async def reply(scope: Scope, receive: Receive, send: Send, work: Awaitable[tuple[bytes, Headers]]) -> None:
    """Sends what the work gives, a body and its headers, or the error that it raises."""
    try:
        content, headers = await work
    except Refusal as refusal:
        await errors.refused(scope, refusal)(scope, receive, send)
        return
    except HTTPException as error:
        await errors.answered(scope, error)(scope, receive, send)
        return
    length = str(len(content)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"content-length", length)]})
    await send({"type": "http.response.body", "body": content})


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
