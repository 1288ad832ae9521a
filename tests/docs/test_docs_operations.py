"""docs/operations.md against the service: settings and metrics; both ways."""

import re

import pytest
from doc_pages import first_cells, page, section
from http_server import serving

from vaegis.service.settings import Settings, documented

PAGE = page("operations.md")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    """The names on the page of metrics, as Prometheus asks for them."""
    with serving(Settings(home=tmp_path_factory.mktemp("home"), device="cpu")) as client:
        text = client.call("GET", "/metrics")[2].decode()
    return {name for name in re.findall(r"^# TYPE (\S+)", text, re.M) if not name.endswith("_created")}


def matches(name, documented):
    """Whether a name is one of the table, whose last character may be a star."""
    return any(name == d or (d.endswith("*") and name.startswith(d[:-1])) for d in documented)


def test_the_table_of_settings_is_that_of_the_service():
    table = section(PAGE, "Settings")
    assert [n for n in first_cells(table) if n.startswith("VAEGIS_")] == [name for name, _, _ in documented()]
    for name, default, meaning in documented():
        assert f"| `{name}` | {default} | {meaning} |" in table, name


def test_every_metric_is_documented_and_no_other(metrics):
    table = [n for n in first_cells(section(PAGE, "Metrics")) if n.startswith("vaegis_")]
    assert "vaegis_samples_scored_total" in metrics
    assert sorted(m for m in metrics if not matches(m, table)) == []
    assert [d for d in table if not any(matches(m, [d]) for m in metrics)] == []


def test_the_pages_speak_of_settings_and_metrics_that_there_are(metrics):
    settings = {name for name, _, _ in documented()}
    for name in set(re.findall(r"VAEGIS_[A-Z_]+", PAGE)):
        assert name in settings, name
    for name in set(re.findall(r"\bvaegis_[a-z_]+\b", PAGE)):
        assert any(m.startswith(name) for m in metrics), name
