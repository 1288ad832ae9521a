"""Answers that leave in one piece: uvicorn writes the head of an answer and its body apart, a system call each."""

from __future__ import annotations

import asyncio
from typing import Any

MOST = 4096  # bytes that are held back; more is no head


class OneWrite:
    """A transport that holds a small piece back until the next one, or the end of this turn of the event loop."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends it, with what was held back."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif len(data) > MOST:
            self._transport.write(data)
        else:
            self._head = data
            self._loop.call_soon(self._flush)

    def is_closing(self) -> bool:
        """As the transport's."""
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        """As the transport's."""
        return self._transport.get_write_buffer_size() + len(self._head)

    def write_eof(self) -> None:
        """Sends what is left, and the end."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Sends what is left, and closes."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
