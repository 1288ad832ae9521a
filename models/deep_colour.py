"""Colour of 16 bits per channel, which Pillow knows in no mode of its own: it keeps the high byte of each value.

The low bytes are in the file all the same. Pillow's decoders unpack what they decompress by a *raw mode*, and `RGB;16B`
and `RGB;16L` differ in nothing but which byte of two they keep; so the file is decoded twice, once by either, and the
two pictures are put together:

    value = 256 * high + low

Grey with alpha (PNG) has four bytes to a pixel, and is decoded as the four channels of RGBA with 8 bits.
"""

from __future__ import annotations

import io
import sys
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION, TiffImageFile

_GREY_ALPHA = "LA;16B"
_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16")
_NATIVE = "L" if sys.byteorder == "little" else "B"
_IHDR = slice(12, 29)  # of a PNG: the chunk's name and content; its checksum follows


class UnknownForm(ValueError):
    """Colour of 16 bits in a form whose low bytes cannot be had; `str` is why, and what to save instead."""


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is opened and not yet decoded has several channels of 16 bits."""
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))
        return len(bits) > 1 and max(bits) > 8
    return isinstance(image, ImageFile.ImageFile) and any(
        _raw_mode(tile).startswith((*_COLOURS, _GREY_ALPHA)) for tile in image.tile
    )


def channels_of(image: Image.Image) -> int:
    """1 for grey with alpha, else 3."""
    return 1 if isinstance(image, ImageFile.ImageFile) and _raw_mode(image.tile[0]) == _GREY_ALPHA else 3


def read_deep_colour(data: bytes | bytearray, formats: tuple[str, ...]) -> NDArray[np.uint16]:
    """(H, W, 1 or 3) of an encoded image of which `is_deep_colour` holds, upright, without alpha.

    Raises:
        UnknownForm: its low bytes cannot be had.
        Exception: what Pillow raises over a broken file.
    """
    with Image.open(io.BytesIO(data), formats=formats) as image:
        assert isinstance(image, ImageFile.ImageFile)
        mode = _raw_mode(image.tile[0]) if image.tile else ""
        if mode == _GREY_ALPHA:
            return _grey_of_pairs(data, formats)
        planar = isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR_CONFIGURATION, 1) != 1
        if planar or not mode.startswith(_COLOURS):
            form = "separate planes" if planar else image.mode
            raise UnknownForm(
                f"its pixels have 16 bits in {form}, a form of which only 8 bits would be read; save it as RGB or grey "
                "with 16 bits"
            )
        high = _upright(image)
    with Image.open(io.BytesIO(data), formats=formats) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [_with_other_byte(tile) for tile in image.tile]
        low = _upright(image)
    return (high.astype(np.uint16) << np.uint16(8)) | low


def _upright(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(image))[..., :3]


def _grey_of_pairs(data: bytes | bytearray, formats: tuple[str, ...]) -> NDArray[np.uint16]:
    """Grey of a PNG of grey and alpha, read as four channels of 8 bits: the same bytes by another name."""
    head = bytearray(data[_IHDR])
    if head[:4] != b"IHDR":
        raise UnknownForm("its header is not where a PNG has it; save it anew")
    head[12:14] = 8, 6  # bits per channel, red-green-blue-alpha
    named = b"".join((data[:12], head, zlib.crc32(head).to_bytes(4, "big"), data[33:]))
    with Image.open(io.BytesIO(named), formats=formats) as image:
        pairs = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    return (pairs[..., :1] << np.uint16(8)) | pairs[..., 1:2]


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _with_other_byte(tile: Any) -> Any:
    """A tile to be unpacked by the raw mode that keeps the low byte."""
    mode = _raw_mode(tile)
    order = _NATIVE if mode.endswith("N") else mode[-1]
    other = mode[:-1] + ("B" if order == "L" else "L")
    arguments = other if isinstance(tile[3], str) else (other, *tile[3][1:])
    return tile._replace(args=arguments)
