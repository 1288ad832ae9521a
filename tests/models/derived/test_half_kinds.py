"""Half precision on every kind of source: how many samples it counts, by known numbers.

The score is a quarter of the mean square, exact in half precision for small whole numbers; see `network_graph`.
"""

import dataclasses

import numpy as np
import pytest
from source_files import csv, opened, save

from toy_bundles import network_bundle
from vaegis.models import inputs
from vaegis.models.bundle import open_bundle
from vaegis.models.derived.half import half_bundle
from vaegis.models.errors import Refusal
from vaegis.models.manifest import Lineage, Proof, SplitSizes
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

SERIES = SeriesSpec(columns=("speed", "flow"), window=4, stride=2)
VECTOR = VectorSpec(columns=("a", "b"))


@pytest.fixture
def halve_on(tmp_path):
    """`halve_on(spec, path, **how)`: the halved bundle, opened again, and how far it agrees."""

    def run(spec, path, alpha=0.05, **how):
        bundle = network_bundle(tmp_path / "full", spec, alpha)
        samples = inputs.load(opened(path, **how), spec, tmp_path / "samples")
        half, agreement = half_bundle(bundle, samples, tmp_path / "half")
        assert open_bundle(half.path).digest == half.digest
        return open_bundle(half.path), agreement, samples

    return run


def rows(n):
    """(n, 2): row i holds i % 40 and i // 40, so that no two are alike."""
    return np.stack([np.arange(n) % 40, np.arange(n) // 40], axis=1).astype(np.float32)


def known(parts):
    """The score of each of (m, ...) parts."""
    return (np.asarray(parts, np.float64).reshape(len(parts), -1) ** 2).mean(axis=1) / 4


def values_of(bundle, group=""):
    return bundle.calibration.groups[group].terms["score"].values


def test_each_window_of_a_series_counts_once_at_its_stride(halve_on, tmp_path):
    # Long enough to be read in several blocks, whose borders windows cross.
    table = rows(20_000)
    bundle, agreement, _ = halve_on(SERIES, csv(tmp_path / "clean.csv", table))
    starts = np.arange(0, 20_000 - 4 + 1, 2)
    assert len(starts) == agreement.samples == bundle.manifest.training.calibrate == 9999
    assert (agreement.rank, agreement.flips) == ({"score": pytest.approx(1.0, abs=1e-12)}, 0)
    assert values_of(bundle).tolist() == np.sort(known([table[s : s + 4] for s in starts])).tolist()
    # Side by side lie the windows that start at 0, 4, ..., 19996.
    assert bundle.manifest.training.calibrate_independent == bundle.calibration.groups[""].effective == 5000


def test_no_window_crosses_two_items(halve_on, tmp_path):
    for i, name in enumerate("abc"):
        csv(tmp_path / "clean" / f"{name}.csv", rows(81) + 100 * i)
    bundle, agreement, _ = halve_on(SERIES, tmp_path / "clean", kind="series")
    # Windows start at 0, 2, ..., 76 and, to the end of 81 rows, 77.
    assert agreement.samples == 3 * 40
    assert bundle.calibration.groups[""].effective == 3 * 20


def test_windows_given_as_such_are_samples_of_their_own(halve_on, tmp_path):
    windows = np.random.default_rng(0).integers(0, 9, (150, 4, 2)).astype(np.float32)
    np.save(tmp_path / "clean.npy", windows)
    bundle, agreement, _ = halve_on(SERIES, tmp_path / "clean.npy")
    assert agreement.samples == bundle.calibration.groups[""].effective == 150
    assert values_of(bundle).tolist() == np.sort(known(windows)).tolist()


def test_a_series_keeps_its_groups(halve_on, tmp_path):
    spec = dataclasses.replace(SERIES, stride=1, calibrate_by="machine")
    table = np.column_stack([rows(400), np.repeat([1, 2], [100, 300])])
    bundle, _, _ = halve_on(spec, csv(tmp_path / "clean.csv", table, ("speed", "flow", "machine")))
    groups = bundle.calibration.groups
    # A window has the group of the row that it ends at: rows 3 to 99, and 100 to 399. Of 397 windows 100 lie side by
    # side, and the groups have their share of these.
    assert {g: len(values_of(bundle, g)) for g in groups} == {"": 397, "1.0": 97, "2.0": 300}
    assert {g: groups[g].effective for g in groups} == {"": 100, "1.0": 24, "2.0": 75}


def test_vectors_keep_their_groups(halve_on, tmp_path):
    x = rows(120)
    np.savez(tmp_path / "clean.npz", x=x, line=np.repeat(["left", "right"], [50, 70]))
    spec = dataclasses.replace(VECTOR, calibrate_by="line")
    bundle, _, _ = halve_on(spec, tmp_path / "clean.npz")
    assert {g: c.effective for g, c in bundle.calibration.groups.items()} == {"": 120, "left": 50, "right": 70}
    assert values_of(bundle, "right").tolist() == np.sort(known(x[50:])).tolist()


def test_an_image_is_as_strange_as_its_strangest_tile(halve_on, tmp_path):
    spec = ImageSpec(height=8, width=8, channels=1, tile=True, overlap=0)
    for i in range(100):
        save(tmp_path / "clean" / f"{i}.png", np.repeat([2, i], 8).astype(np.uint8).repeat(8).reshape(16, 8))
    bundle, agreement, samples = halve_on(spec, tmp_path / "clean")
    assert samples.count.tolist() == [2] * 100 and agreement.samples == 100
    strongest = np.maximum(1.0, np.arange(100) ** 2 / 4)
    assert values_of(bundle).tolist() == np.sort(strongest).tolist()


def test_conditions_reach_the_graph(halve_on, tmp_path):
    spec = dataclasses.replace(VECTOR, conditions=("A", "B"))
    x = rows(120)
    np.savez(tmp_path / "clean.npz", x=x, made_as=np.repeat(["A", "B"], 60))
    bundle, _, _ = halve_on(spec, tmp_path / "clean.npz", condition="key:made_as")
    expected = known(x) + np.repeat([0.0, 1000.0], 60)
    assert values_of(bundle).tolist() == np.sort(expected).tolist()


def test_the_manifest_tells_of_the_new_calibration(halve_on, tmp_path):
    np.save(tmp_path / "clean.npy", rows(120))
    bundle, _, samples = halve_on(VECTOR, tmp_path / "clean.npy")
    training, lineage = bundle.manifest.training, bundle.manifest.lineage
    # What the networks learned from stays; what the bundle is calibrated on and proven by is its own.
    assert (training.digest, training.samples, training.steps) == ("ab" * 32, 500, 60)
    assert training.split == SplitSizes(fit=250, validate=51, calibrate=120)
    assert training.calibrate == training.calibrate_independent == 120
    assert training.calibrate_digest == samples.digest
    assert training.gate == Proof(samples=120, rank=1.0, flips=0)
    assert lineage == Lineage(digest=open_bundle(tmp_path / "full").digest, precision="float16")
    # Maps are x^2 / 4 of the values: their colours are those of the new graph.
    low, high = bundle.calibration.map_range
    assert (low, high) == tuple(np.quantile(rows(120) ** 2 / 4, [0.5, 0.999]))


def test_too_few_independent_windows_for_the_rate_are_refused(halve_on, tmp_path):
    spec = dataclasses.replace(SERIES, window=100, stride=1)
    with pytest.raises(Refusal, match=r"0\.001 needs more than the 4 independent clean samples.*Add clean samples"):
        halve_on(spec, csv(tmp_path / "clean.csv", rows(400)), alpha=0.001)
    assert not (tmp_path / "half").exists()


def test_copies_count_once(halve_on, tmp_path):
    np.save(tmp_path / "clean.npy", np.tile(rows(120), (3, 1)))
    bundle, agreement, _ = halve_on(VECTOR, tmp_path / "clean.npy")
    assert agreement.samples == bundle.manifest.training.calibrate == 120
    assert bundle.calibration.groups[""].effective == 120


def test_copies_are_no_more_samples(halve_on, tmp_path):
    np.save(tmp_path / "few.npy", np.tile(rows(40), (3, 1)))
    with pytest.raises(Refusal, match=r"at least 99 clean samples .*; 40 distinct ones of 120 were given"):
        halve_on(VECTOR, tmp_path / "few.npy")
