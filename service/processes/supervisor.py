"""Several worker processes on one listening socket.

The supervisor does nothing but start workers, start another where one died, and end them. Each worker holds one end of
a pipe whose other end only the supervisor holds: when that is gone, however it ended, the workers end by themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog
from prometheus_client.multiprocess import mark_process_dead

from vaegis.service.settings import PREFIX, Settings

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # as in vaegis.service.metrics, which a supervisor does not load
READY = "ready"  # the file in the shared folder that a worker makes when it can be refused nothing any more
POLL_SECONDS = 0.1
QUICK_SECONDS = 10.0  # a worker that dies before is not started again at once
WAIT_MOST = 10.0  # seconds between tries to start a worker that dies at once
OVERTIME_SECONDS = 6.0  # a worker that has not ended so long after VAEGIS_SHUTDOWN_SECONDS is killed


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    again: float = 0.0  # when to start it next
    quick: int = 0  # deaths in a row that came soon after the start


class Workers:
    """The workers of one `vaegis serve`."""

    def __init__(self, settings: Settings, listening: socket.socket, number: int) -> None:
        self._settings, self._listening = settings, listening
        self._workers = [_Worker(i) for i in range(number)]
        self._stop = threading.Event()
        self._log = structlog.get_logger("vaegis.workers")

    def run(self) -> int:
        """Keeps the workers running until SIGTERM or Ctrl+C, then ends them; the exit code.

        Where a worker cannot start at all, such as for want of its device, none is kept.
        """
        self._shared = tempfile.mkdtemp(prefix="vaegis-metrics-")
        lifeline, our_end = os.pipe()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._asked_to_stop)
            if hasattr(signal, "SIGHUP"):
                signal.signal(signal.SIGHUP, self._pass_on)
            code = 0
            while not self._stop.is_set() and not code:
                code = self._tend(lifeline)
                self._stop.wait(POLL_SECONDS)
            self._end()
            return code
        finally:
            os.close(lifeline)
            os.close(our_end)
            shutil.rmtree(self._shared, ignore_errors=True)

    def _tend(self, lifeline: int) -> int:
        """Starts what is not running; nonzero where that is no use."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None:
                code = worker.process.poll()
                if code is None:
                    continue
                if code == 1 and not Path(self._shared, READY).exists():
                    return code  # it has said why; not by the clock, since a busy machine may take long to say it
                self._log.error("worker died", worker=worker.number, pid=worker.process.pid, code=code)
                mark_process_dead(worker.process.pid, self._shared)  # type: ignore[no-untyped-call]
                soon = now - worker.started < QUICK_SECONDS
                worker.quick = worker.quick + 1 if soon else 0
                # The first death is no pattern: it is replaced at once.
                worker.again = now + min(WAIT_MOST, 0.5 * 2**worker.quick if worker.quick > 1 else 0.0)
                worker.process = None
            if now >= worker.again:
                self._start(worker, lifeline)
                worker.started = now
        return 0

    def _start(self, worker: _Worker, lifeline: int) -> None:
        listening = self._listening.fileno()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # until it can do what that asks for
        worker.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vaegis.service.processes.web_child",
                str(listening),
                str(lifeline),
                str(worker.number),
            ],
            env={**os.environ, **environment(self._settings), SHARED: self._shared},
            pass_fds=(listening, lifeline),
        )
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._log.info("worker started", worker=worker.number, pid=worker.process.pid)

    def _end(self) -> None:
        """Lets every worker answer what it has accepted; kills what has not ended in time."""
        self._listening.close()  # else the system would go on accepting connections that nobody serves
        running = [w.process for w in self._workers if w.process is not None and w.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._settings.shutdown_seconds + OVERTIME_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.error("worker killed, since it did not end", pid=process.pid)
                process.kill()
                process.wait()

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, for a process to read."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {PREFIX + n.upper(): v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
