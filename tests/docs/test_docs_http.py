"""docs/http.md and docs/oip.md against the app: routes, query parameters, statuses; both ways."""

import re

import pytest
from doc_pages import code_spans, first_cells, page, section
from http_server import serving

from vaegis.service.http.access import OPEN
from vaegis.service.settings import Settings

PAGES = page("http.md") + page("oip.md")


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The OpenAPI document that the service gives."""
    with serving(Settings(home=tmp_path_factory.mktemp("home"), device="cpu")) as client:
        return client.get("/openapi.json")[1]


def routes(api):
    """`METHOD /path` of every route, those included that OpenAPI leaves out."""
    return {f"{method.upper()} {path}" for path, item in api["paths"].items() for method in item} | {
        f"GET {path}" for path in OPEN
    }


def routes_of_the_pages():
    """`METHOD /path` wherever a page has one in backticks, without its query."""
    spans = re.findall(r"^(GET|POST|PUT|DELETE|PATCH) (/\S*)$", "\n".join(code_spans(PAGES)), re.M)
    return {f"{method} {path.split('?')[0]}" for method, path in spans}


def test_the_routes_of_the_pages_are_those_of_the_app(api):
    assert routes_of_the_pages() == routes(api)


def test_every_query_parameter_of_scoring_is_documented(api):
    parameters = api["paths"]["/v1/models/{model}/score"]["post"]["parameters"]
    table = section(page("http.md"), "Scoring")
    wanted = [p["name"] for p in parameters if p["in"] == "query"]
    assert wanted and [p for p in wanted if p not in first_cells(table)] == []


def test_every_status_of_an_error_is_documented(api):
    statuses = {s for item in api["paths"].values() for o in item.values() for s in o["responses"] if s >= "4"}
    rows = re.findall(r"^\| (\d{3}) \|", section(page("http.md"), "Errors"), re.M)
    assert statuses <= set(rows)
    assert rows == sorted(set(rows))


def test_every_scoring_content_type_is_documented(api):
    types = api["paths"]["/v1/models/{model}/score"]["post"]["requestBody"]["content"]
    assert [t for t in types if t not in first_cells(section(page("http.md"), "Scoring"))] == []
