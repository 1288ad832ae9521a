"""Scoring on a GPU: images a second and latency of one image against what else runs the same network.

    python -m tests.bench.gpu            on a machine with a GPU (onnxruntime with CUDA, torch with CUDA): some minutes
    python -m tests.bench.gpu --dry      anywhere: a few steps on the CPU, to see that it runs

For 28, 128 and 256 pixels, in single and in half precision: the product (verdicts from arrays in memory), bare
onnxruntime on CUDA and torch.compile of the same fitted network, on one card by turns; the share of the card's measured
arithmetic and memory ceilings; and whether decisions are those of the CPU's single precision, as the export gate asks.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from tests.bench.summary import grid
from torch.utils.flop_counter import FlopCounterMode

from vaegis.models import inputs
from vaegis.models.blocks import plain
from vaegis.models.bundle import SCORE, Bundle, open_bundle
from vaegis.models.calibration import decide
from vaegis.models.derived.half import half_bundle
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Family
from vaegis.models.runtime.sessions import Cuda
from vaegis.models.scorer import Scorer
from vaegis.models.sources import SourceOptions, open_source
from vaegis.training.export import TOLERANCE, ScoreGraph
from vaegis.training.pipeline import run
from vaegis.training.request import FitOptions, Request

SIZES = (28, 128, 256)
BATCHES = (1, 16, 64, 256, 1024)
VALUES = 2**25  # of one batch at most
HEAD = (
    "pixels",
    "precision",
    "batch",
    "product",
    "bare",
    "compiled",
    "p99 ms",
    "bare p99 ms",
    "flops",
    "memory",
    "flips",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="a few steps on the CPU")
    parser.add_argument("--rounds", type=int, default=100, help="timed calls of each batch size")
    asked = parser.parse_args(argv)
    if not asked.dry and not torch.cuda.is_available():
        print("There is no GPU that torch can use here; --dry shows that the benchmark runs.")
        return 1
    device = "cpu" if asked.dry else "cuda"
    found: dict[str, Any] = {"device": device, **ceilings(device)}
    rows = []
    with tempfile.TemporaryDirectory(prefix="vaegis-gpu-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in SIZES[:1] if asked.dry else SIZES:
            rows += measured(Path(folder) / str(size), size, device, 3 if asked.dry else asked.rounds, found)
    table = [[f"{v:.3g}" if isinstance(v, float) else v for v in (row.get(h, "-") for h in HEAD)] for row in rows]
    print(grid(HEAD, table))
    print(json.dumps({**found, "rows": rows}))
    return 0


def measured(folder: Path, size: int, device: str, rounds: int, ceiling: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each precision of one image size."""
    folder.mkdir()
    dry = device == "cpu"
    np.savez(folder / "clean.npz", x=images(400, size))
    options = FitOptions(steps=5 if dry else 200)
    made = run(Request(folder / "clean.npz", "gpu", folder / "full", folder, options=options))
    fresh = images(400, size, seed=1)
    bundles = {"single": made.bundle}
    try:
        np.savez(folder / "fresh.npz", x=fresh)
        samples = inputs.load(open_source(folder / "fresh.npz", SourceOptions()), made.bundle.spec, folder / "samples")
        bundles["half"] = half_bundle(made.bundle, samples, folder / "half", "cpu" if dry else "cuda")[0]
    except Refusal as refusal:
        print(f"{size} pixels: {refusal}")
    family = made.fit.family
    work, traffic = costs(family, size)
    return [
        {
            "pixels": size,
            "precision": precision,
            **speed(open_bundle(bundle.path), family, precision, device, rounds, work, traffic, ceiling),
            **decisions(bundle, fresh, device),
        }
        for precision, bundle in bundles.items()
    ]


def speed(
    bundle: Bundle,
    family: Family,
    precision: str,
    device: str,
    rounds: int,
    work: float,
    traffic: float,
    ceiling: dict[str, Any],
) -> dict[str, Any]:
    """Images a second at the product's best batch, and the slowest hundredth of single images."""
    scorer = Scorer(bundle, "cpu" if device == "cpu" else "cuda", spin=False, cuda=Cuda(graphs=True))
    decision = decide(bundle.calibration, bundle.manifest.alpha)
    providers = ["CPUExecutionProvider"] if device == "cpu" else [("CUDAExecutionProvider", {"use_tf32": "0"})]
    session = ort.InferenceSession(bundle.read(SCORE), providers=providers)
    # On the CPU the compiler needs a C++ toolchain and says nothing about a GPU.
    network = torch.compile(ScoreGraph(family).to(device), backend="eager" if device == "cpu" else "inductor")
    kind = torch.float16 if precision == "half" else None

    def compiled(x: np.ndarray) -> None:
        with torch.no_grad(), torch.autocast(device, kind or torch.bfloat16, enabled=kind is not None):
            network(torch.from_numpy(x).to(device))[0].cpu()

    runs: dict[str, Callable[[np.ndarray], object]] = {
        "product": lambda x: scorer.verdicts(plain(x), decision),
        "bare": lambda x: session.run(scorer.terms, {"input": x}),
        "compiled": compiled,
    }
    size = bundle.spec.shape[0]
    best: dict[str, float] = {}
    batch = 1
    for n in [b for b in BATCHES if b * size * size <= VALUES][: 2 if device == "cpu" else None]:
        seconds = timed(runs, images(n, size, seed=2), rounds)
        rates = {name: n / float(np.median(s)) for name, s in seconds.items()}
        if rates["product"] > best.get("product", 0.0):
            batch = n
        best = {name: max(rate, best.get(name, 0.0)) for name, rate in rates.items()}
        if n == 1:
            slow = {name: 1000 * float(np.quantile(s, 0.99)) for name, s in seconds.items()}
    arithmetic = ceiling["half_flops" if precision == "half" else "single_flops"]
    return {
        "batch": batch,
        **best,
        "p99 ms": slow["product"],
        "bare p99 ms": slow["bare"],
        "compiled p99 ms": slow["compiled"],
        "flops": best["product"] * work / arithmetic,
        "memory": best["product"] * traffic / ceiling["bytes_a_second"],
    }


def timed(runs: dict[str, Callable[[np.ndarray], object]], x: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, by turns, after three that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name, one in runs.items():
            began = time.perf_counter()
            one(x)
            if i >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def decisions(bundle: Bundle, x: np.ndarray, device: str) -> dict[str, int]:
    """Decisions that differ from those of the same graph on the CPU, for samples that the export gate would not allow
    to: further from the threshold than its tolerance."""
    decision = decide(bundle.calibration, bundle.manifest.alpha)
    here = Scorer(bundle, "cpu" if device == "cpu" else "cuda", cuda=Cuda(graphs=True)).verdicts(plain(x), decision)
    there = Scorer(bundle, "cpu").verdicts(plain(x), decision)
    score = there.evidence["score"]
    spread = float(np.subtract(*np.percentile(score, [75, 25])))
    far = np.abs(score - decision.threshold) > TOLERANCE * np.maximum(np.abs(score), spread)
    return {"flips": int(((here.anomalous != there.anomalous) & far).sum())}


def costs(family: Family, size: int) -> tuple[float, float]:
    """Of one image: floating-point operations, and bytes that must at least move (what each layer writes)."""
    written = 0

    def note(module: torch.nn.Module, given: object, out: object) -> None:
        nonlocal written
        if isinstance(out, torch.Tensor):
            written += out.numel() * out.element_size()

    hooks = [m.register_forward_hook(note) for m in family.modules() if not list(m.children())]
    graph = ScoreGraph(family).to("cpu")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph(torch.from_numpy(images(1, size)))
    for hook in hooks:
        hook.remove()
    return float(counter.get_total_flops()), float(2 * written)


def ceilings(device: str) -> dict[str, float]:
    """What the device reaches on a large product and a large copy: the shares are of these, not of a data sheet."""
    n, copied = (256, 2**22) if device == "cpu" else (8192, 2**30)
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {}
    for name, kind in (("single_flops", torch.float32), ("half_flops", torch.float16)):
        a = torch.rand(n, n, device=device, dtype=kind)
        found[name] = 2 * n**3 / _seconds(lambda a=a: a @ a, device)
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    found["bytes_a_second"] = 2 * copied / _seconds(source.clone, device)
    return found


def _seconds(work: Callable[[], object], device: str) -> float:
    best = float("inf")
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def images(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Clean product: smooth waves with a little noise, (n, size, size, 1)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    phase = rng.uniform(0, 1, (n, 2, 1, 1))
    waves = np.sin(6 * (x + phase[:, 0])) + np.cos(6 * (y + phase[:, 1]))
    return np.clip(128 + 50 * waves + rng.normal(0, 4, (n, size, size)), 0, 255).astype(np.uint8)[..., None]


if __name__ == "__main__":
    raise SystemExit(main())
