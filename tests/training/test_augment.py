import dataclasses

import numpy as np
import pytest
import torch

from toy_data import IMAGES, SERIES, VECTORS, clean
from vaegis.models.spec import INVARIANCES, ImageSpec
from vaegis.training.augment import GAIN, NOISE, OFFSET, augment

SPECS = {"image": IMAGES, "series": SERIES, "vector": VECTORS}


def varied(x, spec, *invariances, seed=0):
    spec = dataclasses.replace(spec, invariances=invariances)
    return augment(torch.as_tensor(x), spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", SPECS)
def test_nothing_declared_changes_nothing(kind):
    x = torch.from_numpy(clean(kind, 5))
    assert varied(x, SPECS[kind]) is x


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in INVARIANCES.items() for n in names])
def test_every_declared_invariance_varies_each_sample_by_the_generator_alone(kind, name):
    x = torch.from_numpy(clean(kind, 12))
    one, again, other = (varied(x, SPECS[kind], name, seed=s) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == torch.float32
    assert one.shape == x.shape
    changed = (one != x.float()).flatten(1).any(1)
    assert changed.sum() >= 8  # a flip may leave a sample as it was
    assert torch.isfinite(one).all()
    if kind == "image":
        assert one.min() >= 0
        assert one.max() <= 255


def test_flips_are_the_four_mirrors():
    x = torch.from_numpy(clean("image", 1)).float()
    mirrors = [x, x.flip(1), x.flip(2), x.flip(1, 2)]
    found = varied(x.expand(200, -1, -1, -1), IMAGES, "flip")
    counts = [sum(torch.equal(f, m[0]) for f in found) for m in mirrors]
    assert sum(counts) == 200
    assert min(counts) > 25


def test_turning_keeps_what_is_round_and_the_centre():
    # Grey by distance from the centre of a wide image: every turn of it is itself.
    rows, columns = np.mgrid[:31, :41]
    round_ = (200 - 8 * np.hypot(rows - 15, columns - 20)).clip(0, 255).astype(np.uint8)
    x = torch.from_numpy(np.repeat(round_[None, :, :, None], 20, 0))
    found = varied(x, ImageSpec(31, 41, 1), "rotation")
    inside = torch.from_numpy(np.hypot(rows - 15, columns - 20) < 13)
    assert (found - x)[:, inside].abs().max() < 4


def test_turning_moves_a_mark_at_its_distance():
    x = np.zeros((60, 33, 33, 1), np.uint8)
    x[:, 15:18, 25:28] = 255
    found = varied(x, ImageSpec(33, 33, 1), "rotation")[..., 0]
    grid = torch.stack(torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij"))
    weight = found / found.sum((1, 2), keepdim=True)
    centre = (weight[:, None] * grid).sum((2, 3))
    assert centre.norm(dim=1).numpy() == pytest.approx(10.0, abs=0.7)
    angle = torch.atan2(centre[:, 0], centre[:, 1])
    assert angle.min() < -2
    assert angle.max() > 2


def test_shifts_stay_within_a_tenth_of_the_side():
    x = np.zeros((200, 40, 60, 1), np.uint8)
    x[:, 20, 30] = 255
    found = varied(x, ImageSpec(40, 60, 1), "shift")[..., 0]
    down = (found.sum(2) * torch.arange(40)).sum(1) / found.sum((1, 2)) - 20
    right = (found.sum(1) * torch.arange(60)).sum(1) / found.sum((1, 2)) - 30
    assert 3.0 < down.abs().max() <= 4.01
    assert 5.0 < right.abs().max() <= 6.01


def test_lighting_is_one_gain_and_one_offset_per_image():
    x = torch.full((50, 16, 16, 1), 100.0)
    x[:, :8] = 110.0
    found = varied(x, IMAGES, "lighting")
    assert (found[:, :8].std((1, 2, 3)) < 1e-3).all()
    gain = (found[:, 0, 0, 0] - found[:, -1, 0, 0]) / 10
    offset = found[:, -1, 0, 0] - 100 * gain
    assert (gain - 1).abs().max() <= GAIN + 1e-3
    assert offset.abs().max() <= OFFSET * 255 + 1e-2
    assert gain.std() > 0.1
    assert offset.std() > 10


def test_noise_has_the_stated_size():
    x = torch.full((20, 16, 16, 1), 30000.0)
    found = varied(x, dataclasses.replace(IMAGES, depth=16), "noise") - x
    assert found.std().item() == pytest.approx(NOISE * 65535, rel=0.05)
    rows = torch.from_numpy(clean("vector", 500))
    away = (varied(rows, VECTORS, "noise") - rows).std(0)
    assert torch.allclose(away, NOISE * rows.std(0), rtol=0.2)


def test_offsets_and_scales_are_one_per_channel_and_window():
    x = torch.from_numpy(clean("series", 40))
    moved = varied(x, SERIES, "offset") - x
    assert (moved.std(1) < 1e-3).all()
    spread = x.std((0, 1))
    assert (moved[:, 0].abs() <= spread + 1e-3).all()
    assert moved[:, 0].std(0).numpy() == pytest.approx((spread / 3**0.5).numpy(), rel=0.3)
    factor = varied(x, SERIES, "scale") / x
    assert (factor.std(1) < 1e-4).all()
    assert (factor - 1).abs().max() <= GAIN + 1e-4


@pytest.mark.parametrize("name", INVARIANCES["series"])
def test_missing_values_stay_missing(name):
    x = torch.from_numpy(clean("series", 20).copy())
    x[3, 2:5, 1] = torch.nan
    assert torch.equal(varied(x, SERIES, name).isnan(), x.isnan())
