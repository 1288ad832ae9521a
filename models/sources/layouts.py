"""Layouts of whole data sets, in which clean samples lie beside defects and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from vaegis.models.errors import Refusal
from vaegis.models.sources.folders import printable
from vaegis.models.sources.images import ImageFolder
from vaegis.models.sources.options import listed, natural_key

_TRAIN, _MASKS = "train", "ground_truth"


def refuse_whole_set(source: ImageFolder) -> None:
    """Refuses the root of a data set laid out as MVTec AD is (train, test, ground_truth), or of several such sets.

    Raises:
        Refusal: a fit would learn its defects and its masks as clean.
    """
    roots: dict[str, set[str]] = {}  # folder -> the folders right below it that hold images
    for name in source.files:
        parts = PurePosixPath(name).parts[:-1]
        for depth, part in enumerate(parts):
            roots.setdefault("/".join(parts[:depth]), set()).add(part)
    for root in sorted(roots, key=natural_key):
        others = [part for part in roots[root] if part == _MASKS or part.startswith("test")]
        if _TRAIN in roots[root] and others:
            here = f"{printable(source.path.name)}/{root}".rstrip("/")
            clean = _clean_folder(sorted(roots.get(f"{root}/{_TRAIN}".lstrip("/"), ())))
            raise Refusal(
                f"Folder {here} holds {_TRAIN} beside {listed(sorted(others))}: a data set as MVTec AD lays it out, of "
                f"which a fit would learn the defects too. Give its clean images alone: {here}/{_TRAIN}{clean}."
            )


def _clean_folder(names: Sequence[str]) -> str:
    """What to add to the training folder's path: its only folder, or the one for good ones."""
    if len(names) == 1:
        return f"/{names[0]}"
    return next((f"/{name}" for name in names if name in ("good", "ok", "normal")), "")
