"""`open_source`: from a path to what lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vaegis.models.errors import Refusal
from vaegis.models.sources.arrays import ArrayFile, array_kind, open_array
from vaegis.models.sources.folders import Listing, list_folder, listing_notes, printable
from vaegis.models.sources.images import SUFFIXES as IMAGE_SUFFIXES
from vaegis.models.sources.images import ImageFolder, is_image_file, is_other_picture
from vaegis.models.sources.memory import ArrayMemory
from vaegis.models.sources.options import SourceOptions, listed, natural_key
from vaegis.models.sources.tables import SUFFIXES as TABLE_SUFFIXES
from vaegis.models.sources.tables import TableFiles
from vaegis.models.spec import Kind

ArraySource = ArrayFile | ArrayMemory  # what is read from arrays, wherever they lie
Source = ImageFolder | ArraySource | TableFiles
ARRAY_SUFFIXES = (".npy", ".npz")


def open_source(path: Path, options: SourceOptions) -> Source:
    """What lies at `path`: a folder of images or of tables, an image, an array, a table.

    Only names and headers are read. A folder that holds images is a source of images, whatever else lies in it, unless
    `options.kind` says otherwise.

    Raises:
        Refusal: nothing there, nothing in it, or nothing that is read here.
    """
    if not path.exists():
        raise Refusal(f"There is nothing at {path}; check the path.")
    if path.is_dir():
        return _folder(path, options)
    suffix, name = path.suffix.lower(), printable(path.name)
    if not path.is_file():
        raise Refusal(f"{name} is no regular file (a pipe, a socket or a device); save what it gives to a file.")
    if path.stat().st_size == 0:
        raise Refusal(f"{name} is empty (0 bytes).")
    originals = {} if name == path.name else {name: path.name}
    if suffix in ARRAY_SUFFIXES:
        return open_array(path, options)
    if suffix in TABLE_SUFFIXES:
        return TableFiles(path, options, _table_kind(name, options), path.parent, (name,), originals)
    if is_image_file(path):
        if options.kind not in (None, "image"):
            raise Refusal(f"{name} is an image, so --kind {options.kind} cannot be read from it.")
        return ImageFolder(path, options, path.parent, (name,), originals=originals)
    raise Refusal(
        f"{name} is no format read here; give images (PNG, JPEG, BMP, TIFF, WebP), .npz, .npy, .csv or .parquet."
    )


def as_kind(source: Source, kind: Kind) -> Source:
    """The source read as `kind`, the one a model takes, where its form allows that and nobody said otherwise.

    Raises:
        Refusal: it holds something else.
    """
    if source.kind == kind:
        return source
    wanted = source.options.kind
    if wanted is not None:
        raise Refusal(f"--kind {wanted} was given, but the model takes {_plural(kind)}; leave --kind out.")
    match source:
        case ArrayFile() | ArrayMemory():
            name = source.path.name if source.key is None else f"Array {source.key!r} of {source.path.name}"
            array_kind(name, source.header.shape, source.header.dtype, kind)
            return replace(source, kind=kind)
        case TableFiles() if kind != "image":
            return replace(source, kind=kind)
    content = "images" if isinstance(source, ImageFolder) else "tables"
    raise Refusal(f"{source.path.name} holds {content}, but the model takes {_plural(kind)}; give it those.")


def _plural(kind: Kind) -> str:
    return {"image": "images", "series": "series", "vector": "vectors"}[kind]


def _table_kind(name: str, options: SourceOptions) -> Kind:
    if options.kind == "image":
        raise Refusal(f"{name} is a table, so --kind image cannot be read from it; give a folder of images or an .npz.")
    return options.kind or "series"


def _folder(path: Path, options: SourceOptions) -> Source:
    listing = list_folder(path)
    files, title = listing.files, printable(path.name)
    notes = tuple(listing_notes(listing))
    if not files:
        raise Refusal(" ".join([f"Folder {title} is empty; put images, csv or Parquet files into it.", *notes]))
    images = _images(path, listing) if options.kind in (None, "image") else []
    if images:
        chosen = set(images)
        others = [name for name in files if name not in chosen and is_other_picture(_place(path, listing, name))]
        folder = ImageFolder(
            path,
            options,
            path,
            tuple(sorted(images, key=natural_key)),
            originals=listing.originals,
            notes=(*notes, *_passed_over(sorted(others, key=natural_key))),
            unreadable=listing.unreadable,
        )
        first, last = folder.span
        if first == last:
            raise Refusal(f"--rows leaves nothing of {title}, which holds {len(images)} images.")
        return folder
    tables = [name for name in files if name.lower().endswith(TABLE_SUFFIXES)]
    if tables and options.kind != "image":
        kind = _table_kind(title, options)
        ordered = tuple(sorted(tables, key=natural_key))
        return TableFiles(
            path, options, kind, path, ordered, listing.originals, notes=notes, unreadable=listing.unreadable
        )
    some = sorted(files, key=natural_key)
    wanted = {"image": "images", "series": "tables", "vector": "tables"}.get(options.kind or "", "images or tables")
    raise Refusal(
        f"Folder {title} holds no {wanted} among its {len(files)} files ({listed(some, 3)}); give PNG, JPEG, BMP, "
        "TIFF or WebP images, or csv or Parquet files."
    )


def _images(path: Path, listing: Listing) -> list[str]:
    """The files that are meant to be images. A suffix settles most; the bytes of the others are looked at only where
    nothing has an image's name."""
    others = TABLE_SUFFIXES + ARRAY_SUFFIXES
    return [name for name in listing.files if name.lower().endswith(IMAGE_SUFFIXES)] or [
        name
        for name in listing.files
        if not name.lower().endswith(others) and is_image_file(_place(path, listing, name))
    ]


def _passed_over(names: Sequence[str]) -> list[str]:
    """The sentence that counts and names the pictures that are not read; none where there are none."""
    if not names:
        return []
    were = "1 file was" if len(names) == 1 else f"{len(names)} files were"
    return [f"{were} passed over: {listed(names)}; PNG, JPEG, BMP, TIFF and WebP images are read, by their suffix."]


def _place(path: Path, listing: Listing, name: str) -> Path:
    return path / listing.originals.get(name, name)
