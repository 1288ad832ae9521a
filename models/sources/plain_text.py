"""csv text in any encoding -> UTF-8 without comments, as a stream."""

from __future__ import annotations

import codecs
import io
from typing import IO

from vaegis.models.errors import Refusal

_CHUNK = 1 << 20


class PlainText(io.RawIOBase):
    """A file's text in UTF-8, without its first `skip` lines and those that begin with `comment`."""

    def __init__(
        self, name: str, file: IO[bytes], encoding: str, comment: str | None, skip: int, errors: str = "strict"
    ) -> None:
        self.name = name
        self.file = file
        self.encoding = encoding
        self.decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)(errors)
        self.comment = comment.encode() if comment else None
        self.skip = skip
        self.partial = b""  # a line whose end has not been read
        self.ready = memoryview(b"")
        self.ended = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fills the buffer.

        Raises:
            Refusal: bytes that are not of the encoding.
        """
        while not self.ready and not self.ended:
            self.ready = memoryview(self._more())
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count

    def _more(self) -> bytes:
        data = self.file.read(_CHUNK)
        self.ended = not data
        try:
            text = self.partial + self.decoder.decode(data, self.ended).encode()
        except UnicodeError as error:
            raise Refusal(
                f"{self.name} is not {self.encoding.upper()} throughout; name its encoding with --encoding, such as "
                "latin-1 or utf-16, or save it as UTF-8."
            ) from error
        end = len(text) if self.ended else text.rfind(b"\n") + 1
        text, self.partial = text[:end], text[end:]
        while self.skip and text:
            text = text[text.find(b"\n") + 1 :] if b"\n" in text else b""
            self.skip -= 1
        if self.comment is not None and (text.startswith(self.comment) or b"\n" + self.comment in text):
            lines = text.splitlines(keepends=True)
            text = b"".join(line for line in lines if not line.startswith(self.comment))
        return text
