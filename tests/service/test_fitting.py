"""The one door to training, as commands, jobs and HTTP call it."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from toy_data import defective, vectors
from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.sources import SourceOptions, open_arrays
from vaegis.service import fitting
from vaegis.service.fitting import FitOptions, Labelled, Request
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def request_(tmp_path):
    return Request(
        source=open_arrays(vectors(150, 1), SourceOptions()),
        name="rows",
        out=tmp_path / "unused",
        work=tmp_path / "work",
        family="pca",
        alpha=0.1,
        options=FitOptions(device="cpu"),
    )


@pytest.fixture
def labelled(tmp_path):
    label = np.repeat([0, 1], 20)
    np.savez(tmp_path / "test.npz", x=np.concatenate([vectors(20, 3), defective("vector", 20)]), y=label)
    return Labelled(tmp_path / "test.npz", "key:y", SourceOptions(labels="key:y"))


def leftovers(folder):
    return [p.name for p in folder.glob(".*")] if folder.exists() else []


def test_a_fit_is_registered_under_its_name(request_, settings, tmp_path):
    outcome = fitting.fit(request_, settings)
    registered = outcome.placement.registered
    assert (registered.name, registered.version, registered.promoted) == ("rows", 1, True)
    with closing(Registry.open(settings)) as registry:
        assert registry.resolve("rows").path == outcome.placement.path
    assert open_bundle(outcome.placement.path).digest == outcome.result.bundle.digest == registered.digest
    assert outcome.result.bundle.path == outcome.placement.path
    report = json.loads(outcome.result.bundle.read("report/report.json"))
    assert report["decision"]["threshold"] == outcome.result.report.decision.threshold
    assert not leftovers(settings.home) and not (tmp_path / "unused").exists()


def test_a_fit_goes_where_it_is_told_and_nowhere_else(request_, settings, tmp_path):
    outcome = fitting.fit(request_, settings, tmp_path / "bundle")
    assert outcome.placement == fitting.Placement(tmp_path / "bundle", None)
    assert open_bundle(tmp_path / "bundle").digest == outcome.result.bundle.digest
    assert not settings.home.exists()
    with pytest.raises(Conflict, match="exists already"):
        fitting.fit(request_, settings, tmp_path / "bundle")


@pytest.mark.parametrize("register", [True, False])
def test_a_sweep_keeps_what_clean_evidence_chose(request_, settings, tmp_path, register):
    begun = []
    out = None if register else tmp_path / "deep" / "bundle"
    grid = [{"latent": 1}, {"latent": 2}]
    outcome = fitting.sweep(request_, grid, settings, out, begun=begun.append)
    assert begun == ["latent=1", "latent=2"]
    assert outcome.sweep.chosen.arguments == {"latent": 2}
    bundle = open_bundle(outcome.placement.path)
    assert bundle.manifest.arguments["latent"] == 2
    assert (outcome.placement.registered is not None) is register
    assert outcome.placement.path == (out or bundle.path)
    assert not leftovers(settings.home) and not leftovers(tmp_path)


def test_families_are_compared_and_kept_under_names_of_their_own(request_, settings, labelled):
    begun = []
    comparison = fitting.compare(request_, ("pca", "mixture"), settings, test=labelled, begun=begun.append)
    assert begun == list(comparison.rows) == ["pca", "mixture"]
    assert {n: p.registered.name for n, p in comparison.placements.items()} == {
        "pca": "rows-pca",
        "mixture": "rows-mixture",
    }
    assert comparison.page == settings.home / "comparisons" / "rows" / "compare.html"
    figures = json.loads((comparison.page.parent / "compare.json").read_text())
    assert [row["family"] for row in figures["families"]] == ["pca", "mixture"]
    for row, entry in zip(figures["families"], comparison.entries, strict=True):
        assert row["found"] == entry.figures.detection_rate >= 0.9
        assert dict(zip(comparison.columns, comparison.rows[entry.name], strict=True))["family"] == entry.name
    assert not leftovers(settings.home)


def test_a_name_that_becomes_too_long_is_refused_before_anything_is_fitted(request_, settings, tmp_path):
    with pytest.raises(Refusal, match="r" * 60 + "-pca"):
        fitting.compare(replace(request_, name="r" * 60), ("pca",), settings)
    assert not settings.home.exists()


def test_verdicts_are_held_against_labels(request_, settings, labelled, tmp_path):
    fitting.fit(request_, settings, tmp_path / "bundle")
    blocks = []

    def watched(verdicts):
        for block in verdicts:
            blocks.append(len(block))
            yield block

    outcome = fitting.evaluate(
        labelled.source, tmp_path / "bundle", "key:y", labelled.reading, alpha=0.1, watched=watched
    )
    assert (outcome.evaluation.clean, outcome.evaluation.anomalies, sum(blocks)) == (20, 20, 40)
    assert outcome.evaluation.detection_rate >= 0.9
    assert (outcome.decision.alpha, outcome.kind) == (0.1, "vector")


def test_families_by_name():
    assert fitting.family_names("pca, vae") == ("pca", "vae")
    with pytest.raises(Refusal, match="no family 'vea'"):
        fitting.family_names("vea,pca")
