"""What a graph eats: `ImageSpec`, `SeriesSpec` or `VectorSpec`, written into every bundle.

The spec is the whole contract between data and model. `vaegis.models.inputs` turns files and requests into arrays that
follow it; families receive batches in the same layout and in raw units.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from vaegis.models.errors import Damaged

Kind = Literal["image", "series", "vector"]
Missing = Literal["refuse", "allow"]


@dataclass(frozen=True)
class ImageSpec:
    """Images as unsigned integers, `[batch, height, width, channels]`."""

    height: int  # rows of the graph's input; of one tile when tiled
    width: int
    channels: int
    depth: int = 8  # bits per channel: 8 (uint8) or 16 (uint16)
    fit: Literal["exact", "resize"] = "exact"  # what becomes of an image of another size: refused, or resized
    tile: bool = False  # images of any size, cut into overlapping height x width tiles
    overlap: int = 0  # pixels that neighbouring tiles share
    roi: str | None = None  # sha256 of the region-of-interest mask; pixels outside it read as 0
    invariances: tuple[str, ...] = ()  # declared: rotation, flip, shift, lighting, noise
    calibrate_by: str | None = None  # what names a sample's calibration group (see vaegis.models.sources)
    missing: Missing = "refuse"
    conditions: tuple[str, ...] = ()  # classes or recipes told with each sample; () = none are
    draft: bool = False  # JPEG files much larger than the graph's input are decoded at a part of their size
    kind: ClassVar[Kind] = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (height, width, channels)."""
        return (self.height, self.width, self.channels)

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Of one sample's map: (height, width)."""
        return (self.height, self.width)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.depth == 8 else np.uint16)


@dataclass(frozen=True)
class SeriesSpec:
    """Windows of a sensor series as float32, `[batch, window, columns]`."""

    columns: tuple[str, ...]  # channels by name, in the graph's order
    window: int  # T, rows per window
    stride: int = 1  # rows between the starts of neighbouring windows
    timestamp: str | None = None  # name of the timestamp column in the clean source
    missing: Missing = "refuse"  # "allow": NaN means not observed
    invariances: tuple[str, ...] = ()  # declared: offset, scale, noise
    calibrate_by: str | None = None
    conditions: tuple[str, ...] = ()  # of the row that a window ends at
    step: float | None = None  # seconds from row to row in the clean data; None = not one step, or no timestamps
    kind: ClassVar[Kind] = "series"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (window, columns)."""
        return (self.window, len(self.columns))

    @property
    def map_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)


@dataclass(frozen=True)
class VectorSpec:
    """Rows of a table as float32, `[batch, columns]`."""

    columns: tuple[str, ...]
    missing: Missing = "refuse"
    invariances: tuple[str, ...] = ()  # declared: noise
    calibrate_by: str | None = None
    conditions: tuple[str, ...] = ()
    kind: ClassVar[Kind] = "vector"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (columns,)."""
        return (len(self.columns),)

    @property
    def map_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)


InputSpec = ImageSpec | SeriesSpec | VectorSpec

SPECS: dict[str, type[ImageSpec] | type[SeriesSpec] | type[VectorSpec]] = {
    "image": ImageSpec,
    "series": SeriesSpec,
    "vector": VectorSpec,
}

INVARIANCES: dict[str, tuple[str, ...]] = {
    "image": ("rotation", "flip", "shift", "lighting", "noise"),
    "series": ("offset", "scale", "noise"),
    "vector": ("noise",),
}


_OPTIONAL = ("conditions", "draft", "step")


def to_json(spec: InputSpec) -> dict[str, Any]:
    """The spec as plain JSON values, `kind` first; `conditions`, `draft` and `step` only where they say something, so
    that specs written before there were any keep their digest."""
    return {"kind": spec.kind, **{k: v for k, v in asdict(spec).items() if v or k not in _OPTIONAL}}


def from_json(data: dict[str, Any]) -> InputSpec:
    """The inverse of `to_json`.

    Raises:
        Damaged: an unknown kind or field, as a newer version would write, or a missing one.
    """
    kind = data.get("kind")
    if kind not in SPECS:
        raise Damaged(f"The bundle's input kind is {kind!r}; this version knows image, series and vector.")
    cls = SPECS[kind]
    known = {f.name: f.default is MISSING for f in fields(cls)}
    members: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
    if unknown := sorted(set(members) - set(known)):
        raise Damaged(f"The bundle's {kind} spec holds {', '.join(unknown)}, which this version does not know.")
    if lacking := sorted(n for n, needed in known.items() if needed and n not in members):
        raise Damaged(f"The bundle's {kind} spec lacks {', '.join(lacking)}; restore the bundle from where it came.")
    return cls(**members)


def describe(spec: InputSpec) -> str:
    """One phrase for messages: `24x24 image, 1 channel, 8 bit`."""
    match spec:
        case ImageSpec():
            channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
            what = "tiles of images" if spec.tile else "images"
            return f"{spec.height}x{spec.width} {what}, {channels}, {spec.depth} bit"
        case SeriesSpec():
            return f"series of {len(spec.columns)} columns in windows of {spec.window} rows"
        case VectorSpec():
            return f"vectors of {len(spec.columns)} columns"
