"""Sources: what a user names on the command line, opened for reading front to back.

A source lists its *items* (files) and streams them in bounded memory; `vaegis.models.inputs` turns that into samples.
"""

from vaegis.models.sources.arrays import ArrayFile
from vaegis.models.sources.images import ImageFolder
from vaegis.models.sources.labels import LabelTable, read_labels
from vaegis.models.sources.memory import ArrayMemory, open_arrays
from vaegis.models.sources.opening import ArraySource, Source, as_kind, open_source
from vaegis.models.sources.options import SourceOptions, parse_rows
from vaegis.models.sources.tables import TableFiles

__all__ = [
    "ArrayFile",
    "ArrayMemory",
    "ArraySource",
    "ImageFolder",
    "LabelTable",
    "Source",
    "SourceOptions",
    "TableFiles",
    "as_kind",
    "open_arrays",
    "open_source",
    "parse_rows",
    "read_labels",
]
