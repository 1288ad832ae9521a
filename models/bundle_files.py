"""The files of a bundle's folder, which may come from anywhere: regular files below it, read within bounds.

A pipe would hold up whoever opens it, a device has no end, a link leads to any file of the machine. So what lies in the
folder is looked at before anything is opened, and opened without following links.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from vaegis.models.errors import Damaged

ENTRIES_MOST = 10_000  # files and folders of a bundle
DEPTH_MOST = 8  # folders within folders
FILE_BYTES_MOST = 2**31  # what the graphs' format can hold
CHUNK = 2**20


def list_files(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path within it.

    Raises:
        Damaged: a link, pipe, device or socket, more entries than a bundle has, or a folder that cannot be read.
    """
    sizes: dict[str, int] = {}
    folders, entries = [(folder, "", 0)], 0
    while folders:
        where, prefix, depth = folders.pop()
        try:
            with os.scandir(where) as listing:
                for entry in listing:
                    entries += 1
                    name = prefix + entry.name
                    if entries > ENTRIES_MOST or depth > DEPTH_MOST:
                        raise Damaged(
                            f"The bundle's folder holds more than {ENTRIES_MOST} files or {DEPTH_MOST} levels of "
                            "folders, which no bundle does; give the folder that `vaegis fit --out` wrote."
                        )
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((Path(entry.path), f"{name}/", depth + 1))
                        continue
                    if not entry.is_file(follow_symlinks=False):
                        what = "a link" if entry.is_symlink() else "a pipe, device or socket"
                        raise Damaged(
                            f"The bundle holds {name!r:.200}, which is {what}; a bundle holds files alone. Remove it "
                            "or restore the bundle."
                        )
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
        except OSError as error:
            raise Damaged(f"The bundle's folder cannot be read ({error.strerror}); restore its permissions.") from error
    return sizes


def read_file(folder: Path, name: str, most: int = FILE_BYTES_MOST) -> bytes:
    """A file's bytes.

    Raises:
        Damaged: it is no regular file below the folder, is larger than `most`, or cannot be read.
    """
    with os.fdopen(_open(folder, name, most), "rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise Damaged(f"{name} is larger than {most} bytes; it is not one that this product wrote.")
    return raw


def digest_of(folder: Path, name: str) -> str:
    """The sha256 of a file, read piece by piece.

    Raises:
        Damaged: as `read_file`.
    """
    digest = hashlib.sha256()
    with os.fdopen(_open(folder, name, FILE_BYTES_MOST), "rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _open(folder: Path, name: str, most: int) -> int:
    """A descriptor of a regular file."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        raise Damaged(f"The bundle lists {name!r:.200}, which lies outside its folder.")
    try:
        if any((folder / Path(*parts[:n])).is_symlink() for n in range(1, len(parts) + 1)):
            raise Damaged(f"The bundle lists {name!r:.200}, which lies outside its folder: it is reached by a link.")
        # Not held up by a pipe that nobody writes to, and not led elsewhere by a link put there meanwhile.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(folder / name, flags)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise Damaged(f"The bundle lacks {name!r:.200} ({why}); restore it from where it came.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged(f"The bundle lacks {name!r:.200} (no file is there); restore it from where it came.")
        raise Damaged(f"{name} is larger than {most} bytes; it is not one that this product wrote.")
    return descriptor
