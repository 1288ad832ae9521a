"""`vaegis serve` as real processes: several on one port, under load, killed and ended."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from http_server import OCTETS, Client, until

from vaegis.service.store.registry import Registry
from vaegis.service.store.servings import Servings

VAEGIS = Path(sys.executable).parent / "vaegis"
PATH = "/v1/models/image/score"
X = bytes([100] * 16)


class Run:
    """A running `vaegis serve`."""

    def __init__(self, process, port, log):
        self.process, self.client, self.log = process, Client(port), log

    def lines(self, event):
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def workers(self):
        """Process ids of the workers that run now."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def start(fill, tmp_path):
    """Starts `vaegis serve --workers N` on a free port; ends it afterwards."""
    running = []
    settings = fill(tmp_path / "home")

    def begin(workers):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = tmp_path / "log"
        with open(path, "w") as log:
            process = subprocess.Popen(
                [VAEGIS, "serve", "--port", str(port), "--workers", str(workers), "--log-format", "json"],
                env={**os.environ, "VAEGIS_HOME": str(settings.home), "TMPDIR": str(tmp_path)}, stdout=log, stderr=log,
            )  # fmt: skip
        run = Run(process, port, path)
        running.append(run)
        run.client.ready()
        until(lambda: len(run.workers()) == (workers if workers > 1 else 0))
        return run

    yield begin, settings
    for run in running:
        pids = run.workers() if run.process.poll() is None else []
        run.process.kill()
        run.process.wait()
        until(lambda pids=pids: not any(alive(p) for p in pids), 30)


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Load:
    """Clients that ask again as soon as they are answered, on the same connection or each time on a new one."""

    def __init__(self, port, clients, keep=True):
        self._headers = {"Content-Type": OCTETS, **({} if keep else {"Connection": "close"})}
        self.stop, self.answers, self.broken, self.turned_away = threading.Event(), [], [], 0
        self._port, self._lock = port, threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _ask(self):
        connection = None
        while not self.stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    self.turned_away += 1
                    return
            try:
                connection.request("POST", PATH, X, self._headers)
                answer = connection.getresponse()
                raw = answer.read()
                with self._lock:
                    self.answers.append((answer.status, json.loads(raw).get("version")))
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.broken.append(repr(error))
                return
        if connection is not None:
            connection.close()


@pytest.mark.parametrize(("workers", "keep"), [(1, True), (2, False)])
def test_neither_swaps_nor_the_end_fail_a_request(start, workers, keep):
    begin, settings = start
    run = begin(workers)
    pids = run.workers()
    with Registry.open(settings) as registry, Load(run.client.port, 8) as load:
        for i in range(50):
            target = 2 - i % 2
            if i % 5:
                registry.promote("image", target)  # as the command line does: seen by the workers in their own time
            else:
                status, _, _ = run.client.call(
                    "POST", "/v1/models/image/promote", json.dumps({"version": target}).encode(), "application/json"
                )
                assert status == 200
            time.sleep(0.02)
        registry.promote("image", 2)
        # Every worker follows: of answers that come from now on, none but version 2 for a while.
        until(lambda: all(run.client.score("image", X, OCTETS)[1]["version"] == 2 for _ in range(20)))
    assert load.broken == [] and {status for status, _ in load.answers} == {200}
    assert {version for _, version in load.answers} == {1, 2}
    with Load(run.client.port, 8, keep) as load:
        until(lambda: len(load.answers) > 100)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(40) == 0
        until(lambda: load.turned_away + len(load.broken) == 8)
    # Whoever had a connection was answered on it, and told when it was the last time. When the socket closes the kernel
    # resets connections that nobody accepted: of new ones, one or two may come in just that moment.
    assert len(load.broken) <= (0 if keep else 2), load.broken
    assert {status for status, _ in load.answers} == {200}
    assert not any(alive(p) for p in pids)
    assert "Traceback" not in run.log.read_text()
    assert not list(run.log.parent.glob("vaegis-metrics-*"))


def test_a_killed_worker_is_replaced_and_no_count_is_lost(start):
    begin, _ = start
    run = begin(2)
    for _ in range(40):
        assert run.client.score("image", X, OCTETS)[0] == 200
    at = '{model="image",status="ok",version="1"}'
    # Whichever worker answers, the page tells of all.
    assert {run.client.metrics("vaegis_samples_scored_total")[at] for _ in range(10)} == {40.0}
    first = run.workers()
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(run.workers()) == 2 and first[0] not in run.workers(), 30)
    (died,) = run.lines("worker died")
    assert died["pid"] == first[0] and died["code"] == -signal.SIGKILL
    until(lambda: run.client.metrics("vaegis_model_info") != {}, 30)
    assert run.client.metrics("vaegis_samples_scored_total")[at] == 40.0
    assert run.client.score("image", X, OCTETS)[0] == 200
    assert run.client.metrics("vaegis_samples_scored_total")[at] == 41.0
    until(lambda: len(run.client.metrics("vaegis_process_resident_memory_bytes")) == 2, 30)
    memory = run.client.metrics("vaegis_process_resident_memory_bytes")
    assert set(memory) == {'{worker="0"}', '{worker="1"}'} and all(m > 2**20 for m in memory.values())


def test_unloading_holds_in_every_worker_and_none_outlives_a_killed_supervisor(start):
    begin, settings = start
    run = begin(2)
    pids = run.workers()
    run.process.send_signal(signal.SIGHUP)  # ends nothing
    with Registry.open(settings) as registry:
        Servings(registry).load("image", False)
        until(lambda: all(run.client.score("image", X, OCTETS)[0] == 409 for _ in range(20)))
        Servings(registry).load("image", True)
        until(lambda: all(run.client.score("image", X, OCTETS)[0] == 200 for _ in range(20)))
    assert run.workers() == pids and len(pids) == 2
    run.process.kill()
    run.process.wait()
    until(lambda: not any(alive(p) for p in pids), 30)


def test_workers_that_cannot_start_end_it_with_their_reason(fill, tmp_path):
    home = fill(tmp_path / "home").home
    done = subprocess.run(
        [VAEGIS, "serve", "--port", "0", "--workers", "2", "--device", "cuda"], capture_output=True, text=True,
        timeout=60, env={**os.environ, "VAEGIS_HOME": str(home)},
    )  # fmt: skip
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert done.returncode == 1 and "Device cuda was asked for" in done.stderr and "Traceback" not in done.stderr


def test_metrics_are_answered_while_a_worker_has_only_begun_its_files(tmp_path):
    """The file of a worker that begins is empty for a moment; here for 50 ms."""
    script = """
import threading
from pathlib import Path
from vaegis.models.runtime.sessions import device_in_use
from vaegis.service.metrics import Metrics
from vaegis.service.serving.served import OpenVersions
metrics = Metrics(OpenVersions(), device_in_use("cpu"), "1")
metrics.reject("late")
begun = Path("counter_99.db")
begun.touch()
threading.Timer(0.05, begun.unlink).start()
print(metrics.page().decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'vaegis_requests_rejected_total{reason="late"} 1.0' in done.stdout
