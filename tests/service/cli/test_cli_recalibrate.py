"""`vaegis models recalibrate`: a version of the same graphs, calibrated on other clean samples."""

import json

import numpy as np

from toy_bundles import network_bundle
from vaegis.models.bundle import open_bundle
from vaegis.models.spec import VectorSpec
from vaegis.service.cli.options import bundle_for

VECTOR = VectorSpec(columns=("a", "b"))


def rows(n):
    """(n, 2): row i holds i % 40 and i // 40, so that no two are alike."""
    return np.stack([np.arange(n) % 40, np.arange(n) // 40], axis=1).astype(np.float32)


def test_a_version_is_registered_and_not_promoted(vaegis, refused, tmp_path):
    network_bundle(tmp_path / "full", VECTOR, 0.05)
    assert vaegis("models", "import", tmp_path / "full", "--name", "pump").code == 0
    np.save(tmp_path / "clean.npy", rows(200))
    done = vaegis("models", "recalibrate", "pump", "--clean", tmp_path / "clean.npy", "--rows", "1:200")
    assert done.code == 0, done
    assert "199 clean samples, 199 of them independent: flags a score above" in done.said
    assert "at 5.00%; version 1 flags" in done.said
    assert "pump version 2; promote it with: vaegis models promote pump@2." in done.said
    new = open_bundle(bundle_for("pump@2", None))
    assert new.manifest.lineage.digest == open_bundle(bundle_for("pump", None)).digest
    again = vaegis("models", "recalibrate", "pump@1", "--clean", tmp_path / "clean.npy", "--alpha", "0.1", "--json")
    figures = json.loads(again.out)
    assert (figures["version"], figures["alpha"], figures["samples"]) == (3, 0.1, 200)
    clean = ("models", "recalibrate", "pump", "--clean")
    refused(*clean, tmp_path / "nosuch.npy", words=["nothing at"])
    refused("models", "recalibrate", "nosuch", "--clean", tmp_path / "clean.npy", words=["nosuch"])
    refused(*clean, tmp_path / "clean.npy", "--rows", "0:10", words=["10 clean samples", "20"])


def test_copies_and_a_raised_rate_are_noted(vaegis, tmp_path):
    network_bundle(tmp_path / "full", VECTOR, 0.01)
    assert vaegis("models", "import", tmp_path / "full", "--name", "pump").code == 0
    np.save(tmp_path / "clean.npy", np.tile(rows(30), (4, 1)))
    done = vaegis("models", "recalibrate", "pump", "--clean", tmp_path / "clean.npy")
    assert "Of 120 clean rows 90 are copies of others: 30 are distinct." in done.said
    assert "rate of 0.01 needs more than 30 independent clean samples; this version's own rate is 0.033" in done.said
