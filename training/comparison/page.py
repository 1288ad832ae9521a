"""Several families' figures and reconstructions side by side, as one page of HTML that fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from vaegis.models import spec as specs
from vaegis.models.bundle import ENCODER, SCORE
from vaegis.models.latent import Coder
from vaegis.models.runtime.graph import Graph
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec, VectorSpec
from vaegis.training.comparison.families import Entry, Examples, Figures
from vaegis.training.pipeline import FittedBundle
from vaegis.training.report import charts, panels
from vaegis.training.report.judgement import number, percent
from vaegis.training.report.measurements import Shown, rebuild
from vaegis.training.report.style import CSS

COLUMNS = (
    "family",
    "AUROC %",
    "found",
    "false",
    "bits",
    "repeats",
    "fit s",
    "steps",
    "ms",
    "MB",
)


def cells(entry: Entry) -> tuple[str, ...]:
    """One row of the table, as text; a dash where there is no such figure."""
    f = entry.figures
    if f is None:
        return (entry.name, *["–"] * (len(COLUMNS) - 1))
    return (
        entry.name,
        "–" if f.auroc is None else f"{100 * f.auroc:.1f}",
        "–" if f.detection_rate is None else percent(f.detection_rate),
        _alarms(f),
        "–" if f.bits is None else f"{f.bits:.3f}",
        "–" if f.repeated is None else percent(f.repeated),
        f"{f.seconds:.1f}",
        str(f.steps),
        f"{f.milliseconds:.3g}",
        f"{f.megabytes:.2f}",
    )


def _alarms(f: Figures) -> str:
    if f.false_alarms is not None:
        return percent(f.false_alarms)
    if f.expected is None:
        return "–"
    low, high = f.expected
    return f"{percent(low)} to {percent(high)}"


def page(name: str, spec: InputSpec, entries: Sequence[Entry], shown: Examples, tested: bool) -> bytes:
    """The whole page."""
    fitted = [e for e in entries if e.result is not None]
    rates = "".join({f" {percent(e.figures.alpha)} was asked for." for e in fitted if e.figures is not None})
    rows = "".join(
        f"<tr><th>{escape(e.name)}</th>" + "".join(f"<td>{escape(c)}</td>" for c in cells(e)[1:]) + "</tr>"
        for e in fitted
    )
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    alarms = (
        "Found and false are the shares flagged of anomalous and of clean test samples."
        if tested
        else "Without labelled samples, false is the long-run rate that the calibration warrants (99 %)."
    )
    left = "".join(
        f"<li class=note><b>{escape(e.name)}</b><span>{escape(e.why)}</span></li>" for e in entries if e.why is not None
    )
    body = [
        f"<header><h1>{escape(name)}: families compared</h1><p>{escape(specs.describe(spec))}. All were fitted on the "
        "same clean samples, split alike, within the same number of steps.</p></header>",
        f"<section><h2>Figures</h2><div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"</div><p class=small>AUROC is of the score, with labels alone. {alarms}{rates} Bits are per dimension of "
        "held-out clean samples, where the likelihood is exact: less is better. Repeats is the share of what makes "
        "clean samples differ that the reconstructions hold. Ms are milliseconds of one sample in batches of 64 on "
        f"this machine's CPU; MB are of all graphs.</p>{f'<ul class=warned>{left}</ul>' if left else ''}</section>",
        _pictures(spec, fitted, shown),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} – families compared</title><style>{CSS}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    ).encode()


def scored(result: FittedBundle, shown: Examples) -> list[Shown]:
    """What a model makes of the examples."""
    bundle, reconstruction = result.bundle, result.report.reconstruction
    out = Graph(bundle.read(SCORE), bundle.spec, "cpu").run(shown.parts, maps=True, conditions=shown.conditions)
    rebuilt: NDArray[np.float32] | None = None
    if ENCODER in bundle.manifest.files and not (reconstruction is not None and reconstruction.exact):
        rebuilt = rebuild(Coder(bundle, "cpu"), shown.parts, shown.conditions)
    return [
        Shown(
            sample=i,
            score=float(out["score"][i]),
            p_value=float("nan"),
            worst_term="score",
            worst_side="high",
            raw=shown.parts[i],
            rebuilt=rebuilt[i] if rebuilt is not None else None,
            map=out["map"][i],
        )
        for i in range(len(shown.parts))
    ]


def _pictures(spec: InputSpec, entries: Sequence[Entry], shown: Examples) -> str:
    parts = []
    display = None
    for entry in entries:
        assert entry.result is not None
        some, scale = scored(entry.result, shown), entry.result.bundle.calibration.map_range
        match spec:
            case ImageSpec():
                display = display or panels.Display.of(spec, some)
                inner = _images(some, panels.image_rows(some, display, scale), shown)
            case SeriesSpec():
                pictures, _ = panels.series(some[:3], spec, scale)
                inner = _figures(pictures, shown, some)
            case VectorSpec():
                picture = panels.heat_table(some, spec.columns, scale, 0)
                inner = _figures([picture], None, some)
        rebuilds = "" if some[0].rebuilt is not None else " <span class=small>no reconstruction to show</span>"
        parts.append(f"<h3>{escape(entry.name)}{rebuilds}</h3>{inner}")
    what = {
        "image": "Each sample as it is, what the family makes of it, the difference, and its map.",
        "series": "Windows as measured and as reconstructed; the strip under a channel is its map.",
        "vector": "Maps of the same rows, a column per column: where each family finds them strange.",
    }[spec.kind]
    scales = "Maps are on each family's own scale, from the median to the 99.9th percentile of clean ones."
    return f"<section><h2>The same samples, seen by each</h2><p>{what} {scales}</p>{''.join(parts)}</section>"


def _images(some: Sequence[Shown], rows: Sequence[Sequence[bytes]], shown: Examples) -> str:
    heads = ("original", "reconstruction", "difference", "map") if some[0].rebuilt is not None else ("original", "map")
    cards = []
    for s, pictures, name in zip(some, rows, shown.names, strict=True):
        inner = "".join(
            f"<div>{charts.embedded(p, f'{h} of {name}')}<span>{h}</span></div>"
            for h, p in zip(heads, pictures, strict=True)
        )
        cards.append(
            f"<figure class=card><div class=four>{inner}</div><figcaption><span class=item>{escape(name)}</span> score "
            f"{number(s.score)}</figcaption></figure>"
        )
    return f"<div class=cards>{''.join(cards)}</div>"


def _figures(pictures: Sequence[bytes], shown: Examples | None, some: Sequence[Shown]) -> str:
    cards = []
    for i, picture in enumerate(pictures):
        caption = (
            f"{shown.names[i]}; score {number(some[i].score)}"
            if shown is not None
            else "scores " + ", ".join(number(s.score) for s in some)
        )
        image = charts.embedded(picture, caption, sharp=False)
        cards.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    return f"<div class=charts>{''.join(cards)}</div>"
