"""What whoever runs the service relies on: keys, promotion, limits, metrics, errors, documentation."""

import json
import re
import threading
from pathlib import Path

import pytest
from http_server import JSON, OCTETS, multipart, serving, until

from toy_bundles import IMAGE, toy_bundle
from vaegis.models.errors import Refusal
from vaegis.service.app import create_app
from vaegis.service.http.access import check_exposure, is_loopback
from vaegis.service.settings import Settings, documented, read_settings
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

DOCS = Path(__file__).parents[3] / "docs"
X = bytes([100] * 16)


@pytest.fixture
def settings(fill, tmp_path):
    return fill(tmp_path / "home")


def version(client):
    return client.score("image", X, OCTETS)[1]["version"]


def test_models_are_listed_and_described(client):
    listed = client.get("/v1/models")[1]["models"]
    assert [(m["name"], m["champion"], m["versions"], m["kind"]) for m in listed] == [
        ("image", 1, 2, "image"), ("series", 1, 1, "series"), ("vector", 1, 1, "vector"),
    ]  # fmt: skip
    status, model = client.get("/v1/models/image@2")
    assert status == 200
    assert (model["version"], model["alpha"], model["aliases"]) == (2, 0.1, {"champion": 1})
    assert model["input"]["height"] == 4
    assert set(model["evidence"]) == {
        "score",
        "reconstruction_error",
        "negative_elbo",
    }
    assert model["calibration"] == {"samples": 199, "effective": 199, "smallest_alpha": 0.0005, "groups": []}
    assert {"alpha": 0.05, "threshold": 190.0, "extrapolated": False} in model["thresholds"]
    assert [v["version"] for v in model["versions"]] == [1, 2]


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/nowhere", 404, "/nowhere"),
        ("GET", "/v1/models/none-such", 404, "image, series, vector"),
        ("GET", "/v1/models/image@7", 404, "'7'"),
        ("GET", "/v1/models/..%2f..%2fetc", 404, ""),
        ("DELETE", "/v1/models", 405, "DELETE"),
        ("GET", "/v1/models/image/score", 405, "GET"),
        ("POST", "/v1/models/none-such/score", 404, "none-such"),
        ("POST", "/v1/models/image/score", 415, "Content-Type"),
        ("POST", "/v1/models/image/promote", 422, "body"),
    ],
)
def test_every_error_is_a_problem(client, method, path, status, word):
    got, headers, raw = client.call(method, path)
    problem = json.loads(raw)
    assert (got, problem["status"]) == (status, status)
    assert headers["Content-Type"] == "application/problem+json"
    assert problem["title"] and word in problem["detail"] and problem["request_id"] == headers["X-Request-ID"]
    if status == 405:
        assert headers["Allow"]


def test_request_ids_are_taken_or_made(client):
    assert client.call("GET", "/healthz", headers={"X-Request-ID": "line-3:42"})[1]["X-Request-ID"] == "line-3:42"
    for bad in ("a b", "x" * 65, "<script>"):
        made = client.call("GET", "/healthz", headers={"X-Request-ID": bad})[1]["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", made)


def test_unexpected_failures_show_no_trace(settings):
    """A route that fails as no refusal does: answered with a sentence, its trace kept for the log."""
    import uvicorn
    from http_server import Client

    def fail() -> None:
        raise RuntimeError("secret /etc/passwd")

    app = create_app(settings)
    app.api.add_api_route("/fail", fail)
    server = uvicorn.Server(uvicorn.Config(app.asgi, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    client = Client(server.servers[0].sockets[0].getsockname()[1])
    status, headers, raw = client.call("GET", "/fail")
    assert status == 500 and headers["Content-Type"] == "application/problem+json"
    assert b"secret" not in raw and b"Traceback" not in raw
    server.should_exit = True
    thread.join(30)


def test_a_promotion_by_another_process_is_seen_without_a_restart(settings):
    with serving(settings) as client, Registry.open(settings) as other:
        assert version(client) == 1
        other.promote("image", 2)
        until(lambda: version(client) == 2)
        other.rollback("image")
        until(lambda: version(client) == 1)


def test_promotion_and_rollback_over_http(settings, tmp_path):
    with serving(settings) as client:
        post = lambda what, body=None: client.call("POST", f"/v1/models/image/{what}", body, JSON if body else None)  # noqa: E731
        status, _, raw = post("promote", b'{"version": 2}')
        assert (status, json.loads(raw)) == (
            200,
            {"name": "image", "alias": "champion", "version": 2, "previous": 1},
        )
        until(lambda: version(client) == 2)
        assert post("rollback")[0] == 200
        status, _, raw = post("rollback")
        assert status == 409 and b"version 1" in raw
        assert post("promote", b'{"version": 2, "alias": "canary"}')[0] == 200
        assert client.score("image@canary", X, OCTETS)[1]["version"] == 2
        assert [p["by"] for p in client.get("/v1/models/image")[1]["promotions"]][-1] == "anybody"
        # A version whose bundle has gone cannot be served, so it is not promoted.
        toy_bundle(tmp_path / "third", IMAGE, doc="third")
        with Registry.open(settings) as other:
            third = other.add("image", tmp_path / "third")
        (settings.bundles / third.digest / "score.onnx").unlink()
        status, _, raw = post("promote", b'{"version": 3}')
        assert status == 500 and b"score.onnx" in raw and str(settings.home).encode() not in raw
        assert client.get("/v1/models/image")[1]["aliases"]["champion"] == 1


def test_a_damaged_champion_is_told(settings, tmp_path):
    with serving(settings) as client, Registry.open(settings) as other:
        path = other.resolve("image@2").path
        (path / "score.onnx").write_bytes(b"rotten")
        assert client.score("image@2", X, OCTETS)[0] == 500
        assert client.get("/readyz")[0] == 200  # nobody is served this version by default
        other.promote("image", 2)
        # The version before goes on answering, and whoever runs the service is told.
        until(lambda: client.get("/readyz")[1].get("warnings"))
        status, ready = client.get("/readyz")
        assert status == 200 and "image" in ready["warnings"][0]
        assert version(client) == 1
        other.rollback("image")
        until(lambda: client.get("/readyz")[1]["warnings"] == [])
        assert version(client) == 1
        # A model that has nothing else to answer with makes the service unready.
        toy_bundle(tmp_path / "new", IMAGE, doc="new")
        other.add("new", tmp_path / "new")
        (other.resolve("new").path / "score.onnx").write_bytes(b"rotten")
        assert client.score("new", X, OCTETS)[0] == 500
        status, problem = client.get("/readyz")
        assert status == 503 and "Model new cannot be served" in problem["detail"]
        assert client.get("/healthz")[0] == 200


def test_keys_and_scopes(settings):
    with serving(settings) as client, Registry.open(settings) as registry:
        keys = Keys(registry.database)
        assert client.get("/v1/models")[0] == 200
        scorer, auditor, chief = (keys.create(n, [s]) for n, s in (("l", "score"), ("a", "audit"), ("c", "admin")))
        until(lambda: client.get("/v1/models")[0] == 401)
        status, headers, raw = client.call("GET", "/v1/models")
        assert headers["WWW-Authenticate"].startswith("Bearer") and b"Authorization" in raw
        for path in ("/metrics", "/nowhere", "/v1/models/image"):
            assert client.call("GET", path)[0] == 401
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.call("GET", path)[0] == 200

        def score(key, name="Authorization"):
            return client.score("image", X, OCTETS, headers={name: f"Bearer {key}" if name == "Authorization" else key})

        assert score(scorer)[0] == 200 and score(scorer, "X-API-Key")[0] == 200 and score(chief)[0] == 200
        status, problem = score(auditor)
        assert status == 403 and "audit" in problem["detail"] and "score" in problem["detail"]
        for wrong in ("nonsense", scorer[:-1] + "x", scorer + "0", "vg_000000000000_" + "0" * 64, "vg__", "é"):
            assert score(wrong.encode().decode("latin-1"))[0] == 401
        promote = lambda key: client.call(  # noqa: E731
            "POST", "/v1/models/image/promote", b'{"version": 2}', JSON, {"X-API-Key": key}
        )
        assert promote(scorer)[0] == 403 and promote(chief)[0] == 200
        assert client.get("/v1/models/image", **{"X-API-Key": auditor})[1]["promotions"][-1]["by"] == "c"
        keys.revoke(keys.list()[0].id)
        until(lambda: score(scorer)[0] == 401)
        assert all(scorer not in k.sha256 and len(k.sha256) == 64 for k in keys.list())


def test_a_network_address_needs_a_key_always(fill, tmp_path):
    settings = fill(tmp_path / "home").model_copy(update={"host": "0.0.0.0"})
    with Registry.open(settings) as registry:
        keys = Keys(registry.database)
        with pytest.raises(Refusal, match=r"0\.0\.0\.0.*vaegis keys create"):
            check_exposure("0.0.0.0", keys)
        keys.create("line", ["score"])
        check_exposure("0.0.0.0", keys)
        with serving(settings) as client:
            keys.revoke(keys.list()[0].id)
            until(lambda: client.get("/readyz")[0] == 200)
            assert client.get("/v1/models")[0] == 401  # revoking the last key locks the door
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_keys_that_cannot_be(settings):
    with Registry.open(settings) as registry:
        keys = Keys(registry.database)
        for name, scopes, word in (("", ["score"], "name"), ("x", ["scores"], "scores"), ("x", [], "scope")):
            with pytest.raises(Refusal, match=word):
                keys.create(name, scopes)
        with pytest.raises(Refusal, match="vaegis keys list"):
            keys.revoke("none")
        assert keys.list() == ()


def chunks(raw, size=1000):
    return (raw[i : i + size] for i in range(0, len(raw), size))


def test_bodies_and_samples_beyond_the_limits(fill, tmp_path):
    settings = fill(tmp_path / "home").model_copy(update={"max_body_bytes": 8000, "max_samples": 20, "max_pixels": 100})
    with serving(settings) as client:
        assert client.score("image", X * 20, OCTETS)[0] == 200
        path = "/v1/models/image/score"
        for body in (X * 501, chunks(X * 501)):  # announced by Content-Length, and in chunks that announce nothing
            status, _, raw = client.call("POST", path, body, OCTETS)
            assert status == 413 and b"8000" in raw and b"VAEGIS_MAX_BODY_BYTES" in raw
        status, _, raw = client.call("POST", "/v1/models/image/promote", chunks(b" " * 9000), JSON)
        assert status == 413
        assert client.score("image", X * 21, OCTETS)[0] == 413
        form, kind = multipart([(f"{i}.png", b"x") for i in range(21)])
        assert client.score("image", form, kind)[0] == 413
        assert client.metrics("vaegis_requests_rejected_total")['{reason="too_large"}'] == 5


def test_metrics_count_what_happened(settings):
    with serving(settings) as client:
        client.score("vector", {"data": [[1, 1, 1], [20, 20, 20], [None, 1, 1]]})
        client.score("vector", {"data": [[1e30, 1, 1]]})
        client.score("none-such", {"data": [[1]]})
        samples = client.metrics("vaegis_samples_scored_total")
        at = '{model="vector",status="%s",version="1"}'
        assert (samples[at % "ok"], samples[at % "anomalous"], samples[at % "unjudged"]) == (1, 1, 2)
        assert not any("none-such" in label for label in samples)
        p = client.metrics("vaegis_p_value_bucket")
        assert p['{le="0.005",model="vector"}'] == 1 and p['{le="+Inf",model="vector"}'] == 2
        assert client.metrics("vaegis_p_value_sum")['{model="vector"}'] == pytest.approx(1 / 200 + 1)
        # Clean scores 1..199: median 100, quartiles 50.5 and 149.5. Scores 1 and 400 are at -1 and 3.03.
        spread = client.metrics("vaegis_score_spread_bucket")
        counts = [spread[f'{{le="{le}",model="vector"}}'] for le in ("-2.0", "-1.0", "3.0", "4.0", "+Inf")]
        assert counts == [0, 1, 1, 2, 2]
        requests = client.metrics("vaegis_request_seconds_count")
        assert requests['{method="POST",route="/v1/models/{model}/score",status="200"}'] == 1
        assert requests['{method="POST",route="/v1/models/{model}/score",status="404"}'] == 1
        assert client.metrics("vaegis_requests_rejected_total")['{reason="not_found"}'] == 1
        assert client.metrics("vaegis_device_in_use") == {'{device="cpu"}': 1.0}
        assert len(client.metrics("vaegis_model_info")) == 3
        page = client.call("GET", "/metrics")[2].decode()
        names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
        assert all(name.startswith("vaegis_") for name in names)
        guide = (DOCS / "operations.md").read_text()
        known = {re.sub("_(total|created)$", "", n) for n in names if not n.startswith("vaegis_process")}
        assert [n for n in sorted(known) if n not in guide] == []


def test_the_documentation_page_loads_nothing_from_elsewhere(client):
    status, _, raw = client.call("GET", "/docs")
    page = raw.decode()
    assert status == 200 and "cdn" not in page.lower() and "http://" not in page and "https://" not in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert client.call("GET", asset)[0] == 200
    assert client.call("GET", "/")[1]["Location"] == "/docs"


def test_openapi_tells_every_route_type_and_error(client):
    document = client.get("/openapi.json")[1]
    post = document["paths"]["/v1/models/{model}/score"]["post"]
    assert set(post["requestBody"]["content"]) == {
        "multipart/form-data", "application/json", "application/octet-stream", "application/x-npy",
        "application/vnd.apache.arrow.stream",
    }  # fmt: skip
    answers = "200 400 401 403 404 413 415 422 429 500 503 504"
    assert set(answers.split()) == set(post["responses"])
    assert {p["name"] for p in post["parameters"]} == {
        "model",
        "alpha",
        "threshold",
        "decide_by",
        "maps",
        "group",
        "condition",
        "deadline_ms",
        "priority",
    }
    assert "HTTPValidationError" not in json.dumps(document)  # errors have one form
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    guide = (DOCS / "http.md").read_text()
    assert [path for path in document["paths"] if path not in guide] == []


def test_every_setting_is_documented():
    guide = (DOCS / "operations.md").read_text()
    rows = documented()
    assert len(rows) == len(Settings.model_fields)
    for name, default, meaning in rows:
        assert f"| `{name}` | {default} | {meaning} |" in guide, name


def test_settings_that_cannot_be(monkeypatch):
    monkeypatch.setenv("VAEGIS_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(Refusal, match="VAEGIS_PORT.*enableServiceLinks"):
        read_settings()
    monkeypatch.delenv("VAEGIS_PORT")
    with pytest.raises(Refusal, match="VAEGIS_DEVICE.*'tpu'"):
        read_settings(device="tpu")
    monkeypatch.setenv("VAEGIS_THREADS", "3")
    assert read_settings(port=None).threads == 3
    assert read_settings(threads=5).threads == 5


def test_alerts_speak_of_metrics_that_there_are():
    guide = (DOCS / "operations.md").read_text()
    rules = (DOCS.parent / "deploy" / "prometheus" / "alerts.yml").read_text()
    spoken = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"vaegis_[a-z_]+", rules)}
    assert spoken and [n for n in sorted(spoken) if n not in guide and not n.startswith("vaegis_process_")] == []
