import io

import numpy as np
import pytest
from PIL import Image

from vaegis.models.outputs.colours import PALETTE, colour, to_png


def test_the_scale_is_fixed_and_ends_at_three_times_its_span():
    values = np.array([-5.0, 1.0, 2.5, 4.0, 1e30, np.inf], np.float32)
    found = colour(values, (1.0, 2.0))
    assert (found == PALETTE[[0, 0, 127, 255, 255, 255]]).all()


def test_the_palette_grows_lighter_throughout():
    lightness = PALETTE.astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > -1).all()
    assert lightness[-1] - lightness[0] > 200


@pytest.mark.parametrize(
    ("values", "size"),
    [(np.arange(12, dtype=np.float32).reshape(3, 4), (4, 3)), (np.arange(5, dtype=np.float32), (5, 1))],
    ids=["image", "vector"],
)
def test_a_png_holds_the_map_as_it_lies(values, size):
    picture = Image.open(io.BytesIO(to_png(values, (0.0, 4.0))))
    assert (picture.size, picture.mode) == (size, "RGB")
    assert (np.asarray(picture) == colour(np.atleast_2d(values), (0.0, 4.0))).all()


def test_a_constant_clean_map_has_a_scale_all_the_same():
    assert (colour(np.array([2.0, 2.1], np.float32), (2.0, 2.0)) == PALETTE[[0, 255]]).all()


def test_a_value_that_is_no_number_is_drawn_strangest():
    assert (colour(np.array([np.nan], np.float32), (0.0, 1.0)) == PALETTE[255]).all()
