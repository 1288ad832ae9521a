import threading

import pytest

from models.errors import NotFound, Refusal
from service.live import Live
from service.store.registry import Registry


@pytest.fixture
def registry(fill, tmp_path):
    with Registry.open(fill(tmp_path / "home")) as registry:
        yield registry


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_those_who_ask_at_once_get_the_same_opening(registry):
    live = Live(registry, "cpu", 1, 4)
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
    live = Live(registry, "cpu", 1, 4, clock)
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


def test_the_least_recently_used_version_is_closed(registry):
    live = Live(registry, "cpu", 1, 2)
    for address in ("image", "series", "image", "vector"):
        live.get(address)
    assert [s.resolved.name for s in live.served()] == ["image", "vector"]


def test_a_bundle_that_has_gone_is_named_without_its_path(registry, tmp_path):
    path = registry.resolve("series").path
    path.rename(tmp_path / "elsewhere")
    live = Live(registry, "cpu", 1, 2)
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
    live.check()
