"""What scoring costs with each family, as a ratio to the VAE: one batch of 64 28x28 images through each score graph.

    python -m tests.bench.costs

Weights do not change the cost, so no family is fitted: each is started on random pixels and exported.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from tests.bench import pages
from tests.bench.speed import BATCH, interleaved
from tests.bench.summary import grid

from vaegis.models.families import FAMILIES, Batch, make
from vaegis.models.spec import ImageSpec
from vaegis.training.export import export

MOST = {"diffusion": 20, "autoregressive": 20, "flow": 10}  # times the VAE's cost
GIVEN: dict[str, dict[str, Any]] = {"mixture": {"components": 3}}  # where the data would choose
THREADS = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.costs", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="batches scored with each family")
    parser.add_argument("--tables", action="store_true", help="write the table into docs/benchmarks.md")
    asked = parser.parse_args(argv)
    found = costs(asked.rounds)
    text = table(found)
    print(text)
    if asked.tables:
        pages.write({"costs": text})
        print("docs/benchmarks.md is written.")
    print(json.dumps({name: round(one["ratio"], 2) for name, one in found.items()}))
    return 0


def costs(rounds: int) -> dict[str, dict[str, float]]:
    """Family -> milliseconds of a batch, their ratio to the VAE's, and the graph's size in MB."""
    spec = ImageSpec(28, 28, 1)
    x = np.random.default_rng(0).integers(0, 256, (BATCH, *spec.shape)).astype(np.uint8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    calls, size = {}, {}
    for name in FAMILIES:
        torch.manual_seed(0)
        family = make(FAMILIES, name, spec, GIVEN.get(name, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family.start(lambda: iter([Batch(torch.from_numpy(x))]))
            family.eval()
            family.finish(lambda: iter([Batch(torch.from_numpy(x))]))
            raw = export(family)["score.onnx"]
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        outputs = [o.name for o in session.get_outputs() if o.name != "map"]
        calls[name], size[name] = partial(session.run, outputs, {"input": x}), len(raw) / 1e6
    middle = {name: float(np.median(seconds)) for name, seconds in interleaved(calls, rounds).items()}
    return {
        name: {"milliseconds": 1000 * seconds, "ratio": seconds / middle["vae"], "megabytes": size[name]}
        for name, seconds in middle.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures, with what is allowed."""
    return grid(
        ["family", f"ms a batch of {BATCH}", "times the VAE", "at most", "score.onnx MB"],
        [
            [name, f"{v['milliseconds']:.1f}", f"{v['ratio']:.2f}", MOST.get(name, "-"), f"{v['megabytes']:.2f}"]
            for name, v in found.items()
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
