"""Pictures of a latent space: points on a plane, and samples on a grid. Drawn with Pillow, which the service has."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vaegis.models.latent import as_raw
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

SIDE, MARGIN = 720, 44  # pixels of a map
CELL = 72  # pixels of a sample on a grid, at least
# Colours that people who see few colours can tell apart (Okabe and Ito), then grey for "and others".
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
GREY, INK, PAPER = (130, 130, 130), (40, 40, 40), (255, 255, 255)


def scatter(places: NDArray[np.float64], groups: Sequence[str | None], title: str) -> bytes:
    """(n, 2) points as a PNG, coloured by group, the most frequent first; None is drawn in grey."""
    picture = Image.new("RGB", (SIDE + 200, SIDE), PAPER)
    draw = ImageDraw.Draw(picture)
    low, high = places.min(axis=0), places.max(axis=0)
    span = np.maximum(high - low, 1e-12)
    at = MARGIN + (places - low) / span * (SIDE - 2 * MARGIN)
    at[:, 1] = SIDE - at[:, 1]
    draw.rectangle([MARGIN - 8, MARGIN - 8, SIDE - MARGIN + 8, SIDE - MARGIN + 8], outline=(200, 200, 200))
    names = sorted({g for g in groups if g is not None}, key=lambda g: (-list(groups).count(g), g))
    colour = {name: COLOURS[i] if i < len(COLOURS) else GREY for i, name in enumerate(names)}
    radius = 4 if len(places) <= 300 else 3 if len(places) <= 2000 else 2
    for (x, y), group in zip(at.tolist(), groups, strict=True):
        fill = colour[group] if group is not None else GREY
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    draw.text((MARGIN, 14), title, fill=INK)
    for i, name in enumerate(names[: len(COLOURS) + 1]):
        y = MARGIN + 22 * i
        label = name if i < len(COLOURS) else f"and {len(names) - i} more"
        draw.ellipse([SIDE, y, SIDE + 10, y + 10], fill=colour[name])
        draw.text((SIDE + 18, y - 1), f"{label[:22]}", fill=INK)
    return _png(picture)


def grid(samples: NDArray[np.float32], spec: InputSpec, title: str) -> bytes:
    """(rows, columns, *shape) samples as one PNG: images as they are, series and vectors as lines and bars."""
    rows, columns = samples.shape[:2]
    drawn = [[_cell(samples[r, c], spec, samples) for c in range(columns)] for r in range(rows)]
    width, height = drawn[0][0].size
    gap = 4
    picture = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap + 24), PAPER)
    ImageDraw.Draw(picture).text((gap, 6), title, fill=INK)
    for r, row in enumerate(drawn):
        for c, cell in enumerate(row):
            picture.paste(cell, (gap + c * (width + gap), 24 + gap + r * (height + gap)))
    return _png(picture)


def _cell(sample: NDArray[np.float32], spec: InputSpec, every: NDArray[np.float32]) -> Any:
    if isinstance(spec, ImageSpec):
        pixels = as_raw(sample, spec)
        pixels = (pixels >> (spec.depth - 8)).astype(np.uint8)
        shown = pixels[..., 0] if pixels.shape[-1] != 3 else pixels
        times = max(1, round(CELL / max(sample.shape[:2])))
        big = shown.repeat(times, axis=0).repeat(times, axis=1)
        step = max(1, max(big.shape[:2]) // 160)
        return Image.fromarray(np.ascontiguousarray(big[::step, ::step])).convert("RGB")
    cell = Image.new("RGB", (CELL + 24, CELL), (247, 247, 247))
    draw = ImageDraw.Draw(cell)
    axes = tuple(range(every.ndim - 1))
    low, high = every.min(axis=axes), every.max(axis=axes)
    level = (sample - low) / np.maximum(high - low, 1e-12)  # each column on its own scale, the same in every cell
    if isinstance(spec, SeriesSpec):
        across = np.linspace(2, CELL + 21, len(level))
        for c in range(level.shape[1]):
            points = [(float(x), float(CELL - 3 - y * (CELL - 6))) for x, y in zip(across, level[:, c], strict=True)]
            draw.line(points, fill=COLOURS[c % len(COLOURS)], width=1)
        return cell
    wide = (CELL + 20) / len(level)
    for c, y in enumerate(level.tolist()):
        box = [2 + c * wide, CELL - 3 - y * (CELL - 6), 2 + max((c + 0.8) * wide, c * wide + 1), CELL - 2]
        draw.rectangle(box, fill=COLOURS[c % len(COLOURS)])
    return cell


def _png(picture: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
