"""The demo: two fits, a running service, real requests, verdicts against truth.

It only uses what a user has: the `vaegis` command, its files and HTTP.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from vaegis.models.errors import Refusal

CLEAN, STRANGE = (0, 1, 2, 3), (7, 8, 9)
FAULT = 900  # row at which the simulated flow meter begins to drift off
COLUMNS = ("speed", "pressure", "flow", "temperature")
READY_SECONDS = 60


def run(home: Path, models_only: bool) -> None:
    """Runs the demo in a home.

    Raises:
        Refusal: the service does not come up.
    """
    console = Console(highlight=False, soft_wrap=True)
    data = home / "demo"
    data.mkdir(parents=True, exist_ok=True)
    images, digits = _digits(data)
    live = _pumps(data)
    fits = {
        "digits": [data / "digits-clean.npz", "--name", "digits", "--steps", "1000"],
        "pump": [data / "pump-clean.csv", "--name", "pump", "--steps", "800", "--window", "32"],
    }
    known = {m["name"] for m in json.loads(_vaegis(home, "models", "list", "--json"))}
    for name, words in fits.items():
        if models_only and name in known:
            console.print(f"Model {name} is there already.")
            continue
        console.print(f"\n[bold]$ vaegis fit {' '.join(str(w) for w in words)}[/]")
        _vaegis(home, "fit", *words, show=True)
    if models_only:
        return
    with _service(home) as url:
        console.print(f"\n[bold]$ vaegis serve[/]   -> {url}")
        before = _metrics(url)
        _show_digits(console, url, images, digits)
        _show_pump(console, url, live)
        _show_metrics(console, before, _metrics(url))
    console.print("\nThe service stopped cleanly. Look at what the models learned:")
    for name in fits:
        shown = json.loads(_vaegis(home, "models", "show", name, "--json"))
        console.print(f"  {_report(home, shown)}")
    console.print(f"The demo's data and models stay in {home}; serve them again with: make serve")


def _digits(data: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real handwritten digits, 24x24: clean ones to learn from, and a labelled test of clean and unseen classes."""
    source = load_digits()
    images = np.kron((source.images * 15.9).astype(np.uint8), np.ones((1, 3, 3), np.uint8))
    rng = np.random.default_rng(0)
    good = rng.permutation(np.flatnonzero(np.isin(source.target, CLEAN)))
    bad = rng.permutation(np.flatnonzero(np.isin(source.target, STRANGE)))[:150]
    test = np.concatenate([good[560:], bad])
    np.savez(data / "digits-clean.npz", x=images[good[:560]])
    digits = source.target[test].astype(np.int64)
    np.savez(data / "digits-test.npz", x=images[test], y=np.isin(digits, STRANGE).astype(np.int64))
    return images[test], digits


def _pumps(data: Path) -> NDArray[np.float64]:
    """A simulated pump line: a clean run to learn from, and a live run whose flow meter drifts off."""
    _write(data / "pump-clean.csv", _pump(20_000, 1))
    live = _pump(1200, 2)
    drift = np.arange(1200 - FAULT)
    live[FAULT:, 2] *= 1 - 0.2 * np.minimum(drift / 100, 1)
    _write(data / "pump-live.csv", live)
    return live


def _pump(rows: int, seed: int) -> NDArray[np.float64]:
    """A pump that has run for a while: its temperature follows the speed of the last half minute."""
    rng = np.random.default_rng(seed)
    before = 30
    t = np.arange(-before, rows)
    speed = 50 + 5 * np.sin(t / 40) + rng.normal(0, 0.3, len(t))
    warmth = np.convolve(speed - 50, np.ones(before) / before, "valid")[1:]
    speed = speed[before:]
    pressure = 0.04 * speed**1.2 + rng.normal(0, 0.05, rows)
    flow = 0.6 * speed + rng.normal(0, 0.3, rows)
    return np.stack([speed, pressure, flow, 40 + warmth + rng.normal(0, 0.1, rows)], axis=1)


def _write(path: Path, rows: NDArray[np.float64]) -> None:
    start = np.datetime64("2026-01-01T00:00:00")
    lines = [",".join(["timestamp", *COLUMNS])]
    lines += [",".join([str(start + i), *(f"{v:.4f}" for v in row)]) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _vaegis(home: Path, *words: object, show: bool = False) -> str:
    """Runs the command; returns what it printed, unless that is shown as it comes.

    Raises:
        Refusal: it failed.
    """
    done = subprocess.run(
        _command(*words), env=_environment(home), stdout=None if show else subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise Refusal(f"`vaegis {words[0]}` ended with status {done.returncode}; see above. The demo stops here.")
    return done.stdout or ""


def _command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from vaegis.service.cli import main; main()", *map(str, words)]


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "VAEGIS_HOME": str(home)}


@contextmanager
def _service(home: Path) -> Iterator[str]:
    """The service in a process of its own on a free port, stopped by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = home / "demo" / "service.log"
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            _command("serve", "--port", port), env=_environment(home), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _await(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Refusal(f"The service ended at once; its log {log} says why.")
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise Refusal(f"The service was not ready after {READY_SECONDS} s; its log {log} says why.")


def _post(url: str, body: bytes, kind: str) -> dict[str, Any]:
    request = urllib.request.Request(url, data=body, method="POST", headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        reply: dict[str, Any] = json.load(answer)
    return reply


def _show_digits(console: Console, url: str, images: NDArray[np.uint8], digits: NDArray[np.int64]) -> None:
    body = io.BytesIO()
    np.save(body, images, allow_pickle=False)
    answer = _post(f"{url}/v1/models/digits/score?alpha=0.05", body.getvalue(), "application/x-npy")
    table = Table(
        title="\nDigits: 0 to 3 are certified clean, 7 to 9 were never seen (real data)", title_justify="left"
    )
    for column in ("digit", "truth", "verdict", "score", "p-value", "rec. error", "-ELBO"):
        table.add_column(column, justify="left" if column in ("truth", "verdict") else "right")
    for digit in (*CLEAN, *STRANGE):
        i = int(np.flatnonzero(digits == digit)[0])
        one = answer["results"][i]
        terms = one["evidence"]
        table.add_row(
            str(digit),
            "clean" if digit in CLEAN else "unseen",
            one["status"],
            f"{one['score']:.2f}",
            f"{one['p_value']:.3f}",
            f"{terms['reconstruction_error']['value']:.3f}",
            f"{terms['negative_elbo']['value']:.0f}",
        )
    console.print(table)
    strange = np.isin(digits, STRANGE)
    scores = np.array([r["score"] for r in answer["results"]])
    flagged = np.array([r["anomalous"] for r in answer["results"]])
    console.print(
        f"{len(scores)} images in one request: AUROC {100 * roc_auc_score(strange, scores):.1f} %; flagged "
        f"{flagged[strange].mean():.0%} of the unseen classes; false alarms {flagged[~strange].mean():.1%}, "
        "asked for 5 %"
    )


def _show_pump(console: Console, url: str, live: NDArray[np.float64]) -> None:
    body = json.dumps({"data": live.round(4).tolist(), "columns": list(COLUMNS)}).encode()
    answer = _post(f"{url}/v1/models/pump/score", body, "application/json")
    scores = np.array([r["score"] for r in answer["results"]])
    flagged = np.array([r["anomalous"] for r in answer["results"]])
    faulty = np.arange(len(scores)) >= FAULT
    console.print(
        f"\n[bold]Pump (simulated)[/]: the flow meter drifts off from row {FAULT} of {len(scores)}\n"
        f"AUROC {100 * roc_auc_score(faulty, scores):.1f} %; flagged {flagged[faulty].mean():.0%} of the faulty rows; "
        f"false alarms {flagged[~faulty].mean():.1%}, asked for {answer['alpha']:.1%}"
    )
    for event in answer["events"]:
        console.print(
            f"  event: rows {event['start']} to {event['end']}, peak score {event['peak_score']:.0f} at row "
            f"{event['peak']}, guilty channels: {', '.join(event['channels'][:2])}"
        )


def _metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("vaegis_"))
    return {name: float(value) for name, value in pairs}


def _show_metrics(console: Console, before: dict[str, float], after: dict[str, float]) -> None:
    console.print("\n[bold]Metrics that moved[/] (GET /metrics)")
    for name, value in after.items():
        if name.startswith("vaegis_samples_scored_total") and value != before.get(name, 0.0):
            console.print(f"  {name} {before.get(name, 0.0):.0f} -> {value:.0f}", markup=False)


def _report(home: Path, shown: dict[str, Any]) -> Path:
    """The champion's report, by the digest that `models show --json` gives."""
    newest = max(shown["versions"], key=lambda v: v["version"])
    return home / "bundles" / str(newest["digest"]) / "report" / "report.html"
