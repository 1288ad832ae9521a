"""Speed and memory: a fit, scoring against the bare runtime, and memory over a million vectors.

    python -m tests.bench.speed

Times depend on the machine and on what else it does: ratios of interleaved runs are what to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tests.bench import measure, pages
from tests.bench.results import Wish
from tests.bench.sets import data_folder, parts, protocol
from tests.bench.summary import grid

from vaegis.models import inputs, sources
from vaegis.models.blocks import plain
from vaegis.models.bundle import SCORE, open_bundle
from vaegis.models.calibration import decide
from vaegis.models.outputs.score_file import ScoreFile
from vaegis.models.scorer import Scorer
from vaegis.models.sources import SourceOptions
from vaegis.training.pipeline import run
from vaegis.training.request import FitOptions, Request

BATCH = 64
COLUMNS = 32


def main(argv: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    quick = bool(os.environ.get("VAEGIS_QUICK"))
    found: dict[str, Any] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory(prefix="vaegis-speed-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        bundle = folder / "fashion" / "bundle"
        found |= fit(folder / "fashion", asked.family, asked.steps or (100 if quick else None))
        if bundle.exists():
            found |= scoring(bundle, 200 if quick else asked.rounds)
        found |= memory(folder / "vectors", asked.family, asked.vectors or (100_000 if quick else 1_000_000))
    text = table(found)
    print(text)
    if asked.tables:
        pages.write({"speed": text})
        print("docs/benchmarks.md is written.")
    print(json.dumps(found))
    return 0


def fit(folder: Path, family: str, steps: int | None) -> dict[str, Any]:
    """Fits Fashion class 0 as `vaegis fit` does, and PyOD's VAE on the same images where it is installed."""
    root = data_folder()
    if not parts("fashion", root, "full"):
        print(f"There is no Fashion-MNIST at {root}: neither fit nor batch scoring is timed.")
        return {}
    folder.mkdir()
    data = protocol("fashion").load(root, "0")
    clean = measure.put(data.clean, folder / "clean.npz")
    wish = Wish("fashion", "0", family, {}, steps, 0)
    began = time.perf_counter()
    made = run(measure.requested(wish, data, clean, folder))
    found = {
        "fit_s": round(time.perf_counter() - began, 2),
        "training_s": round(made.fit.seconds, 2),
        "steps": made.fit.steps,
    }
    if find_spec("pyod") is None:
        print("PyOD is not installed, so its VAE is not timed beside ours.")
        return found
    from pyod.models.vae import VAE  # type: ignore[import-not-found]

    assert isinstance(data.clean, dict)
    flat = data.clean["x"].reshape(len(data.clean["x"]), -1).astype(np.float32) / 255
    began = time.perf_counter()
    VAE(verbose=0).fit(flat)
    found["pyod_fit_s"] = round(time.perf_counter() - began, 2)
    found["fit_over_pyod"] = round(found["fit_s"] / found["pyod_fit_s"], 2)
    return found


def scoring(folder: Path, rounds: int) -> dict[str, Any]:
    """A batch of 64 images through the product and through the bare runtime, by turns."""
    bundle = open_bundle(folder)
    scorer = Scorer(bundle, "cpu")
    decision = decide(bundle.calibration, bundle.manifest.alpha)
    session = ort.InferenceSession(bundle.read(SCORE), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *bundle.spec.shape), dtype=np.uint8)
    block, names = plain(images), scorer.terms

    def product() -> None:
        scorer.verdicts(block, decision)

    def bare() -> None:
        session.run(names, {"input": images})

    def graph() -> None:
        scorer.graph.run(images)

    times = interleaved({"product": product, "graph": graph, "bare": bare}, rounds)
    ours, within, theirs = (float(np.median(times[k])) for k in ("product", "graph", "bare"))
    return {
        "batch_ms": round(1000 * ours, 3),
        "graph_batch_ms": round(1000 * within, 3),  # of which the session, with the product's settings
        "bare_batch_ms": round(1000 * theirs, 3),
        "share_of_bare": round(theirs / ours, 3),
    }


def interleaved(what: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, all by turns and in changing order, so that a noisy moment meets each alike."""
    names = list(what)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + rounds // 10):
        for name in names if i % 2 else reversed(names):
            began = time.perf_counter()
            what[name]()
            if i >= rounds // 10:
                times[name].append(time.perf_counter() - began)
    return times


def memory(folder: Path, family: str, vectors: int) -> dict[str, Any]:
    """Anonymous memory, block by block, while an .npz of vectors is scored into a score file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(folder / "clean.npz", x=rng.normal(size=(2000, COLUMNS)).astype(np.float32))
    reading = SourceOptions(kind="vector")
    out = folder / "bundle"
    run(Request(folder / "clean.npz", "bench", out, folder, family, reading=reading, options=FitOptions(steps=50)))
    np.savez(folder / "large.npz", x=rng.normal(size=(vectors, COLUMNS)).astype(np.float32))
    bundle = open_bundle(out)
    scorer, decision = Scorer(bundle, "cpu"), decide(bundle.calibration, bundle.manifest.alpha)
    seen, began = [], time.perf_counter()
    with ScoreFile(folder / "scores.parquet", scorer.terms) as file:
        for block in inputs.blocks(sources.open_source(folder / "large.npz", reading), bundle.spec):
            file.write(scorer.verdicts(block, decision))
            seen.append(anonymous())
    seconds = time.perf_counter() - began
    warm = seen[len(seen) // 10 :]
    return {
        "vectors": vectors,
        "vectors_mib": round(vectors * COLUMNS * 4 / 2**20),
        "vectors_a_second": round(vectors / seconds),
        "rss_anon_min_mib": round(min(warm) / 2**20, 1),
        "rss_anon_max_mib": round(max(warm) / 2**20, 1),
        "rss_anon_end_mib": round(seen[-1] / 2**20, 1),
    }


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def table(found: dict[str, Any]) -> str:
    """The figures, with what must be reached."""
    lines = []
    if "fit_s" in found:
        lines.append(["fit of one Fashion class, whole, s", found["fit_s"], "< 48 (alibi-detect)"])
        lines.append([f"training alone, {found['steps']} steps, s", found["training_s"], "-"])
    if "pyod_fit_s" in found:
        lines.append(["PyOD VAE in the same run, s", found["pyod_fit_s"], "-"])
        lines.append(["fit over PyOD VAE", found["fit_over_pyod"], "<= 3"])
    if "share_of_bare" in found:
        lines.append([f"batch of {BATCH}, 28x28, ms", found["batch_ms"], "-"])
        lines.append(["of which the graph, ms", found["graph_batch_ms"], "-"])
        lines.append(["bare onnxruntime, same graph, ms", found["bare_batch_ms"], "-"])
        lines.append(["share of bare onnxruntime", found["share_of_bare"], ">= 0.9"])
    size = f"{found['vectors']:,} vectors ({found['vectors_mib']} MiB)"
    span = f"{found['rss_anon_min_mib']} to {found['rss_anon_max_mib']}"
    lines.append([f"anonymous memory over {size}, MiB", span, "flat"])
    lines.append(["vectors a second, into a score file", f"{found['vectors_a_second']:,}", "-"])
    lines.append(["cores; load average before", f"{found['cores']}; {found['load']}", "-"])
    return grid(["what", "measured", "must reach"], lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.speed", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--family", default="vae")
    add("--steps", type=int, help="optimiser steps of the fit; else the family's recipe")
    add("--rounds", type=int, default=1000, help="batches scored each way")
    add("--vectors", type=int, help="else 1,000,000 (100,000 where VAEGIS_QUICK is set)")
    add("--tables", action="store_true", help="write the table into docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
