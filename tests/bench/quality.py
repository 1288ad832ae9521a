"""Detection quality on every set, by its protocol, for any families and options.

    python -m tests.bench.quality --panel small --families vae --set latent=16

Each fit ends in one line of the results file; a fit that is there already, for the same code, is not repeated. What is
printed, and what `--tables` writes into docs/benchmarks.md, is made from those lines alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tests.bench import measure, pages, summary, tables
from tests.bench.results import DEFAULT, Results, Row, Wish, code_version
from tests.bench.sets import SETS, Arrays, data_folder, parts

from vaegis.models.families import FAMILIES
from vaegis.service.cli.options import arguments


def main(argv: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    root = data_folder()
    chosen = [s for s in _words(asked.sets, SETS, "--sets") if s not in asked.skip.split(",")]
    families = _words(asked.families, FAMILIES, "--families")
    present = [name for name in chosen if parts(name, root, "full")]
    if not present:
        print(f"There are no data sets at {root} (VAEGIS_DATA names another folder); nothing was measured.")
        print(json.dumps({}))
        return 0
    results = Results(asked.results)
    options = _options(asked)
    label = asked.option_set or (",".join(f"{k}={v}" for k, v in sorted(options.items())) or "defaults")
    seeds = [int(s) for s in asked.seed.split(",")]
    code = code_version()
    wishes = [
        Wish(name, part, family, options, asked.steps, seed)
        for name in present
        for family in families
        if SETS[name].kind in FAMILIES[family].kinds
        for seed in seeds
        for part in parts(name, root, asked.panel)
        if not asked.parts or part in asked.parts.split(",")
    ]
    missing = [] if asked.report else [w for w in wishes if results.find(w, None if asked.same_code else code) is None]
    print(f"{len(wishes)} fits wanted, {len(wishes) - len(missing)} in {results.path.name}, {len(missing)} to do")
    failed = fulfil(missing, results, root, code, label, asked.jobs, asked.device)
    rows = [r for w in wishes if (r := results.find(w, None if asked.same_code or asked.report else code))]
    print()
    print(summary.text(rows, root))
    if asked.tables:
        pages.write(_chosen(tables.sections(results.rows(), root), asked.tables))
        print("docs/benchmarks.md is written.")
    for line in failed:
        print(f"failed: {line}")
    print(json.dumps(summary.figures(rows)))
    return 1 if failed else 0


def fulfil(
    wishes: Sequence[Wish], results: Results, root: Path, code: str, label: str, jobs: int = 1, device: str = "auto"
) -> list[str]:
    """Measures every wish, adding rows as they come; sentences on those that failed."""
    failed, began = [], time.perf_counter()
    if jobs > 1:
        # Started afresh, because torch's threads do not survive a fork.
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _threads, (max(1, torch.get_num_threads() // jobs),))
        with pool:
            waiting = [pool.submit(attempt, wish, root, code, label, device) for wish in wishes]
            outcomes = (future.result() for future in waiting)
            for i, (row, evidence) in enumerate(outcomes, 1):
                failed += _take(row, evidence, results, i, len(wishes), began)
        return failed
    for i, wish in enumerate(wishes, 1):
        row, evidence = attempt(wish, root, code, label, device)
        failed += _take(row, evidence, results, i, len(wishes), began)
    return failed


def attempt(wish: Wish, root: Path, code: str, label: str, device: str) -> tuple[Row, Arrays | None]:
    """Measures, or makes the row of a failure: one part must not end a run of hours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure.measure(wish, root, code, label, device)
    except Exception as error:  # noqa: BLE001 - told at the end, and the exit status says so
        facts = {"set": wish.set, "part": wish.part, "family": wish.family, "options": dict(wish.options)}
        facts |= {"option_set": label, "asked_steps": wish.steps, "seed": wish.seed, "code": code}
        return {**facts, "error": f"{type(error).__name__}: {error}"}, None


def _take(row: Row, evidence: Arrays | None, results: Results, i: int, n: int, began: float) -> list[str]:
    results.add(row, evidence)
    left = (time.perf_counter() - began) / i * (n - i)
    head = f"[{i}/{n}, {left / 60:.0f} min left] {row['set']} {row['part']} {row['family']}"
    if "error" in row:
        print(f"{head}: {row['error']}", flush=True)
        return [f"{row['set']} {row['part']} {row['family']}: {row['error']}"]
    terms = "  ".join(f"{t} {100 * v:.1f}" for t, v in row["auroc"].items())
    print(f"{head}: {terms}  ({row['steps']} steps, fit {row['fit_s']:.1f} s, all {row['wall_s']:.1f} s)", flush=True)
    return []


def _threads(count: int) -> None:
    torch.set_num_threads(count)


def _options(asked: argparse.Namespace) -> dict[str, Any]:
    found = arguments(asked.set or (), asked.recipe)
    for key, value in arguments(asked.fit or (), None).items():
        if key not in measure.FIT_KEYS:
            sys.exit(f"--fit {key} is unknown; it may be {', '.join(measure.FIT_KEYS)}.")
        found[f"fit.{key}"] = value
    return found


def _words(text: str | None, known: Sequence[str] | dict[str, Any], option: str) -> list[str]:
    words = [w for w in (text or ",".join(known)).split(",") if w]
    if unknown := [w for w in words if w not in known]:
        sys.exit(f"{option} {', '.join(unknown)} is unknown; it may be {', '.join(known)}.")
    return words


def _chosen(sections: dict[str, str], wanted: str) -> dict[str, str]:
    """The sections that are to be written."""
    return sections if wanted == "all" else {name: sections[name] for name in _words(wanted, sections, "--tables")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sets", help=f"some of {','.join(SETS)}; else all")
    add("--skip", default="", help="sets to leave out")
    add("--parts", help="only these parts (Fashion classes, ADBench tables, SKAB files)")
    add("--panel", choices=("small", "full"), default="full", help="small: some parts of each set, for daily work")
    add("--families", help="some of the product's families; else all that take the set's kind of input")
    add("--set", action="append", metavar="KEY=VALUE", help="an argument of the family; repeatable")
    add("--recipe", type=Path, metavar="FILE.toml", help="the family's arguments from a file")
    add("--fit", action="append", metavar="KEY=VALUE", help=f"an option of `vaegis fit`: {', '.join(measure.FIT_KEYS)}")
    add("--option-set", metavar="NAME", help="what these options are called in the results")
    add("--steps", type=int, help="optimiser steps at most; else the family's recipe")
    add("--seed", default="0", help="one or several, with commas")
    add("--results", type=Path, default=DEFAULT, metavar="FILE.jsonl")
    add("--same-code", action="store_true", help="take results of any version of the code as done")
    add("--report", action="store_true", help="measure nothing; print what the results file holds")
    add(
        "--tables",
        nargs="?",
        const="all",
        metavar="SECTION,...",
        help="write the tables of docs/benchmarks.md, or some of them, from the results file",
    )
    add("--jobs", type=int, default=1, help="processes; more than 1 shares the cores, so times mean less")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
