"""What families take where nothing is asked for, the bounds of what may be, and words that their evidence shares."""

from __future__ import annotations

import math

from vaegis.models.families.family import in_range
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

MOST = {"latent": 4096, "width": 4096, "layers": 64, "resolution": 512}  # by argument; 0 leaves each to the family
WIDTHS = {"image": 16, "series": 32, "vector": 128}  # channels of the first convolution, or units of a dense layer

MAP_PEAK_MEANING = "largest value of the map: the strangest place, in units of clean variance"


def sizes_in_range(**sizes: int) -> None:
    """Refuses a size below 0 or above its entry in `MOST`.

    Raises:
        Refusal: naming it, its value and the bounds.
    """
    for name, size in sizes.items():
        in_range(name, size, 0, MOST[name])


def latent_units(spec: InputSpec, round_up: bool = False) -> int:
    """Latent units for an input: of a table half as many as columns, an odd half rounded down or up."""
    match spec:
        case ImageSpec():
            return 32
        case SeriesSpec():
            return max(4, min(16, 2 * len(spec.columns)))
        case _:
            half = len(spec.columns) / 2
            return max(2, min(32, math.ceil(half) if round_up else math.floor(half)))
