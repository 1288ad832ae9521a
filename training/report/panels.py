"""Pictures of the samples themselves: an original beside what the model made of it and where it is strange."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaegis.models.outputs.colours import PALETTE, colour
from vaegis.models.spec import ImageSpec, SeriesSpec
from vaegis.training.report import charts
from vaegis.training.report.measurements import Shown

Pixels = NDArray[np.uint8]
Scale = tuple[float, float]

EDGES = (192, 144, 112, 80)  # longest side of a picture; the largest is taken whose pictures fit
BYTES_MOST = 520_000  # of all pictures of samples together
CHANNELS_MOST = 6

# No difference is white, much is dark blue.
_BLUES: Pixels = np.stack(
    [np.interp(np.linspace(0, 2, 256), [0, 1, 2], stops) for stops in ([255, 96, 8], [255, 152, 40], [255, 210, 92])],
    axis=1,
).astype(np.uint8)


@dataclass(frozen=True)
class Display:
    """How raw pixels become shown ones, the same for every picture of a report."""

    low: float  # shown as black
    high: float  # shown as white
    difference: float  # of this and more is darkest

    @classmethod
    def of(cls, spec: ImageSpec, shown: Sequence[Shown]) -> Display:
        """8 bit as they are; 16 bit between two percentiles of the clean images, or most cameras' would be black."""
        low, high = 0.0, float(2**spec.depth - 1)
        if spec.depth == 16:
            low, high = (float(q) for q in np.percentile(np.stack([s.raw for s in shown]), [0.1, 99.9]))
            high = max(high, low + 1)
        gaps = [np.abs(s.raw - s.rebuilt).mean(axis=-1) for s in shown if s.rebuilt is not None]
        return cls(low, high, float(np.quantile(np.stack(gaps), 0.995)) if gaps else 1.0)

    def pixels(self, raw: NDArray[Any]) -> Pixels:
        """(..., C) -> (..., 3): three channels as red, green and blue, else the first as grey."""
        level = np.clip((raw.astype(np.float64) - self.low) / (self.high - self.low), 0, 1)
        chosen = level if raw.shape[-1] == 3 else np.repeat(level[..., :1], 3, axis=-1)
        return np.rint(chosen * 255).astype(np.uint8)

    def gap(self, raw: NDArray[Any], rebuilt: NDArray[np.float32]) -> Pixels:
        """|difference|, the mean over channels, in shades of blue."""
        level = np.abs(raw - rebuilt).mean(axis=-1) / max(self.difference, 1e-9)
        return np.asarray(_BLUES[(np.clip(level, 0, 1) * 255).astype(np.uint8)])


def image_rows(shown: Sequence[Shown], display: Display, scale: Scale) -> list[list[bytes]]:
    """PNGs per sample: original, reconstruction and difference where there is a decoder, and the map."""
    rows: list[list[bytes]] = []
    for edge in EDGES:
        rows = [[_png(p, edge) for p in _image_row(s, display, scale)] for s in shown]
        if sum(len(p) for row in rows for p in row) <= BYTES_MOST:
            break
    return rows


def _image_row(shown: Shown, display: Display, scale: Scale) -> list[Pixels]:
    row = [display.pixels(shown.raw)]
    if shown.rebuilt is not None:
        row += [display.pixels(shown.rebuilt), display.gap(shown.raw, shown.rebuilt)]
    return [*row, colour(shown.map, scale)]


def sheet(images: NDArray[np.float32], columns: int, display: Display) -> bytes:
    """Images (n, H, W, C) on one white sheet."""
    edge = 56
    tiles = [_reduced(display.pixels(i), edge) for i in images]
    height, width, gap = *tiles[0].shape[:2], 2
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return _png(canvas, max(canvas.shape))


def series(shown: Sequence[Shown], spec: SeriesSpec, scale: Scale) -> tuple[list[bytes], list[int]]:
    """A PNG per window, channels one above the other on one scale each; and which channels, by the largest map."""
    heat = np.max([s.map.max(axis=0) for s in shown], axis=0)
    chosen = sorted(np.argsort(-heat, kind="stable")[:CHANNELS_MOST].tolist())
    every = [s.raw[:, chosen] for s in shown] + [s.rebuilt[:, chosen] for s in shown if s.rebuilt is not None]
    low, high = np.nanmin(np.concatenate(every), axis=0), np.nanmax(np.concatenate(every), axis=0)
    return [_window(s, spec, chosen, low, high, scale) for s in shown], chosen


def _window(
    shown: Shown,
    spec: SeriesSpec,
    chosen: Sequence[int],
    low: NDArray[Any],
    high: NDArray[Any],
    scale: Scale,
) -> bytes:
    figure, (axes,) = charts.canvas(0.55 * len(chosen) + 0.75)
    steps = np.arange(len(shown.raw))
    for place, channel in enumerate(chosen):
        base = float(len(chosen) - 1 - place)
        span = max(float(high[place] - low[place]), 1e-12)

        def level(values: NDArray[Any], place: int = place, base: float = base, span: float = span) -> NDArray[Any]:
            return np.asarray(base + 0.2 + 0.7 * (values - low[place]) / span)

        strip = colour(shown.map[None, :, channel], scale)
        axes.imshow(strip, extent=(-0.5, len(steps) - 0.5, base, base + 0.13), aspect="auto", zorder=1)
        axes.plot(steps, level(shown.raw[:, channel]), color=charts.INK, lw=1.1, label=None if place else "measured")
        if shown.rebuilt is not None:
            axes.plot(
                steps,
                level(shown.rebuilt[:, channel]),
                color=charts.ORANGE,
                lw=1.1,
                label=None if place else "reconstructed",
            )
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_ylim(0, len(chosen) + 0.05)
    names = [f"{charts.label(spec.columns[c], 16)}\n{low[i]:.4g} … {high[i]:.4g}" for i, c in enumerate(chosen)]
    axes.set_yticks([len(chosen) - 0.45 - i for i in range(len(chosen))], names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.set_xlabel("row within the window", fontsize=8.5, color=charts.INK)
    axes.legend(
        fontsize=7.5,
        frameon=False,
        labelcolor=charts.INK,
        ncols=2,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        borderaxespad=0,
    )
    return charts.png(figure)


def heat_table(shown: Sequence[Shown], columns: Sequence[str], scale: Scale, first_typical: int) -> bytes:
    """Maps of vectors as one picture: a row per sample, a column per column."""
    chosen = np.arange(len(columns))
    if len(columns) > 40:
        chosen = np.sort(np.argsort(-np.max([s.map for s in shown], axis=0), kind="stable")[:40])
    maps = np.stack([s.map[chosen] for s in shown])
    figure, (axes,) = charts.canvas(0.2 * len(shown) + 1.2)
    axes.imshow(colour(maps, scale), aspect="auto", interpolation="nearest")
    axes.set_xticks(
        range(len(chosen)), [charts.label(columns[c], 12) for c in chosen.tolist()], rotation=90, fontsize=7
    )
    names = [f"strange {i + 1}" if i < first_typical else f"typical {i - first_typical + 1}" for i in range(len(shown))]
    axes.set_yticks(range(len(shown)), names, fontsize=7.5)
    axes.axhline(first_typical - 0.5, color="white", lw=2)
    axes.grid(False)
    axes.tick_params(length=0)
    return charts.png(figure)


def worst_columns(shown: Shown, most: int = 5) -> list[int]:
    """Columns of a vector by their map, largest first."""
    return [int(c) for c in np.argsort(-shown.map, kind="stable")[:most]]


def css_gradient() -> str:
    """The maps' palette from its lowest to its highest colour."""
    stops = ", ".join("rgb({},{},{})".format(*PALETTE[i]) for i in np.linspace(0, 255, 9).astype(int))
    return f"linear-gradient(to right, {stops})"


def css_blues() -> str:
    """The differences' shades."""
    stops = ", ".join("rgb({},{},{})".format(*_BLUES[i]) for i in (0, 128, 255))
    return f"linear-gradient(to right, {stops})"


def _reduced(pixels: Pixels, edge: int) -> Pixels:
    height, width = pixels.shape[:2]
    factor = edge / max(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _png(pixels: Pixels, edge: int) -> bytes:
    """Small pictures keep their own pixels; the page enlarges them without blurring."""
    out = io.BytesIO()
    reduced = _reduced(np.ascontiguousarray(pixels), edge)
    grey = (reduced == reduced[..., :1]).all()
    Image.fromarray(reduced[..., 0] if grey else reduced).save(out, "PNG")
    return out.getvalue()
