"""The report as one page of HTML: no script, nothing fetched from anywhere, pictures within it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from vaegis.models.calibration import ALL
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec
from vaegis.training.report import charts, generated, likelihood, panels
from vaegis.training.report.contents import Report
from vaegis.training.report.facts import Facts
from vaegis.training.report.judgement import NOUNS, number, percent, verdict
from vaegis.training.report.measurements import Measurements, Shown, kl_per_unit
from vaegis.training.report.numbers import USUAL_ALPHA
from vaegis.training.report.style import CSS
from vaegis.training.report.trials import Trial, section

LEVELS = {"alarm": "Alarm", "warning": "Look first", "note": "Note"}


def page(facts: Facts, measurements: Measurements, report: Report, tried: Sequence[Trial]) -> bytes:
    """The whole page."""
    body = [
        f"<header><h1>{escape(facts.name)}</h1><p>What this model learned, how far to trust it, and the clean samples "
        f"to look at. Family {escape(facts.family)}; {escape(report.input['description'])}.</p></header>",
        _verdict(report),
        _strangest(facts, measurements, report),
        _samples(facts, measurements, report),
        _scores(facts, measurements, report),
        section(facts, tried, _own(report), _map_legend(facts.calibration.map_range)),
        _training(facts, report),
        _latent(facts, measurements, report),
        generated.section(facts.generation),
        likelihood.section(facts, report),
        _evidence(facts, report),
    ]
    title = f"{escape(facts.name)} – training report"
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head><body><main>\n" + "\n".join(b for b in body if b)
    )
    return (text + "\n</main></body></html>\n").encode()


def _verdict(report: Report) -> str:
    cautions = report.warnings
    level = cautions[0].level if cautions and cautions[0].level != "note" else "good"
    sentences = "".join(f"<p>{escape(s)}</p>" for s in verdict(report))
    items = "".join(
        f'<li class="{w.level}"><b>{LEVELS[w.level]}</b><span>{escape(w.text)}</span></li>' for w in cautions
    )
    notes = "".join(f'<li class="note"><b>Note</b><span>{escape(t)}</span></li>' for t in report.notes)
    head = {"alarm": "Do not use this model yet", "warning": "Usable, but look first", "good": "Ready to use"}[level]
    listed = f"<ul class=warned>{items}{notes}</ul>" if items or notes else ""
    return f'<section class="verdict {level}"><h2>{head}</h2>{sentences}{listed}</section>'


def _strangest(facts: Facts, measurements: Measurements, report: Report) -> str:
    singular, plural = NOUNS[facts.spec.kind]
    rows = []
    for i, s in enumerate(report.strangest):
        place = f"row {s.row}" if s.row is not None else f"{s.index}"
        cells = (
            f"{i + 1}",
            s.item,
            place,
            number(s.score),
            number(s.p_value, 2),
            charts.words(s.worst_term) + (" (low)" if s.worst_side == "low" else ""),
        )
        rows.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    calibrate = measurements.splits["calibrate"]
    shown, count = len(calibrate.chosen), calibrate.of
    part = "" if shown == count else f" (of {shown} of the {count}, evenly chosen)"
    apart = "Of windows that overlap only the strangest is listed. " if isinstance(facts.spec, SeriesSpec) else ""
    return (
        f"<section><h2>The strangest clean {plural}</h2><p><b>Look at these.</b> They were given as clean, and no "
        f"other calibration {singular} is stranger{part}. A defect among the clean data teaches the model that it is "
        "normal, and lifts the threshold above real defects: take defects out and fit again. Good product here only "
        "shows how far clean product reaches.</p>"
        "<div class=wide><table><thead><tr><th></th><th>item</th><th>index</th><th>score</th>"
        f"<th>p-value</th><th>least usual evidence</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p class=small>p-value: rank among the {count} calibration {plural}. {apart}Evidence "
        "marked low is unusually low, which the score does not charge. They are pictured next.</p></section>"
    )


def _samples(facts: Facts, measurements: Measurements, report: Report) -> str:
    shown = [*measurements.strangest, *measurements.typical]
    if not shown:
        return ""
    match facts.spec:
        case ImageSpec():
            inner = _images(facts, measurements, shown)
        case SeriesSpec():
            inner = _series(facts, measurements, shown, facts.spec)
        case VectorSpec():
            inner = _vectors(facts, measurements, shown, facts.spec)
    repeated = report.reconstruction
    share = (
        ""
        if repeated is None
        else "<p>The latent holds all of a sample, so a reconstruction repeats any, clean or not, and is not shown: "
        "what the model finds strange is in its evidence and its maps alone.</p>"
        if repeated.exact
        else f"<p>Over {repeated.samples} unseen {NOUNS[facts.spec.kind][1]} the reconstructions repeat "
        f"<b>{percent(repeated.explained)}</b> of what makes them differ; five principal components would repeat "
        f"{percent(repeated.linear)}. What is left should be noise.</p>"
    )
    title = "Originals, reconstructions and maps" if shown[0].rebuilt is not None else "Originals and maps"
    return f"<section><h2>{title}</h2>{share}{inner}</section>"


def _images(facts: Facts, measurements: Measurements, shown: Sequence[Shown]) -> str:
    assert isinstance(facts.spec, ImageSpec)
    spec, scale = facts.spec, facts.calibration.map_range
    display = panels.Display.of(spec, shown)
    rows = panels.image_rows(shown, display, scale)
    cut = len(measurements.strangest)
    rebuilt = shown[0].rebuilt is not None
    heads = ("original", "reconstruction", "difference", "map") if rebuilt else ("original", "map")
    caption = (
        "A good model repeats what clean product has in common and leaves out what is peculiar to one image: the "
        "reconstruction should look like a plain version of the original, and maps of clean images should stay dark. "
        if rebuilt
        else "Maps of clean images should stay dark. "
    )
    if spec.depth == 16:
        caption += (
            f"16-bit pixels are shown from {display.low:.0f} (black) to {display.high:.0f} (white), 0.1 % and 99.9 % "
            f"of these clean images' values, of {2**16 - 1}; the same for every picture. "
        )
    if spec.tile:
        caption += "Of each image the strangest tile is shown. "
    if spec.channels not in (1, 3):
        caption += f"Of {spec.channels} channels the first is shown. "
    legend = _map_legend(scale)
    if rebuilt:
        legend += (
            f'<div class=legend><span>difference</span><i style="background:{panels.css_blues()}"></i>'
            f"<span>0 … {display.difference:.3g} or more of {2**spec.depth - 1}</span></div>"
        )

    def cards(some: Iterable[tuple[Shown, list[bytes]]], strange: bool) -> str:
        pieces = []
        for i, (s, pictures) in enumerate(some):
            mark = f"<b>{i + 1}</b> " if strange else ""
            figures = "".join(
                f"<div>{charts.embedded(p, f'{h} of {facts.samples.items[s.sample]}')}<span>{h}</span></div>"
                for h, p in zip(heads, pictures, strict=True)
            )
            name = escape(facts.samples.items[s.sample])
            pieces.append(
                f"<figure class=card><div class=four>{figures}</div><figcaption>{mark}<span class=item>{name}</span> "
                f"score {number(s.score)}</figcaption></figure>"
            )
        return f"<div class=cards>{''.join(pieces)}</div>"

    return (
        f"<p>{caption}</p>{legend}<h3>The {cut} strangest</h3>{cards(zip(shown[:cut], rows[:cut], strict=True), True)}"
        f"<h3>Typical ones, by rising score</h3>{cards(zip(shown[cut:], rows[cut:], strict=True), False)}"
    )


def _series(facts: Facts, measurements: Measurements, shown: Sequence[Shown], spec: SeriesSpec) -> str:
    shown = [*measurements.strangest, *measurements.typical[1::2]]
    pictures, chosen = panels.series(shown, spec, facts.calibration.map_range)
    cut = len(measurements.strangest)
    some = ""
    if len(chosen) < len(spec.columns):
        some = f" Of {len(spec.columns)} channels the {len(chosen)} with the largest map values are shown."
    row = facts.samples.row
    follows = "A good reconstruction follows the course and not the noise. " if shown[0].rebuilt is not None else ""

    def cards(first: int, last: int) -> str:
        pieces = []
        for i in range(first, last):
            s = shown[i]
            at = f", from row {row[s.sample]}" if row is not None else f", window {s.sample}"
            mark = f"<b>{i + 1}</b> " if i < cut else ""
            pieces.append(
                _figure(
                    pictures[i],
                    f"{mark}{escape(facts.samples.items[s.sample])}{at}; score {number(s.score)}",
                    f"window {i + 1}",
                )
            )
        return f"<div class=charts>{''.join(pieces)}</div>"

    return (
        "<p>Each channel has one scale in all pictures, given at the left. The strip under a channel is its map. "
        f"{follows}Clean windows' strips should stay dark.{some}</p>{_map_legend(facts.calibration.map_range)}"
        f"<h3>The {cut} strangest</h3>{cards(0, cut)}"
        f"<h3>Typical ones, by rising score</h3>{cards(cut, len(shown))}"
    )


def _vectors(facts: Facts, measurements: Measurements, shown: Sequence[Shown], spec: VectorSpec) -> str:
    scale = facts.calibration.map_range
    top = max(float(s.map.max()) for s in shown)
    rows = []
    for i, s in enumerate(measurements.strangest):
        for j, c in enumerate(panels.worst_columns(s)):
            first = f"<td rowspan={min(5, len(s.map))}>{i + 1}</td>" if j == 0 else ""
            share = 100 * float(s.map[c]) / max(top, 1e-12)
            expected = number(float(s.rebuilt[c])) if s.rebuilt is not None else "–"
            value = "missing" if np.isnan(s.raw[c]) else number(float(s.raw[c]))
            rows.append(
                f"<tr{' class=first' if j == 0 else ''}>{first}<td>{escape(spec.columns[c])}</td><td>{value}</td>"
                f'<td>{expected}</td><td class=bar><i style="width:{share:.1f}%"></i>'
                f"<span>{float(s.map[c]):.3g}</span></td></tr>"
            )
    picture = panels.heat_table(shown, spec.columns, scale, len(measurements.strangest))
    return (
        "<p>The columns that make each of the strangest rows strange: the value, the one expected (its "
        "reconstruction), and the map (squared difference in units of clean variance; about 1 is usual).</p>"
        "<div class=wide><table class=bars><thead><tr><th></th><th>column</th><th>value</th><th>expected</th>"
        f"<th>map</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{_map_legend(scale)}"
        + _charts(
            _figure(
                picture,
                "Maps of the strangest rows above those of typical ones. A column that is bright in "
                "every row is one the model cannot predict.",
                "maps of rows",
            )
        )
    )


def _scores(facts: Facts, measurements: Measurements, report: Report) -> str:
    decision, splits = report.decision, measurements.splits
    alpha = decision.alpha
    lines = [(percent(alpha) if alpha else "threshold", decision.threshold)]
    if decision.threshold_5_percent is not None and alpha != USUAL_ALPHA:
        lines.append((percent(USUAL_ALPHA), decision.threshold_5_percent))
    by = decision.decide_by
    main = charts.histogram({s: v.values[by] for s, v in splits.items()}, charts.words(by), lines)
    terms = {t: {s: v.values[t] for s, v in splits.items()} for t in splits["calibrate"].values if t != "score"}
    pieces = _figure(
        main,
        "Scores of clean samples that the model never saw, and the thresholds for two false-alarm "
        "rates. Look for a second hump or lone bars at the right: another kind of product, or defects.",
        "score histogram",
    )
    if terms:
        pieces += _figure(
            charts.term_histograms(terms, {t: report.terms[t].threshold for t in terms}),
            "The evidence behind the score, each with the threshold it would have by itself. Fit far to "
            "the left of calibrate means learned by heart.",
            "evidence histograms",
            tall=True,
        )
    reference = facts.calibration.groups[ALL].terms["score"]
    p = reference.p_value(splits["validate"].values["score"])
    agree = report.agreement
    share = min(1.0, facts.split.effective / max(len(facts.split.calibrate), 1))
    independent = share * agree.validate * agree.calibrate / max(agree.validate + agree.calibrate, 1)
    pieces += _figure(
        charts.uniformity(p, independent),
        "p-values of the validate samples, which should lie along the "
        "dashed line, within the band. Above it, clean samples look too strange; below it, too plain. Not "
        "a clean test: these samples also decided when to stop and how to combine the evidence.",
        "p-values of validate",
    )
    return f"<section><h2>Scores and calibration</h2>{_charts(pieces)}</section>"


def _training(facts: Facts, report: Report) -> str:
    t = facts.training
    gate = t.gate
    known = {
        "family": facts.family,
        "arguments": ", ".join(f"{k} = {v}" for k, v in facts.arguments.items()) or "–",
        "optimiser steps": f"{_or_dash(t.steps)} (best at {_or_dash(t.best_step)}; stopped: {t.stopped})",
        "training time": "–" if t.seconds is None else f"{t.seconds:.0f} s",
        "parameters": "–" if t.parameters is None else f"{t.parameters:,}",
        "seed": _or_dash(t.seed),
        "samples": f"{report.samples.read} read, {report.samples.skipped} left out",
        "export gate": "–"
        if gate is None
        else f"graph against training code {gate.torch:.2g}, batch of one against many {gate.batch:.2g} of the "
        f"difference allowed ({gate.samples} samples)",
        "data digest": _or_dash(t.digest),
    }
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in known.items())
    table = f"<table class=facts><tbody>{rows}</tbody></table>"
    if not facts.history:
        return f"<section><h2>Training</h2><p>This family learns in one look, without steps.</p>{table}</section>"
    picture = charts.loss_curves(facts.history, t.best_step, t.stopped or "")
    pieces = _figure(
        picture,
        "Loss by optimiser step. Both curves should fall and then level out; validate rising while "
        "fit falls is learning by heart, which stopping at the best step undoes. At first the fit loss "
        "counts the KL term less than validate does.",
        "loss curves",
    )
    return f"<section><h2>Training</h2><div class=charts>{pieces}<div>{table}</div></div></section>"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _latent(facts: Facts, measurements: Measurements, report: Report) -> str:
    latent, latents = report.latent, measurements.latents
    if latent is None or latents is None:
        return ""
    numbers = [s.sample for s in measurements.strangest]
    state = (
        "The posterior has collapsed: the latent says nothing about a sample."
        if latent.collapsed
        else f"{latent.active} of {latent.size} units are active, {number(latent.kl, 3)} nats of KL in all: "
        "no posterior collapse."
    )
    pieces = _figure(
        charts.latent_map(latents, numbers, latent.explained),
        "Posterior means of clean samples on their first two principal axes. The three splits should mix; an island is "
        "a kind of product of its own, and bright points at the edge are rare clean product. Ringed: the strangest.",
        "latent map",
        tall=True,
    ) + _figure(
        charts.unit_bars(kl_per_unit(latents), [u.active for u in latent.units]),
        f"What each latent unit says about a sample. {state} Active units differ from "
        "sample to sample; that some clean product does not need stay inactive is as it should be.",
        "KL per latent unit",
    )
    if isinstance(facts.spec, ImageSpec) and measurements.generated is not None:
        display = panels.Display.of(facts.spec, [*measurements.strangest, *measurements.typical])
        if measurements.walk is not None:
            flat = measurements.walk.reshape(-1, *facts.spec.shape)
            pieces += _figure(
                panels.sheet(flat, measurements.walk.shape[1], display),
                f"A row each for the most active units ({', '.join(map(str, measurements.walked))}), decoded from "
                "-2.5 to 2.5 of their clean standard deviations: what the model knows to vary.",
                "walk along latent units",
                sharp=True,
            )
        pieces += _figure(
            panels.sheet(measurements.generated, 6, display),
            "Decoded from the prior: what the model takes for clean product. Blurred or mixed ones "
            "are usual for a VAE and no fault of its scores.",
            "samples from the prior",
            sharp=True,
        )
    return f"<section><h2>Latent space</h2>{_charts(pieces)}</section>"


def _evidence(facts: Facts, report: Report) -> str:
    rows = ""
    for name, meaning in facts.meaning.items():
        term = report.terms.get(name)
        median, threshold = (None, None) if term is None else (term.calibrate.median, term.threshold)
        rows += (
            f"<tr><th>{escape(charts.words(name))}</th><td>{escape(meaning)}</td><td>{number(median)}</td>"
            f"<td>{number(threshold)}</td></tr>"
        )
    return (
        "<section><h2>What the evidence means</h2><div class=wide><table class=meaning><thead><tr><th>evidence</th>"
        f"<th>meaning; higher is stranger</th><th>clean median</th><th>threshold</th></tr></thead><tbody>{rows}"
        "</tbody></table></div></section>"
    )


def _own(report: Report) -> str:
    """The rate or threshold that the model decides by unless told otherwise."""
    alpha = report.decision.alpha
    return f"a false-alarm rate of {percent(alpha)}" if alpha else f"a threshold of {number(report.decision.threshold)}"


def _map_legend(scale: tuple[float, float]) -> str:
    low, high = scale
    top = low + 3 * (high - low)
    return (
        f'<div class=legend><span>map</span><i style="background:{panels.css_gradient()}"><u></u></i><span>{low:.3g} '
        f"(clean median) … <b>|</b> {high:.3g} (99.9 % of clean) … {top:.3g} or more</span></div>"
    )


def _charts(inner: str) -> str:
    return f"<div class=charts>{inner}</div>"


def _figure(picture: bytes, caption: str, alt: str, sharp: bool = False, tall: bool = False) -> str:
    kind = " class=tall" if tall else ""
    return f"<figure{kind}>{charts.embedded(picture, alt, sharp)}<figcaption>{caption}</figcaption></figure>"
