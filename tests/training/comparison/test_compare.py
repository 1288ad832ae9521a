"""Several families on the same data, and what a sweep chooses by."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import FAMILIES
from vaegis.models.sources import SourceOptions
from vaegis.training.comparison.families import compare, examples, named
from vaegis.training.comparison.page import COLUMNS, cells, page
from vaegis.training.comparison.sweep import Candidate, choose, standing, sweep
from vaegis.training.report.contents import Summary, TermFacts
from vaegis.training.request import FitOptions, Labelled, Request, Watch


def request(sources, out, **changed):
    given = {"source": sources / "vector.npz", "name": "toy", "work": out.parent / "work", "alpha": 0.05}
    return Request(**{**given, "out": out, "options": FitOptions(device="cpu"), **changed})


@dataclass(frozen=True)
class Compared:
    spec: object
    entries: list
    test: Labelled
    begun: list


@pytest.fixture(scope="module")
def compared(sources, tmp_path_factory):
    """Two families that need no steps, and one that does not take what is asked."""
    test = Labelled(sources / "vector-test.npz", "key:y", SourceOptions(labels="key:y"))
    begun = []
    asked = request(sources, tmp_path_factory.mktemp("several") / "all", arguments={"latent": 2, "share": 0.0})
    spec, entries = compare(asked, ("pca", "mixture"), test, Watch(), begun.append)
    return Compared(spec, entries, test, begun)


def test_every_family_becomes_a_bundle_from_the_same_split(compared):
    one, two = (e.result for e in compared.entries)
    assert compared.begun == ["pca", "mixture"]
    assert [e.name for e in compared.entries] == ["pca", "mixture"]
    for side in ("fit", "validate", "calibrate"):
        assert np.array_equal(getattr(one.split, side), getattr(two.split, side))
    assert one.bundle.path.name == "pca"
    assert one.bundle.manifest.family == "pca"
    # An argument goes to the families that have it.
    assert one.bundle.manifest.arguments["latent"] == 2
    assert "latent" not in two.bundle.manifest.arguments


def test_figures_are_those_of_the_bundles(compared, sources):
    with np.load(sources / "vector-test.npz") as data:
        x, y = data["x"], data["y"]
    for entry in compared.entries:
        bundle = entry.result.bundle
        found = through(bundle, x)
        assert entry.figures.auroc == pytest.approx(roc_auc_score(y, found))
        threshold = json.loads(bundle.read("report/report.json"))["decision"]["threshold"]
        assert entry.figures.false_alarms == pytest.approx((found[y == 0] > threshold).mean())
        assert entry.figures.detection_rate == pytest.approx((found[y == 1] > threshold).mean())
        graphs = list(bundle.path.glob("*.onnx"))
        assert entry.figures.megabytes == pytest.approx(sum(p.stat().st_size for p in graphs) / 1e6)
        assert entry.figures.alpha == bundle.manifest.alpha
        assert 0 < entry.figures.milliseconds < 1000
        # Exact densities of raw values: nats per value, over log 2.
        likelihood = json.loads(bundle.read("report/report.json"))["likelihood"]
        expected = (likelihood["validate"]["nats_per_dimension"] + likelihood["log_jacobian"] / 6) / np.log(2)
        assert entry.figures.bits == pytest.approx(expected)


def through(bundle, x):
    from vaegis.models.runtime.graph import Graph

    return Graph(bundle.read("score.onnx"), bundle.spec, "cpu").run(x)["score"]


def test_the_page_fetches_nothing_and_shows_every_family(compared):
    shown = examples(compared.entries[0].result.bundle, compared.test.source, compared.test.reading)
    assert len(shown.parts) == len(shown.names) == 6
    entries = [*compared.entries, type(compared.entries[0])("maker<1>", None, None, "It takes images & no rows.")]
    text = page("toy<b>", compared.spec, entries, shown, True).decode()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "toy&lt;b&gt;" in text and "maker&lt;1&gt;" in text and "It takes images &amp; no rows." in text
    assert text.count("<img") == 2
    for entry in compared.entries:
        for cell in cells(entry)[1:]:
            assert f"<td>{cell}</td>" in text
    assert all(f"<th>{column}</th>" in text for column in COLUMNS)


def test_a_family_without_figures_has_dashes():
    from vaegis.training.comparison.families import Entry

    assert cells(Entry("pca", None, None, "why")) == ("pca", *["–"] * (len(COLUMNS) - 1))


def test_families_that_cannot_take_the_data_are_left_out_with_their_sentence(sources, tmp_path, monkeypatch):
    class Images(FAMILIES["pca"]):
        kinds = ("image",)

    monkeypatch.setitem(FAMILIES, "pictures", Images)
    _, entries = compare(request(sources, tmp_path / "all"), ("pictures", "pca"), None, Watch())
    assert entries[0].result is None
    assert "pictures takes image inputs, not vector" in entries[0].why
    assert entries[1].figures.auroc is None
    low, high = entries[1].figures.expected
    assert 0 < low < 0.05 < high
    with pytest.raises(Refusal, match="None of the families could be fitted. pictures: Family pictures takes image"):
        compare(request(sources, tmp_path / "none"), ("pictures",), None, Watch())


def test_all_are_given_one_budget(sources, tmp_path):
    """The largest that any asks for itself, or what is asked for."""
    budgets = []

    def refuse(request, watch):
        budgets.append((request.family, request.options.steps))
        raise Refusal("only looking")

    for options, steps in ((FitOptions(), 3000), (FitOptions(steps=7), 7)):
        with pytest.raises(Refusal, match="could be fitted. vae: only looking"):
            compare(request(sources, tmp_path / "a", options=options), ("vae", "pca"), None, Watch(), fitter=refuse)
        assert budgets == [("vae", steps), ("pca", steps)]
        budgets.clear()


def test_a_label_that_is_missing_is_said_beside_the_figures(compared, sources, tmp_path):
    """The fit is not lost for it."""
    from vaegis.training.comparison.families import evaluate_bundle

    (tmp_path / "labels.csv").write_text("item,index,label\nvector-test.npz,0,0\n")
    test = Labelled(sources / "vector-test.npz", str(tmp_path / "labels.csv"), SourceOptions())
    with pytest.raises(Refusal, match=r"vector-test.npz \[1\] of the test source has no label"):
        evaluate_bundle(compared.entries[0].result.bundle, test)


def candidate(value, error, **arguments):
    return Candidate(arguments, None, value, error)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([(3.0, 0.1), (2.0, 0.1), (1.0, 0.1)], 2),  # far apart: the best
        ([(3.0, 0.1), (1.05, 0.1), (1.0, 0.1)], 1),  # the plainer one, listed first, is as good
        ([(1.0, 0.1), (1.05, 0.1), (0.95, 0.04)], 2),  # 0.99 is what its own error allows
        ([(1.0, 0.1)], 0),
    ],
)
def test_the_first_within_one_standard_error_is_chosen(values, chosen):
    some = [candidate(v, e, latent=i) for i, (v, e) in enumerate(values)]
    assert choose(some) is some[chosen]


@pytest.fixture
def report_of(compared):
    """A report of some evidence of the validate split, and perhaps of a likelihood."""

    def build(term, likelihood=None, mean=2.0, sd=3.0, samples=36, independent=10, calibrate=40):
        report = compared.entries[0].result.report
        summary = Summary(samples, mean, sd)
        return replace(
            report,
            family="toy",
            likelihood=None if likelihood is None else replace(report.likelihood, **likelihood),
            terms={term: TermFacts(1.0, Summary(0), summary, Summary(0))},
            samples=replace(report.samples, independent=independent, calibrate=calibrate),
        )

    return build


def test_what_decides_and_its_error(report_of):
    # A quarter of the windows are independent: 36 are worth 9, whose mean has an error of 3 / 3.
    exact = {"term": "negative_log_likelihood", "log_jacobian": 5.0}
    assert standing(report_of("negative_log_likelihood", exact)) == (
        "negative log-likelihood of held-out clean samples, nats", 7.0, 1.0,
    )  # fmt: skip
    bound = {"term": "negative_elbo", "log_jacobian": None}
    by, value, _ = standing(report_of("negative_elbo", bound))
    assert "bound" in by
    assert value == 2.0
    by, value, error = standing(report_of("reconstruction_error", independent=40))
    assert "reconstruction error" in by
    assert error == pytest.approx(0.5)
    with pytest.raises(Refusal, match="Family toy has no clean evidence that a sweep could choose by"):
        standing(report_of("feature_distance"))


def test_a_sweep_finds_the_number_of_components_by_clean_samples_alone(sources, tmp_path):
    """Two causes explain six columns, with noise of the same size in each."""
    begun, rng = [], np.random.default_rng(0)
    x = rng.normal(size=(600, 2)) @ [[1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1]] + 0.3 * rng.normal(size=(600, 6))
    np.savez(tmp_path / "two.npz", x=x.astype(np.float32))
    asked = request(sources, tmp_path / "swept", family="pca", source=tmp_path / "two.npz")
    found = sweep(asked, [{"latent": 1}, {"latent": 2}, {"latent": 5}], Watch(), begun.append)
    assert begun == ["latent=1", "latent=2", "latent=5"]
    assert found.chosen.arguments == {"latent": 2}
    assert found.chosen.result.bundle.manifest.arguments["latent"] == 2
    assert found.by.startswith("negative log-likelihood")
    assert found.failed == {}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([{"latent": 2}], "A sweep needs two values or more"),
        ([{"resolution": 32}, {"resolution": 64}], "resolution changes what is measured"),
        ([{"latnet": 2}, {"latnet": 3}], "no argument 'latnet'; its arguments are latent, share, resolution"),
        ([{"latent": 2}, {"latent": 60}], "latent is 60; it must lie between 0 and 5"),
        ([{"latent": 2}, {"latent": "many"}], "latent of family pca is 'many'; it must be a whole number"),
    ],
)
def test_sweeps_that_cannot_be(sources, tmp_path, grid, said):
    with pytest.raises(Refusal, match=said):
        sweep(request(sources, tmp_path / "s", family="pca"), grid, Watch())
    assert not (tmp_path / "s").exists()


def test_names():
    assert named("all") == tuple(FAMILIES)
    assert named("pca, vae") == ("pca", "vae")
    for text, said in (("vae,vea", "no family 'vea'; the families are"), ("vae,vae", "named twice"), ("vae,", "''")):
        with pytest.raises(Refusal, match=said):
            named(text)


def test_comparisons_that_cannot_be(sources, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(Conflict, match="exists already"):
        compare(request(sources, tmp_path / "there"), ("pca",), None, Watch())
    with pytest.raises(Refusal, match="--resume goes on with one fit"):
        compare(request(sources, tmp_path / "a", resume=True), ("pca",), None, Watch())
    with pytest.raises(Refusal, match="None of the families pca, mixture has an argument 'beta'"):
        compare(request(sources, tmp_path / "a", arguments={"beta": 2}), ("pca", "mixture"), None, Watch())
    wrong = Labelled(sources / "vector-test.npz", "key:nothing", SourceOptions())
    with pytest.raises(Refusal, match="nothing"):
        compare(request(sources, tmp_path / "a"), ("pca",), wrong, Watch())
    with pytest.raises(Refusal):
        compare(request(sources, tmp_path / "a", source=tmp_path / "no.npz"), ("pca",), None, Watch())
    assert not (tmp_path / "a").exists()
