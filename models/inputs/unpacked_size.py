"""What a compressed table unpacks to, read from its headers before anything is unpacked.

A few kB of Arrow or Parquet can hold gigabytes of zeros, and pyarrow takes the memory before it says how many rows
there are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from vaegis.models.errors import Malformed, TooLarge
from vaegis.models.inputs.options import Limits

PARQUET = b"PAR1"
DICTIONARY, BATCH = 2, 3  # types of an Arrow message's header
_HEADER_TYPE, _HEADER = 1, 2  # fields of Message, in format/Message.fbs of Arrow
_DATA = 1  # of DictionaryBatch
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3  # of RecordBatch


def check_arrow(body: bytes, limits: Limits) -> None:
    """Holds an Arrow IPC stream to the limits.

    Raises:
        Malformed: no Arrow IPC stream.
        TooLarge: more rows or more bytes than the limits.
    """
    rows, size = 0, 0
    try:
        for metadata, data in _messages(body):
            batch = _batch(metadata)
            if batch is None:
                continue
            table, is_rows = batch
            rows += table.number(_LENGTH) if is_rows else 0
            if table.has(_COMPRESSION):
                size += sum(_unpacked(data, offset, length) for offset, length in table.pairs(_BUFFERS))
    except (struct.error, pa.ArrowException, OSError) as error:
        raise Malformed("The body is not an Arrow IPC stream; write it with pyarrow.ipc.new_stream.") from error
    _hold(rows, size, limits)


def check_parquet(name: str, data: bytes, limits: Limits) -> None:
    """Holds a Parquet file to the limits, by what its footer says; other files pass.

    Raises:
        TooLarge: more rows or more bytes than the limits.
    """
    if not data.startswith(PARQUET):
        return
    try:
        footer = pq.read_metadata(pa.BufferReader(data))
        size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    except (pa.ArrowException, OSError):
        return  # whoever reads the file says what is wrong with it
    _hold(footer.num_rows, size, limits, f"{name}: ")


def _hold(rows: int, size: int, limits: Limits, what: str = "") -> None:
    if rows > limits.samples:
        raise TooLarge(f"{what}{rows} rows are more than the {limits.samples} that one request may hold; send fewer.")
    if size > limits.bytes:
        raise TooLarge(
            f"{what}The table unpacks to {size} bytes, more than the {limits.bytes} of one request; send fewer rows, "
            "or only the columns of the model."
        )


def _messages(body: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Metadata and data of each message; pyarrow slices the data without a copy."""
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(body))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        yield message.metadata.to_pybytes(), memoryview(message.body if message.body is not None else b"")


class _Table:
    """A table of a flatbuffer (format/internals of FlatBuffers): offsets to its fields, each little-endian.

    Every method raises struct.error where an offset leads outside.
    """

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw, self._at = raw, at
        self._fields = at - _int("<i", raw, at)

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def number(self, field: int, form: str = "<q") -> int:
        """A scalar, 0 where it is left out."""
        offset = self._offset(field)
        return _int(form, self._raw, self._at + offset) if offset else 0

    def table(self, field: int) -> _Table:
        """A table that a field points to."""
        at = self._at + self._offset(field)
        return _Table(self._raw, at + _int("<I", self._raw, at))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit numbers each."""
        offset = self._offset(field)
        if not offset:
            return
        at = self._at + offset
        at += _int("<I", self._raw, at)
        for i in range(_int("<I", self._raw, at)):
            yield _int("<q", self._raw, at + 4 + 16 * i), _int("<q", self._raw, at + 12 + 16 * i)

    def _offset(self, field: int) -> int:
        place = 4 + 2 * field
        return _int("<H", self._raw, self._fields + place) if place < _int("<H", self._raw, self._fields) else 0


def _batch(metadata: bytes) -> tuple[_Table, bool] | None:
    """A message's record batch, and whether its rows are the table's: not those of a dictionary."""
    message = _Table(metadata, _int("<I", metadata, 0))
    kind = message.number(_HEADER_TYPE, "<B")
    if kind == BATCH:
        return message.table(_HEADER), True
    return (message.table(_HEADER).table(_DATA), False) if kind == DICTIONARY else None


def _unpacked(data: memoryview, offset: int, length: int) -> int:
    """Bytes of a compressed buffer once it is unpacked: they stand before it, -1 where it is stored as it is."""
    if length <= 0:
        return 0
    size = _int("<q", data, offset)
    return length - 8 if size == -1 else max(0, size)


def _int(form: str, raw: bytes | memoryview, at: int) -> int:
    if at < 0:
        raise struct.error("an offset leads outside")
    return int(struct.unpack_from(form, raw, at)[0])
