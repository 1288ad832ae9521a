"""Texts that come from elsewhere, made fit to be shown: a bundle's words must not steer a terminal."""

from __future__ import annotations

import unicodedata

REMOVED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # control, format, surrogate, private, none, separators


def printable(text: str) -> str:
    """The text without control characters, C0 and C1, escapes and marks of writing direction included.

    Line breaks and tabs become spaces, so that words stay apart and a text stays a line.
    """
    if text.isascii() and text.isprintable():
        return text
    spaced = "".join(" " if c in "\n\r\t\u2028\u2029" else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c) not in REMOVED)


def printable_lines(text: str) -> str:
    """The same of a text of several lines, which it keeps."""
    return "\n".join(map(printable, text.split("\n")))
