import dataclasses
import json

import numpy as np
import pytest

from vaegis.models.errors import Damaged
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec, describe, from_json, to_json

SPECS = [
    ImageSpec(24, 32, 3, 16, "resize", False, 0, "ab" * 32, ("rotation", "noise"), "folder", "refuse"),
    ImageSpec(height=64, width=64, channels=1, tile=True, overlap=8),
    SeriesSpec(("speed", "flow"), 16, 4, "timestamp", "allow", ("offset",), "station"),
    VectorSpec(("a", "b", "c"), "allow", ("noise",)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_a_spec_survives_json(spec):
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("spec", "shape", "map_shape", "dtype", "said"),
    [
        (SPECS[0], (24, 32, 3), (24, 32), np.uint16, "24x32 images, 3 channels, 16 bit"),
        (SPECS[1], (64, 64, 1), (64, 64), np.uint8, "64x64 tiles of images, 1 channel, 8 bit"),
        (SPECS[2], (16, 2), (16, 2), np.float32, "series of 2 columns in windows of 16 rows"),
        (SPECS[3], (3,), (3,), np.float32, "vectors of 3 columns"),
    ],
    ids=["resized", "tiled", "series", "vector"],
)
def test_layouts(spec, shape, map_shape, dtype, said):
    assert (spec.shape, spec.map_shape, spec.dtype, describe(spec)) == (shape, map_shape, np.dtype(dtype), said)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"kind": "sound"}, "kind is 'sound'"),
        ({}, "kind is None"),
        ({"kind": "vector", "columns": ["a"], "units": ["m"]}, "holds units"),
        ({"kind": "series", "columns": ["a"]}, "lacks window"),
        ({"kind": "image", "width": 3}, "lacks channels, height"),
    ],
)
def test_what_another_version_wrote_is_refused(data, said):
    with pytest.raises(Damaged, match=said):
        from_json(data)


def test_specs_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPECS[3].columns = ("z",)
    assert len({*SPECS, *(dataclasses.replace(s) for s in SPECS)}) == len(SPECS)
