"""Versions that cannot be opened, met in a home: each is its own affair, and nobody else's."""

import threading

import pytest
from live_models import NoTally

import hostile_bundles as hostile
from toy_bundles import VECTOR, toy_bundle
from vaegis.models.errors import Damaged, Refusal, Unfit
from vaegis.models.runtime.sessions import device_in_use
from vaegis.service.serving.aside import Aside
from vaegis.service.serving.live import Live
from vaegis.service.serving.open_versions import Opener
from vaegis.service.serving.served import OpenVersions
from vaegis.service.serving.shadow import Shadows
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry

KINDS = {"future": hostile.of_the_future, "long": hostile.twice_as_long, "endless": hostile.without_end}


@pytest.fixture
def registry(tmp_path):
    """`good`, and `mixed` whose first version is good as well."""
    with Registry.open(Settings(home=tmp_path / "home")) as registry:
        for name in ("good", "mixed"):
            registry.add(name, toy_bundle(tmp_path / name, VECTOR, doc=name).path)
        yield registry


@pytest.fixture
def add(registry, tmp_path):
    """Registers a hostile bundle as a home may hold it: without any trial."""
    return lambda name, kind: registry.add(
        name, hostile.hostile_bundle(tmp_path / f"{name}-{kind}", KINDS[kind]()).path
    )


def live_of(registry, failures, seconds=2.0):
    versions = OpenVersions()
    opener = Opener(
        versions,
        "cpu",
        1,
        2**40,
        seconds=seconds,
        failed=lambda version: failures.append((version.name, version.version)),
    )
    return Live(registry, versions, opener, Shadows(opener.open, NoTally()), device_in_use("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_promotion_that_cannot_be_opened_is_that_versions_own(registry, add, kind):
    failures = []
    live = live_of(registry, failures)
    live.start()
    add("mixed", kind)
    registry.promote("mixed", 2)
    live.look(now=True)
    assert live.peek("mixed").resolved.version == 1
    (warning,) = live.check()
    assert warning.startswith("Model mixed is served by its version before, as the new one cannot be opened: ")
    assert failures == [("mixed", 2)]
    add("good", kind)  # another model is followed as before
    registry.promote("mixed", 1)
    live.look(now=True)
    assert live.check() == () and live.get("good").resolved.version == 1
    live.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_the_version_before_goes_on(registry, add, kind):
    add("mixed", kind)
    registry.promote("mixed", 2)
    live = live_of(registry, [])
    live.start()
    assert {(s.resolved.name, s.resolved.version) for s in live.served()} == {("good", 1), ("mixed", 1)}
    (warning,) = live.check()
    assert "Model mixed is served by its version before" in warning
    live.stop()


def test_a_model_with_nothing_before_is_named_with_its_reason_and_the_others_are_served(registry, add):
    add("alone", "future")
    live = live_of(registry, [])
    live.start()
    assert {s.resolved.name for s in live.served()} == {"good", "mixed"}
    with pytest.raises(Refusal, match="Model alone cannot be served: .*cannot open it .*999"):
        live.check()
    live.stop()


def test_a_version_without_end_is_waited_for_once(registry, add):
    add("alone", "endless")
    failures = []
    live = live_of(registry, failures)
    for _ in range(3):
        with pytest.raises(Unfit, match=r"within 2 seconds.*VAEGIS_OPEN_SECONDS"):
            live.get("alone")
    assert failures == [("alone", 1)]
    assert "vaegis-opening" not in [t.name for t in threading.enumerate()]  # it was stopped
    live.refresh()
    with pytest.raises(Unfit):
        live.get("alone")
    assert failures == [("alone", 1)] * 2


def test_whatever_opening_raises_is_a_refusal(registry, tmp_path):
    """Here the counting of calls fails, which nobody foresaw."""
    versions = OpenVersions()
    opener = Opener(versions, "cpu", 1, 2**40, call_sizes=lambda resolved: {}["nothing"])
    with pytest.raises(Damaged, match=r"Version 1 of good cannot be opened \(KeyError: 'nothing'\)"):
        opener.open(registry.resolve("good"))


def test_the_thread_that_follows_goes_on_after_any_error(registry):
    live = live_of(registry, [])
    live.start()
    connection, registry.database = registry.database, None
    watching = threading.Thread(target=live.run, daemon=True)
    watching.start()
    watching.join(1.5)
    assert watching.is_alive()
    registry.database = connection
    registry.promote("mixed", 1)
    live.stop()
    watching.join(10)
    assert not watching.is_alive()


def test_work_aside_returns_raises_or_is_left():
    assert Aside(lambda: 3, "a").result(10) == 3
    with pytest.raises(ZeroDivisionError):
        Aside(lambda: 1 // 0, "a").result(10)
    event = threading.Event()
    with pytest.raises(TimeoutError):
        Aside(event.wait, "a").result(0.05)
    event.set()
