"""Images: region of interest, tiles, blocks. How files become pixels is in `vaegis.models.pixels`.

Pixels travel as (height, width, channels), uint8 or uint16. Files and arrays take the same path from there on, so that
the same pixels give the same parts however they arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaegis.models.blocks import Block
from vaegis.models.errors import Refusal
from vaegis.models.pixels import Pixels, Unreadable, conform, decode, read
from vaegis.models.spec import ImageSpec

Mask = NDArray[np.bool_]


def read_roi(path: Path) -> Mask:
    """A region of interest from a mask image: (H, W), True where pixels are inspected (not 0).

    Raises:
        Refusal: no readable image, or nothing to inspect in it.
    """
    try:
        mask = np.asarray(decode(path.read_bytes()).any(axis=-1))
    except FileNotFoundError as error:
        raise Refusal(f"There is no region-of-interest mask at {path}; check the path.") from error
    except OSError as error:
        raise Refusal(f"The region-of-interest mask {path} cannot be opened ({error.strerror}).") from error
    except Unreadable as error:
        raise Refusal(f"The region-of-interest mask {path.name}: {error}.") from error
    if not mask.any():
        raise Refusal(f"The region-of-interest mask {path.name} is 0 everywhere; mark what to inspect with white.")
    return mask


def roi_digest(mask: Mask) -> str:
    """sha256 of a mask: its shape, then its pixels as bytes 0 and 1."""
    head = f"{mask.shape[0]}x{mask.shape[1]};".encode()
    return hashlib.sha256(head + np.ascontiguousarray(mask, np.uint8).tobytes()).hexdigest()


def fitted_roi(spec: ImageSpec, roi: Mask | None) -> Mask | None:
    """The mask at the size at which it is applied, checked against the spec.

    Raises:
        Refusal: missing, not the one the model was fitted with, or of another size than the images.
    """
    if (roi is None) != (spec.roi is None):
        raise Refusal(
            "The model was fitted with a region of interest, and none was given; give its mask with --roi."
            if roi is None
            else "A region of interest was given, but the model was fitted without one; leave --roi out or fit again."
        )
    if roi is None:
        return None
    if roi_digest(roi) != spec.roi:
        raise Refusal("The region of interest is not the one the model was fitted with; give that one, or fit again.")
    if spec.tile or roi.shape == (spec.height, spec.width):
        return roi
    if spec.fit == "exact":
        raise Refusal(
            f"The region-of-interest mask is {roi.shape[0]}x{roi.shape[1]} and the images are "
            f"{spec.height}x{spec.width}; draw it on one of the images."
        )
    drawn = Image.fromarray(roi.astype(np.uint8)).resize((spec.width, spec.height), Image.Resampling.NEAREST)
    small = np.asarray(drawn) > 0
    if not small.any():
        raise Refusal("The region of interest vanishes at the size of the images; draw it larger.")
    return small


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side: evenly, the last one flush with the edge."""
    starts = list(range(0, length - tile + 1, tile - overlap))
    if starts[-1] != length - tile:
        starts.append(length - tile)
    return starts


def cut(pixels: Pixels, spec: ImageSpec, mask: Mask | None) -> tuple[Pixels, NDArray[np.int64]]:
    """Parts (k, *spec.shape) of one conformed image (H, W, C), and their top left corners (k, 2).

    Pixels outside the mask become 0; tiles that hold none inside are left out.

    Raises:
        Unreadable: the mask is not of the image's size.
    """
    if mask is not None:
        if mask.shape != pixels.shape[:2]:
            raise Unreadable(
                f"it is {pixels.shape[0]}x{pixels.shape[1]} pixels, and the region-of-interest mask is "
                f"{mask.shape[0]}x{mask.shape[1]}; both must have the same size"
            )
        pixels = np.where(mask[..., None], pixels, pixels.dtype.type(0))
    if not spec.tile:
        return pixels[None], np.zeros((1, 2), np.int64)
    place = [
        (top, left)
        for top in tile_starts(pixels.shape[0], spec.height, spec.overlap)
        for left in tile_starts(pixels.shape[1], spec.width, spec.overlap)
        if mask is None or mask[top : top + spec.height, left : left + spec.width].any()
    ]
    parts = np.stack([pixels[top : top + spec.height, left : left + spec.width] for top, left in place])
    return parts, np.array(place, np.int64)


@dataclass(frozen=True)
class ImageParts:
    """One image on its way into a block: its parts, or why it has none."""

    item: str | None
    index: int
    parts: Pixels | None  # (k, *spec.shape)
    place: NDArray[np.int64] | None = None  # (k, 2)
    extent: tuple[int, int] = (0, 0)
    error: str | None = None
    group: str | None = None

    @property
    def count(self) -> int:
        return 0 if self.parts is None else len(self.parts)


def take_image(
    item: str | None, index: int, pixels: Pixels, spec: ImageSpec, mask: Mask | None, group: str | None = None
) -> ImageParts:
    """Parts of one decoded image (H, W, C), or the reason why there are none."""
    try:
        return take_pixels(item, index, conform(pixels[None], spec)[0], spec, mask, group)
    except Unreadable as error:
        return unreadable(item, index, error, group)


def take_file(
    item: str, index: int, data: bytes, spec: ImageSpec, mask: Mask | None, group: str | None = None
) -> ImageParts:
    """Parts of one encoded image, or the reason why there are none."""
    try:
        return take_pixels(item, index, read(data, spec), spec, mask, group)
    except Unreadable as error:
        return unreadable(item, index, error, group)


def take_pixels(
    item: str | None, index: int, pixels: Pixels, spec: ImageSpec, mask: Mask | None, group: str | None = None
) -> ImageParts:
    """Parts of one image (H, W, C) that follows the spec already.

    Raises:
        Unreadable: the mask is not of the image's size.
    """
    parts, place = cut(pixels, spec, mask)
    return ImageParts(item, index, parts, place, pixels.shape[:2], None, group)


def unreadable(item: str | None, index: int, error: Unreadable, group: str | None = None) -> ImageParts:
    return ImageParts(item, index, None, error=f"{item or f'image {index}'}: {error}.", group=group)


def image_block(cut: Sequence[ImageParts], spec: ImageSpec, grouped: bool = False) -> Block:
    """The block of these images."""
    count = np.array([one.count for one in cut], np.int64)
    parts = [one.parts for one in cut if one.parts is not None]
    place = [one.place for one in cut if one.place is not None]
    return Block(
        items=[one.item for one in cut],
        index=np.array([one.index for one in cut], np.int64),
        parts=np.concatenate(parts) if parts else np.empty((0, *spec.shape), spec.dtype),
        first=np.cumsum(count) - count,
        count=count,
        errors={i: one.error for i, one in enumerate(cut) if one.error is not None},
        groups=[one.group for one in cut] if grouped else None,
        place=(np.concatenate(place) if place else np.empty((0, 2), np.int64)) if spec.tile else None,
        extents=[one.extent for one in cut] if spec.tile else None,
    )
