"""Wrong requests of the Open Inference Protocol: each a sentence, none a stack trace."""

import json

import numpy as np
import pytest
from oip_requests import GOOD, HEADER, IMAGES, check, infer, m, tensor

SENT = {"name": "input", "datatype": "UINT8", "shape": [1, 4, 4, 1], "parameters": {"binary_data_size": 16}}


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
