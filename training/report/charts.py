"""The charts of a report, each one PNG.

Drawn with matplotlib's objects, never its global state. All share one width, so that a page may lay them side by side,
and letters large enough to be read on a phone.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

from vaegis.models.outputs.colours import PALETTE
from vaegis.training.report.measurements import Floats, Latents

INK, MUTED, GRID = "#1f2a37", "#5b6775", "#e4e8ee"
BLUE, ORANGE, GREY, RED = "#1f5fa8", "#d9822b", "#9aa7b5", "#b3261e"
SPLIT_COLOURS = {"fit": GREY, "validate": ORANGE, "calibrate": BLUE}
WIDTH, HEIGHT, DPI = 4.8, 3.0, 150

Values = Mapping[str, Floats]  # split -> (n,)


def canvas(height: float = HEIGHT, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure with its axes, row by row."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for panel in axes:
        bare(panel)
    return figure, axes


def bare(axes: Axes) -> None:
    """The common look: two thin spines, a faint grid, small muted ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(labelsize=8, colors=MUTED, width=0.6, length=3)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def embedded(picture: bytes, alt: str, sharp: bool = True) -> str:
    """A PNG as an element of the page."""
    kind = " class=sharp" if sharp else ""
    return f'<img{kind} alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def png(figure: Figure) -> bytes:
    """The figure's bytes, in as many colours as a chart has."""
    drawn, out = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font does not hold is drawn as boxes; the page beside it has it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(drawn, format="png", pil_kwargs={"compress_level": 1})
    with Image.open(drawn) as pixels:
        pixels.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, "PNG", compress_level=9)
    return out.getvalue()


def label(text: str, most: int = 22) -> str:
    """A name as matplotlib may draw it: short, and no mathematics in its dollars."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return short.replace("$", r"\$")


def words(term: str) -> str:
    """`negative_elbo` -> `negative ELBO`."""
    return term.replace("_", " ").replace("elbo", "ELBO").replace("iwae", "IWAE").replace("kl", "KL")


def loss_curves(history: Sequence[Mapping[str, float]], best_step: int | None, stopped: str) -> bytes:
    """The loss on fit and validate, and every named term of it."""
    steps = [h["step"] for h in history]
    total = [k for k in history[0] if k == "total" or k.endswith(".total")]
    others = [k for k in history[0] if k not in ("step", "validate", *total)][:6]
    rows = 1 + (len(others) + 1) // 2
    figure = Figure(figsize=(WIDTH, HEIGHT + 1.6 * (rows - 1)), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(rows, 2, height_ratios=[2.2, *[1.3] * (rows - 1)])
    top = figure.add_subplot(grid[0, :])
    bare(top)
    curves = {f"fit ({k})" if len(total) > 1 else "fit": [h[k] for h in history] for k in total}
    curves["validate"] = [h["validate"] for h in history]
    colours = [GREY, "#c9a06a", "#7fa87f"][: len(total)] + [BLUE]
    for (name, values), colour in zip(curves.items(), colours, strict=False):
        top.plot(steps, values, color=colour, lw=1.6, marker="o" if len(steps) < 4 else None, ms=4, label=name)
    if best_step in steps:
        at = curves["validate"][steps.index(best_step)]
        top.plot([best_step], [at], "o", color=ORANGE, ms=7, mec="white", mew=1, label="best, kept", zorder=5)
    _scale(top, [v for values in curves.values() for v in values])
    top.set_ylabel("loss, nats per value", fontsize=9, color=INK)
    top.set_xlabel(f"optimiser step (stopped: {stopped})" if stopped else "optimiser step", fontsize=9, color=INK)
    top.legend(fontsize=8, frameon=False, labelcolor=INK)
    for i, term in enumerate(others):
        axes = figure.add_subplot(grid[1 + i // 2, i % 2])
        bare(axes)
        values = [h[term] for h in history]
        axes.plot(steps, values, color=GREY, lw=1.4, marker="o" if len(steps) < 4 else None, ms=3)
        axes.set_title(label(words(term), 30), fontsize=8.5, color=INK, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        _scale(axes, values)
    return png(figure)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where values are positive and span much; else without the steep beginning, which is said."""
    finite = np.array([v for v in values if np.isfinite(v)])
    if not len(finite):
        return
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high > 20 * low:
        axes.set_yscale("log")
        return
    usual = float(np.quantile(finite, 0.9))
    if len(finite) >= 10 and high - low > 4 * (usual - low) > 0:
        axes.set_ylim(low - 0.06 * (usual - low), usual + 0.25 * (usual - low))
        axes.text(
            0.01,
            0.99,
            f"↑ begins at {finite[0]:.3g}",
            transform=axes.transAxes,
            fontsize=7.5,
            color=MUTED,
            ha="left",
            va="top",
        )


def histogram(values: Values, name: str, thresholds: Sequence[tuple[str, float]]) -> bytes:
    """Clean calibration values as bars, the fitted ones as an outline, thresholds as labelled lines."""
    figure, (axes,) = canvas()
    _bars(axes, values["calibrate"], values.get("fit"), [t for _, t in thresholds])
    colours = (RED, ORANGE)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.32)
    low, high = axes.get_xlim()
    for i, (text, at) in enumerate(thresholds):
        axes.axvline(at, color=colours[i % 2], lw=1.4, ls=("-", "--")[i % 2], ymax=0.92 - 0.1 * i)
        middle = np.sqrt(low * high) if axes.get_xscale() == "log" else (low + high) / 2
        axes.annotate(
            f"{text}: {at:.4g}",
            (at, top * 1.32 * (0.93 - 0.1 * i)),
            fontsize=8,
            color=colours[i % 2],
            ha="right" if at > middle else "left",
            va="center",
            xytext=(-4 if at > middle else 4, 0),
            textcoords="offset points",
        )
    axes.set_xlabel(name, fontsize=9, color=INK)
    axes.set_ylabel("% of the samples", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(0, 0.84))
    return png(figure)


def term_histograms(terms: Mapping[str, Values], thresholds: Mapping[str, float | None]) -> bytes:
    """A small histogram per evidence term, with the threshold it would have on its own."""
    count = len(terms)
    rows = (count + 1) // 2
    figure, axes = canvas(1.55 * rows + 0.1, rows, 2)
    for panel, (term, values) in zip(axes, terms.items(), strict=False):
        at = thresholds.get(term)
        _bars(panel, values["calibrate"], values.get("fit"), [at] if at is not None else [], bins=28)
        if at is not None:
            panel.axvline(at, color=RED, lw=1.2)
        panel.set_title(words(term), fontsize=8.5, color=INK, loc="left")
        panel.set_yticks([])
        panel.grid(False)
        panel.spines["left"].set_visible(False)
    for panel in axes[count:]:
        panel.set_visible(False)
    return png(figure)


def _bars(axes: Axes, clean: Floats, fitted: Floats | None, also: Sequence[float], bins: int = 40) -> None:
    every = np.concatenate([clean, fitted if fitted is not None else clean[:0], np.asarray(also, float)])
    low, high = float(every.min()), float(every.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    logarithmic = low > 0 and high > 30 * low
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    share = np.histogram(clean, edges)[0] * 100.0 / max(len(clean), 1)
    axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=BLUE, alpha=0.85, lw=0, label="calibrate (unseen)")
    if fitted is not None and len(fitted):
        outline = np.histogram(fitted, edges)[0] * 100.0 / len(fitted)
        axes.stairs(outline, edges, color=INK, lw=1.1, label="fit")
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(False, axis="x")


def uniformity(p_values: Floats, independent: float) -> bytes:
    """The distribution of p-values against the straight line they should follow, with a 99 % band."""
    figure, (axes,) = canvas()
    ordered = np.sort(p_values)
    n = len(ordered)
    band = 1.63 / np.sqrt(max(independent, 1.0))
    line = np.linspace(0, 1, 101)
    axes.fill_between(
        line, np.clip(line - band, 0, 1), np.clip(line + band, 0, 1), color=GREY, alpha=0.25, lw=0, label="99 % band"
    )
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.step(
        np.r_[0, ordered, 1],
        np.r_[0, np.arange(1, n + 1) / n, 1],
        where="post",
        color=BLUE,
        lw=1.6,
        label="validate samples",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("p-value", fontsize=9, color=INK)
    axes.set_ylabel("share of samples at or below", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper left")
    return png(figure)


def latent_map(latents: Latents, strangest: Sequence[int], explained: Sequence[float]) -> bytes:
    """Posterior means on their first two principal axes, coloured by score."""
    figure, (axes,) = canvas(3.5)
    centred = latents.mean - latents.mean.mean(axis=0)
    _, _, axes_of = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ np.pad(axes_of, ((0, 2), (0, 0)))[:2].T
    score = latents.score
    low, high = (float(q) for q in np.quantile(score, [0.01, 0.99]))
    norm = LogNorm(low, high, clip=True) if low > 0 and high > 10 * low else Normalize(low, max(high, low + 1e-9), True)
    cmap = ListedColormap(PALETTE[8:208].astype(float) / 255)
    last = None
    for side, (name, marker, size) in enumerate([("fit", "o", 9), ("validate", "^", 16), ("calibrate", "s", 14)]):
        here = latents.split == side
        last = axes.scatter(
            flat[here, 0],
            flat[here, 1],
            c=score[here],
            s=size,
            marker=marker,
            cmap=cmap,
            norm=norm,
            lw=0.3,
            edgecolors="white",
        )
        axes.scatter([], [], s=size, marker=marker, color=MUTED, label=name)
    for i, sample in enumerate(strangest):
        for at in np.flatnonzero((latents.sample == sample) & (latents.split == 2))[:1]:
            axes.annotate(
                str(i + 1), flat[at], fontsize=8, weight="bold", color=RED, xytext=(4, 4), textcoords="offset points"
            )
            axes.scatter(flat[at, 0], flat[at, 1], s=60, facecolors="none", edgecolors=RED, lw=1.1)
    assert last is not None
    bar = figure.colorbar(last, ax=axes, pad=0.02, aspect=30)
    bar.set_label("score", fontsize=9, color=INK)
    bar.ax.tick_params(which="both", labelsize=8, colors=MUTED)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if isinstance(norm, LogNorm):
        bar.set_ticks([t for t in (m * 10.0**e for e in range(-12, 13) for m in (1, 3)) if low <= t <= high])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g}"))
    bar.outline.set_visible(False)
    axes.set_xlabel(f"first principal axis ({100 * explained[0]:.0f} % of the variance)", fontsize=9, color=INK)
    axes.set_ylabel(f"second ({100 * explained[1]:.0f} %)", fontsize=9, color=INK)
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2,
        handletextpad=0.2,
        columnspacing=1.0,
    )
    return png(figure)


def unit_bars(kl: Floats, active: Sequence[bool]) -> bytes:
    """KL per latent unit, largest first."""
    figure, (axes,) = canvas(2.4)
    order = np.argsort(-kl, kind="stable")[:128]
    colours = [BLUE if active[i] else GREY for i in order]
    axes.bar(np.arange(1, len(order) + 1), kl[order], color=colours, width=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("latent units, most informative first", fontsize=9, color=INK)
    axes.set_ylabel("KL, nats", fontsize=9, color=INK)
    axes.grid(False, axis="x")
    axes.bar([0], [0], color=BLUE, label="active")
    axes.bar([0], [0], color=GREY, label="inactive")
    axes.set_xlim(0.4, len(order) + 0.6)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="upper right")
    return png(figure)
