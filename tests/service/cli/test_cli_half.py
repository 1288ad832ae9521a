"""`vaegis models half`: the options say how the clean samples are read, as everywhere."""

import dataclasses
import json

import numpy as np
import pytest

from toy_bundles import network_bundle
from vaegis.models import inputs
from vaegis.models.bundle import open_bundle
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.spec import SeriesSpec, VectorSpec
from vaegis.service.cli.options import bundle_for

SERIES = SeriesSpec(columns=("speed", "flow"), window=4, stride=2, timestamp="at")
VECTOR = VectorSpec(columns=("a", "b"))


@pytest.fixture
def half(vaegis, tmp_path):
    """`half(spec, SOURCE, ...)`: the bundle registered by the command, and what the command said."""

    def run(spec, *words, digest="ab" * 32):
        network_bundle(tmp_path / "full", spec, digest=digest)
        assert vaegis("models", "import", tmp_path / "full", "--name", "pump").code == 0
        done = vaegis("models", "half", *words, "--model", "pump")
        assert done.code == 0, done
        assert "--json" in words or "pump version 2; promote it with" in done.said
        return open_bundle(bundle_for("pump@2", None)), done

    return run


def rows(n):
    """(n, 2): row i holds i % 40 and i // 40, so that no two are alike."""
    return np.stack([np.arange(n) % 40, np.arange(n) // 40], axis=1).astype(np.float32)


def test_a_series_is_read_with_its_separator_and_timestamps(half, tmp_path):
    # The columns stand in another order than in the spec, beside one that is none of it, and times are named anew.
    lines = ["note;when;flow;speed", *(f"7;{i};{i % 40};{i // 40}" for i in range(402))]
    (tmp_path / "clean.csv").write_text("\n".join(lines) + "\n")
    bundle, done = half(SERIES, tmp_path / "clean.csv", "--sep", ";", "--timestamp", "when", "--exclude", "note")
    assert "200 clean samples: ranks agree to 1.000000; none decided differently." in done.said
    assert bundle.manifest.training.calibrate == 200
    assert bundle.manifest.training.calibrate_independent == 100
    assert bundle.manifest.lineage.precision == "float16"


def test_conditions_rows_and_key_are_taken(half, tmp_path):
    x = rows(300)
    np.savez(tmp_path / "clean.npz", values=x, recipe=np.repeat(["A", "B"], 150))
    spec = dataclasses.replace(VECTOR, conditions=("A", "B"))
    words = ("--key", "values", "--condition", "key:recipe", "--rows", "100:260", "--json")
    bundle, done = half(spec, tmp_path / "clean.npz", *words)
    assert json.loads(done.out)["samples"] == 160
    # 50 samples of A and 110 of B, which the graph adds 1000 to.
    values = bundle.calibration.groups[""].terms["score"].values
    assert (np.sum(values < 1000), np.sum(values >= 1000)) == (50, 110)


def test_groups_follow_the_model(half, tmp_path):
    x = rows(120)
    np.savez(tmp_path / "clean.npz", x=x, line=np.repeat(["left", "right"], [50, 70]))
    bundle, _ = half(dataclasses.replace(VECTOR, calibrate_by="line"), tmp_path / "clean.npz")
    assert {g: c.effective for g, c in bundle.calibration.groups.items()} == {"": 120, "left": 50, "right": 70}


def test_what_cannot_be_read_so_is_refused(refused, vaegis, tmp_path):
    network_bundle(tmp_path / "full", dataclasses.replace(VECTOR, conditions=("A", "B")))
    assert vaegis("models", "import", tmp_path / "full", "--name", "pump").code == 0
    np.savez(tmp_path / "clean.npz", x=np.zeros((120, 2), np.float32))
    clean = ("models", "half", tmp_path / "clean.npz", "--model", "pump")
    refused(*clean, words=["--condition"])
    refused(*clean, "--condition", "key:nosuch", words=["nosuch"])
    refused(*clean, "--condition", "is:A", "--device", "tpu", words=["--device tpu"])


def test_the_very_data_of_the_fit_are_named(half, tmp_path):
    np.save(tmp_path / "clean.npy", rows(120))
    digest = inputs.load(open_source(tmp_path / "clean.npy", SourceOptions()), VECTOR, tmp_path / "samples").digest
    _, done = half(VECTOR, tmp_path / "clean.npy", digest=digest)
    assert "clean.npy is the very data that pump was fitted on" in " ".join(done.err.split())
