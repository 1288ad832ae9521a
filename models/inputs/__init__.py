"""Inputs: the only place that decodes, resizes, windows and tiles.

Files and request bodies become arrays in a spec's layout: `load` for a fit, `blocks` for scoring, `from_*` for
requests.
"""

from models.inputs.conditions import declare, number_of
from models.inputs.images import read_roi, roi_digest
from models.inputs.infer import infer_spec
from models.inputs.load import load
from models.inputs.options import InputOptions, Limits
from models.inputs.requests import from_array, from_arrow, from_json, from_npy, from_raw, numbers
from models.inputs.stream import blocks
from models.inputs.uploads import Reader, from_files

__all__ = [
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
    "number_of",
    "numbers",
    "read_roi",
    "roi_digest",
]
