"""What a fresh model would find: synthetic defects, made of clean samples that it never saw, through the shipped graph.

They are no substitute for real defects, which a line has its own kinds of; but they are there on the first day, and a
model that finds none of them finds little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import conditions_of, parts_of
from vaegis.models.bundle import SCORE
from vaegis.models.runtime.graph import Graph
from vaegis.models.spec import ImageSpec
from vaegis.training.defects import DEFECTS, make_defects
from vaegis.training.report import charts, panels
from vaegis.training.report.facts import Facts
from vaegis.training.report.measurements import VALUES_OTHERS, Floats, Shown, evenly

SEED = 11
MOST, LEAST = 200, 20  # clean parts that defects are made of
STEP = 256


@dataclass(frozen=True)
class Trial:
    """One kind of defect."""

    name: str
    says: str  # what was done to a clean sample
    samples: int
    detection_rate: float  # share above the model's own threshold
    auroc: float  # of the deciding term against the same samples without the defect
    example: Shown  # the one of middling score


def trials(facts: Facts) -> tuple[Trial, ...]:
    """Of every kind, least found first; none where too few clean parts are complete."""
    number = len(DEFECTS[facts.spec.kind])
    most = min(MOST, max(LEAST, int(VALUES_OTHERS / (np.prod(facts.spec.shape) * number))))
    chosen = evenly(parts_of(facts.samples, facts.split.calibrate), most)
    clean = facts.samples.take(chosen)
    if clean.dtype.kind == "f":
        whole = np.isfinite(clean.reshape(len(clean), -1)).all(1)
        clean, chosen = clean[whole], chosen[whole]
    conditions = conditions_of(facts.samples, chosen)
    if len(clean) < LEAST:
        return ()
    graph, by = Graph(facts.graphs[SCORE], facts.spec, "cpu"), facts.decision.decide_by
    usual = _run(graph, clean, by, conditions)
    results = []
    for name, raw in make_defects(facts.spec.kind, clean, SEED, facts.spec.invariances).items():
        raw = _within(raw, clean, facts.roi)
        values = _run(graph, raw, by, conditions)
        share = float((values > facts.decision.threshold).mean())
        middle = int(np.argsort(values, kind="stable")[len(values) // 2])
        says = DEFECTS[facts.spec.kind][name].says
        example = _shown(graph, raw, middle, values, conditions)
        results.append(Trial(name, says, len(raw), share, area(usual, values), example))
    return tuple(sorted(results, key=lambda t: (t.detection_rate, t.auroc)))


def area(clean: Floats, anomalies: Floats) -> float:
    """AUROC: the share of pairs in which the anomaly is the stranger one, ties by half (Mann and Whitney)."""
    below = np.searchsorted(np.sort(clean), anomalies, side="left")
    upto = np.searchsorted(np.sort(clean), anomalies, side="right")
    return float((below + upto).mean() / (2 * len(clean)))


def section(facts: Facts, results: Sequence[Trial], own: str, legend: str) -> str:
    """For the page. `own` names the model's rate or threshold; `legend` explains the maps."""
    if not results:
        return ""
    rows = "".join(
        f"<tr><td>{escape(t.name)}</td><td>{escape(t.says)}</td>"
        f'<td class=bar><i style="width:{65 * t.detection_rate:.1f}%"></i>'
        f"<span>{100 * t.detection_rate:.0f} %</span></td>"
        f"<td>{100 * t.auroc:.1f}</td></tr>"
        for t in results
    )
    pictures = _pictures(facts, results) if isinstance(facts.spec, ImageSpec) else ""
    return (
        f"<section><h2>What it would find</h2><p>Synthetic defects, made of {results[0].samples} clean samples that "
        f"the model never saw, and the share it flags at {escape(own)}. Real defects differ: read it as what kind of "
        "change this model hardly sees, and evaluate it on labelled defects as soon as some are at hand (<code>vaegis "
        "evaluate</code>).</p><div class=wide><table class=bars><thead><tr><th>defect</th><th>what was done</th>"
        f"<th>found</th><th>AUROC %</th></tr></thead><tbody>{rows}</tbody></table></div>"
        + (f"{legend}{pictures}" if pictures else "")
        + "</section>"
    )


def _pictures(facts: Facts, results: Sequence[Trial]) -> str:
    shown = [t.example for t in results]
    spec = facts.spec
    assert isinstance(spec, ImageSpec)
    rows = panels.image_rows(shown, panels.Display.of(spec, shown), facts.calibration.map_range)
    cards = "".join(
        "<figure class=card><div class=four>"
        + "".join(
            f"<div>{charts.embedded(p, f'{h} of {t.name}')}<span>{h}</span></div>"
            for h, p in zip(("defect", "map"), pictures, strict=True)
        )
        + f"</div><figcaption><b>{escape(t.name)}</b>, one of middling score</figcaption></figure>"
        for t, pictures in zip(results, rows, strict=True)
    )
    return f"<div class='cards small-cards'>{cards}</div>"


def _run(graph: Graph, raw: NDArray[Any], term: str, conditions: NDArray[np.int64] | None) -> Floats:
    runs = []
    for i in range(0, len(raw), STEP):
        some = conditions[i : i + STEP] if conditions is not None else None
        runs.append(graph.run(raw[i : i + STEP], conditions=some)[term].astype(np.float64))
    return np.concatenate(runs)


def _within(raw: NDArray[Any], clean: NDArray[Any], roi: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The defects inside the region of interest only: outside it nothing is ever looked at."""
    if roi is None or roi.shape != raw.shape[1:3]:
        return raw
    return np.where(roi[None, :, :, None], raw, clean)


def _shown(graph: Graph, raw: NDArray[Any], at: int, values: Floats, conditions: NDArray[np.int64] | None) -> Shown:
    own = conditions[at : at + 1] if conditions is not None else None
    heat = graph.run(raw[at : at + 1], maps=True, conditions=own)["map"][0]
    return Shown(at, float(values[at]), 1.0, "", "high", raw[at], None, heat)
