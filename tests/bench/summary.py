"""Rows -> one figure per set and family, beside what peers and published methods reach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench import figures as arithmetic
from tests.bench import published
from tests.bench.results import Row
from tests.bench.sets import SETS, data_folder, parts

PEERS = ("VAE", "AutoEncoder", "KNN", "GMM", "IForest", "DeepSVDD")  # of PyOD, those worth a column


def figures(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Set -> family -> AUROC, the mean over the set's parts; SKAB's is its pooled F1, beside `skab_far`."""
    found: dict[str, dict[str, float]] = {}
    for name, family, some in grouped(rows):
        if name == "skab":
            total = arithmetic.pooled(r["counts"] for r in some)
            found.setdefault("skab", {})[family] = round(total.f1, 4)
            found.setdefault("skab_far", {})[family] = round(total.far, 4)
        else:
            found.setdefault(name, {})[family] = round(mean(some), 4)
    return found


def grouped(rows: Iterable[Row]) -> list[tuple[str, str, list[Row]]]:
    """(set, family, rows), sets in their order."""
    held: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        held.setdefault((row["set"], row["family"]), []).append(row)
    order = {name: i for i, name in enumerate(SETS)}
    return sorted(((s, f, r) for (s, f), r in held.items()), key=lambda x: (order.get(x[0], 99), x[1]))


def mean(rows: Sequence[Row], term: str = "score", figure: str = "auroc") -> float:
    """Over the parts of a set, each part's seeds first averaged."""
    by_part: dict[str, list[float]] = {}
    for row in rows:
        if term in row[figure]:
            by_part.setdefault(row["part"], []).append(row[figure][term])
    return float(np.mean([np.mean(v) for v in by_part.values()])) if by_part else float("nan")


@cache
def _peers(root: Path) -> dict[str, dict[str, dict[str, float]]]:
    file = root / "peers.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def peer(root: Path, name: str, some: Iterable[str], method: str, figure: str = "auroc") -> float | None:
    """A peer's mean over the same parts, or None where it has none of them or lacks one."""
    held = [_peers(root).get(SETS[name].peer.format(part), {}).get(method, {}) for part in some]
    # Some peers failed on some sets and have an entry without figures.
    if not held or not all(h and figure in h for h in held):
        return None
    return float(np.mean([h[figure] for h in held]))


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def grid(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, its columns aligned so that it reads as plain text too."""
    table = [[str(c) for c in line] for line in (head, *lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    pad = []
    for line in table:
        cells = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        pad.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([pad[0], rule, *pad[1:]])


def overview(rows: Sequence[Row], root: Path, most: int = 2) -> str:
    """Sets down, families across, then what must be reached, peers on the same parts, and `most` published."""
    families = sorted({r["family"] for r in rows}, key=lambda f: (f != "vae", f))
    lines = []
    for name, chosen in SETS.items():
        mine = {family: some for s, family, some in grouped(rows) if s == name}
        if not mine:
            continue
        done = sorted({r["part"] for some in mine.values() for r in some})
        every = len(parts(name, root, "full"))
        title = chosen.title + (f" ({len(done)} of {every})" if len(done) < every else "")
        if name == "skab":
            pooled = {f: arithmetic.pooled(r["counts"] for r in some) for f, some in mine.items()}
            reach = f">= {chosen.reach}"
            peers = ["-"] * len(PEERS)
            best = "; ".join(f"{who} {f1:.2f}" for who, (f1, _, _) in list(published.SKAB.items())[:3])
            lines.append([title + ", F1", *(_f1(pooled.get(f)) for f in families), reach, *peers, best])
            for label, rate in (("FAR", "far"), ("MAR", "mar")):
                cells = [percent(getattr(pooled[f], rate)) if f in pooled else "-" for f in families]
                some = list(published.SKAB.values())[:3]
                rest = "; ".join(str(x[1 if rate == "far" else 2]) for x in some)
                lines.append([f"{title}, {label} %", *cells, "-", *peers, rest])
            lines.append(
                [f"{title}, AUROC of a file", *(_cell(mine.get(f), len(done)) for f in families), "-", *peers, "-"]
            )
            continue
        known = [percent(peer(root, name, done, method)) for method in PEERS]
        best = "; ".join(f"{who} {value}" for who, value in list(published.AUROC.get(name, {}).items())[:most])
        cells = [_cell(mine.get(f), len(done)) for f in families]
        lines.append([title, *cells, f">= {percent(chosen.reach)}", *known, best or "-"])
    head = ["AUROC %", *families, "must reach", *(f"PyOD {p}" for p in PEERS), "published"]
    return grid(head, lines) if most else grid(head[:-1], [line[:-1] for line in lines])


def others(rows: Sequence[Row]) -> str:
    """Published figures of the sets that were measured."""
    measured = {r["set"] for r in rows}
    chosen = {name: methods for name, methods in published.AUROC.items() if name in measured}
    return grid(
        ["published", "method", "AUROC %"],
        [[SETS[name].title, who, value] for name, methods in chosen.items() for who, value in methods.items()],
    )


def _cell(rows: Sequence[Row] | None, wanted: int) -> str:
    if not rows:
        return "-"
    done = len({r["part"] for r in rows})
    return percent(mean(rows)) + (f" ({done})" if done < wanted else "")


def _f1(total: arithmetic.Counts | None) -> str:
    return "-" if total is None else f"{total.f1:.3f}"


def terms(rows: Sequence[Row]) -> str:
    """AUROC of every evidence term, mean over parts: what the score is fused from, and what it loses or gains."""
    names: list[str] = []
    for row in rows:
        names += [t for t in row["auroc"] if t not in names]
    lines = [
        [f"{name} {family}", *(percent(mean(some, term)) for term in names)] for name, family, some in grouped(rows)
    ]
    return grid(["AUROC %", *names], lines)


def detail(rows: Sequence[Row], root: Path) -> str:
    """Part by part, beside the peers."""
    lines = []
    for name, family, some in grouped(rows):
        if len({r["part"] for r in some}) < 2:
            continue
        for row in some:
            peers = [percent(peer(root, name, [row["part"]], m)) if SETS[name].peer else "-" for m in PEERS]
            cells = [percent(row["auroc"].get("score")), percent(row["ap"].get("score"))]
            if name == "skab":
                total = arithmetic.pooled([row["counts"]])
                cells[1] = f"F1 {total.f1:.2f}"
            times = [f"{row['fit_s']:.1f}", f"{row['wall_s']:.1f}", row["steps"]]
            lines.append([f"{name} {row['part']} {family}", *cells, *peers, *times])
    if not lines:
        return ""
    return grid(["part", "AUROC", "AP", *(f"PyOD {p}" for p in PEERS), "fit s", "all s", "steps"], lines)


def alarms(rows: Sequence[Row]) -> str:
    """Realised false alarms against the asked rate, every set and family."""
    lines = []
    for name, family, some in grouped(rows):
        for rate in (f"{r:g}" for r in arithmetic.RATES):
            held = [r["false_alarms"][rate] for r in some if rate in r["false_alarms"]]
            if not held:
                continue
            judged = [h["inside"] for h in held if h["inside"] is not None]
            inside = f"{sum(judged)} of {len(judged)}" if judged else "-"
            low, high = min(h["realised"] for h in held), max(h["realised"] for h in held)
            pooled = sum(h["realised"] * h["clean"] for h in held) / sum(h["clean"] for h in held)
            why = SETS[name].not_exchangeable if name in SETS else ""
            span = f"{percent(low, 2)} to {percent(high, 2)}"
            lines.append([f"{name} {family}", f"{100 * float(rate):g}", percent(pooled, 2), span, inside, why or "-"])
    return grid(["set", "asked %", "realised %", "parts from, to", "inside 99 %", "not exchangeable because"], lines)


def text(rows: Sequence[Row], root: Path | None = None) -> str:
    """All of it, for a terminal."""
    if not rows:
        return "There are no results yet."
    root = root or data_folder()
    pieces = [overview(rows, root), terms(rows), detail(rows, root), alarms(rows)]
    return "\n\n".join(p for p in pieces if p)
