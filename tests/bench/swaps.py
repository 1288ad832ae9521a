"""200 promotions under 64 connections, then SIGTERM under the same load: requests that failed.

    python -m tests.bench.swaps [--workers N] [--swaps N] [--connections N]

Two versions of a model take turns as champion, half of them by HTTP and half through the store, as the command line
does, while clients that keep their connections ask again as soon as they are answered. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_bundles import IMAGE, toy_bundle

BODY = bytes([100] * 16)
HEAD = (
    "POST /v1/models/toy/score HTTP/1.1\r\nHost: b\r\n"
    "Content-Type: application/octet-stream\r\nContent-Length: 16\r\n\r\n"
)


@dataclass
class Seen:
    """What the clients met."""

    answers: Counter[tuple[int, int]] = field(default_factory=Counter)  # status, version
    failed: list[str] = field(default_factory=list)  # requests without an answer
    seconds: list[float] = field(default_factory=list)
    stop: bool = False


async def client(port: int, seen: Seen) -> None:
    """Asks until told to stop, or until no connection is to be had any more."""
    request = HEAD.encode() + BODY
    while not seen.stop:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        closing = False
        while not seen.stop and not closing:
            began = time.perf_counter()
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = re.search(r"content-length: (\d+)", head)
                raw = await reader.readexactly(int(length[1]) if length else 0)
            except (OSError, asyncio.IncompleteReadError) as error:
                seen.failed.append(repr(error))
                return
            seen.seconds.append(time.perf_counter() - began)
            version = json.loads(raw).get("version", 0)
            seen.answers[int(head[9:12]), version] += 1
            closing = "connection: close" in head
        writer.close()


async def load(port: int, connections: int, swaps: int, registry: Registry, end: int) -> tuple[Seen, Seen]:
    """What clients met during the swaps, and during the end of the service."""
    seen = Seen()
    clients = [asyncio.create_task(client(port, seen)) for _ in range(connections)]
    for i in range(swaps):
        version = 2 - i % 2
        if i % 2:
            await asyncio.to_thread(registry.promote, "toy", version)
        else:
            await asyncio.to_thread(promote, port, version)
        await asyncio.sleep(0.02)
    seen.stop = True
    await asyncio.gather(*clients)
    leaving = Seen()
    clients = [asyncio.create_task(client(port, leaving)) for _ in range(connections)]
    await asyncio.sleep(1)
    os.kill(end, signal.SIGTERM)
    await asyncio.gather(*clients)
    return seen, leaving


def promote(port: int, version: int) -> None:
    """By HTTP."""
    made = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/toy/promote",
        json.dumps({"version": version}).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(made, timeout=30).read()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--connections", type=int, default=64)
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vaegis-swaps-") as name:
        home = Path(name) / "home"
        with Registry.open(Settings(home=home)) as registry:
            for doc in ("one", "two"):
                toy_bundle(Path(name) / doc, IMAGE, doc=doc)
                registry.add("toy", Path(name) / doc)
            command = [str(Path(sys.executable).with_name("vaegis")), "serve", "--port", "0", "--log-level", "warning"]
            environment = {**os.environ, "VAEGIS_HOME": str(home), "PYTHONUNBUFFERED": "1"}
            command += ["--workers", str(asked.workers)]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                port = int(re.findall(r":(\d+)", process.stdout.readline())[0])
                wait(port)
                seen, leaving = asyncio.run(load(port, asked.connections, asked.swaps, registry, process.pid))
                code = process.wait(60)
            finally:
                process.kill()
    found = {
        "swaps": asked.swaps,
        "connections": asked.connections,
        "workers": asked.workers,
        "requests": sum(seen.answers.values()),
        "versions": sorted({version for _, version in seen.answers}),
        "failed": len(seen.failed) + sum(n for (status, _), n in seen.answers.items() if status != 200),
        "p99_ms": round(1000 * float(np.quantile(seen.seconds, 0.99)), 2),
        "sigterm_requests": sum(leaving.answers.values()),
        "sigterm_failed": len(leaving.failed) + sum(n for (status, _), n in leaving.answers.items() if status != 200),
        "exit_code": code,
    }
    print(json.dumps(found))
    return 0


def wait(port: int) -> None:
    """Until the service is ready."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).read()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the service did not become ready within 15 s")


if __name__ == "__main__":
    raise SystemExit(main())
