"""Sources: what a user names on the command line, opened for reading front to back.

A source lists its *items* (files) and streams them in bounded memory; `models.inputs` turns that into samples.
"""

from models.sources.arrays import ArrayFile
from models.sources.images import ImageFolder
from models.sources.labels import LabelTable, read_labels
from models.sources.opening import Source, as_kind, open_source
from models.sources.options import SourceOptions, parse_rows
from models.sources.tables import TableFiles

__all__ = [
    "ArrayFile",
    "ImageFolder",
    "LabelTable",
    "Source",
    "SourceOptions",
    "TableFiles",
    "as_kind",
    "open_source",
    "parse_rows",
    "read_labels",
]
