"""What slow clients do to quick ones: `python -m tests.bench.slow_clients`.

Starts `vaegis serve` with a small model, measures single requests, then again while idle slow clients hold connections
open (half a head, or a head and a piece of the body), and prints the ratio of the 99th percentiles. The two are
measured in turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n"
    "Connection: keep-alive\r\n\r\n"
)


async def asked(port: int, path: str, body: bytes, count: int, connections: int) -> np.ndarray:
    """Seconds of each of `count` requests over kept-open connections, one at a time on each.

    Raises:
        RuntimeError: one was not answered 200.
    """
    request = HEAD.format(path=path, length=len(body)).encode() + body
    times: list[float] = []

    async def client(share: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(share):
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:"))
            await reader.readexactly(length)
            times.append(time.perf_counter() - began)
            if b" 200 " not in head[:16]:
                raise RuntimeError(head[:200].decode())
        writer.close()

    await asyncio.gather(*(client(count // connections) for _ in range(connections)))
    return np.array(times)


@contextlib.contextmanager
def slow(port: int, path: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections whose request is not whole: half of them within the head, half within the body."""
    head = HEAD.format(path=path, length=100_000).encode()
    with contextlib.ExitStack() as stack:
        held = []
        for i in range(count):
            wire = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            wire.sendall(head[:40] if i % 2 else head + bytes(100))
            held.append(wire)
        yield held


def left(held: list[socket.socket]) -> int:
    """How many of the connections the service has not cut off yet."""
    count = 0
    for wire in held:
        wire.setblocking(False)
        try:
            wire.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def measure(port: int, path: str, body: bytes, clients: int, rounds: int, count: int) -> dict[str, float]:
    """Quick requests alone and beside slow clients, round by round."""
    quiet, beside, stayed = [], [], []
    asyncio.run(asked(port, path, body, count // 4, 4))  # warms up
    for _ in range(rounds):
        quiet.append(asyncio.run(asked(port, path, body, count, 4)))
        with slow(port, path, clients) as held:
            beside.append(asyncio.run(asked(port, path, body, count, 4)))
            stayed.append(left(held))
    ratios = [np.percentile(b, 99) / np.percentile(q, 99) for q, b in zip(quiet, beside, strict=True)]
    alone, together = np.concatenate(quiet) * 1000, np.concatenate(beside) * 1000
    return {
        "slow_clients": clients,
        "slow_still_open": int(np.median(stayed)),
        "requests": len(together),
        "p50_ms_alone": round(float(np.median(alone)), 3),
        "p50_ms_beside": round(float(np.median(together)), 3),
        "p99_ms_alone": round(float(np.percentile(alone, 99)), 3),
        "p99_ms_beside": round(float(np.percentile(together, 99)), 3),
        "p99_ratio": round(float(np.median(ratios)), 3),
    }


@contextlib.contextmanager
def served(home: Path, bundle: Path) -> Iterator[int]:
    """`vaegis serve` with one model named bench; its port."""
    vaegis = Path(sys.executable).parent / "vaegis"
    env = {**os.environ, "VAEGIS_HOME": str(home), "VAEGIS_LOG_LEVEL": "error"}
    imported = [vaegis, "models", "import", bundle, "--name", "bench"]
    subprocess.run(imported, env=env, check=True, stdout=subprocess.DEVNULL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen([vaegis, "serve", "--port", str(port)], env=env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
                wire.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in wire.recv(100):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("vaegis serve did not become ready")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """Prints the figures, last of all as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of a model that takes images")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    spec = json.loads((given.bundle / "manifest.json").read_text())["spec"]
    body = bytes([100]) * (spec["height"] * spec["width"] * spec["channels"] * spec.get("depth", 8) // 8)
    with tempfile.TemporaryDirectory() as home, served(Path(home), given.bundle) as port:
        found = measure(port, "/v1/models/bench/score", body, given.clients, given.rounds, given.requests)
    for name, value in found.items():
        print(f"{name:18} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
