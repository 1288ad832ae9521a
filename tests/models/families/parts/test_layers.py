import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from toy_data import SPECS, clean
from vaegis.models.families.parts.layers import (
    ConvDecoder,
    ConvEncoder,
    from_channels,
    inner_shape,
    levels,
    padding,
    smooth,
    to_channels,
)
from vaegis.models.spec import ImageSpec, SeriesSpec


@pytest.mark.parametrize("kind", SPECS)
def test_channels_first_and_back(kind):
    spec = SPECS[kind]
    x = torch.from_numpy(clean(kind, 4))
    inner = to_channels(x, spec)
    assert inner.shape == (4, *inner_shape(spec))
    assert torch.equal(from_channels(inner, spec), x.float())


def test_channels_go_where_they_belong():
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    inner = to_channels(x, ImageSpec(3, 4, 5))
    assert inner[1, 4, 2, 3] == x[1, 2, 3, 4]
    rows = torch.arange(2 * 3 * 4).view(2, 3, 4)
    assert to_channels(rows, SeriesSpec(tuple("abcd"), 3))[1, 3, 2] == rows[1, 2, 3]


@pytest.mark.parametrize(
    ("size", "halvings"), [((16, 16), 2), ((17,), 2), ((64,), 3), ((28, 20), 2), ((256, 256), 5), ((512, 16), 6)]
)
def test_halvings(size, halvings):
    assert levels(size) == halvings


@pytest.mark.parametrize(
    ("size", "halvings", "pads"),
    [((16, 16), 2, (0, 0, 0, 0)), ((28, 21), 2, (1, 2, 0, 0)), ((21, 28), 3, (2, 2, 1, 2)), ((5,), 2, (1, 2))],
)
def test_padding_reaches_the_next_multiple(size, halvings, pads):
    assert padding(size, halvings) == pads


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (9,), (2,), (64,)])
def test_every_size_is_taken_and_given_back(size):
    x = torch.randn(2, 3, *size)
    found = ConvDecoder(5, size, 3, 4)(ConvEncoder(3, size, 5, 4)(x))
    assert found.shape == x.shape
    assert found.std() > 0


def test_the_decoder_cuts_off_what_the_encoder_padded():
    """The network of the padded size has the same weights: its middle is what the odd size gives."""
    decoder, whole = ConvDecoder(5, (17, 30), 1, 4), ConvDecoder(5, (20, 32), 1, 4)
    whole.load_state_dict(decoder.state_dict())
    z = torch.randn(2, 5)
    assert torch.equal(decoder.eval()(z), whole.eval()(z)[:, :, 1:18, 1:31])


def test_smoothing_is_a_binomial_blur():
    x = torch.randn(3, 7, 9)
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    expected = correlate1d(correlate1d(x.numpy(), kernel, 1, mode="nearest"), kernel, 2, mode="nearest")
    assert smooth(x, ImageSpec(7, 9, 1)).numpy() == pytest.approx(expected, abs=1e-6)
    rows = torch.randn(3, 7, 2)
    assert smooth(rows, SeriesSpec(("a", "b"), 7)) is rows
