"""Servers that `tests.bench.serving` starts, loads and measures: ours and the peers, as processes of their own."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "peers"
BUILD = ROOT / "build"
FRAMEWORKS = ("mlserver", "litserve", "bentoml")
START_SECONDS = 90.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A process that answers on a loopback port."""

    name: str
    port: int
    path: str  # of the route that scores
    process: subprocess.Popen[bytes]
    ready_s: float  # from its start until it answered

    def pids(self) -> list[int]:
        """Of it and all its children."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, task.read_text().split())
        return found

    def cpu_s(self) -> float:
        """CPU time so far."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident_mib(self) -> float:
        """Memory in use now."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return total * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def ours(bundle: Path, home: Path, **settings: str) -> Iterator[Server]:
    """`vaegis serve` with one model, `bench`."""
    vaegis = str(Path(sys.executable).with_name("vaegis"))
    environment = {**os.environ, "VAEGIS_HOME": str(home), **settings}
    subprocess.run(
        [vaegis, "models", "import", str(bundle), "--name", "bench"],
        env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    port = free_port()
    command = [vaegis, "serve", "--port", str(port), "--log-level", "warning", "--device", "cpu"]
    with _running("vaegis", command, port, "/v1/models/bench/score", "/readyz", environment) as server:
        yield server


@contextlib.contextmanager
def peer(name: str, graph: Path, folder: Path) -> Iterator[Server]:
    """A peer by its name: `fastapi` runs in our environment, the others in theirs.

    Raises:
        RuntimeError: it cannot be installed or does not start.
    """
    port = free_port()
    environment = {
        **os.environ, "GRAPH": str(graph), "PORT": str(port), "PYTHONPATH": str(HERE), "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    programs = Path(sys.executable).parent if name == "fastapi" else _environment(name) / "bin"
    path, ready, where = "/score", "/docs", HERE
    if name == "fastapi":
        command = [str(programs / "uvicorn"), "plain_fastapi:app", "--port", str(port), "--no-access-log"]
    elif name == "litserve":
        command, ready = [str(programs / "python"), "lit.py"], "/health"
    elif name == "bentoml":
        command, ready = [str(programs / "bentoml"), "serve", "bento:Score", "--host", "127.0.0.1"], "/readyz"
        command += ["--port", str(port)]
    else:
        where = folder / "mlserver"
        where.mkdir(exist_ok=True)
        (where / "model-settings.json").write_text('{"name": "bench", "implementation": "mls.Score"}')
        ports = f'"http_port": {port}, "grpc_port": {free_port()}, "metrics_port": {free_port()}'
        (where / "settings.json").write_text(f'{{"host": "127.0.0.1", {ports}, "parallel_workers": 0, "debug": false}}')
        command, path, ready = [str(programs / "mlserver"), "start", "."], "/v2/models/bench/infer", "/v2/health/ready"
    with _running(name, command, port, path, ready, environment, where) as server:
        yield server


def installed(name: str) -> bool:
    """Whether a peer's environment is there."""
    return name == "fastapi" or (BUILD / "peers" / name / ".installed").exists()


def _environment(name: str) -> Path:
    """A peer's environment, made if it is not there."""
    folder = BUILD / "peers" / name
    if not installed(name):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        lines = (HERE / "requirements.txt").read_text().splitlines()
        wanted = [line for line in lines if line and line[0] != "#" and line.split("=")[0] not in FRAMEWORKS]
        wanted += [line for line in lines if line.startswith(name)]
        done = subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *wanted],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=900,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"pip could not install it: {done.stderr.strip().splitlines()[-1][:200]}")
        (folder / ".installed").touch()
    return folder


@contextlib.contextmanager
def _running(
    name: str,
    command: list[str],
    port: int,
    path: str,
    ready: str,
    environment: dict[str, str],
    where: Path | None = None,
) -> Iterator[Server]:
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True
        )
    try:
        while not _answers(port, ready):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                raise RuntimeError("it does not start")
            time.sleep(0.01)
        yield Server(name, port, path, process, time.perf_counter() - began)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # the session of its own that it was started in
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
