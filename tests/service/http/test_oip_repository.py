"""The model repository of the Open Inference Protocol: who may, what is listed, loading and unloading."""

import json
import threading

import pytest
from http_server import serving
from oip_requests import GOOD, check, infer, m, outputs, tensor

from vaegis.service.http.oip.repository import entries
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry
from vaegis.service.store.servings import Servings


@pytest.fixture(scope="module")
def guarded(fill, tmp_path_factory):
    """A service whose models may be unloaded, and its keys by scope."""
    settings = fill(tmp_path_factory.mktemp("guarded"))
    with Registry.open(settings) as registry:
        keys = {scope: Keys(registry.database).create(scope, [scope]) for scope in ("score", "audit", "admin")}
    with serving(settings) as client:
        yield client, {scope: {"Authorization": f"Bearer {key}"} for scope, key in keys.items()}


def post(client, path, headers, body=None):
    status, _, raw = client.call("POST", f"/v2/repository/{path}", body, None, headers)
    return status, json.loads(raw)


def test_scopes(guarded):
    client, keys = guarded
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path)[0] == 200
    for path in ("/v2", "/v2/models/image", "/v2/models/image/ready"):
        status, problem = client.get(path)
        check(status, problem, 401, "key")
        assert client.get(path, **keys["audit"])[0] == 200
    assert infer(client, "image", m(GOOD))[0] == 401
    check(*infer(client, "image", m(GOOD), headers=keys["audit"]), 403, "score")
    assert infer(client, "image", m(GOOD), headers=keys["score"])[0] == 200
    for path in ("index", "models/image/load", "models/image/unload"):
        check(*post(client, path, keys["score"]), 403, "admin")
        check(*post(client, path, {}), 401, "key")


def test_the_repository_lists_unloads_and_loads(guarded):
    client, keys = guarded
    admin, score = keys["admin"], keys["score"]

    def states(body=None):
        status, entries = post(client, "index", admin, body)
        assert status == 200
        return {(e["name"], e["version"]): (e["state"], e["reason"]) for e in entries}

    names = [("image", "1"), ("image", "2"), ("series", "1"), ("vector", "1")]
    assert list(states()) == names and {state for state, _ in states().values()} == {"READY"}
    unloading = json.dumps({"parameters": {"unload_dependents": False}}).encode()
    assert post(client, "models/image/unload", admin, unloading) == (200, {"name": "image", "state": "UNAVAILABLE"})
    assert states()["image", "2"] == ("UNAVAILABLE", "unloaded")
    assert list(states(b'{"ready": true}')) == names[2:]
    check(*infer(client, "image", m(GOOD), headers=score), 409, "unloaded")
    check(*client.get("/v2/models/image/ready", **score), 409, "unloaded")
    assert post(client, "models/image/load", admin, b"{}") == (200, {"name": "image", "state": "READY"})
    assert infer(client, "image", m(GOOD), headers=score)[0] == 200
    assert client.get("/v2/models/image/ready", **score)[0] == 200


def test_a_model_registered_while_the_index_is_read_breaks_nothing(fill, toys, tmp_path):
    """Between the two reads another process registers a model: it is listed next time."""
    settings = fill(tmp_path / "home")
    with Registry.open(settings) as registry, Registry.open(settings) as other:
        servings = Servings(registry)

        def models():
            known = registry.list()
            other.add("late", toys / "vector")
            return known

        def states():
            known = servings.states()
            other.add("later", toys / "vector")
            return known

        listing = entries(models, states, set())
        assert [(e.name, e.version) for e in listing] == [
            ("image", "1"), ("image", "2"), ("series", "1"), ("vector", "1"),
        ]  # fmt: skip
        assert {e.name for e in entries(registry.list, servings.states, set())} >= {"late", "later"}


def test_the_index_answers_while_models_are_registered(fill, toys, tmp_path):
    settings = fill(tmp_path / "home")
    with serving(settings) as client, Registry.open(settings) as other:
        statuses, names = [], [f"m{i}" for i in range(20)]

        def ask():
            while not {f"{names[-1]}"} & {e["name"] for e in post(client, "index", {})[1]}:
                statuses.append(post(client, "index", {})[0])

        asking = threading.Thread(target=ask)
        asking.start()
        for name in names:
            other.add(name, toys / "vector")
        asking.join(30)
        assert not asking.is_alive() and set(statuses) <= {200}


REPOSITORY = [
    ("models/nope/load", None, 404, "'nope'"),
    ("models/nope/unload", None, 404, "'nope'"),
    ("models/image@2/unload", None, 422, "whole"),
    ("models/image/load", b'{"parameters": {"config": "{}"}}', 422, "config"),
    ("models/image/load", b'{"parameters": [1]}', 400, '"parameters"'),
    ("models/image/load", b"{", 400, "JSON"),
    ("models/image/unload", b"[]", 400, "object"),
    ("models/image/unload", b'{"parameters": {"force": true}}', 422, "unload_dependents"),
    ("index", b'{"ready": "yes"}', 400, '"ready"'),
    ("index", b"\xff", 400, "JSON"),
]


@pytest.mark.parametrize(("path", "body", "want", "words"), REPOSITORY)
def test_bad_repository_requests(guarded, path, body, want, words):
    client, keys = guarded
    check(*post(client, path, keys["admin"], body), want, words)


def test_loading_and_unloading_one_model_at_once_harms_nothing(guarded):
    client, keys = guarded
    seen = []

    def work(verb):
        for _ in range(8):
            seen.append(post(client, f"models/vector/{verb}", keys["admin"])[0])
            seen.append(infer(client, "vector", m(tensor([[1.0] * 3], "FP32")), headers=keys["score"])[0])

    threads = [threading.Thread(target=work, args=(verb,)) for verb in ("load", "unload") * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(seen) == 64 and set(seen) <= {200, 409} and 200 in seen
    assert post(client, "models/vector/load", keys["admin"])[0] == 200
    found = outputs(infer(client, "vector", m(tensor([[1.0] * 3], "FP32")), headers=keys["score"]))
    assert found["score"] == [1.0]
