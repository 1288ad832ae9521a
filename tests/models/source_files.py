"""Small sources on disk, of images and of rows."""

from pathlib import Path

import numpy as np
from PIL import Image

from vaegis.models.sources import SourceOptions, open_source

RNG = np.random.default_rng(0)


def opened(path: Path, **options):
    return open_source(path, SourceOptions(**options))


def stamp(i: int) -> str:
    return f"2026-01-01T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}"


def csv(path: Path, values: np.ndarray, columns=("speed", "flow"), stamps: list[str] | None = None, sep=",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [sep.join((["timestamp"] if stamps else []) + list(columns))]
    for i, row in enumerate(values):
        lines.append(sep.join(([stamps[i]] if stamps else []) + [repr(float(v)) for v in row]))
    path.write_text("\n".join(lines) + "\n")
    return path


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folder(path: Path, *sizes: tuple[int, int]) -> list[np.ndarray]:
    images = [noise(*size) for size in sizes]
    for i, pixels in enumerate(images):
        save(path / f"part_{i}.png", pixels)
    return images
