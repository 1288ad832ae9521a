"""The same graphs, calibrated on other clean samples, with known numbers."""

import numpy as np
import pytest

from toy_bundles import network_bundle
from vaegis.models.bundle import CALIBRATION, open_bundle
from vaegis.models.derived.recalibration import recalibrate_bundle
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory
from vaegis.models.manifest import Lineage
from vaegis.models.spec import VectorSpec

VECTOR = VectorSpec(columns=("a", "b"))


def rows(n):
    """(n, 2): row i holds i % 40 and i // 40; its score is a quarter of the mean square."""
    return np.stack([np.arange(n) % 40, np.arange(n) // 40], axis=1).astype(np.float32)


@pytest.fixture
def recalibrated(tmp_path):
    def run(samples, **how):
        bundle = network_bundle(tmp_path / "full", VECTOR, 0.05)
        return bundle, recalibrate_bundle(bundle, samples, tmp_path / "new", **how)

    return run


def test_the_graphs_stay_and_the_calibration_is_that_of_the_samples(recalibrated, tmp_path):
    x = rows(199)
    samples = InMemory(VECTOR, x)
    parent, outcome = recalibrated(samples)
    bundle = open_bundle(tmp_path / "new")
    known = np.sort((x.astype(np.float64) ** 2).mean(axis=1) / 4)
    assert bundle.calibration.groups[""].terms["score"].values.tolist() == known.tolist()
    assert outcome.threshold == known[199 - 10]  # at 5 % of 200
    former = parent.calibration.groups[""].terms["score"].values
    assert outcome.flagged_before == np.mean(known > former[len(former) - int(0.05 * (len(former) + 1) + 1e-9)])
    graphs = [f for f in parent.manifest.files if f.endswith(".onnx")]
    assert {f: bundle.read(f) for f in graphs} == {f: parent.read(f) for f in graphs}
    assert bundle.read(CALIBRATION) != parent.read(CALIBRATION)
    assert bundle.manifest.lineage == Lineage(digest=parent.digest)
    assert bundle.digest != parent.digest
    training = bundle.manifest.training
    assert (training.calibrate, training.calibrate_independent, training.calibrate_digest) == (199, 199, samples.digest)
    assert training.digest == parent.manifest.training.digest  # what its networks learned from stays
    assert bundle.manifest.alpha == 0.05


def test_copies_count_once_and_raise_the_rate(recalibrated):
    _, outcome = recalibrated(InMemory(VECTOR, np.tile(rows(25) + 0.12345, (4, 1)).astype(np.float32)))
    assert (outcome.samples, outcome.independent) == (25, 25)
    assert outcome.bundle.manifest.alpha == 0.05


def test_a_rate_beyond_the_samples_is_raised_and_another_may_be_named(recalibrated):
    _, outcome = recalibrated(InMemory(VECTOR, rows(30)), alpha=0.001)
    assert outcome.bundle.manifest.alpha == pytest.approx(0.033)  # 1 / 31, rounded up


def test_lots_count_as_lots(recalibrated):
    groups = tuple(f"lot-{i // 10}" for i in range(120))
    _, outcome = recalibrated(InMemory(VECTOR, rows(120), groups=groups), group_by="lot")
    assert (outcome.samples, outcome.independent) == (120, 12)
    assert outcome.bundle.manifest.training.group_by == "lot"


@pytest.mark.parametrize(
    ("samples", "how", "sentence"),
    [
        (rows(19), {}, "^19 clean samples were given; calibrating takes 20 at least"),
        (np.tile(rows(19), (3, 1)), {}, "^19 distinct clean samples, of 57, were given"),
        (rows(40), {"alpha": 1.5}, "alpha is 1.5"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(recalibrated, tmp_path, samples, how, sentence):
    with pytest.raises(Refusal, match=sentence):
        recalibrated(InMemory(VECTOR, samples), **how)
    assert not (tmp_path / "new").exists()
