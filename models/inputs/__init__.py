"""Inputs: the only place that decodes, resizes, windows and tiles.

Files and request bodies become arrays in a spec's layout: `load` for a fit, `blocks` for scoring, `from_*` for
requests.
"""

from vaegis.models.inputs.conditions import declare, number_of
from vaegis.models.inputs.images import read_roi, roi_digest
from vaegis.models.inputs.in_memory import InMemory
from vaegis.models.inputs.infer import infer_spec
from vaegis.models.inputs.load import load
from vaegis.models.inputs.notes import notes_of
from vaegis.models.inputs.options import InputOptions, Limits
from vaegis.models.inputs.requests import from_array, from_arrow, from_json, from_npy, from_raw, numbers
from vaegis.models.inputs.stream import blocks
from vaegis.models.inputs.uploads import Reader, from_files

__all__ = [
    "InMemory",
    "InputOptions",
    "Limits",
    "Reader",
    "blocks",
    "declare",
    "from_array",
    "from_arrow",
    "from_files",
    "from_json",
    "from_npy",
    "from_raw",
    "infer_spec",
    "load",
    "notes_of",
    "number_of",
    "numbers",
    "read_roi",
    "roi_digest",
]
