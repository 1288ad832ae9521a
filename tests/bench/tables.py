"""The quality tables of docs/benchmarks.md, from results with the product's defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tests.bench import published, summary
from tests.bench.figures import RATES, SKAB_RATES, pooled
from tests.bench.results import Row
from tests.bench.sets import SETS, TEP_FAULTS, parts
from tests.bench.summary import grid, mean, peer, percent

NAMES = ("families", "quality", "fashion", "adbench", "tep", "skab", "alarms", "terms", "times", "made")
GEOTRANS = (99.4, 97.6, 91.1, 89.9, 92.1, 93.4, 83.3, 98.9, 90.8, 99.2)  # Fashion classes 0 to 9


def claimed(rows: Iterable[Row]) -> list[Row]:
    """What may be claimed: defaults, no bound on steps, whole sets, the latest of each fit."""
    latest: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        if row["set"] in SETS and not row["options"] and row["asked_steps"] is None and "error" not in row:
            latest[row["set"], row["part"], row["family"], row["seed"]] = row
    return list(latest.values())


def sections(rows: Iterable[Row], root: Path) -> dict[str, str]:
    """Section of the page -> its text."""
    own = claimed(rows)
    if not own:
        none = "Not measured yet: `make bench-quality`, then `python -m tests.bench.quality --report --tables`."
        return dict.fromkeys(NAMES, none)
    order = [f for f in ("vae", *sorted({r["family"] for r in own} - {"vae"})) if any(r["family"] == f for r in own)]
    return {
        "families": families(own, order, root),
        "quality": summary.overview(own, root, most=0) + "\n\n" + summary.others(own),
        "fashion": fashion(own, order, root),
        "adbench": adbench(own, order, root),
        "tep": tep(own, order),
        "skab": skab(own, order),
        "alarms": summary.alarms(own),
        "terms": summary.terms(own),
        "times": times(own),
        "made": made(own, root),
    }


def _of(rows: Iterable[Row], name: str, family: str, part: str | None = None) -> list[Row]:
    return [r for r in rows if r["set"] == name and r["family"] == family and part in (None, r["part"])]


def families(rows: Sequence[Row], names: Sequence[str], root: Path) -> str:
    """Every family on the small panel, peers below."""
    held = {name: parts(name, root, "small") for name in SETS}
    small = [r for r in rows if r["part"] in held[r["set"]]]
    sets = [name for name in SETS if name != "skab" and any(r["set"] == name for r in small)]
    lines = []
    for family in names:
        of = {name: _of(small, name, family) for name in SETS}
        whole = len({r["part"] for r in of["skab"]}) == len(held["skab"]) > 0
        counted = pooled(r["counts"] for r in of["skab"]) if whole else None
        skab = [f"{counted.f1:.3f}", percent(counted.far)] if counted else ["-", "-"]
        seconds = [r["fit_s"] for r in of["fashion"]]
        fit = f"{np.median(seconds):.0f}" if seconds else "-"
        lines.append([family, *(_whole(of[name], len(held[name])) for name in sets), *skab, fit])
    for method in summary.PEERS:
        known = [percent(summary.peer(root, name, held[name], method)) for name in sets]
        lines.append([f"PyOD {method}", *known, "-", "-", "-"])
    head = [f"{SETS[name].title}" + (f" ({len(held[name])})" if len(held[name]) > 1 else "") for name in sets]
    return grid(["AUROC %", *head, "SKAB F1", "SKAB FAR %", "training s"], lines)


def _whole(rows: Sequence[Row], wanted: int) -> str:
    """The mean over a set's parts; a dash where one is missing."""
    return percent(mean(rows)) if len({r["part"] for r in rows}) == wanted else "-"


def fashion(rows: Sequence[Row], families: Sequence[str], root: Path) -> str:
    """Class by class."""
    classes = [str(c) for c in range(10)]
    lines = []
    for family in families:
        own = _of(rows, "fashion", family)
        if own:
            each = [percent(mean([r for r in own if r["part"] == c])) for c in classes]
            lines.append([f"**{family}**", *each, percent(mean(own))])
    for method in summary.PEERS:
        if peer(root, "fashion", classes, method) is not None:
            each = [percent(peer(root, "fashion", [c], method)) for c in classes]
            lines.append([f"PyOD {method}", *each, percent(peer(root, "fashion", classes, method))])
    lines.append(["GeoTrans (published)", *GEOTRANS, "93.5"])
    return grid(["AUROC %", *classes, "mean"], lines)


def adbench(rows: Sequence[Row], families: Sequence[str], root: Path) -> str:
    """Table by table: AUROC of each family and peer; then the means of both figures."""
    shown = [f for f in families if _of(rows, "adbench", f)]
    done = sorted({r["part"] for r in rows if r["set"] == "adbench"}, key=lambda p: int(p.split("_")[0]))
    lines = []
    for part in done:
        own = [percent(mean(_of(rows, "adbench", f, part))) for f in shown]
        lines.append([part, *own, *(percent(peer(root, "adbench", [part], m)) for m in summary.PEERS)])
    for title, figure in (("mean AUROC", "auroc"), ("mean AP", "ap")):
        own = [percent(mean(_of(rows, "adbench", f), figure=figure)) for f in shown]
        lines.append([f"**{title}**", *own, *(percent(peer(root, "adbench", done, m, figure)) for m in summary.PEERS)])
    return grid(["AUROC %", *shown, *(f"PyOD {p}" for p in summary.PEERS)], lines)


def tep(rows: Sequence[Row], families: Sequence[str]) -> str:
    """Fault by fault: detection at oracle thresholds and at the honest one."""
    shown = {f: _of(rows, "tep", f)[-1] for f in families if _of(rows, "tep", f)}
    kinds = {"oracle_0.01": "1 %", "oracle_0.023": "2.3 %", "honest": "honest"}
    lines = []
    for fault in TEP_FAULTS:
        own = [percent(r["faults"]["detected"][str(fault)][k]) for r in shown.values() for k in kinds]
        lines.append([fault, *published.TEP[fault], *own])
    t2, spe = (float(np.mean([pair[i] for pair in published.TEP.values()])) for i in (0, 1))
    every = [np.mean([v[k] for v in r["faults"]["detected"].values()]) for r in shown.values() for k in kinds]
    lines.append(["**mean**", f"{t2:.1f}", f"{spe:.1f}", *(percent(v) for v in every)])
    alarms = [percent(r["faults"]["false_alarms"][k]) for r in shown.values() for k in kinds]
    lines.append(["false alarms on d00_te", "1.0", "1.0", *alarms])
    head = ["detected % of fault", "PCA T2", "PCA SPE", *(f"{f}, {v}" for f in shown for v in kinds.values())]
    return grid(head, lines)


def skab(rows: Sequence[Row], families: Sequence[str]) -> str:
    """The leaderboard with ours in it, then ours at other rates."""
    board = [(who, *figures) for who, figures in published.SKAB.items()]
    shown = [f for f in families if _of(rows, "skab", f)]
    for family in shown:
        own = pooled(r["counts"] for r in _of(rows, "skab", family))
        board.append((f"**{family}, its own rate**", own.f1, 100 * own.far, 100 * own.mar))
    ordered = sorted(board, key=lambda line: -line[1])
    first = grid(
        ["method", "F1", "FAR %", "MAR %"], [[w, f"{f:.2f}", f"{a:.1f}", f"{m:.1f}"] for w, f, a, m in ordered]
    )
    lines = []
    for family in shown:
        own = _of(rows, "skab", family)
        for rate in (f"{r:g}" for r in SKAB_RATES):
            total = pooled(r["by_rate"][rate] for r in own)
            used = sorted({r["by_rate"][rate]["used"] for r in own})
            given = f"{100 * used[0]:g}" + (f" to {100 * used[-1]:g}" if len(used) > 1 else "")
            cells = [f"{total.f1:.3f}", percent(total.far), percent(total.mar)]
            lines.append([family, f"{100 * float(rate):g}", given, *cells])
    return first + "\n\n" + grid(["family", "asked %", "used %", "F1", "FAR %", "MAR %"], lines)


def times(rows: Sequence[Row]) -> str:
    """Medians over parts: a fit's seconds, and a sample's milliseconds."""
    lines = []
    for name, family, some in summary.grouped(rows):

        def middle(key: str, some: Sequence[Row] = some) -> float:
            return float(np.median([r[key] for r in some]))

        load = max(r["machine"]["load"] for r in some)
        cells = [f"{middle('fit_s'):.1f}", f"{middle('wall_s'):.1f}", f"{middle('steps'):.0f}"]
        cells += [f"{middle('parameters'):,.0f}", f"{middle('score_ms'):.3f}", f"{load:.1f}"]
        lines.append([f"{name} {family}", *cells])
    head = ["set", "training s", "whole fit s", "steps", "parameters", "scoring ms a sample", "load at most"]
    return grid(head, lines)


def made(rows: Sequence[Row], root: Path) -> str:
    """What the figures were made with, and what is missing."""
    said = []
    versions = sorted({f"{k} {v}" for r in rows for k, v in r["versions"].items() if k != "vaegis"})
    machines = sorted({f"{r['machine']['cores']} cores ({r['machine']['device']})" for r in rows})
    said.append(f"Seeds {', '.join(map(str, sorted({r['seed'] for r in rows})))}; {', '.join(machines)}.")
    said.append(f"Made with {', '.join(versions)}.")
    codes = sorted({r["code"] for r in rows})
    mixed = " (a set measured with an older one is not measured again for every change)" if len(codes) > 1 else ""
    said.append(f"Sources of models and training: {', '.join(codes)}{mixed}.")
    for name, family, some in summary.grouped(rows):
        done, every = len({r["part"] for r in some}), len(parts(name, root, "full"))
        if done < every:
            said.append(f"**Only {done} of {every} parts of {name} are measured with {family}.**")
    asked = ", ".join(f"{100 * r:g} %" for r in RATES)
    said.append(f"False alarms are checked at {asked}; intervals are 99 % beta-binomial.")
    return "\n".join(f"- {line}" for line in said)
