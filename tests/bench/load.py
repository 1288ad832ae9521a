"""Load on an HTTP server, by wrk where it is installed, else by a small client of our own."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "{kind}"
local requests, at = {{}}, 0
function init(args)
  for i = 1, {count} do
    local file = io.open("{stem}." .. i, "rb"); requests[i] = wrk.format(nil, nil, nil, file:read("*a")); file:close()
  end
end
request = function() at = at % {count} + 1; return requests[at] end
{pace}
done = function(summary, latency, requests)
  local bad = summary.errors
  local form = '\\n{{"requests": %d, "microseconds": %d, "refused": %d, "failed": %d, "p50": %d, "p99": %d}}\\n'
  io.write(string.format(form, summary.requests, summary.duration, bad.status,
    bad.connect + bad.read + bad.write + bad.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Payload:
    """Bodies that are sent in turn."""

    name: str
    kind: str  # content type
    bodies: tuple[bytes, ...]
    images: int  # in each


@dataclass(frozen=True)
class Outcome:
    """What a load met with."""

    seconds: float
    answered: int  # with 200
    refused: int  # with another status
    failed: int  # without an answer
    p50_ms: float  # of answers; by wrk, refusals count in both
    p99_ms: float
    refusal_p99_ms: float = 0.0  # not told by wrk

    @property
    def rate(self) -> float:
        """Requests answered with 200 a second."""
        return self.answered / self.seconds


def put(
    port: int, path: str, payload: Payload, connections: int, seconds: float, folder: Path, pause_ms: float = 0.0
) -> Outcome:
    """Loads a loopback server for a while.

    Args:
        connections: each sends its next request when it has its answer, after a pause.
    """
    if shutil.which("wrk") is None:
        return slowly(port, path, payload, connections, seconds, pause_ms)
    stem = folder / payload.name
    for i, body in enumerate(payload.bodies, 1):
        Path(f"{stem}.{i}").write_bytes(body)
    script = Path(f"{stem}.lua")
    pace = f"delay = function() return {round(pause_ms)} end" if pause_ms else ""
    script.write_text(_SCRIPT.format(kind=payload.kind, count=len(payload.bodies), stem=stem, pace=pace))
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "-s", str(script), f"http://127.0.0.1:{port}{path}"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    found = json.loads(re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)[-1])
    return Outcome(
        found["microseconds"] / 1e6,
        found["requests"] - found["refused"],
        found["refused"],
        found["failed"],
        found["p50"] / 1000,
        found["p99"] / 1000,
    )


def slowly(port: int, path: str, payload: Payload, connections: int, seconds: float, pause_ms: float = 0.0) -> Outcome:
    """The same by a client in Python, which takes more of the cores and times refusals apart."""
    return asyncio.run(_client(port, path, payload, connections, seconds, pause_ms / 1000))


async def _client(port: int, path: str, payload: Payload, connections: int, seconds: float, pause: float) -> Outcome:
    times: list[float] = []
    refusals: list[float] = []
    failed = 0
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {payload.kind}\r\nContent-Length: "
    requests = [f"{head}{len(b)}\r\n\r\n".encode() + b for b in payload.bodies]
    began = time.perf_counter()

    async def one(at: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - began < seconds:
            at += 1
            sent = time.perf_counter()
            try:
                writer.write(requests[at % len(requests)])
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
            except (OSError, asyncio.IncompleteReadError):
                failed += 1
                return
            answered = head.startswith(b"HTTP/1.1 200")
            (times if answered else refusals).append(time.perf_counter() - sent)
            if pause:
                await asyncio.sleep(pause)
        writer.close()

    await asyncio.gather(*(one(i) for i in range(connections)))
    p50, p99 = (1000 * float(q) for q in np.quantile(times or [0.0], (0.5, 0.99)))
    refusal = 1000 * float(np.quantile(refusals or [0.0], 0.99))
    return Outcome(time.perf_counter() - began, len(times), len(refusals), failed, p50, p99, refusal)
