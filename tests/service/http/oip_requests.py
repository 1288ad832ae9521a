"""Requests of the Open Inference Protocol by hand, and their answers read."""

import json
import struct

import numpy as np

from toy_bundles import calibration_scores

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


GOOD = tensor(IMAGES[:1])


def m(*inputs, **more):
    return {"inputs": list(inputs), **more}


def check(status, problem, want, words):
    assert (status, problem["status"]) == (want, want), problem
    assert problem["error"] == problem["detail"] and words in problem["error"] and problem["error"].endswith(".")
    assert "Traceback" not in str(problem) and "/tmp" not in str(problem)
