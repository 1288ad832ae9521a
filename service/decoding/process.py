"""The process that decodes images for `vaegis.service.decoding.pool`: encoded files in, pixels out, over one socket.

It runs with little memory, little time, no right to write files and none of the service's settings, and imports
neither onnxruntime nor the service. Nothing is pickled in either direction; all numbers are little-endian:

    request   REQUEST (length of the spec, count of files, most pixels), the spec as JSON, a LENGTH per file, the files
    ready     READY, once, when the process has started
    answer    per file ANSWER (status, bytes per value, height, width, channels, length), then `length` bytes: the
              pixels, or why there are none as UTF-8
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import sys
import time

READY = b"vaegis decoder 1"
REQUEST = struct.Struct("<IIQ")
LENGTH = struct.Struct("<Q")
ANSWER = struct.Struct("<BBIIIQ")
PIXELS, UNREADABLE, NO_MEMORY = range(3)
HELD_BYTES, HELD_SECONDS = 1 << 16, 0.02  # answers that are sent together, so that small images cost few turns
OPEN_FILES = 32  # what Python itself keeps open, and a little


def main() -> None:
    """Answers requests on standard input, which is a socket, until its other end is closed."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    # The service alone says when a decoder ends: by closing the socket, also when it is itself told to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Imported before the limits: what a format's plug-in and the spec take is not the image's.
    import numpy as np
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    from vaegis.models.pixels import OutOfMemory, Unreadable, read
    from vaegis.models.spec import ImageSpec, from_json

    _limit(memory)
    spec, known = None, bytearray()  # the last one, which is most often also the next
    with socket.socket(fileno=0) as pipe:
        pipe.sendall(READY)
        while head := _receive(pipe, REQUEST.size):
            length, count, most = REQUEST.unpack(head)
            if (written := _receive(pipe, length)) != known:
                spec, known = from_json(json.loads(written)), written
            assert isinstance(spec, ImageSpec)
            sizes = [n for (n,) in LENGTH.iter_unpack(_receive(pipe, count * LENGTH.size))]
            # All of them before the first answer: two ends that both wait to be read would wait for ever.
            files = [_receive(pipe, n) for n in sizes]
            buffer, since = bytearray(), time.monotonic()
            for data in files:
                _allow_time(seconds)
                try:
                    pixels = np.ascontiguousarray(read(data, spec, most))
                    status, form, raw = PIXELS, (pixels.itemsize, *pixels.shape), pixels.data.cast("B")
                except (OutOfMemory, MemoryError):
                    status, form, raw = NO_MEMORY, (0, 0, 0, 0), memoryview(b"")
                except Unreadable as error:
                    status, form, raw = UNREADABLE, (0, 0, 0, 0), memoryview(str(error)[:1000].encode())
                buffer += ANSWER.pack(status, *form, len(raw))
                if len(buffer) + len(raw) <= HELD_BYTES and time.monotonic() - since < HELD_SECONDS:
                    buffer += raw
                    continue
                pipe.sendall(buffer)
                pipe.sendall(raw)
                buffer, since = bytearray(), time.monotonic()
            pipe.sendall(buffer)


def _limit(memory: int) -> None:
    """Leaves this process `memory` bytes beside what it has, and takes away what decoding does not need."""
    import resource

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a C library has to say of a broken file
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    except OSError:
        pass  # not Linux: there is no such file, and the limit would not hold
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _allow_time(seconds: int) -> None:
    """Gives the next image its seconds on the CPU; past them the system ends the process."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _receive(pipe: socket.socket, count: int) -> bytearray:
    """`count` bytes, or none where the other end was closed."""
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        more = pipe.recv_into(view[got:])
        if not more:
            return bytearray()
        got += more
    return data


if __name__ == "__main__":
    main()
