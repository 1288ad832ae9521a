"""Where a source, or a file beside it, says something of each sample: its label, or its condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from vaegis.models.errors import Refusal
from vaegis.models.sources.images import ImageFolder
from vaegis.models.sources.opening import ArraySource, Source
from vaegis.models.sources.tables import TableFiles

Table = TypeVar("Table")


@dataclass(frozen=True)
class Readers(Generic[Table]):
    """How each place is read."""

    folders: Callable[[ImageFolder], Table] | None  # None where the samples lie in no folders
    column: Callable[[TableFiles, str], Table]
    key: Callable[[ArraySource, str], Table]
    file: Callable[[Source, Path], Table]


def read_annotations(source: Source, how: str, option: str, each: str, forms: str, readers: Readers[Table]) -> Table:
    """What `column:NAME`, `key:NAME`, `folders` or a csv file says.

    Args:
        option: of the command line, for sentences.
        each: what a sub-folder stands for.
        forms: what may be given.

    Raises:
        Refusal: it cannot be had that way from this source.
    """
    if how == "folders":
        if not isinstance(source, ImageFolder) or readers.folders is None:
            raise Refusal(f"{option} folders needs a folder of images, one sub-folder per {each}.")
        return readers.folders(source)
    if how.startswith("column:"):
        if not isinstance(source, TableFiles):
            raise Refusal(f"{option} {how} needs csv or Parquet files; an .npz takes key:NAME, images take folders.")
        return readers.column(source, how.removeprefix("column:"))
    if how.startswith("key:"):
        if not isinstance(source, ArraySource):
            raise Refusal(f"{option} {how} needs an .npz; csv and Parquet take column:NAME, images take folders.")
        return readers.key(source, how.removeprefix("key:"))
    path = Path(how)
    if not path.is_file():
        raise Refusal(f"{option} {how!r}: no such file. Give {forms}.")
    return readers.file(source, path)
