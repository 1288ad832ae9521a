"""The Open Inference Protocol on the wire: every number against one worked out here, every error a sentence."""

import json
import struct
import threading

import numpy as np
import pytest
from http_server import serving
from toy_bundles import VECTOR, calibration_scores, toy_bundle
from toy_data import recipes

from models.spec import ImageSpec, VectorSpec
from service.settings import Settings
from service.store.keys import Keys
from service.store.registry import Registry

HEADER = "Inference-Header-Content-Length"
rng = np.random.default_rng(0)
IMAGES = rng.integers(80, 121, (5, 4, 4, 1), dtype=np.uint8)
SCORES = ((IMAGES.astype(float) - 100) ** 2).mean(axis=(1, 2, 3))
P_VALUES = (1 + (calibration_scores()[None, :] >= SCORES[:, None]).sum(axis=1)) / 200
DTYPES = {"FP32": "<f4", "FP64": "<f8", "BOOL": "?"}


def tensor(values, datatype="UINT8", name="input", **more):
    values = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist(), **more}


def infer(client, path, message, tail=b"", headers=None):
    """Status and the answer, its binary outputs as `array`."""
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    given = {HEADER: str(len(raw))} if tail else {}
    status, answered, body = client.call(
        "POST", f"/v2/models/{path}/infer", raw + tail, None, {**given, **(headers or {})}
    )
    length = answered.get(HEADER)
    assert (length is not None) == (answered["Content-Type"] == "application/octet-stream")
    found = json.loads(body[: int(length)] if length else body)
    at = int(length or 0)
    for output in found.get("outputs", []):
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            assert "data" not in output
            output["array"] = parsed(output["datatype"], body[at : at + size], output["shape"])
            at += size
    assert not length or at == len(body)
    return status, found


def parsed(datatype, raw, shape):
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    words, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        words.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return words


def outputs(answer):
    assert answer[0] == 200, answer
    return {o["name"]: o.get("array", o.get("data")) for o in answer[1]["outputs"]}


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


GOOD = tensor(IMAGES[:1])
SENT = {"name": "input", "datatype": "UINT8", "shape": [1, 4, 4, 1], "parameters": {"binary_data_size": 16}}


def m(*inputs, **more):
    return {"inputs": list(inputs), **more}


BAD = {
    "no json": ("image", b"{", 400, "JSON"),
    "nothing": ("image", b"", 400, "JSON"),
    "NaN": ("vector", b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,3],"data":[NaN,1,1]}]}', 400, "NaN"),
    "no object": ("image", b"[]", 400, "object"),
    "no inputs": ("image", {}, 400, '"inputs"'),
    "an empty list": ("image", m(), 400, '"inputs"'),
    "an input that is no object": ("image", m(7), 400, '"name"'),
    "an input twice": ("image", m(GOOD, GOOD), 400, "twice"),
    "another input": ("image", m(GOOD, tensor([1], name="luck")), 422, "'luck'"),
    "the input missing": ("image", m(tensor([1], name="mask")), 422, "takes input"),
    "mask where there is none": ("vector", m(tensor([[1.0] * 3], "FP32"), tensor([1], name="mask")), 422, "'mask'"),
    "datatype": ("image", m({**GOOD, "datatype": "FP32"}), 422, "UINT8"),
    "no datatype": ("image", m({**GOOD, "datatype": "FLOAT"}), 400, "FP32"),
    "datatype that is a list": ("image", m({**GOOD, "datatype": ["UINT8"]}), 400, "datatype"),
    "shape": ("image", m({**GOOD, "shape": [1, 2, 8, 1]}), 422, "[-1, 4, 4, 1]"),
    "rank": ("image", m({**GOOD, "shape": [16]}), 422, "[-1, 4, 4, 1]"),
    "no shape": ("image", m({**GOOD, "shape": None}), 400, '"shape"'),
    "negative shape": ("image", m({**GOOD, "shape": [-1, 4, 4, 1]}), 400, '"shape"'),
    "huge shape": ("image", m({**GOOD, "shape": [2**62, 4, 4, 1]}), 400, "no body"),
    "many samples": ("image", m({**GOOD, "shape": [2**30, 4, 4, 1]}), 413, "65536"),
    "fractional shape": ("image", m({**GOOD, "shape": [1.5, 4, 4, 1]}), 400, '"shape"'),
    "empty batch": ("image", m({**GOOD, "shape": [0, 4, 4, 1], "data": []}), 422, "nothing"),
    "more data than shape": ("image", m({**GOOD, "shape": [2, 4, 4, 1]}), 400, "flat"),
    "no data": ("image", m({k: v for k, v in GOOD.items() if k != "data"}), 400, '"data"'),
    "data and binary": ("image", m({**GOOD, **SENT, "data": [1]}), 400, "both"),
    "text for numbers": ("image", m({**GOOD, "data": ["1"] * 16}), 400, "text"),
    "truth for numbers": ("image", m({**GOOD, "data": [True] * 16}), 400, "true or false"),
    "fractions for pixels": ("image", m({**GOOD, "data": [1.5] * 16}), 422, "whole"),
    "null for pixels": ("image", m({**GOOD, "data": [None] * 16}), 422, "whole"),
    "pixels beyond 8 bits": ("image", m({**GOOD, "data": [256] * 16}), 422, "256"),
    "negative pixels": ("image", m({**GOOD, "data": [-1] * 16}), 422, "-1"),
    "ragged": ("image", m({**GOOD, "data": [[1], [2, 3]]}), 400, "ragged"),
    "null where nothing may be missing": (
        "vector",
        m({**tensor([[1.0] * 3], "FP32"), "data": [1, None, 1]}),
        422,
        "Column 'b'",
    ),
    "more than a float holds": ("vector", m({**tensor([[1.0] * 3], "FP32"), "data": [1, 1e39, 1]}), 422, "FP32"),
    "unknown output": ("image", m(GOOD, outputs=[{"name": "luck"}]), 422, "negative_elbo"),
    "output twice": ("image", m(GOOD, outputs=[{"name": "score"}] * 2), 400, "twice"),
    "outputs that are no list": ("image", m(GOOD, outputs="score"), 400, '"outputs"'),
    "classification": (
        "image",
        m(GOOD, outputs=[{"name": "score", "parameters": {"classification": 3}}]),
        422,
        "classification",
    ),
    "shared memory": (
        "image",
        m({**SENT, "parameters": {"shared_memory_region": "x"}}),
        422,
        "shared_memory_region",
    ),
    "unknown parameter": ("image", m(GOOD, parameters={"apha": 0.1}), 422, "alpha"),
    "sequence": ("image", m(GOOD, parameters={"sequence_id": 3}), 422, "state"),
    "parameters that are no object": ("image", m(GOOD, parameters=[1]), 400, '"parameters"'),
    "nested parameters": ("image", m(GOOD, parameters={"alpha": {}}), 400, '"parameters"'),
    "alpha as text": ("image", m(GOOD, parameters={"alpha": "0.1"}), 422, "alpha"),
    "alpha out of range": ("image", m(GOOD, parameters={"alpha": 7}), 422, "alpha"),
    "two deadlines": ("image", m(GOOD, parameters={"timeout": 1, "deadline_ms": 1}), 422, "one of them"),
    "negative priority": ("image", m(GOOD, parameters={"priority": -1}), 422, "interactive"),
    "unknown term": ("image", m(GOOD, parameters={"decide_by": "luck"}), 422, "negative_elbo"),
    "binary flag": ("image", m(GOOD, parameters={"binary_data_output": 1}), 400, "true or false"),
    "id that is no text": ("image", m(GOOD, id=7), 400, '"id"'),
    "unknown model": ("nope", m(GOOD), 404, "'nope'"),
    "unknown version": ("image/versions/9", m(GOOD), 404, "'9'"),
    "version named twice": ("image@2/versions/2", m(GOOD), 422, "Both"),
    "a condition where there is none": ("image", m(GOOD, parameters={"condition": "A"}), 422, "without conditions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_with_a_sentence(client, case):
    path, message, want, words = BAD[case]
    status, problem = infer(client, path, message)
    check(status, problem, want, words)
    assert client.get("/v2/health/live")[0] == 200


def check(status, problem, want, words):
    assert (status, problem["status"]) == (want, want), problem
    assert problem["error"] == problem["detail"] and words in problem["error"] and problem["error"].endswith(".")
    assert "Traceback" not in str(problem) and "/tmp" not in str(problem)


RAW = json.dumps({"inputs": [SENT]}).encode()
BAD_BINARY = {
    "header beyond the body": (RAW, {HEADER: str(len(RAW) + 1)}, 400, "whole body"),
    "negative header": (RAW, {HEADER: "-1"}, 400, "'-1'"),
    "header that is no number": (RAW, {HEADER: "ten"}, 400, "'ten'"),
    "header inside the JSON": (RAW + b"x" * 16, {HEADER: str(len(RAW) - 2)}, 400, "JSON"),
    "no header": (RAW + b"x" * 16, {}, 400, HEADER),
    "data cut short": (RAW + b"x" * 15, {HEADER: str(len(RAW))}, 400, "15"),
    "data left over": (RAW + b"x" * 17, {HEADER: str(len(RAW))}, 400, "1 bytes are left"),
    "half an image as the whole body": (b"x" * 17, {HEADER: "0"}, 400, "16 (uint8"),
    "nothing as the whole body": (b"", {HEADER: "0"}, 400, "0 bytes"),
    "compressed": (RAW, {"Content-Encoding": "gzip"}, 415, "gzip"),
    "a form": (RAW, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_bad_binary_bodies_are_refused_with_a_sentence(client, case):
    body, headers, want, words = BAD_BINARY[case]
    check(*infer(client, "image", body, headers=headers), want, words)


def test_a_query_that_would_be_passed_over_is_refused(client):
    status, _, raw = client.call("POST", "/v2/models/image/infer?alpha=0.5", json.dumps(m(GOOD)).encode())
    check(status, json.loads(raw), 422, '"parameters"')


@pytest.mark.parametrize(("size", "raw", "words"), [(8, b"x" * 8, "16"), (True, b"x" * 16, "True"), (-1, b"x", "-1")])
def test_sizes_that_do_not_fit_the_shape(client, size, raw, words):
    message = {"inputs": [{**SENT, "parameters": {"binary_data_size": size}}]}
    check(*infer(client, "image", message, raw), 400, words)


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


def test_no_mutation_of_a_good_request_breaks_the_service(client):
    chance = np.random.default_rng(1)
    good = json.dumps({"inputs": [SENT], "outputs": [{"name": "score"}, {"name": "status"}]}).encode()
    for _ in range(200):
        body = bytearray(good + IMAGES[0].tobytes())
        for _ in range(chance.integers(1, 4)):
            i = int(chance.integers(len(body)))
            body[i : i + int(chance.integers(0, 3))] = chance.bytes(int(chance.integers(0, 3)))
        header = str(len(good) + int(chance.integers(-1, 2)))
        status, answer = infer(client, "image", bytes(body), headers={HEADER: header})
        assert status in (200, 400, 413, 422), answer
        if status == 200:
            assert all(o["name"] != "score" or np.isfinite(o["data"]).all() for o in answer["outputs"])
        else:
            assert answer["error"]


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
