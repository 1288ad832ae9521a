"""Images: decoding, channels, depth, size, region of interest, tiles.

Pixels travel as (height, width, channels), uint8 or uint16. Files and arrays take the same path from there on, so that
the same pixels give the same parts however they arrive.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from models.blocks import Block
from models.errors import Refusal
from models.inputs.options import LIMITS, Limits
from models.sources.images import FORMATS
from models.spec import ImageSpec

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange height and width


class Unreadable(Exception):
    """One sample cannot be judged; `str` is the reason, to be put behind the item's name."""


@dataclass(frozen=True)
class Form:
    """What an image's header says."""

    height: int
    width: int
    channels: int
    depth: int


def probe(data: bytes, limits: Limits = LIMITS) -> Form:
    """Size, channels and depth of an encoded image, without decoding it.

    Raises:
        Unreadable: no image of an allowed format, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, limits)
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            height, width = (image.width, image.height) if turned else (image.height, image.width)
            return Form(height, width, 1 if image.mode in _GREY else 3, 16 if image.mode in _DEEP else 8)
    except Unreadable:
        raise
    except Exception as error:  # a broken file raises whatever its decoder trips over
        raise Unreadable(_why(error)) from error


def decode(data: bytes, limits: Limits = LIMITS) -> Pixels:
    """Pixels (H, W, 1 or 3) of an encoded image, upright as its EXIF orientation says, without alpha.

    Raises:
        Unreadable: no image of an allowed format, truncated, too large, or of floating-point pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(opened, limits)
            image = ImageOps.exif_transpose(opened)
            return _pixels(image)
    except Unreadable:
        raise
    except Exception as error:  # a broken file raises whatever its decoder trips over
        raise Unreadable(_why(error)) from error


def _check_pixels(image: Image.Image, limits: Limits) -> None:
    if image.width * image.height > limits.pixels:
        raise Unreadable(
            f"it has {image.height}x{image.width} pixels, more than the {limits.pixels} that are decoded; "
            "make it smaller"
        )


def _pixels(image: Image.Image) -> Pixels:
    mode = image.mode
    if mode in _DEEP:
        deep = np.asarray(image)
        if mode == "I" and deep.size and (deep.min() < 0 or deep.max() > 65535):
            raise Unreadable("its pixels have 32 bits; save it with 8 or 16")
        return deep.astype(np.uint16)[..., None]
    if mode == "F":
        raise Unreadable("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if mode in _GREY:
        return np.array(image.convert("L"))[..., None]
    if mode in ("P", "PA"):
        # By way of RGBA: Pillow warns when it drops a palette's transparency.
        return np.array(image.convert("RGBA"))[..., :3].copy()
    if mode in ("RGBA", "RGBa", "RGBX"):
        # The colours as stored: there is no background to composite on.
        return np.array(image)[..., :3].copy()
    return np.array(image.convert("RGB"))


def _why(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "it has far more pixels than are decoded; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image (it is none of PNG, JPEG, BMP, TIFF, WebP)"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"not a readable image ({text.rstrip('.')})"


def conform(pixels: Pixels, spec: ImageSpec) -> Pixels:
    """(N, H, W, C) pixels with the spec's depth and channels, and, unless it tiles, its height and width.

    8 bits become 16 by a factor of 257 (255 -> 65535); grey becomes colour by replication, colour becomes grey by ITU-R
    601 luminance, a second or fourth channel (alpha) is dropped.

    Raises:
        Unreadable: 16 bits for a model of 8, other channels, another size.
    """
    if pixels.dtype == np.uint16 and spec.depth == 8:
        raise Unreadable("its pixels have 16 bits, and the model takes 8; convert it, or fit again on 16-bit images")
    if pixels.dtype == np.uint8 and spec.depth == 16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    pixels = _channels(pixels, spec.channels)
    height, width = pixels.shape[1:3]
    if spec.tile:
        if height < spec.height or width < spec.width:
            raise Unreadable(
                f"it is {height}x{width} pixels (height x width), smaller than one tile of {spec.height}x{spec.width}; "
                "give a larger image, or fit again with a smaller --tile"
            )
        return pixels
    if (height, width) == (spec.height, spec.width):
        return pixels
    if spec.fit == "exact":
        raise Unreadable(
            f"it is {height}x{width} pixels (height x width), and the model takes {spec.height}x{spec.width} only; "
            f"resize it, or fit again with --size {spec.height}x{spec.width}"
        )
    return np.stack([resize(one, spec.height, spec.width) for one in pixels])


def _channels(pixels: Pixels, channels: int) -> Pixels:
    given = pixels.shape[-1]
    if given == channels:
        return pixels
    if given in (2, 4) and channels in (1, 3):
        pixels, given = pixels[..., : given - 1], given - 1
    if given == channels:
        return pixels
    if given == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if given == 3 and channels == 1:
        # Pillow's own integer luminance, so that 8-bit files agree with other tools to the last bit.
        wide = pixels.astype(np.uint64)
        grey = (wide[..., 0] * 19595 + wide[..., 1] * 38470 + wide[..., 2] * 7471 + 0x8000) >> 16
        return grey.astype(pixels.dtype)[..., None]
    raise Unreadable(f"it has {given} channels, and the model takes {channels}; give images of the same make")


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """(H, W, C) pixels at another size: bilinear, averaging where it shrinks."""
    size = (width, height)
    if pixels.dtype == np.uint8 and pixels.shape[-1] == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    layers = []
    for c in range(pixels.shape[-1]):
        layer = np.ascontiguousarray(pixels[..., c])
        if pixels.dtype == np.uint16:
            # Pillow resizes 16 bits only by way of floats.
            moved = Image.fromarray(layer.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
            layers.append(np.clip(np.rint(np.asarray(moved)), 0, 65535).astype(np.uint16))
        else:
            layers.append(np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR)))
    return np.stack(layers, axis=-1)


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
class Taken:
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
) -> Taken:
    """Parts of one decoded image (H, W, C), or the reason why there are none."""
    try:
        whole = conform(pixels[None], spec)[0]
        parts, place = cut(whole, spec, mask)
    except Unreadable as error:
        return unreadable(item, index, error, group)
    return Taken(item, index, parts, place, whole.shape[:2], None, group)


def take_file(
    item: str,
    index: int,
    data: bytes,
    spec: ImageSpec,
    mask: Mask | None,
    group: str | None = None,
    limits: Limits = LIMITS,
) -> Taken:
    """Parts of one encoded image, or the reason why there are none."""
    try:
        pixels = decode(data, limits)
    except Unreadable as error:
        return unreadable(item, index, error, group)
    return take_image(item, index, pixels, spec, mask, group)


def unreadable(item: str | None, index: int, error: Unreadable, group: str | None = None) -> Taken:
    return Taken(item, index, None, error=f"{item or f'image {index}'}: {error}.", group=group)


def image_block(taken: Sequence[Taken], spec: ImageSpec, grouped: bool = False) -> Block:
    """The block of these images."""
    count = np.array([one.count for one in taken], np.int64)
    parts = [one.parts for one in taken if one.parts is not None]
    place = [one.place for one in taken if one.place is not None]
    return Block(
        items=[one.item for one in taken],
        index=np.array([one.index for one in taken], np.int64),
        parts=np.concatenate(parts) if parts else np.empty((0, *spec.shape), spec.dtype),
        first=np.cumsum(count) - count,
        count=count,
        errors={i: one.error for i, one in enumerate(taken) if one.error is not None},
        groups=[one.group for one in taken] if grouped else None,
        place=(np.concatenate(place) if place else np.empty((0, 2), np.int64)) if spec.tile else None,
        extents=[one.extent for one in taken] if spec.tile else None,
    )
