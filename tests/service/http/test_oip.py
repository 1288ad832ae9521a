"""The Open Inference Protocol on the wire: every number against one worked out here, every error a sentence."""

import json

import numpy as np
import pytest
from http_server import serving
from oip_requests import GOOD, HEADER, IMAGES, P_VALUES, SCORES, check, infer, m, outputs, rng, tensor

from toy_bundles import VECTOR, toy_bundle
from toy_data import recipes
from vaegis.models.spec import ImageSpec, VectorSpec
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry


def test_server_and_models_tell_what_they_are(client):
    status, server = client.get("/v2")
    assert status == 200 and server["name"] == "vaegis" and client.get("/v2/")[1] == server
    assert {"binary_tensor_data", "model_repository", "schedule_policy"} <= set(server["extensions"])
    assert client.get("/v2/health/live") == (200, {"live": True, "ready": True})
    assert client.get("/v2/health/ready") == (200, {"live": True, "ready": True})
    _, model = client.get("/v2/models/image")
    assert (model["name"], model["versions"], model["platform"]) == ("image", ["1", "2"], "onnx_onnxv1")
    assert model["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 4, 4, 1]}]
    told = {o["name"]: (o["datatype"], o["shape"]) for o in model["outputs"]}
    floats = dict.fromkeys(("score", "reconstruction_error", "negative_elbo"), ("FP32", [-1]))
    assert told == {
        **floats, "p_value": ("FP64", [-1]), "p_tail": ("FP64", [-1]), "anomalous": ("BOOL", [-1]),
        "status": ("BYTES", [-1]), "map": ("FP32", [-1, 4, 4]),
    }  # fmt: skip
    for path in ("image@2", "image/versions/2", "image/versions/champion"):
        assert client.get(f"/v2/models/{path}")[1] == model
    assert client.get("/v2/models/series")[1]["inputs"][0]["shape"] == [-1, 4, 2]
    assert client.get("/v2/models/image/versions/2/ready") == (200, {"name": "image", "ready": True})


def test_json_answers_equal_those_worked_out_by_hand(client):
    message = {"id": "42", "inputs": [tensor(IMAGES)]}
    status, answer = infer(client, "image", message)
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("image", "1", "42")
    parameters = answer["parameters"]
    assert len(parameters.pop("digest")) == 64
    assert parameters == {"decide_by": "score", "alpha": 0.05, "threshold": 190.0, "extrapolated": False}
    found = outputs((status, answer))
    assert list(found) == [
        "score", "reconstruction_error", "negative_elbo", "p_value", "p_tail", "anomalous", "status",
    ]  # fmt: skip
    np.testing.assert_allclose(found["score"], SCORES, rtol=1e-6)
    np.testing.assert_allclose(found["negative_elbo"], 2 * SCORES + 1, rtol=1e-6)
    np.testing.assert_array_equal(found["p_value"], P_VALUES)
    assert found["anomalous"] == (SCORES > 190).tolist()
    assert found["status"] == ["anomalous" if s > 190 else "ok" for s in SCORES]
    assert [o["shape"] for o in answer["outputs"]] == [[5]] * 7
    nested = {"inputs": [{**tensor(IMAGES), "data": IMAGES.tolist()}]}
    assert outputs(infer(client, "image", nested)) == found


def test_binary_both_ways_equals_json(client):
    asked = [{"name": n} for n in ("score", "p_value", "anomalous", "status", "map")]
    plain = outputs(infer(client, "image", {"inputs": [tensor(IMAGES)], "outputs": asked}))
    sent = {"name": "input", "datatype": "UINT8", "shape": [5, 4, 4, 1], "parameters": {"binary_data_size": 80}}
    message = {"inputs": [sent], "outputs": asked, "parameters": {"binary_data_output": True}}
    found = outputs(infer(client, "image", message, IMAGES.tobytes()))
    assert list(found) == list(plain)
    np.testing.assert_array_equal(found["map"], (IMAGES[..., 0].astype(np.float32) - 100) ** 2)
    np.testing.assert_array_equal(found["map"].ravel(), plain["map"])
    for name in ("score", "p_value", "anomalous", "status"):
        assert list(found[name]) == plain[name]
    # One output as JSON among binary ones, in the order asked for.
    message["outputs"] = [{"name": "status", "parameters": {"binary_data": False}}, {"name": "score"}]
    status, answer = infer(client, "image", message, IMAGES.tobytes())
    assert ["data" in o for o in answer["outputs"]] == [True, False]
    assert outputs((status, answer))["status"] == plain["status"]


def test_the_bare_tensor_as_a_whole_body(client):
    found = outputs(infer(client, "image", IMAGES.tobytes(), headers={HEADER: "0"}))
    np.testing.assert_allclose(found["score"], SCORES, rtol=1e-6)


def test_floats_at_any_offset_of_the_body(client):
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    sent = {"name": "input", "datatype": "FP32", "shape": [3, 3], "parameters": {"binary_data_size": 36}}
    for pad in range(4):
        message = {"id": "x" * pad, "inputs": [sent]}
        np.testing.assert_allclose(outputs(infer(client, "vector", message, x.tobytes()))["score"], (x**2).mean(1))


def test_windows_of_a_series_are_judged_one_by_one(client):
    x = rng.normal(size=(3, 4, 2)).astype(np.float32)
    message = {"inputs": [tensor(x, "FP32")], "outputs": [{"name": "score"}, {"name": "map"}]}
    found = outputs(infer(client, "series", message))
    np.testing.assert_allclose(found["score"], (x.astype(float) ** 2).mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(np.reshape(found["map"], (3, 4, 2)), x**2, rtol=1e-5)


def test_versions_and_parameters(client):
    message = {"inputs": [tensor(IMAGES)]}
    for path in ("image/versions/2", "image@2", "image%402"):
        _, answer = infer(client, path, message)
        assert (answer["model_version"], answer["parameters"]["threshold"]) == ("2", 180.0)
    message["parameters"] = {"decide_by": "negative_elbo", "alpha": 0.5, "priority": 2, "timeout": 10_000_000}
    _, answer = infer(client, "image", message)
    assert answer["parameters"]["threshold"] == 2 * 100 + 1
    assert outputs((200, answer))["anomalous"] == (SCORES > 100).tolist()
    message["parameters"] = {"threshold": -1, "priority": "interactive", "deadline_ms": 10_000}
    _, answer = infer(client, "image", message)
    assert "alpha" not in answer["parameters"] and all(outputs((200, answer))["anomalous"])
    message["parameters"] = {"timeout": 0.001}
    status, problem = infer(client, "image", message)
    assert status == 504 and problem["error"] == problem["detail"]


@pytest.mark.parametrize("binary", [False, True])
def test_what_cannot_be_judged_never_reads_as_clean(client, binary):
    """1e30 squared is more than a float holds: the graph's score is infinite."""
    x = np.array([[1, 1, 1], [1e30, 0, 0]], np.float32)
    message = {"inputs": [tensor(x, "FP32")], "parameters": {"binary_data_output": binary, "threshold": 1e38}}
    status, answer = infer(client, "vector", message)
    found = outputs((status, answer))
    assert list(found["status"]) == ["ok", "unjudged"] and list(found["anomalous"]) == [False, True]
    for name in ("score", "reconstruction_error", "negative_elbo", "p_value", "p_tail"):
        good, bad = found[name]
        assert np.isfinite(good) and (np.isnan(bad) if binary else bad is None)
    assert answer["parameters"]["unjudged"] == 1
    assert "Sample 1" in answer["parameters"]["reason"] and "finite" in answer["parameters"]["reason"]
    status, problem = infer(client, "vector", {"inputs": [tensor(x[1:], "FP32")]})
    assert status == 422 and "finite" in problem["error"]


@pytest.fixture(scope="module")
def special(conditional, tmp_path_factory):
    """Models with conditions, with missing values, and that resize."""
    folder = tmp_path_factory.mktemp("special")
    toy_bundle(folder / "missing", VectorSpec(VECTOR.columns, missing="allow"))
    toy_bundle(folder / "resize", ImageSpec(height=4, width=4, channels=1, fit="resize"))
    settings = Settings(home=folder / "home", max_answer_bytes=200)
    with Registry.open(settings) as registry:
        registry.add("recipes", conditional.bundle.path)
        registry.add("missing", folder / "missing")
        registry.add("resize", folder / "resize")
    with serving(settings) as client:
        yield client


def test_conditions_by_number_by_name_and_for_all(special):
    x = np.concatenate([recipes(3, "A", 7), recipes(3, "B", 8)]).astype(np.float32)
    told = {i["name"]: (i["datatype"], i["shape"]) for i in special.get("/v2/models/recipes")[1]["inputs"]}
    assert told["condition"] == ("INT64", [-1])

    def scores(more, parameters=None):
        message = {"inputs": [tensor(x, "FP32"), *more], "parameters": parameters or {}}
        return outputs(infer(special, "recipes", message))["score"]

    numbers, names = (
        tensor([0] * 3 + [1] * 3, "INT64", "condition"),
        tensor(["A"] * 3 + ["B"] * 3, "BYTES", "condition"),
    )
    assert scores([numbers]) == scores([names])
    assert scores([], {"condition": "A"})[:3] == scores([numbers])[:3]
    assert scores([], {"condition": "A"})[3:] != scores([numbers])[3:]
    status, problem = infer(special, "recipes", {"inputs": [tensor(x, "FP32")]})
    assert status == 422 and "(A, B)" in problem["error"]
    for wrong, words in (([2] * 6, "0 (A), 1 (B)"), ([-1] * 6, "0 (A), 1 (B)"), ([0], "[6]")):
        given = [tensor(x, "FP32"), tensor(wrong, "INT64", "condition")]
        status, problem = infer(special, "recipes", {"inputs": given})
        assert status == 422 and words in problem["error"]
    status, problem = infer(
        special, "recipes", {"inputs": [tensor(x, "FP32"), tensor(["C"] * 6, "BYTES", "condition")]}
    )
    assert status == 422 and "'C'" in problem["error"]


def test_missing_values_by_mask_and_by_nan(special):
    """The toy's graph sees 0 where a value is missing."""
    x = np.array([[3, 0, 0], [3, 6, 0]], np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 1]], np.float32)
    masked = {"inputs": [tensor(x, "FP32"), tensor(mask, "FP32", "mask")]}
    assert outputs(infer(special, "missing", masked))["score"] == [3.0, 3.0]
    assert outputs(infer(special, "missing", {"inputs": [tensor(x, "FP32")]}))["score"] == [3.0, 15.0]
    null = {**tensor(x, "FP32"), "data": [3, 0, 0, 3, None, 0]}
    assert outputs(infer(special, "missing", {"inputs": [null]}))["score"] == [3.0, 3.0]
    for wrong, words in ((mask * 0.5, "1 (observed)"), (mask[:1], "[2, 3]")):
        status, problem = infer(special, "missing", {"inputs": [tensor(x, "FP32"), tensor(wrong, "FP32", "mask")]})
        assert status == 422 and words in problem["error"]


def test_other_sizes_where_the_model_resizes(special):
    assert special.get("/v2/models/resize")[1]["inputs"][0]["shape"] == [-1, -1, -1, 1]
    message = {"inputs": [tensor(np.full((2, 8, 6, 1), 110))], "outputs": [{"name": "score"}]}
    assert outputs(infer(special, "resize", message))["score"] == [100.0, 100.0]


def test_maps_are_held_to_the_size_of_an_answer(special):
    message = {"inputs": [tensor(np.full((2, 4, 4, 1), 110))], "outputs": [{"name": "map"}]}
    status, problem = infer(special, "resize", message)
    assert status == 413 and "VAEGIS_MAX_ANSWER_BYTES" in problem["error"]
    message["parameters"] = {"binary_data_output": True}
    assert outputs(infer(special, "resize", message))["map"].shape == (2, 4, 4)


def test_broken_lengths_within_bytes(special):
    x = recipes(1, "A", 7).astype(np.float32)
    for raw in (b"\x05\0\0\0A", b"\x01\0", b"\xff\xff\xff\xff", b"\x01\0\0\0\xff"):
        condition = {
            "name": "condition",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"binary_data_size": len(raw)},
        }
        check(*infer(special, "recipes", m(tensor(x, "FP32"), condition), raw), 400, "'condition'")


def test_a_page_of_another_site_cannot_ask_while_there_are_no_keys(client):
    """A browser sends such a request without asking first: it has no body, or one without a type."""
    for path in ("/v2/repository/models/image/unload", "/v1/models/image/rollback", "/v2/models/image/infer"):
        for origin in ("http://elsewhere.example", "null"):
            status, _, raw = client.call("POST", path, headers={"Origin": origin})
            assert status == 403 and origin in json.loads(raw)["detail"]
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert infer(client, "image", m(GOOD), headers=own)[0] == 200


def test_errors_as_plain_json_for_who_asks_for_that(client):
    for accept, kind in (("application/json", "application/json"), ("*/*", "application/problem+json")):
        _, headers, raw = client.call("GET", "/v2/models/nope", headers={"Accept": accept})
        assert headers["Content-Type"] == kind and json.loads(raw)["error"]
    for path in ("/v2/nothing", "/v2/models/image/infer"):
        status, problem = client.get(path)
        check(status, problem, {"/v2/nothing": 404}.get(path, 405), "/docs")
