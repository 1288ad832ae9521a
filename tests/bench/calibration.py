"""The calibration study: whether p-values and false-alarm rates are what they say, on real clean data.

    python -m tests.bench.calibration --panel small

Fits what `tests.bench.quality` has not fitted yet (results and evidence are shared with it), then asks the calibration
of each bundle again and again, without refitting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench import measure, pages, quality, study
from tests.bench.figures import RATES
from tests.bench.results import DEFAULT, Results, Row, Wish, code_version
from tests.bench.sets import SETS, STUDIED, data_folder, parts, protocol
from tests.bench.summary import grid, percent

SIZES = (50, 200, 1000)  # clean calibration samples
CLAIMS = {200: (0.005, 0.002, 0.001, 0.0005), 1000: (0.001, 0.0005, 0.0002, 0.0001)}
POOL = 2000  # clean samples below which a tail of 0.1 % cannot be told from luck
ALIKE = 0.01  # two-sample KS probability below which calibration and test are called different
TWICE = (("adbench", "18_Ionosphere"), ("skab", "valve1/0"), ("fashion", "2"))  # fitted twice

Held = dict[str, Any]  # a row's part and its evidence


def main(argv: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    root = data_folder()
    names = [n for n in (asked.sets.split(",") if asked.sets else [*SETS, *STUDIED]) if parts(n, root, "full")]
    if not names:
        print(f"There are no data sets at {root} (VAEGIS_DATA names another folder); nothing was measured.")
        print(json.dumps({}))
        return 0
    results, code = Results(asked.results), code_version()
    wanted = None if asked.same_code else code
    wishes = [Wish(n, p, asked.family, {}, asked.steps, 0) for n in names for p in parts(n, root, asked.panel)]
    wishes = [w for w in wishes if not asked.parts or w.part in asked.parts.split(",")]
    failed = quality.fulfil([w for w in wishes if not _whole(results, w, wanted)], results, root, code, "defaults")
    held = [_held(results, row) for w in wishes if (row := results.find(w, wanted)) and results.evidence(row)]
    vectors = [h for h in held if protocol(h["set"]).kind != "series"]
    same, facts = identical(held, root, code, asked.steps) if not asked.once else ("", [])
    sections = {
        "uniform": uniform(vectors),
        "sizes": sizes(vectors, asked.repeats),
        "groups": groups(held),
        "tail": tail(vectors, asked.repeats),
        "repeat": same,
    }
    for name, text in sections.items():
        if text:
            print(f"\n{name}\n\n{text}")
    if asked.tables:
        pages.write({f"calibration-{name}": text for name, text in sections.items() if text})
        print("docs/benchmarks.md is written.")
    for line in failed:
        print(f"failed: {line}")
    alike = [h for h in vectors if h["uniformity"] is not None and not protocol(h["set"]).not_exchangeable]
    figures = {
        "parts": len(alike),
        "different": sum(h["uniformity"].p < ALIKE for h in alike),
        "inside": {f"{r:g}": _inside(alike, f"{r:g}") for r in RATES},
        "identical": all(f["digest"] and f["evidence"] and f["changed"] == 0 for f in facts) if facts else None,
    }
    print(json.dumps(figures))
    return 1 if failed else 0


def _whole(results: Results, wish: Wish, code: str | None) -> bool:
    row = results.find(wish, code)
    return row is not None and results.evidence(row) is not None


def _held(results: Results, row: Row) -> Held:
    found = results.evidence(row)
    assert found is not None
    score = found["test_score"].astype(np.float64)
    judged = np.isfinite(score)
    group = found["test_group"][judged].tolist() if "test_group" in found else None
    label, score, calibration = found["label"][judged], score[judged], found["clean_score"].astype(np.float64)
    clean = score[label == 0]
    return {
        "set": row["set"],
        "part": row["part"],
        "row": row,
        "found": found,
        "score": score,
        "label": label,
        "group": group,
        "calibration": calibration,
        "clean": clean,
        "groups": {k[6:]: v.astype(np.float64) for k, v in found.items() if k.startswith("group_")},
        "uniformity": study.uniformity(calibration, clean) if len(clean) > 1 else None,
    }


def _inside(held: Sequence[Held], rate: str) -> list[int]:
    """[how many parts lie inside the interval, of how many]."""
    judged = [h["row"]["false_alarms"][rate]["inside"] for h in held if rate in h["row"]["false_alarms"]]
    known = [j for j in judged if j is not None]
    return [sum(known), len(known)]


def uniform(held: Sequence[Held]) -> str:
    """Whether the p-values of clean test samples are uniform, and the realised rates, part by part."""
    lines = []
    for h in held:
        if h["uniformity"] is None:
            continue
        one, alarms = h["uniformity"], h["row"]["false_alarms"]
        cells = [len(h["calibration"]), len(h["clean"]), f"{one.distance:.3f}", f"{one.p:.3f}"]
        for rate in (f"{r:g}" for r in RATES):
            law = alarms.get(rate, {}).get("interval")
            cells.append(percent(alarms[rate]["realised"], 2) if rate in alarms else "refused")
            cells.append(f"{100 * law[0]:.1f}-{100 * law[1]:.1f}" if law else "-")
        why = protocol(h["set"]).not_exchangeable
        lines.append([f"{h['set']} {h['part']}", *cells, why or "-"])
    alarms_head = [t for r in RATES for t in (f"at {100 * r:g} %", "99 % interval")]
    head = ["part", "calibrated on", "clean test", "KS distance", "KS p", *alarms_head, "not exchangeable because"]
    return grid(head, lines)


def sizes(held: Sequence[Held], repeats: int) -> str:
    """Realised false alarms with few clean samples; the mean over a set's parts."""
    lines = []
    for name in dict.fromkeys(h["set"] for h in held):
        for n in SIZES:
            some = [h for h in held if h["set"] == name and len(h["calibration"]) >= n and len(h["clean"]) > 1]
            for rate in RATES if some else ():
                kept = [study.realised(h["calibration"], h["clean"], n, rate, repeats) for h in some]
                if any(k.refused for k in kept):
                    lines.append([name, len(some), n, f"{100 * rate:g}", "refused", *["-"] * 4])
                    continue
                means = [float(np.mean([getattr(k, key) for k in kept])) for key in ("mean", "low", "high")]
                inside = [k.inside for k in kept if k.inside is not None]
                expected = kept[0].expected
                law = "extrapolated" if expected is None else percent(expected, 2)
                cells = [percent(means[0], 2), f"{100 * means[1]:.1f}-{100 * means[2]:.1f}", law]
                share = percent(float(np.mean(inside))) if inside else "-"
                lines.append([name, len(some), n, f"{100 * rate:g}", *cells, share])
    head = ["set", "parts", "clean samples", "asked %", "realised % (mean)", "90 % of draws", "by law %", "inside %"]
    return grid(head, [line[:8] for line in lines])


def tail(held: Sequence[Held], repeats: int) -> str:
    """What the tail claims beyond the clean samples, against thousands of held-out ones."""
    lines = []
    alike = [h for h in held if h["uniformity"] is not None and h["uniformity"].p >= ALIKE and not h["groups"]]
    usable = [h for h in alike if not protocol(h["set"]).not_exchangeable]
    pools = [(h, np.concatenate([h["calibration"], h["clean"]])) for h in usable]
    for name in dict.fromkeys(h["set"] for h, pool in pools if len(pool) >= POOL):
        large = [pool for h, pool in pools if h["set"] == name and len(pool) >= POOL]
        for n, claims in CLAIMS.items():
            found = [study.tail(pool, n, claims, repeats) for pool in large]
            for claim in claims:
                rates = [np.array(f[claim]) for f in found if claim in f]
                if not rates:
                    continue
                every = np.concatenate(rates)
                beyond = claim * (n + 1) < 1 - 1e-9
                cells = [f"{100 * claim:g}", percent(float(every.mean()), 3), f"{every.mean() / claim:.2f}"]
                spread = "-".join(f"{100 * q:.2f}" for q in np.quantile(every, [0.05, 0.95]))
                judged = sum(len(pool) - n for pool in large)
                lines.append([name, len(rates), n, judged, *cells, spread, "tail" if beyond else "ranks"])
    head = ["set", "parts", "calibrated on", "judged", "claimed %", "realised %", "ratio", "90 % of draws", "by"]
    return grid(head, lines) if lines else "No set here has enough clean samples that look alike."


def groups(held: Sequence[Held]) -> str:
    """One threshold for all against one per group."""
    lines = []
    for h in held:
        if not h["groups"] or h["group"] is None:
            continue
        for rate in RATES:
            for one in study.by_group(h["groups"], h["score"], h["group"], h["label"], rate):
                law = one["interval"]
                span = f"{100 * law[0]:.1f}-{100 * law[1]:.1f}" if law else "-"
                cells = [one["calibrated_on"], one["clean"], f"{100 * rate:g}", percent(one["shared"], 2)]
                cells += [percent(one["own"], 2), span, percent(one["found_shared"]), percent(one["found_own"])]
                lines.append([f"{h['set']}, {one['group']}", *cells])
    if not lines:
        return ""
    head = ["group", "calibrated on", "clean test", "asked %", "false alarms %, shared", "its own", "99 % interval"]
    return grid([*head, "found %, shared", "its own"], lines)


def identical(held: Sequence[Held], root: Path, code: str, steps: int | None) -> tuple[str, list[dict[str, Any]]]:
    """The same fit once more: its digest, every evidence value and every decision."""
    facts = []
    for name, part in TWICE:
        first = next((h for h in held if (h["set"], h["part"]) == (name, part)), None)
        if first is None or first["row"]["code"] != code:
            continue
        row, again = measure.measure(Wish(name, part, first["row"]["family"], {}, steps, 0), root, code, "defaults")
        values = [k for k in again if k.startswith(("test_", "clean_")) and k != "test_group"]
        facts.append(
            {
                "part": f"{name} {part}",
                "digest": row["digest"] == first["row"]["digest"],
                "evidence": all(np.array_equal(again[k], first["found"][k], equal_nan=True) for k in values),
                "changed": abs(row["counts"]["hit"] - first["row"]["counts"]["hit"])
                + abs(row["counts"]["false"] - first["row"]["counts"]["false"]),
            }
        )
    words = {True: "yes", False: "no"}
    lines = [[f["part"], words[f["digest"]], words[f["evidence"]], f["changed"]] for f in facts]
    head = ["fitted and scored twice", "same digest", "evidence equal bit for bit", "decisions changed"]
    return (grid(head, lines) if lines else ""), facts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.calibration", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sets", help=f"some of {','.join([*SETS, *STUDIED])}; else all")
    add("--parts", help="only these parts")
    add("--panel", choices=("small", "full"), default="full")
    add("--family", default="vae")
    add("--steps", type=int, help="optimiser steps at most; else the family's recipe")
    add("--repeats", type=int, default=200, help="draws of the calibration samples")
    add("--results", type=Path, default=DEFAULT, metavar="FILE.jsonl")
    add("--same-code", action="store_true", help="take results of any version of the code as done")
    add("--once", action="store_true", help="do not fit anything twice")
    add("--tables", action="store_true", help="write the study's tables into docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
