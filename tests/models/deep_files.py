"""PNG and TIFF files of 16 bits per channel, as cameras write them and Pillow does not."""

import struct
import zlib

import numpy as np


def deep_png(pixels: np.ndarray, filtered: bool = False) -> bytes:
    """A PNG of (H, W, 1 to 4) pixels; `filtered` stores each row as its difference to the one above."""
    height, width, channels = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    if filtered:
        rows = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    raw = b"".join((b"\x02" if filtered else b"\x00") + row.tobytes() for row in rows)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def deep_tiff(
    pixels: np.ndarray, order: str = "<", packed: bool = False, planar: bool = False, extra: int | None = None
) -> bytes:
    """A TIFF of (H, W, 3 or 4) pixels in one strip, or in a strip for each channel.

    Args:
        order: of bytes, `<` or `>`.
        packed: compressed by deflate.
        extra: what the fourth channel is: 0 nothing, 1 alpha multiplied in, 2 alpha.
    """
    height, width, channels = pixels.shape
    layers = [pixels[..., c] for c in range(channels)] if planar else [pixels]
    strips = [layer.astype(f"{order}u2").tobytes() for layer in layers]
    strips = [zlib.compress(strip) + bytes(len(zlib.compress(strip)) % 2) if packed else strip for strip in strips]
    starts = np.cumsum([8, *(len(strip) for strip in strips)]).tolist()
    tags = {
        256: [width],
        257: [height],
        258: [16] * channels,
        259: [8 if packed else 1],
        262: [2],
        273: starts[:-1],
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
        **({338: [extra]} if extra is not None else {}),
    }
    directory, beyond = b"", b""
    for tag, values in tags.items():
        form = "I" if tag in (273, 279) else "H"
        content = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(content) > 4:
            place = starts[-1] + 2 + 12 * len(tags) + 4 + len(beyond)
            content, beyond = struct.pack(f"{order}I", place), beyond + content
        directory += struct.pack(f"{order}HHI", tag, 4 if form == "I" else 3, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", starts[-1])
    return b"".join((head, *strips, struct.pack(f"{order}H", len(tags)), directory, bytes(4), beyond))
