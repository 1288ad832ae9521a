"""Which evidence terms a score should fuse, told without one test label.

    python -m tests.bench.choose --tables

Each part of the small panel is fitted as ever; its calibrate split, which the fit never saw, is the clean side, and
synthetic anomalies made of the same split (`vaegis.training.defects`) are the other. Every set of up to four terms is
fused as the product fuses (`vaegis.models.families.fusion`) and ranked by its mean AUROC over the defects, then over
the parts of a kind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tests.bench import pages
from tests.bench.measure import put, requested
from tests.bench.results import Wish
from tests.bench.sets import SETS, data_folder, parts, protocol

from vaegis.models import inputs, sources
from vaegis.models.blocks import parts_of
from vaegis.models.bundle import SCORE
from vaegis.models.families import FAMILIES, make
from vaegis.models.families.fusion import Form, Fusion
from vaegis.models.runtime.graph import Graph
from vaegis.training.defects import make_defects as anomalies
from vaegis.training.pipeline import run

SEED = 7
MOST = 400  # clean samples of a part that defects are made of
LARGEST = 4  # terms fused
# The others are fused as logarithms.
FORMS: dict[str, Form] = dict.fromkeys(("negative_elbo", "kl", "latent_density", "negative_log_likelihood"), "linear")
DEFAULT = Path(".vaegis/bench/choose.jsonl")

Terms = dict[str, NDArray[np.float64]]


def evidence(set_: str, part: str, root: Path, family: str, steps: int | None) -> tuple[list[str], dict[str, Terms]]:
    """The terms that a fit at defaults fuses; `clean` and each defect's name -> term -> values, through its graph."""
    data = protocol(set_).load(root, part)
    with tempfile.TemporaryDirectory(prefix="vaegis-bench-") as name:
        folder = Path(name)
        clean = put(data.clean, folder / "clean.npz")
        wish = Wish(set_, part, family, {}, steps, 0)
        made = run(requested(wish, data, clean, folder))
        spec = made.bundle.spec
        samples = inputs.load(sources.open_source(clean, data.reading), spec, folder)
        held = parts_of(samples, made.split.calibrate)
        held = held[np.linspace(0, len(held) - 1, min(len(held), MOST)).astype(np.int64)]
        x = samples.take(held)
        graph = Graph(made.bundle.read(SCORE), spec, "cpu")
        found = {}
        for label, batch in {"clean": x, **anomalies(spec.kind, x, SEED, spec.invariances)}.items():
            blocks = [graph.run(batch[i : i + 256]) for i in range(0, len(batch), 256)]
            found[label] = {t: np.concatenate([b[t] for b in blocks]).astype(np.float64) for t in graph.terms}
        chosen = make(FAMILIES, family, spec, {}).fusion.terms
        return list(chosen), found


def fused(found: Mapping[str, Terms], terms: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The score that these terms would give, fitted on the clean side."""
    fusion = Fusion({t: FORMS.get(t, "log") for t in terms})
    fusion.fit({t: torch.from_numpy(found["clean"][t]) for t in terms})
    return {
        label: fusion({t: torch.from_numpy(values[t]).float() for t in terms}).double().numpy()
        for label, values in found.items()
    }


def worth(found: Mapping[str, Terms], terms: Sequence[str]) -> dict[str, float]:
    """AUROC against each defect."""
    scores = fused(found, terms)
    clean = scores.pop("clean")
    return {
        label: float(roc_auc_score(np.repeat([0, 1], [len(clean), len(bad)]), np.concatenate([clean, bad])))
        for label, bad in scores.items()
    }


def ranked(parts_: Sequence[Mapping[str, Terms]]) -> list[tuple[float, tuple[str, ...]]]:
    """Mean AUROC over parts and defects, and the terms, best first."""
    terms = [t for t in parts_[0]["clean"] if t != "score"]
    sets = [c for n in range(1, LARGEST + 1) for c in itertools.combinations(terms, n)]
    means = [(float(np.mean([np.mean(list(worth(p, c).values())) for p in parts_])), c) for c in sets]
    return sorted(means, reverse=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.choose", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", default="fashion,elpv,tep,adbench,skab", help="with commas")
    parser.add_argument("--family", choices=FAMILIES, default="vae")
    parser.add_argument("--steps", type=int, help="optimiser steps at most; else the family's recipe")
    parser.add_argument("--results", type=Path, default=DEFAULT, metavar="FILE.jsonl")
    parser.add_argument("--tables", action="store_true", help="write the table of docs/benchmarks.md")
    asked = parser.parse_args(argv)
    root = data_folder()
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["set"], r["part"]): r for r in map(json.loads, _lines(asked.results)) if r["family"] == asked.family}
    for set_ in asked.sets.split(","):
        for part in parts(set_, root, "small"):
            if (set_, part) in done or SETS[set_].kind not in FAMILIES[asked.family].kinds:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                chosen, found = evidence(set_, part, root, asked.family, asked.steps)
            row = {"set": set_, "part": part, "kind": SETS[set_].kind, "family": asked.family, "fused": chosen}
            row["asked_steps"] = asked.steps
            row["evidence"] = {k: {t: v.tolist() for t, v in terms.items()} for k, terms in found.items()}
            done[set_, part] = row
            with asked.results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{set_} {part}: " + _told(worth(_arrays(row), chosen)), flush=True)
    text = table([{**r, "evidence": _arrays(r)} for r in done.values()])
    print(text)
    if asked.tables and asked.family == "vae":
        pages.write({"choice": text})
    return 0


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """The best few sets of terms per kind of input, and where the default stands."""
    out = ["| input | place | mean AUROC % | terms fused |", "|---|---:|---:|---|"]
    for kind in dict.fromkeys(str(r["kind"]) for r in rows):
        found = [r["evidence"] for r in rows if r["kind"] == kind]
        order = ranked(found)  # type: ignore[arg-type]
        default = next(set(r["fused"]) for r in rows if r["kind"] == kind)  # type: ignore[call-overload]
        for place, (mean, terms) in enumerate(order, 1):
            own = set(terms) == default
            if place <= 5 or own:
                named = ", ".join(terms) + (" **(default)**" if own else "")
                out.append(f"| {kind} ({len(found)} parts) | {place} of {len(order)} | {100 * mean:.1f} | {named} |")
    return "\n".join(out)


def _arrays(row: Mapping[str, object]) -> dict[str, Terms]:
    stored = row["evidence"]
    assert isinstance(stored, dict)
    return {label: {t: np.asarray(v) for t, v in terms.items()} for label, terms in stored.items()}


def _told(areas: Mapping[str, float]) -> str:
    return "  ".join(f"{k} {100 * v:.1f}" for k, v in areas.items())


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
