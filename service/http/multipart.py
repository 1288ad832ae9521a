"""The files of a multipart/form-data body, in memory: it is already there, and its size is already limited."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vaegis.models.errors import Malformed, TooLarge

FIELD = "file"


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)  # of the header being read
    value: bytearray = field(default_factory=bytearray)
    body: list[bytes] = field(default_factory=list)


def files(content_type: str, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """File names, without folders, and contents, in the order sent.

    Raises:
        Malformed: no boundary, a broken or unfinished body, another field than `file`, no file at all.
        TooLarge: more than `most` files.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise Malformed("The Content-Type names no multipart boundary; let the HTTP client write that header itself.")
    parts: list[_Part] = []
    ended = False

    def begin() -> None:
        if len(parts) >= most:
            raise TooLarge(f"The body has more than {most} files; send them in several requests.")
        parts.append(_Part())

    def header_done() -> None:
        part = parts[-1]
        part.headers[part.name.decode("latin-1").lower()] = part.value.decode("latin-1")
        part.name.clear()
        part.value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_part_data": lambda data, i, j: parts[-1].body.append(data[i:j]),
                "on_header_field": lambda data, i, j: parts[-1].name.extend(data[i:j]),
                "on_header_value": lambda data, i, j: parts[-1].value.extend(data[i:j]),
                "on_header_end": header_done,
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Malformed(f"The multipart body cannot be read: {error}. Send files in fields named `{FIELD}`.") from error
    if not parts:
        raise Malformed(f"The multipart body holds no file; send one or more in fields named `{FIELD}`.")
    if not ended:
        raise Malformed("The multipart body breaks off before its closing boundary; send it whole.")
    return [_file(part, i) for i, part in enumerate(parts)]


def _file(part: _Part, i: int) -> tuple[str, bytes]:
    options = parse_options_header(part.headers.get("content-disposition", ""))[1]
    name = options.get(b"name", b"").decode("latin-1")
    if name != FIELD:
        raise Malformed(
            f"Part {i} of the multipart body is the field {name[:70]!r}; files go into fields named `{FIELD}`, and "
            "controls such as alpha into the query."
        )
    # Only the last part of a path a client may have sent.
    given = options.get(b"filename", b"").decode("utf-8", "replace").replace("\\", "/").rsplit("/", 1)[-1]
    return given[:255] or f"file-{i}", b"".join(part.body)
