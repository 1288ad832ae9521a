"""`open_source`: from a path to what lies there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vaegis.models.errors import Refusal
from vaegis.models.sources.arrays import ArrayFile, array_kind, open_array
from vaegis.models.sources.images import SUFFIXES as IMAGE_SUFFIXES
from vaegis.models.sources.images import ImageFolder, is_image_file, walk
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
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise Refusal(f"{path.name} is empty (0 bytes).")
    if suffix in ARRAY_SUFFIXES:
        return open_array(path, options)
    if suffix in TABLE_SUFFIXES:
        return TableFiles(path, options, _table_kind(path.name, options), path.parent, (path.name,))
    if is_image_file(path):
        if options.kind not in (None, "image"):
            raise Refusal(f"{path.name} is an image, so --kind {options.kind} cannot be read from it.")
        return ImageFolder(path, options, path.parent, (path.name,))
    raise Refusal(
        f"{path.name} is no format read here; give images (PNG, JPEG, BMP, TIFF, WebP), .npz, .npy, .csv or .parquet."
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
            return TableFiles(source.path, source.options, kind, source.root, source.files)
    content = "images" if isinstance(source, ImageFolder) else "tables"
    raise Refusal(f"{source.path.name} holds {content}, but the model takes {_plural(kind)}; give it those.")


def _plural(kind: Kind) -> str:
    return {"image": "images", "series": "series", "vector": "vectors"}[kind]


def _table_kind(name: str, options: SourceOptions) -> Kind:
    if options.kind == "image":
        raise Refusal(f"{name} is a table, so --kind image cannot be read from it; give a folder of images or an .npz.")
    return options.kind or "series"


def _folder(path: Path, options: SourceOptions) -> Source:
    paths = walk(path)
    if not paths:
        raise Refusal(f"Folder {path.name} is empty; put images, csv or Parquet files into it.")
    images: list[str] = []
    if options.kind in (None, "image"):
        # A suffix settles most files; the bytes of the others are looked at only where nothing has an image's name.
        images = [name for name in paths if name.lower().endswith(IMAGE_SUFFIXES)]
        others = TABLE_SUFFIXES + ARRAY_SUFFIXES
        images = images or [n for n in paths if not n.lower().endswith(others) and is_image_file(path / n)]
    if images:
        folder = ImageFolder(path, options, path, tuple(sorted(images, key=natural_key)))
        first, last = folder.span
        if first == last:
            raise Refusal(f"--rows leaves nothing of {path.name}, which holds {len(images)} images.")
        return folder
    tables = [name for name in paths if name.lower().endswith(TABLE_SUFFIXES)]
    if tables and options.kind != "image":
        kind = _table_kind(path.name, options)
        return TableFiles(path, options, kind, path, tuple(sorted(tables, key=natural_key)))
    some = sorted(paths, key=natural_key)
    wanted = {"image": "images", "series": "tables", "vector": "tables"}.get(options.kind or "", "images or tables")
    raise Refusal(
        f"Folder {path.name} holds no {wanted} among its {len(paths)} files ({listed(some, 3)}); give PNG, JPEG, BMP, "
        "TIFF or WebP images, or csv or Parquet files."
    )
