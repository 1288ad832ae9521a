"""Conditions over HTTP."""

import io

import numpy as np
import pytest
from http_server import NPY, OCTETS, serving

from toy_data import recipes
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry


@pytest.fixture(scope="module")
def client(conditional, toys, tmp_path_factory):
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    with Registry.open(settings) as registry:
        registry.add("recipes", conditional.bundle.path)
        registry.add("vector", toys / "vector")
    with serving(settings) as client:
        yield client


GOOD, BAD = recipes(20, "A", 7), recipes(20, "B", 8)


def flagged(answer):
    status, body = answer
    assert status == 200, body
    return [r.get("anomalous") for r in body["results"]]


def test_json_says_it_per_sample(client):
    x = np.concatenate([GOOD, GOOD]).tolist()
    found = flagged(client.score("recipes", {"data": x, "condition": ["A"] * 20 + ["B"] * 20}))
    assert np.mean(found[:20]) < 0.3 and np.mean(found[20:]) > 0.9


def test_the_query_says_it_for_all(client):
    raw = np.concatenate([GOOD, BAD])
    file = io.BytesIO()
    np.save(file, raw)
    bodies = [(raw.tobytes(), OCTETS), (file.getvalue(), NPY)]
    found = [flagged(client.score("recipes", body, kind, "?condition=A")) for body, kind in bodies]
    found.append(flagged(client.score("recipes", {"data": raw.tolist()}, query="?condition=A")))
    assert found[0] == found[1] == found[2]
    assert np.mean(found[0][:20]) < 0.3 and np.mean(found[0][20:]) > 0.9


def test_an_unknown_one_is_unjudged_among_others(client):
    status, body = client.score("recipes", {"data": GOOD[:2].tolist(), "condition": ["A", "C"]})
    assert status == 200
    assert [r["status"] == "unjudged" for r in body["results"]] == [False, True]
    assert "'C'" in body["results"][1]["error"]["detail"] and "A, B" in body["results"][1]["error"]["detail"]


@pytest.mark.parametrize(
    ("more", "query", "status", "words"),
    [
        ({}, "", 422, "fitted with conditions (A, B)"),
        ({}, "?condition=C", 422, "the model knows A, B"),
        ({"condition": ["C", "C"]}, "", 422, "the model knows A, B"),
        ({"condition": ["A"]}, "", 422, "1 entries"),
        ({"condition": ["A", "B"]}, "?condition=A", 422, "Both"),
        ({"condition": "A"}, "", 400, "list of names"),
        ({"condition": [1.5, 2]}, "", 400, "list of names"),
        ({}, "?condition=A&condition=B", 422, "2 times"),
        ({}, "?condition=", 422, "the model knows A, B"),
    ],
)
def test_what_is_wrong_is_said(client, more, query, status, words):
    found, body = client.score("recipes", {"data": GOOD[:2].tolist(), **more}, query=query)
    assert found == status, body
    assert words in body["detail"]


def test_a_model_without_conditions_wants_none(client):
    status, body = client.score("vector", {"data": [[1.0, 2.0, 3.0]]}, query="?condition=A")
    assert status == 422 and "without conditions" in body["detail"]
