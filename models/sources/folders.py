"""What lies below a folder: its files by names that can be printed, and what of it cannot be read.

Each folder is read once, under its own name before that of a link, so that no link leads in circles or makes copies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vaegis.models.sources.options import listed


@dataclass(frozen=True)
class Listing:
    """The visible files below a folder, links followed."""

    files: tuple[str, ...]  # POSIX paths relative to the folder, printable
    unreadable: tuple[str, ...] = ()  # what cannot be read at all, each with the reason
    repeated: tuple[str, ...] = ()  # links to folders that are read under another name, each with that name
    originals: Mapping[str, str] = field(default_factory=dict)  # of names that are not UTF-8: as the system has them


def list_folder(folder: Path) -> Listing:
    """Every visible file below a folder; what is no regular file is never opened."""
    files: list[str] = []
    unreadable: list[str] = []
    repeated: list[str] = []
    originals: dict[str, str] = {}
    names_of: dict[tuple[int, int], str] = {}  # each folder that was read, by device and inode
    folders, links = [""], list[str]()
    while folders or links:
        below = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder / below)
            name = names_of.setdefault((status.st_dev, status.st_ino), below)
            if name != below:
                repeated.append(f"{printable(below)} (the same as {printable(name) or 'the whole folder'})")
                continue
            with os.scandir(folder / below) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            unreadable.append(f"{printable(below) or folder.name} ({error.strerror})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append(name)
            elif kind == "special":
                unreadable.append(f"{printable(name)} (no regular file)")
            else:
                files.append(shown := printable(name))
                if shown != name:
                    originals[shown] = name
    return Listing(tuple(files), tuple(unreadable), tuple(repeated), originals)


def printable(name: str) -> str:
    r"""A file's name as text that can be written anywhere: bytes of it that are no UTF-8 as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listing_notes(listing: Listing) -> list[str]:
    """Sentences that name what of a folder is not read."""
    notes = []
    if listing.unreadable:
        notes.append(f"What cannot be read was passed over: {listed(listing.unreadable)}.")
    if listing.repeated:
        notes.append(f"Links to what is read already were passed over: {listed(listing.repeated)}.")
    return notes


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry leads to; a link that leads nowhere counts as a file, whose reading says why."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except OSError:
        return "file"
    return "special"
