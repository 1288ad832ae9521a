"""Tensors of the Open Inference Protocol: JSON numbers or bytes -> arrays, and back.

Binary data are little-endian, row-major and unpadded; an element of BYTES is its length, as four bytes, then itself.
JSON has no NaN: it becomes null on the way out, and null becomes NaN on the way in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Malformed, Refusal
from vaegis.models.inputs import numbers

BYTES = "BYTES"
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """An input as it was sent: checked for form, not yet for what the model takes."""

    name: str
    datatype: str  # one of DATATYPES, or BYTES
    shape: tuple[int, ...]
    data: list[Any] | memoryview  # JSON, nested or flat; or bytes

    def array(self, datatype: str) -> NDArray[Any]:
        """The values in their shape, for an input of another datatype than BYTES.

        Raises:
            Malformed: the data do not fill the shape, or are no numbers.
            Refusal: another datatype than the wanted one, or values that it cannot hold.
        """
        dtype = DATATYPES[datatype]
        if self.datatype != datatype:
            raise Refusal(
                f"The input {self.name!r} has the datatype {self.datatype}, and the model takes {datatype}; convert "
                f"it, in NumPy by astype({dtype.name!r})."
            )
        if isinstance(self.data, memoryview):
            size = math.prod(self.shape) * dtype.itemsize
            if len(self.data) != size:
                raise Malformed(
                    f"The input {self.name!r} has {len(self.data)} bytes of data; its shape {list(self.shape)} of "
                    f"{self.datatype} needs {size}."
                )
            values = np.frombuffer(self.data, dtype).reshape(self.shape)
            # What follows the JSON starts anywhere, and not every reader of floats takes that.
            return values if values.flags.aligned else values.copy()
        return self._fill(_cast(self.name, numbers(self.data), dtype))

    def words(self) -> list[str]:
        """The values of a tensor of BYTES, flat.

        Raises:
            Malformed: no such tensor, not UTF-8, or another number of elements than the shape's.
        """
        if self.datatype != BYTES:
            raise Malformed(f"The input {self.name!r} has the datatype {self.datatype}, and not {BYTES}.")
        if isinstance(self.data, memoryview):
            words = _texts(self.name, self.data)
        else:
            words = []
            for word in self.data:
                if not isinstance(word, str):
                    raise Malformed(f"The input {self.name!r} holds something else than text; send a list of names.")
                words.append(word)
        if len(words) != math.prod(self.shape):
            raise Malformed(
                f"The input {self.name!r} has {len(words)} elements, and its shape {list(self.shape)} needs "
                f"{math.prod(self.shape)}."
            )
        return words

    def _fill(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.shape == self.shape:
            return values
        if values.ndim != 1 or values.size != math.prod(self.shape):
            raise Malformed(
                f"The data of the input {self.name!r} have the shape {list(values.shape)}, and its shape is "
                f"{list(self.shape)}; send them in that shape, or flat."
            )
        return values.reshape(self.shape)


def to_json(values: NDArray[Any] | Sequence[str]) -> NDArray[Any] | list[Any]:
    """The data of an output, flat, for a writer that knows arrays and makes NaN null."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).reshape(-1)
    return list(values)


def to_bytes(values: NDArray[Any] | Sequence[str]) -> bytes:
    """The data of an output, as the binary extension has them."""
    if isinstance(values, np.ndarray):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    words = [word.encode() for word in values]
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


def _cast(name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """JSON numbers in a datatype.

    Raises:
        Refusal: numbers that it cannot hold.
    """
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
        wrong = np.isinf(cast)
    else:
        if values.dtype.kind == "f":
            raise Refusal(f"The input {name!r} holds fractions or null; {NAMES[dtype]} are whole numbers.")
        limits = np.iinfo(dtype)
        wrong = (values < limits.min) | (values > limits.max)
        cast = values.astype(dtype)
    if wrong.any():
        first = values[tuple(np.argwhere(wrong)[0])]
        raise Refusal(f"The input {name!r} holds {first}, which {NAMES[dtype]} cannot.")
    return cast


def _texts(name: str, raw: memoryview) -> list[str]:
    words, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            break
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            break
        try:
            words.append(str(raw[at - length : at], "utf-8"))
        except UnicodeDecodeError as error:
            raise Malformed(f"The input {name!r} holds text that is not UTF-8.") from error
    else:
        return words
    raise Malformed(
        f"The input {name!r} breaks off: each element of {BYTES} is its length, as four bytes, then itself."
    )
