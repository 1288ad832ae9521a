import threading
from collections import Counter

import pytest
from live_models import live_models

from toy_bundles import IMAGE, toy_bundle
from vaegis.models.errors import NotFound, Refusal
from vaegis.service.errors import TooBig, Unloaded
from vaegis.service.store.registry import Registry
from vaegis.service.store.servings import Servings


@pytest.fixture
def registry(fill, tmp_path):
    with Registry.open(fill(tmp_path / "home")) as registry:
        yield registry


@pytest.fixture
def servings(registry):
    return Servings(registry)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_those_who_ask_at_once_get_the_same_opening(registry):
    live = live_models(registry)
    found, together = [], threading.Barrier(8)

    def ask():
        together.wait()
        found.append(live.get("image"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({id(s.scorer) for s in found}) == 1
    assert len(live.served()) == 1


def test_an_address_is_believed_for_a_second(registry):
    clock = Clock()
    live = live_models(registry, clock=clock)
    assert live.peek("image") is None
    assert live.get("image").resolved.version == 1
    registry.promote("image", 2)
    clock.now = 0.99
    assert live.peek("image").resolved.version == 1
    clock.now = 1.0
    assert live.peek("image") is None
    assert live.get("image").resolved.version == 2
    with pytest.raises(NotFound):
        live.get("nope")


def test_a_look_moves_addresses_to_versions_that_are_open(registry):
    """What is promoted elsewhere is opened before anybody is answered by it: nobody waits."""
    live = live_models(registry)
    began_with = live.get("image")
    registry.promote("image", 2)
    assert live.peek("image") is began_with
    live.look(now=True)
    assert live.peek("image").resolved.version == 2
    registry.rollback("image")
    live.look(now=True)
    assert live.peek("image") is began_with


def test_a_champion_that_cannot_be_opened_leaves_the_one_before_in_service(registry):
    live = live_models(registry)
    live.start()
    assert live.check() == ()
    path = registry.resolve("image@2").path / "score.onnx"
    whole = path.read_bytes()
    path.write_bytes(b"rotten")
    registry.promote("image", 2)
    live.look(now=True)
    assert live.peek("image").resolved.version == 1
    (warning,) = live.check()
    assert "image" in warning and "score.onnx" in warning
    path.write_bytes(whole)
    live.refresh()
    assert live.peek("image").resolved.version == 2 and live.check() == ()


def test_versions_are_closed_by_least_recent_use_within_the_budget(registry):
    clock = Clock()
    live = live_models(registry, 3000, clock)
    sizes = {n: 2 * (registry.resolve(n).path / "score.onnx").stat().st_size for n in ("image", "series", "vector")}
    assert sum(sizes.values()) > 3000 > sizes["image"] + sizes["vector"]  # what the files say; growth may add to it
    for address in ("image", "series", "image", "vector"):
        clock.now += 0.1
        live.get(address)
    # However large the last one seemed when it was opened, it stays; the one asked for longest ago went first.
    assert "vector" in [s.resolved.name for s in live.served()] and "series" not in [
        s.resolved.name for s in live.served()
    ]
    assert live.get("series").resolved.name == "series"


def test_champions_beyond_the_budget_wait_to_be_asked_for(registry):
    sizes = [2 * (registry.resolve(n).path / "score.onnx").stat().st_size for n in ("image", "series", "vector")]
    live = live_models(registry, max(sizes))
    live.start()
    assert len(live.served()) == 1 and live.check() == ()
    assert live.get("vector").resolved.name == live.get("vector@1").resolved.name == "vector"
    assert [s.resolved.name for s in live.served()] == ["vector"]


def test_a_version_beyond_the_whole_budget_is_refused(registry):
    live = live_models(registry, 100)
    with pytest.raises(TooBig, match="Version 1 of image needs about 1 MiB.*VAEGIS_MODEL_BYTES") as error:
        live.get("image")
    assert error.value.status == 507 and live.served() == ()
    live = live_models(registry, 100)
    live.start()
    with pytest.raises(Refusal, match="cannot be served.*VAEGIS_MODEL_BYTES"):
        live.check()


def test_a_bundle_that_has_gone_is_named_without_its_path(registry, tmp_path):
    path = registry.resolve("series").path
    path.rename(tmp_path / "elsewhere")
    live = live_models(registry)
    with pytest.raises(Refusal, match="series version 1") as error:
        live.get("series")
    assert error.value.status == 500 and str(tmp_path) not in str(error.value)
    with pytest.raises(Refusal, match="opened"):
        live.check()
    live.start()
    with pytest.raises(Refusal, match="Model series cannot be served"):
        live.check()
    (tmp_path / "elsewhere").rename(path)
    live.get("series")
    assert live.check() == ()


def test_an_unloaded_model_answers_nothing_until_it_is_loaded(registry):
    live, other = live_models(registry), live_models(registry)
    live.get("image"), live.get("image@2"), other.get("image"), live.get("vector")
    live.unload("image")
    for asked in (live, other):
        asked.look(now=True)
        assert asked.peek("image") is None and asked.peek("image@2") is None
        with pytest.raises(Unloaded, match="image was unloaded.*load"):
            asked.get("image")
    assert [s.resolved.name for s in live.served()] == ["vector"]
    assert live.load("image").resolved.version == 1
    other.look(now=True)
    assert other.get("image").resolved.version == 1
    for name, kind in (("nope", NotFound), ("image@2", Refusal)):
        with pytest.raises(kind):
            live.load(name)
        with pytest.raises(kind):
            live.unload(name)


def test_load_and_unload_at_once_end_as_the_store_says(registry, servings):
    live = live_models(registry)
    failures = []

    def turn(loaded):
        for _ in range(10):
            try:
                live.load("image") if loaded else live.unload("image")
            except Unloaded:
                pass  # the other was faster
            except Exception as error:  # noqa: BLE001 - told after the threads have ended
                failures.append(error)

    threads = [threading.Thread(target=turn, args=(loaded,)) for loaded in (True, False) * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    live.look(now=True)
    is_open = "image" in [s.resolved.name for s in live.served()]
    assert servings.of("image").loaded or not is_open
    live.unload("image")
    assert live.served() == () and live.peek("image") is None


def test_a_canary_answers_its_share_of_the_champions_requests(registry, servings):
    live = live_models(registry)
    servings.canary("image", 2, 0.25, "ann")
    keys = [f"request-{i}" for i in range(2000)]
    sides = {k: live.get("image", k).resolved.version for k in keys}
    share = Counter(sides.values())[2] / len(keys)
    assert abs(share - 0.25) < 0.04  # four standard deviations
    assert all(live.peek("image", k).resolved.version == v for k, v in sides.items())  # the same request, the same side
    # Whoever names a version or another alias gets it; whoever cannot be told apart gets the champion.
    assert live.get("image").resolved.version == live.get("image@1", keys[0]).resolved.version == 1
    assert {live.get("image@champion", k).resolved.version for k in keys} == {1, 2}
    # The canary of one process is the canary of all.
    other = live_models(registry)
    assert all(other.get("image", k).resolved.version == sides[k] for k in keys[:50])
    registry.promote("image", 2)
    live.look(now=True)
    assert {live.peek("image", k).resolved.version for k in keys} == {2}
    assert servings.of("image").canary is None
    registry.rollback("image")
    live.look(now=True)
    assert {live.peek("image", k).resolved.version for k in keys} == {1}


def test_a_canary_that_cannot_be_opened_leaves_all_to_the_champion(registry, servings):
    live = live_models(registry)
    servings.canary("image", 2, 0.5)
    (registry.resolve("image@2").path / "score.onnx").write_bytes(b"rotten")
    assert {live.get("image", str(k)).resolved.version for k in range(20)} == {1}


def test_trials_that_cannot_be(registry, servings, tmp_path):
    toy_bundle(tmp_path / "wide", type(IMAGE)(height=4, width=8, channels=1))
    registry.add("image", tmp_path / "wide")
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(Refusal, match="share"):
            servings.canary("image", 2, share)
    for change in (lambda v: servings.canary("image", v, 0.1), lambda v: servings.shadow("image", v)):
        with pytest.raises(Refusal, match="champion"):
            change(1)
        with pytest.raises(Refusal, match="Version 3 of image takes 4x8.*same samples"):
            change(3)
        with pytest.raises(NotFound, match="'9'"):
            change(9)
    assert servings.of("image").canary is None and servings.of("image").shadow is None
    with pytest.raises(NotFound, match="nope"):
        servings.of("nope")
