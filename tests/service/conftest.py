import logging

import pytest
import structlog
from http_server import serving
from postgresql import missing, postgresql

from toy_bundles import IMAGE, SERIES, VECTOR, toy_bundle
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """The service's own log lines would run through the report of the tests."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def server():
    """A PostgreSQL server, where one can be had."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with postgresql() as running:
        yield running


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """Folders of toy bundles: image, image2 (another version of it), series, vector."""
    folder = tmp_path_factory.mktemp("toys")
    for name, spec in (("image", IMAGE), ("series", SERIES), ("vector", VECTOR)):
        toy_bundle(folder / name, spec)
    toy_bundle(folder / "image2", IMAGE, alpha=0.1, doc="second")
    return folder


@pytest.fixture(scope="session")
def fill(toys):
    """Makes a home with the models image (two versions), series and vector."""

    def make(home, store_url=""):
        settings = Settings(home=home, store_url=store_url)
        with Registry.open(settings) as registry:
            for name in ("image", "series", "vector"):
                registry.add(name, toys / name)
            registry.add("image", toys / "image2")
        return settings

    return make


@pytest.fixture(scope="session")
def client(fill, tmp_path_factory):
    """A service that tests only ask: none changes its models or keys."""
    with serving(fill(tmp_path_factory.mktemp("home"))) as client:
        yield client
