"""Serving: ours and the peers on the same graph, the same cores and the same JSON, in one run.

    python -m tests.bench.serving [--tables]

All servers are up at once, and idle while another is loaded; rounds go through all of them in changing order, so that
a noisy moment meets each alike, and a ratio is the median of the rounds' ratios. Ours answers verdicts, p-values and
evidence, and counts its metrics; the peers answer the graph's raw outputs. The load generator shares the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tests.bench import pages
from tests.bench.load import Outcome, Payload, put, slowly
from tests.bench.servers import BUILD, FRAMEWORKS, Server, installed, ours, peer
from tests.bench.summary import grid

SIDE, MANY = 28, 64  # pixels; images in a large request
SINGLES, BATCHES = 32, 8  # connections
QUEUE = 1024  # samples that may wait in the overload test
JSON, OCTETS = "application/json", "application/octet-stream"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serving, ours and others'.")
    parser.add_argument("--tables", action="store_true", help="Write the table into docs/benchmarks.md.")
    asked = parser.parse_args(argv)
    quick = bool(os.environ.get("VAEGIS_QUICK"))
    rounds, seconds = (1, 1.0) if quick else (4, 3.0)
    work = BUILD / "bench-serving"
    work.mkdir(parents=True, exist_ok=True)
    bundle = fitted(work)
    images = rings(np.random.default_rng(1), 16 * MANY)
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vaegis-serving-") as name, ExitStack() as stack:
        folder = Path(name)
        us = stack.enter_context(ours(bundle, folder / "home"))
        found |= alone(us)
        runtime = Bare(bundle / "score.onnx", images)
        found["bare_batch"], found["bare_calls"] = runtime.tune(0.2 if quick else 1.0)
        servers = {"vaegis": us}
        for one in ("fastapi", *FRAMEWORKS):
            if quick and not installed(one):
                left_out[one] = "not installed yet, and QUICK installs nothing"
                continue
            try:
                servers[one] = stack.enter_context(peer(one, bundle / "score.onnx", folder))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                left_out[one] = str(error)
        found |= compared(servers, images, folder, rounds, seconds)
        found |= binary(us, runtime, images, folder, rounds, seconds)
        found |= latency(us, runtime, images, folder, rounds, seconds)
        stack.pop_all().close()
        found |= overloaded(bundle, images, folder, seconds)
    if left_out:
        found["left_out"] = left_out
    text = table(found)
    print(text)
    if asked.tables:
        pages.write({"serving": text})
    for one, why in left_out.items():
        print(f"{one} is left out: {why}.")
    print(json.dumps(found))
    return 0


def fitted(work: Path) -> Path:
    """A small convolutional VAE on rings, made once: how well it is trained does not change how fast it is."""
    bundle = work / "bundle"
    if not bundle.exists():
        np.savez(work / "rings.npz", x=rings(np.random.default_rng(0), 1500))
        vaegis = str(Path(sys.executable).with_name("vaegis"))
        asked = ["--name", "bench", "--steps", "30", "--seed", "0", "--out", str(bundle)]
        subprocess.run([vaegis, "fit", str(work / "rings.npz"), *asked], check=True, stdout=subprocess.DEVNULL)
    return bundle


def rings(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 28, 28, 1) noisy rings of changing size and place."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    centre, radius = rng.uniform(9, 18, (n, 2, 1, 1)), rng.uniform(4, 8, (n, 1, 1))
    away = np.hypot(x - centre[:, 0], y - centre[:, 1]) - radius
    noisy = 200 * np.exp(-((away / 2) ** 2)) + 20 + rng.normal(0, 6, (n, SIDE, SIDE))
    return noisy.clip(0, 255).astype(np.uint8)[..., None]


def alone(us: Server) -> dict[str, Any]:
    """Start and memory, before any load."""
    time.sleep(1.0)
    return {"ready_s": round(us.ready_s, 2), "rss_idle_mib": round(us.resident_mib())}


class Bare:
    """onnxruntime with nothing around it."""

    def __init__(self, graph: Path, images: np.ndarray) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._names = [o.name for o in self._session.get_outputs() if o.name != "map"]
        self._images, self.batch, self.calls = images, 1, 1

    def tune(self, seconds: float) -> tuple[int, int]:
        """Takes the batch size, and the number of calls side by side, with the most images a second."""
        best = 0.0
        for calls in sorted({1, len(os.sched_getaffinity(0))}):
            for batch in (16, 32, 64, 128, 256):
                rate, _ = self._run(batch, calls, seconds)
                if rate > best:
                    best, self.batch, self.calls = rate, batch, calls
        return self.batch, self.calls

    def run(self, seconds: float) -> tuple[float, float]:
        """Images a second, and CPU seconds an image, as tuned."""
        return self._run(self.batch, self.calls, seconds)

    def times(self, seconds: float) -> np.ndarray:
        """Milliseconds of calls of one image, one after the other."""
        found, until = [], time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            self._session.run(self._names, {"input": self._images[:1]})
            found.append(time.perf_counter() - began)
        return 1000 * np.array(found)

    def _run(self, batch: int, calls: int, seconds: float) -> tuple[float, float]:
        images, done = self._images[:batch], [0] * calls
        until = time.perf_counter() + seconds

        def work(lane: int) -> None:
            while time.perf_counter() < until:
                self._session.run(self._names, {"input": images})
                done[lane] += batch

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(calls)]
        began, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done) / (time.perf_counter() - began), (time.process_time() - cpu) / sum(done)


def payload(server: str, kind: str, images: np.ndarray, each: int) -> Payload:
    """The images in requests of so many, in the form that a server reads: JSON has the same numbers for all."""
    groups = [images[i : i + each] for i in range(0, min(len(images), 16 * each), each)]
    if kind == OCTETS:
        return Payload(f"octets-{each}", kind, tuple(g.tobytes() for g in groups), each)
    bodies = []
    for group in groups:
        data = group[..., 0].tolist()
        tensor = {"name": "input", "shape": [len(data), SIDE, SIDE], "datatype": "UINT8", "data": data}
        body: dict[str, Any] = {"inputs": [tensor]} if server == "mlserver" else {"data": data}
        bodies.append(json.dumps(body, separators=(",", ":")).encode())
    return Payload(f"{server}-{each}", kind, tuple(bodies), each)


def compared(
    servers: dict[str, Server], images: np.ndarray, folder: Path, rounds: int, seconds: float
) -> dict[str, Any]:
    """JSON of one image and of 64, against every peer."""
    found: dict[str, Any] = {}
    for what, each, connections in (("single", 1, SINGLES), ("batch", MANY, BATCHES)):
        sent = {name: payload(name, JSON, images, each) for name in servers}
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for i in range(rounds + 1):
            for name in servers if i % 2 else reversed(servers):
                server = servers[name]
                got = put(server.port, server.path, sent[name], connections, seconds if i else 1.0, folder)
                _check(name, got)
                if i:  # the first round warms up
                    rates[name].append(got.rate)
        found[f"{what}_per_s"] = {name: round(statistics.median(r), 1) for name, r in rates.items()}
        over = {name: statistics.median(_ratios(rates["vaegis"], r)) for name, r in rates.items() if name != "vaegis"}
        frameworks = [ratio for name, ratio in over.items() if name in FRAMEWORKS]
        if "fastapi" in over:
            found[f"{what}_over_fastapi"] = round(over["fastapi"], 2)
        if frameworks:
            found[f"{what}_over_best_peer"] = round(min(frameworks), 2)
    return found


def binary(us: Server, runtime: Bare, images: np.ndarray, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Raw tensors of 64 images against the bare runtime, which has the cores to itself."""
    sent, shares, costs, rate = payload("vaegis", OCTETS, images, MANY), [], [], []
    for _ in range(rounds):
        bare_rate, bare_cost = runtime.run(seconds)
        before = us.cpu_s()
        got = put(us.port, us.path, sent, BATCHES, seconds, folder)
        _check("vaegis", got)
        shares.append(MANY * got.rate / bare_rate)
        costs.append((us.cpu_s() - before) / (MANY * got.answered) / bare_cost)
        rate.append(MANY * got.rate)
    return {
        "binary_images_per_s": round(statistics.median(rate)),
        "binary_share_of_bare": round(statistics.median(shares), 3),
        "cpu_per_image_over_bare": round(statistics.median(costs), 2),
    }


def latency(us: Server, runtime: Bare, images: np.ndarray, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """What a request of one image takes beyond the graph call, on one connection."""
    sent, p50, p99 = payload("vaegis", OCTETS, images, 1), [], []
    for _ in range(rounds):
        bare50, bare99 = np.quantile(runtime.times(seconds), (0.5, 0.99))
        got = put(us.port, us.path, sent, 1, seconds, folder)
        p50.append(got.p50_ms - bare50)
        p99.append(got.p99_ms - bare99)
    return {"added_ms_p50": round(statistics.median(p50), 3), "added_ms_p99": round(statistics.median(p99), 3)}


def overloaded(bundle: Path, images: np.ndarray, folder: Path, seconds: float) -> dict[str, Any]:
    """Three times as many images as can be scored: what is still answered, and what becomes of memory."""
    sent, one = payload("vaegis", OCTETS, images, MANY), payload("vaegis", OCTETS, images, 1)
    with ours(bundle, folder / "home", VAEGIS_QUEUE_SAMPLES=str(QUEUE)) as server:
        put(server.port, server.path, sent, BATCHES, 1.0, folder)
        peak, good, refused, asked, quick, memory = [], [], [], [], [], [server.resident_mib()]
        for _ in range(2):
            peak.append(put(server.port, server.path, sent, BATCHES, seconds, folder).rate)
            connections = 4 * QUEUE // MANY
            # For three times the peak: waiting for answers takes a part of the time.
            pause = 1000 * connections / (4.5 * peak[-1])
            with ThreadPoolExecutor(1) as beside:
                looking = beside.submit(slowly, server.port, server.path, one, 2, seconds, 20.0)
                got = put(server.port, server.path, sent, connections, seconds, folder, pause)
                quick.append(looking.result().refusal_p99_ms)
            good.append(got.rate)
            refused.append(got.refused / got.seconds)
            asked.append((good[-1] + refused[-1]) / peak[-1])
            memory.append(server.resident_mib())
    return {
        "overload_goodput": round(statistics.median(_ratios(good, peak)), 3),
        "overload_refused_per_s": round(statistics.median(refused)),
        "overload_refusal_ms_p99": round(statistics.median(quick), 1),
        "overload_asked_over_peak": round(statistics.median(asked), 1),
        "overload_memory_mib": [round(m) for m in memory],
    }


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _check(name: str, got: Outcome) -> None:
    if got.failed + got.refused > 0.01 * got.answered:  # a crowded machine may cost one
        raise RuntimeError(f"{name} answered {got.answered} requests, refused {got.refused} and failed {got.failed}.")


def table(found: dict[str, Any]) -> str:
    """The figures, and those asked for."""
    names = {name for what in ("single", "batch") for name in found[f"{what}_per_s"]}
    order = [n for n in ("vaegis", "fastapi", *FRAMEWORKS) if n in names]
    rows = [
        ["single images, JSON, 32 connections", "requests/s", _several(found["single_per_s"], order), ""],
        ["64 images a request, JSON, 8 connections", "requests/s", _several(found["batch_per_s"], order), ""],
    ]
    for key, what, unit, wanted in (
        ("single_over_fastapi", "single images over plain FastAPI", "times", ">= 1.5"),
        ("single_over_best_peer", "single images over the best framework", "times", ">= 2.5"),
        ("batch_over_fastapi", "64 images over plain FastAPI", "times", ""),
        ("batch_over_best_peer", "64 images over the best framework", "times", ">= 1"),
        ("binary_images_per_s", "64 images a request, raw tensors", "images/s", ""),
        ("binary_share_of_bare", "of bare onnxruntime", "share", ">= 0.65"),
        ("cpu_per_image_over_bare", "CPU time an image over bare onnxruntime", "times", "<= 1.2"),
        ("added_ms_p50", "added to one graph call, median", "ms", "<= 0.3"),
        ("added_ms_p99", "added to one graph call, 99 %", "ms", "<= 1.5"),
        ("rss_idle_mib", "resident, idle, one model", "MiB", "<= 200"),
        ("ready_s", "ready after", "s", "<= 2"),
        ("overload_goodput", "answered at three times capacity, of the peak", "share", ">= 0.95"),
        ("overload_refused_per_s", "refused meanwhile", "requests/s", ""),
        ("overload_refusal_ms_p99", "a refusal takes, 99 %", "ms", "< 10"),
        ("overload_memory_mib", "resident before, after, after", "MiB", "flat"),
        ("load", "load average before", "", ""),
    ):
        if key in found:
            rows.append([what, unit, str(found[key]), wanted])
    return grid(["", "unit", "found", "wanted"], rows)


def _several(rates: dict[str, float], order: Sequence[str]) -> str:
    return ", ".join(f"{name} {rates[name]:g}" for name in order)


if __name__ == "__main__":
    sys.exit(main())
