import logging
import subprocess

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


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Two certificates for localhost with their keys, made by the openssl command; b's key once with a password."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("a", "b"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
            check=True, capture_output=True,
        )  # fmt: skip
    subprocess.run(
        ["openssl", "pkey", "-in", folder / "b.key", "-aes256", "-passout", "pass:x", "-out", folder / "locked.key"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "none.pem").write_text("no certificate\n")
    (folder / "torn.pem").write_text((folder / "a.pem").read_text()[:200] + "\n-----END CERTIFICATE-----\n")
    return folder
