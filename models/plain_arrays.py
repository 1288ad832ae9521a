"""Arrays out of an npz file that nobody vouches for: numbers and text, nothing packed, no more than the file weighs.

`numpy.load` unpacks whatever a member claims to hold and makes room for whatever shape its head states, before it looks
at the bytes. Here a member's head must agree with its size, and members lie in the file as they are: so what is made of
a file is no larger than the file.
"""

from __future__ import annotations

import io
import math
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Plain = NDArray[np.float64 | np.int64 | np.str_]

KINDS = "fiuU"  # of numpy types: floats, whole numbers, text


def read_arrays(raw: bytes) -> dict[str, Plain]:
    """The arrays of an npz file, by name.

    Raises:
        ValueError: it is no such file, a member is packed, or a member is not what its head says.
    """
    try:
        with ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) != len(members):
                raise ValueError("two of its arrays have one name")
            if packed := [m.filename for m in members if m.compress_type != ZIP_STORED]:
                raise ValueError(f"{packed[0]!r:.80} is packed")
            return {m.filename.removesuffix(".npy"): _array(m.filename, archive.read(m)) for m in members}
    except (BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(str(error)) from error


def _array(name: str, raw: bytes) -> Plain:
    stream = io.BytesIO(raw)
    if npy.read_magic(stream) != (1, 0):
        raise ValueError(f"{name!r:.80} is of an npy version that nobody writes for plain numbers")
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    if dtype.kind not in KINDS or dtype.names is not None:
        raise ValueError(f"{name!r:.80} holds neither numbers nor text")
    count, body = math.prod(shape), len(raw) - stream.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != body:
        raise ValueError(f"{name!r:.80} states the shape {shape}, which its {body} bytes do not hold")
    flat = np.frombuffer(raw, dtype, count, stream.tell()).copy() if body else np.zeros(count, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
