"""What is tried before a bundle is kept, and before a version answers; the trial itself has its tests in models."""

import json
from dataclasses import replace

import pytest

import hostile_bundles as hostile
from toy_bundles import VECTOR, toy_bundle
from vaegis.models.errors import Conflict, Damaged, NotFound, Refusal, Unfit
from vaegis.models.trial import TrialResult
from vaegis.service.settings import Settings
from vaegis.service.store.imports import import_bundle
from vaegis.service.store.promotions import Promotions
from vaegis.service.store.registry import Registry
from vaegis.service.store.servings import Servings


@pytest.fixture
def registry(tmp_path):
    with Registry.open(Settings(home=tmp_path / "home")) as registry:
        yield registry


@pytest.fixture
def bundles(tmp_path):
    """Of one spec, a second of the same, and one of another."""
    wide = replace(VECTOR, columns=("a", "b", "c", "d"))
    return [toy_bundle(tmp_path / n, s, doc=n).path for n, s in (("one", VECTOR), ("two", VECTOR), ("wide", wide))]


def passes(folder):
    return TrialResult(finite=True)


def fails(folder):
    raise Unfit("It cannot be served.")


def unfinite(folder):
    return TrialResult(finite=False)


def test_a_bundle_is_tried_before_it_is_kept(registry, bundles, tmp_path):
    with pytest.raises(Unfit):
        import_bundle(registry, "m", bundles[0], trial=fails)
    assert registry.list() == () and not (tmp_path / "home" / "bundles").exists()
    outcome = import_bundle(registry, "m", bundles[0], trial=passes)
    assert (outcome.registered.version, outcome.registered.promoted, outcome.warnings) == (1, True, ())
    (warning,) = import_bundle(registry, "m", bundles[1], trial=unfinite).warnings
    assert "cannot be promoted" in warning


def test_what_hostile_bundles_leave_behind_is_nothing(registry, tmp_path):
    bundle = hostile.hostile_bundle(tmp_path / "hostile", hostile.twice_as_long())
    with pytest.raises(Unfit, match="for 1 sample"):
        import_bundle(registry, "m", bundle.path)
    assert registry.list() == () and not (tmp_path / "home" / "bundles").exists()


def test_the_announced_digest_is_the_only_one_taken(registry, bundles):
    manifest = json.loads((bundles[0] / "manifest.json").read_text())
    for other in ("", "ab" * 32, manifest["digest"][:12]):
        with pytest.raises(Refusal, match=f"digest is {manifest['digest']}.*not the one that was announced"):
            import_bundle(registry, "m", bundles[0], expect=other, trial=passes)
    assert registry.list() == ()
    for right in (manifest["digest"].upper(), manifest["record_digest"]):
        import_bundle(registry, "m", bundles[0], expect=right, trial=passes)


def test_a_bundle_of_the_first_format_is_taken_with_a_warning(registry, bundles):
    path = bundles[0] / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 1}
    del manifest["record_digest"]
    path.write_text(json.dumps(manifest))
    (warning,) = import_bundle(registry, "m", bundles[0], trial=passes).warnings
    assert "format 1" in warning
    with pytest.raises(Refusal, match="record digest is missing"):
        import_bundle(registry, "m", bundles[0], expect="None", trial=passes)


@pytest.mark.parametrize("act", ["promote", "canary", "shadow"])
def test_a_version_is_tried_before_it_answers(registry, bundles, act):
    for path in bundles[:2]:
        registry.add("m", path)
    arguments = {"promote": (), "canary": (0.1,), "shadow": ()}[act]
    ready = []
    for trial, kind in ((fails, Unfit), (unfinite, Unfit)):
        with pytest.raises(kind):
            getattr(Promotions(registry, trial, ready.append), act)("m", 2, *arguments)
    assert ready == [] and registry.show("m").aliases == {"champion": 1}
    assert Servings(registry).of("m").canary is None and Servings(registry).of("m").shadow is None
    getattr(Promotions(registry, passes, ready.append), act)("m", 2, *arguments)
    assert [v.version for v in ready] == [2]
    serving = Servings(registry).of("m")
    moved = (registry.show("m").aliases["champion"], serving.canary, serving.shadow)
    assert moved == {"promote": (2, None, None), "canary": (1, 2, None), "shadow": (1, None, 2)}[act]


def test_a_champion_of_other_samples_has_to_be_wanted(registry, bundles):
    for path in bundles:
        registry.add("m", path)
    promotions = Promotions(registry, passes)
    with pytest.raises(Conflict, match="takes vectors of 4 columns and the champion, version 1, .* of 3 .*override"):
        promotions.promote("m", 3)
    assert registry.show("m").aliases["champion"] == 1
    assert promotions.promote("m", 3, "staging").to_version == 3  # nobody is answered by it who does not name it
    assert promotions.promote("m", "staging", override=True).to_version == 3


def test_a_champion_that_cannot_be_opened_can_be_replaced(registry, bundles):
    for path in bundles[:2]:
        registry.add("m", path)
    (registry.resolve("m").path / "score.onnx").write_bytes(b"rotten")
    assert Promotions(registry, passes).promote("m", 2).to_version == 2
    with pytest.raises(Damaged):
        Promotions(registry).promote("m", 1)
    with pytest.raises(NotFound, match="'9'"):
        Promotions(registry, passes).promote("m", 9)
