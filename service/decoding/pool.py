"""Images decoded in processes of their own, so that a file which breaks a decoder costs its own verdict and no more.

A decoder (`vaegis.service.decoding.process`) is started when the first image comes and is then kept. One that dies,
hangs or goes beyond its memory is replaced by a fresh one, which takes up the files that were left; the file at fault
is unjudged.
What comes back is read as a size and as many bytes: nothing of a decoder's is unpickled or trusted here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import Empty, LifoQueue

import anyio
import numpy as np
import structlog

from vaegis.models.inputs.options import Limits
from vaegis.models.inputs.uploads import check_bytes, read_here
from vaegis.models.pixels import Pixels, Unreadable
from vaegis.models.spec import ImageSpec, to_json
from vaegis.service.decoding.process import (
    ANSWER,
    HELD_BYTES,
    LENGTH,
    NO_MEMORY,
    PIXELS,
    READY,
    REQUEST,
    UNREADABLE,
)
from vaegis.service.errors import Late, NotReady

FILES, MOST_BYTES, LEAST_BYTES = 32, 1 << 20, 1 << 16  # of a piece of a request, which one decoder takes at a time
LOSSES = 16  # decoders that one request may cost
START_SECONDS = 60.0  # for one to start: far more than it takes on a busy machine


class DecoderLost(Exception):
    """A decoder was lost over an image; `str` is why, for the image's sentence."""

    def __init__(self, why: str, reason: str) -> None:
        super().__init__(why)
        self.reason = reason  # died or time: what the metric calls it


class Decoders:
    """A bounded set of decoders. Safe to use from several threads; images wait for one that is free."""

    def __init__(
        self, processes: int, memory: int, seconds: int, on_loss: Callable[[str], None] = lambda reason: None
    ) -> None:
        """Starts nothing yet.

        Args:
            processes: decoders at most; 0 decodes in this process.
            memory: bytes that a decoder may use beside what it starts with.
            seconds: that decoding one image may take.
            on_loss: called with the reason of every decoder that was lost.
        """
        # Elsewhere a process is given no socket as its standard input, and no limits.
        self._processes = processes if os.name == "posix" else 0
        self._memory, self._seconds, self._on_loss = memory, seconds, on_loss
        # Threads that wait for decoders: apart from those of other bodies, which need not wait behind images.
        self.limiter = anyio.CapacityLimiter(self._processes + 1)
        self._free: LifoQueue[_Decoder | None] = LifoQueue()  # the last one used first: its memory is warm
        for _ in range(processes):
            self._free.put(None)
        self._helpers = ThreadPoolExecutor(max(1, processes - 1), "vaegis-decoding")
        self._closed = False

    def read(
        self, files: Sequence[bytes], spec: ImageSpec, limits: Limits, *, deadline: float | None = None
    ) -> Iterable[Pixels | Unreadable]:
        """Of each file, in order, its pixels as the spec has them, or why there are none.

        Args:
            deadline: `time.monotonic()` after which no further piece of the files is taken up.

        Raises:
            TooLarge: together they decode to more bytes than the limit.
            NotReady: no decoder can be started.
            Late: the deadline passed.
        """
        if not self._processes:
            return read_here(files, spec, limits)
        task = _Task(files, spec, limits, self._processes, deadline)
        # This thread works too; the others help where there is enough to do and they have the time.
        helping = [self._helpers.submit(self._work, task) for _ in range(min(self._processes, len(task.pieces)) - 1)]
        try:
            self._work(task)
        finally:
            failures = [helper.exception() for helper in helping if not helper.cancel()]
        for failure in filter(None, failures):
            raise failure
        return task.results

    def close(self) -> None:
        """Ends every decoder; those at work when their piece is done."""
        self._closed = True
        self._helpers.shutdown(wait=False, cancel_futures=True)
        while not self._free.empty():
            decoder = self._free.get()
            if decoder is not None:
                decoder.close()

    def _work(self, task: _Task) -> None:
        """Takes pieces of a task until none is left."""
        while (piece := task.next()) is not None:
            decoder = self._waited(task)
            alone, suspect = len(piece) == 1, -1
            try:
                while piece:
                    if decoder is None or decoder.gone():
                        decoder = _Decoder(self._memory, self._seconds)
                    try:
                        for at, pixels in decoder.read(task, piece[:1] if alone else piece):
                            task.results[at] = pixels
                            piece = piece[1:]
                    except DecoderLost as loss:
                        decoder.close()
                        self._on_loss(loss.reason)
                        structlog.get_logger("vaegis").warning("a decoder was lost", reason=loss.reason)
                        if not task.may_go_on():
                            break
                        # It held back answers, or may have been killed by another hand: which file it was shows
                        # one by one, with a fresh decoder.
                        if alone and (loss.reason == "time" or suspect == piece[0]):
                            task.results[piece[0]] = Unreadable(str(loss))
                            piece = piece[1:]
                        alone, suspect = True, piece[0] if piece else -1
            except BaseException:
                # Whatever the decoder was about to say is no longer listened to.
                if decoder is not None:
                    decoder.close()
                task.stop()
                raise
            finally:
                if self._closed and decoder is not None:
                    decoder.close()
                self._free.put(None if decoder is None or decoder.ended else decoder)

    def _waited(self, task: _Task) -> _Decoder | None:
        """A decoder that is free, or None where one is to be started; waits as long as the task may take.

        Raises:
            Late: that is over.
        """
        try:
            decoder = self._free.get(timeout=task.left())
        except Empty:
            task.stop()
            raise Late from None
        if task.left() == 0:
            self._free.put(decoder)
            task.stop()
            raise Late
        return decoder


class _Task:
    """The images of one request, in pieces."""

    def __init__(
        self, files: Sequence[bytes], spec: ImageSpec, limits: Limits, processes: int, deadline: float | None
    ) -> None:
        self.files, self.spec, self.limits, self._deadline = files, spec, limits, deadline
        self.head = _written(spec)
        why = "too many images of this request broke their decoders, so it was not tried; send it in another request"
        self.results: list[Pixels | Unreadable] = [Unreadable(why)] * len(files)
        self.pieces = _pieces([len(f) for f in files], processes)
        self._lock = threading.Lock()
        self._losses, self._bytes = 0, 0

    def next(self) -> list[int] | None:
        """Positions of the files of the next piece."""
        with self._lock:
            return self.pieces.popleft() if self.pieces else None

    def left(self) -> float | None:
        """Seconds that there are for it; None where there is no end to them."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def may_go_on(self) -> bool:
        """Counts a lost decoder; false where there were too many."""
        with self._lock:
            self._losses += 1
            if self._losses >= LOSSES:
                self.pieces.clear()
            return self._losses < LOSSES

    def admit(self, count: int) -> None:
        """Counts decoded bytes, before they are received.

        Raises:
            TooLarge: they are too many.
        """
        with self._lock:
            self._bytes += count
            check_bytes(self._bytes, self.limits)

    def stop(self) -> None:
        """Leaves nothing more to be taken."""
        with self._lock:
            self.pieces.clear()


@lru_cache(maxsize=64)
def _written(spec: ImageSpec) -> bytes:
    return json.dumps(to_json(spec)).encode()


def _pieces(sizes: Sequence[int], processes: int) -> deque[list[int]]:
    """Positions of files that follow one another: few enough for others to have their turn in between, many enough
    for the ways there and back not to count."""
    most = min(MOST_BYTES, max(LEAST_BYTES, sum(sizes) // (2 * processes)))
    pieces: deque[list[int]] = deque()
    bytes_in_piece = 0
    for at, size in enumerate(sizes):
        if not pieces or bytes_in_piece + size > most or len(pieces[-1]) == FILES:
            pieces.append([])
            bytes_in_piece = 0
        pieces[-1].append(at)
        bytes_in_piece += size
    return pieces


class _Decoder:
    """One decoder's process and the socket to it. Used by one thread at a time."""

    def __init__(self, memory: int, seconds: int) -> None:
        self.ended = False
        self._memory, self._seconds = memory, seconds
        self._pipe, other = socket.socketpair()
        self._buffer = memoryview(b"")  # received, not yet read
        # Not the service's settings, which may hold a password; one thread, since there are several decoders.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VAEGIS_")}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        with other:
            self._process = subprocess.Popen(
                # -P: a folder named `service` where the service was started is not ours.
                [sys.executable, "-P", "-m", "vaegis.service.decoding.process", str(memory), str(seconds)],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        ready = bytearray(len(READY))
        try:
            self._receive(memoryview(ready), time.monotonic() + START_SECONDS)
        except DecoderLost:
            self.close()
        if ready != READY:
            raise NotReady(
                "No process that decodes images can be started; the service's log says why. Raw tensors, JSON and npy "
                "are still scored."
            )

    def read(self, task: _Task, piece: Sequence[int]) -> Iterable[tuple[int, Pixels | Unreadable]]:
        """Positions of the files and what they hold, one by one as they are decoded.

        Raises:
            DecoderLost: over a file that has not been given back; this decoder must be closed.
            TooLarge: the request decodes to more bytes than its limit.
        """
        files = [task.files[at] for at in piece]
        head = REQUEST.pack(len(task.head), len(files), task.limits.pixels) + task.head
        lengths = b"".join(LENGTH.pack(len(f)) for f in files)
        until = time.monotonic() + self._seconds
        self._send(b"".join((head, lengths, *files)), until)
        for at in piece:
            yield at, self._answer(task, until)
            until = time.monotonic() + self._seconds

    def _answer(self, task: _Task, until: float) -> Pixels | Unreadable:
        head = bytearray(ANSWER.size)
        self._receive(memoryview(head), until)
        status, itemsize, height, width, channels, length = ANSWER.unpack(head)
        if status == PIXELS:
            spec = task.spec
            fits = (channels, itemsize) == (spec.channels, spec.dtype.itemsize)
            fits = fits and (spec.tile or (height, width) == (spec.height, spec.width))
            if fits and length == height * width * channels * itemsize and height * width <= task.limits.pixels:
                task.admit(length)
                pixels = np.empty((height, width, channels), spec.dtype)
                self._receive(pixels.data.cast("B"), until)
                return pixels
        elif status == UNREADABLE and length <= 4000:
            text = bytearray(length)
            self._receive(memoryview(text), until)
            return Unreadable("".join(c for c in text.decode(errors="replace") if c.isprintable()))
        elif status == NO_MEMORY:
            return Unreadable(
                f"decoding it takes more than the {self._memory} bytes of VAEGIS_DECODER_MEMORY_BYTES; make it smaller"
            )
        raise DecoderLost("its decoder answered nonsense; the file may be made to do harm", "died")

    def _send(self, data: bytes, until: float) -> None:
        try:
            self._pipe.settimeout(max(0.001, until - time.monotonic()))
            self._pipe.sendall(data)
        except (TimeoutError, OSError) as error:
            raise self._loss(error) from error

    def _receive(self, view: memoryview, until: float) -> None:
        """Fills the view."""
        try:
            while view:
                if not self._buffer:
                    self._pipe.settimeout(max(0.001, until - time.monotonic()))
                    if len(view) >= HELD_BYTES:
                        got = self._pipe.recv_into(view)
                        if not got:
                            raise ConnectionError
                        view = view[got:]
                        continue
                    self._buffer = memoryview(self._pipe.recv(HELD_BYTES))
                    if not self._buffer:
                        raise ConnectionError
                some = self._buffer[: len(view)]
                view[: len(some)] = some
                view, self._buffer = view[len(some) :], self._buffer[len(some) :]
        except (TimeoutError, OSError) as error:
            raise self._loss(error) from error

    def _loss(self, error: Exception) -> DecoderLost:
        took = f"decoding it takes more than the {self._seconds} s of VAEGIS_DECODE_SECONDS; make it smaller"
        if isinstance(error, TimeoutError):
            return DecoderLost(took, "time")
        self._process.kill()
        if self._process.wait() == -signal.SIGXCPU:
            return DecoderLost(took, "time")
        return DecoderLost(
            "its decoder ended over it; the file may be damaged, or made to do harm: save it anew", "died"
        )

    def gone(self) -> bool:
        """Whether it has ended, by whatever hand."""
        if not self.ended and self._process.poll() is not None:
            self.close()
        return self.ended

    def close(self) -> None:
        """Ends the process."""
        if not self.ended:
            self.ended = True
            self._pipe.close()
            self._process.kill()
            self._process.wait()
