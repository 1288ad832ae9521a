"""Encoded images -> pixels as a spec has them: decoding, channels, depth, size.

Pixels are (height, width, channels), uint8 or uint16. The fit, the command line and the service's decoders all read
files through `read`, so that a model is asked about the pixels it learned from. Imports little, since every decoder
imports it.

Where a spec says `draft`, a JPEG much larger than the graph's input is decoded at 1/2, 1/4 or 1/8 of its size, by
libjpeg's scaled inverse cosine transform, and resized from there (docs/decisions/0010-decoders.md).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vaegis.models.deep_colour import UnknownForm, channels_of, is_deep_colour, read_deep_colour
from vaegis.models.spec import ImageSpec

Pixels = NDArray[Any]

# Allowed in files and requests alike; the content decides, a name only marks a file as meant to be an image.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MOST = 64_000_000  # pixels of one image
DRAFT = 4  # a draft keeps at least so many pixels for each of the graph's, along each side

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_SUBFILE_TYPE = 0x00FE  # TIFF tag; bit 0: a smaller copy of another page
_MP_ENTRIES = 0xB002  # of a JPEG that holds several images: what each of them is
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange height and width


class Unreadable(Exception):
    """One sample cannot be judged; `str` is the reason, to be put behind the item's name."""


class OutOfMemory(Unreadable):
    """Decoding it takes more memory than there is."""


@dataclass(frozen=True)
class Form:
    """What an image's header says."""

    height: int
    width: int
    channels: int
    depth: int
    jpeg: bool = False


def probe(data: bytes, most: int = MOST) -> Form:
    """Size, channels and depth of an encoded image, without decoding it; `most` pixels at most.

    Raises:
        Unreadable: no image of an allowed format, too large, or of several frames.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, most)
            _check_frames(image, data)
            if is_deep_colour(image):  # before its EXIF data are read, for which a PNG is decoded
                channels, depth = channels_of(image), 16
            else:
                channels, depth = 1 if image.mode in _GREY else 3, 16 if image.mode in _DEEP else 8
            height, width = (image.width, image.height) if _turned(image) else (image.height, image.width)
            return Form(height, width, channels, depth, isinstance(image, JpegImageFile))
    except Unreadable:
        raise
    except Exception as error:  # a broken file raises whatever its decoder trips over
        raise Unreadable(_why(error)) from error


def read(data: bytes | bytearray, spec: ImageSpec, most: int = MOST) -> Pixels:
    """Pixels (H, W, C) of an encoded image as the spec has them; only one that is to be tiled keeps its size.

    Raises:
        Unreadable: it cannot be decoded (see `decode`), or does not fit the spec (see `conform`).
    """
    near = (spec.height, spec.width) if spec.draft and spec.fit == "resize" and not spec.tile else None
    return np.asarray(conform(decode(data, most, near)[None], spec)[0])


def decode(data: bytes | bytearray, most: int = MOST, near: tuple[int, int] | None = None) -> Pixels:
    """Pixels (H, W, 1 or 3) of an encoded image, upright as its EXIF orientation says, without alpha.

    Args:
        most: pixels of the image.
        near: (height, width) that it will be resized to: a JPEG much larger than that comes at a part of its size.

    Raises:
        Unreadable: no image of an allowed format, truncated, too large, of several frames, or of floating-point pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(opened, most)
            _check_frames(opened, data)
            if is_deep_colour(opened):
                return read_deep_colour(data, FORMATS)
            if near is not None and isinstance(opened, JpegImageFile):
                height, width = near[::-1] if _turned(opened) else near
                opened.draft(None, (DRAFT * width, DRAFT * height))
            image = ImageOps.exif_transpose(opened)
            return _pixels(image)
    except Unreadable:
        raise
    except MemoryError as error:
        raise OutOfMemory("decoding it takes more memory than there is; make it smaller") from error
    except UnknownForm as error:
        raise Unreadable(str(error)) from error
    except Exception as error:  # a broken file raises whatever its decoder trips over
        raise Unreadable(_why(error)) from error


def _turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def _check_pixels(image: Image.Image, most: int) -> None:
    if image.width * image.height > most:
        raise Unreadable(
            f"it has {image.height}x{image.width} pixels, more than the {most} that are decoded; make it smaller"
        )


def _check_frames(image: Image.Image, data: bytes | bytearray) -> None:
    """One file is one sample: of a stack or an animation the first frame alone would pass for the whole."""
    if getattr(image, "is_animated", False) and (frames := _count_frames(data)) > 1:
        raise Unreadable(
            f"it holds {frames} frames, and one file is one image; save each frame as a file of its own (with "
            "ImageMagick: magick FILE frame-%d.png)"
        )


def _count_frames(data: bytes | bytearray) -> int:
    """Frames of a file that has several, without the previews that cameras and viewers put beside the image itself."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # anew: looking at a frame moves to it
        count = int(getattr(image, "n_frames", 1))
        if isinstance(image, TiffImageFile):
            return 1 + sum(not _is_reduced(image, frame) for frame in range(1, count))
        entries = getattr(image, "mpinfo", {}).get(_MP_ENTRIES, ())
        return count - sum("Thumbnail" in str(entry["Attribute"]["MPType"]) for entry in entries)


def _is_reduced(image: TiffImageFile, frame: int) -> bool:
    image.seek(frame)
    return bool(image.tag_v2.get(_SUBFILE_TYPE, 0) & 1)


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
        return np.array(image if mode == "L" else image.convert("L"))[..., None]
    if mode in ("P", "PA"):
        # By way of RGBA: Pillow warns when it drops a palette's transparency.
        return np.array(image.convert("RGBA"))[..., :3].copy()
    if mode in ("RGBA", "RGBa", "RGBX"):
        # The colours as stored: there is no background to composite on.
        return np.array(image)[..., :3].copy()
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _why(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "it has far more pixels than are decoded; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image (it is none of PNG, JPEG, BMP, TIFF, WebP)"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"not a readable image ({text.rstrip('.')})"


def levels(values: NDArray[Any]) -> Pixels:
    """Images of any numbers as pixels: floats from 0 to 1 and bool in 255 steps, whole numbers as they are if 8 bits
    hold them.

    Raises:
        Unreadable: values beyond that.
    """
    if values.dtype in (np.uint8, np.uint16):
        return values
    most = 1 if values.dtype.kind in "bf" else 255
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (low >= 0 and high <= most):  # NaN is neither
        raise Unreadable(
            f"its {values.dtype} values go from {low} to {high}, and pixels of that type go from 0 to {most}; scale "
            "them, or save uint8 or uint16"
        )
    scaled = values if most == 255 else np.rint(values.astype(np.float64) * 255)
    return np.asarray(scaled.astype(np.uint8))


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
    return np.stack([resize(image, spec.height, spec.width) for image in pixels])


def _channels(pixels: Pixels, channels: int) -> Pixels:
    depth = pixels.shape[-1]
    if depth == channels:
        return pixels
    if depth in (2, 4) and channels in (1, 3):
        pixels, depth = pixels[..., : depth - 1], depth - 1
    if depth == channels:
        return pixels
    if depth == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if depth == 3 and channels == 1:
        # Pillow's own integer luminance, so that 8-bit files agree with other tools to the last bit.
        wide = pixels.astype(np.uint64)
        grey = (wide[..., 0] * 19595 + wide[..., 1] * 38470 + wide[..., 2] * 7471 + 0x8000) >> 16
        return grey.astype(pixels.dtype)[..., None]
    raise Unreadable(f"it has {depth} channels, and the model takes {channels}; give images of the same make")


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
