"""A folder of images, or one image file: which files are items, and which group each belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vaegis.models.errors import Refusal
from vaegis.models.sources.options import SourceOptions, span
from vaegis.models.spec import Kind

# Of the formats in `vaegis.models.pixels`; a name only marks a file as meant to be an image, the content decides.
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp")
# Pictures in formats that are not read here: none of them is passed over without a word.
OTHER_SUFFIXES = (
    ".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".jxr", ".tga", ".ico",
    ".psd", ".svg", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw", ".dcm",
    ".apng", ".mpo",
)  # fmt: skip
# Files that lie beside images and are none, so that their bytes need not be looked at.
_NO_IMAGES = (
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".yaml", ".yml", ".html", ".parquet", ".npy", ".npz",
    ".log", ".db", ".ini", ".toml", ".pdf", ".zip",
)  # fmt: skip
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a folder, in natural order; or one image file."""

    path: Path
    options: SourceOptions
    root: Path  # what the names are relative to
    files: tuple[str, ...]  # all of them, before `rows`; POSIX paths
    kind: Kind = "image"
    originals: Mapping[str, str] = field(default_factory=dict)  # of names that are not UTF-8
    notes: tuple[str, ...] = ()  # what of the folder is passed over
    unreadable: tuple[str, ...] = ()  # what of it cannot be read at all

    def place(self, name: str) -> Path:
        """Where an item lies."""
        return self.root / self.originals.get(name, name)

    def names(self) -> tuple[str, ...]:
        """Every item, after `rows`."""
        first, last = self.span
        return self.files[first:last]

    @property
    def span(self) -> tuple[int, int]:
        return span(self.options.rows, len(self.files))


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of an allowed format."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def is_image_file(path: Path) -> bool:
    """Whether a file is meant to be an image: by its suffix, else by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return looks_like_image(file.read(16))
    except OSError:
        return False


def is_other_picture(path: Path) -> bool:
    """Whether a file that is not taken for an image looks like a picture all the same."""
    suffix = path.suffix.lower()
    return suffix in OTHER_SUFFIXES or (suffix not in _NO_IMAGES and is_image_file(path))


def grouping(how: str, option: str) -> Callable[[str], str | None]:
    """What maps an image's relative path to its group: `folder`, or a regular expression with one group.

    The function returned gives None where the expression does not match.

    Raises:
        Refusal: neither.
    """
    if how == "folder":
        return lambda name: PurePosixPath(name).parent.as_posix()
    try:
        pattern = re.compile(how)
    except re.error as error:
        raise Refusal(f"{option} {how!r} is no regular expression ({error}).") from error
    if pattern.groups != 1:
        raise Refusal(
            f"{option} {how!r} names no group of images: give `folder`, or a regular expression with exactly one "
            r"(group) that is matched on the path, for example 'lot(\d+)'."
        )

    def group(name: str) -> str | None:
        match = pattern.search(name)
        return match.group(1) if match else None

    return group
