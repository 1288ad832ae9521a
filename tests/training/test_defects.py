"""Synthetic defects: what they change and what they leave alone."""

import numpy as np
import pytest

from vaegis.training.defects import DEFECTS, make_defects

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(40, 200, (30, 24, 20, 1), dtype=np.uint8)
WINDOWS = RNG.normal(10, 2, (40, 12, 3)).astype(np.float32)
ROWS = np.column_stack([RNG.normal(size=(400, 3)), RNG.integers(0, 4, 400)]).astype(np.float32)
CLEAN = {"image": IMAGES, "series": WINDOWS, "vector": ROWS}


@pytest.mark.parametrize("kind", CLEAN)
def test_every_defect_keeps_shape_and_type_changes_each_sample_and_repeats(kind):
    clean = CLEAN[kind]
    first, again = make_defects(kind, clean, 3), make_defects(kind, clean, 3)
    assert set(first) == set(DEFECTS[kind])
    for name, values in first.items():
        assert values.shape == clean.shape and values.dtype == clean.dtype
        assert np.isfinite(values.astype(np.float64)).all()
        changed = (values != clean).reshape(len(clean), -1).any(1).mean()
        assert changed > 0.9, name
        np.testing.assert_array_equal(values, again[name])


def test_the_clean_samples_are_left_as_they_were():
    before = IMAGES.copy()
    make_defects("image", IMAGES, 0)
    np.testing.assert_array_equal(IMAGES, before)


def test_local_defects_of_images_touch_only_their_patch():
    for name in ("patch", "missing", "stain"):
        touched = (make_defects("image", IMAGES, 1)[name] != IMAGES)[..., 0]
        for one in touched:
            rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
            assert np.ptp(rows) + 1 <= round(0.35 * 24) and np.ptp(columns) + 1 <= round(0.35 * 20), name


def test_a_missing_patch_is_flat_and_keeps_its_mean():
    found = make_defects("image", IMAGES, 1)["missing"]
    for one, clean in zip(found[..., 0], IMAGES[..., 0], strict=True):
        touched = one != clean
        rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.unique(one[box]).size == 1
        assert abs(float(one[box].mean()) - float(clean[box].mean())) <= 8


def test_a_double_is_the_mean_of_two_clean_images():
    found = make_defects("image", IMAGES, 2)["double"].astype(float)
    pairs = 0.5 * (IMAGES[:, None].astype(float) + IMAGES[None])
    for i in range(len(IMAGES)):
        assert np.abs(np.rint(pairs[i]) - found[i]).reshape(len(IMAGES), -1).max(1).min() == 0


def test_a_drift_moves_one_channel_by_two_standard_deviations():
    away = make_defects("series", WINDOWS, 4)["drift"] - WINDOWS
    moved = np.abs(away).max(1) > 1e-6
    assert (moved.sum(1) == 1).all()
    spread = WINDOWS.astype(np.float64).std((0, 1))
    which = moved.argmax(1)
    np.testing.assert_allclose(np.abs(away).max((1, 2)), 2 * spread[which], rtol=1e-4)


def test_a_dependency_defect_keeps_each_column_and_loses_the_relation():
    x = RNG.normal(size=2000)
    clean = np.column_stack([x, x + 0.01 * RNG.normal(size=2000)]).astype(np.float32)
    found = make_defects("vector", clean, 0)["dependency"]
    np.testing.assert_allclose(found.std(0), clean.std(0), rtol=0.1)
    assert np.corrcoef(clean.T)[0, 1] > 0.99 and abs(np.corrcoef(found.T)[0, 1]) < 0.1


def test_local_defects_have_five_times_the_clean_covariance():
    clean = RNG.multivariate_normal([3, -1], [[2.0, 0.9], [0.9, 1.0]], 3000).astype(np.float32)
    found = make_defects("vector", clean, 0)["local"]
    np.testing.assert_allclose(np.cov(found.T), 5 * np.cov(clean.T), rtol=0.12)


def test_columns_of_codes_stay_codes_in_range():
    for name, values in make_defects("vector", ROWS, 0).items():
        assert set(np.unique(values[:, 3])) <= {0.0, 1.0, 2.0, 3.0}, name
