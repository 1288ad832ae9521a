"""What clients of the Open Inference Protocol make of the service: run by test_oip_clients.py in their own environment.

    python oip_peer.py CLIENT HOST:PORT KEY < images (n, 4, 4, 1), uint8

prints one JSON object.
"""

import asyncio
import json
import sys

import numpy as np

IMAGES = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(-1, 4, 4, 1)


def plain(array):
    return [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]


def triton(url, key):
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    # A fresh dict for each call: the client leaves the length of a binary request in the one it is given.
    told, headers = {}, {"Authorization": f"Bearer {key}"}
    with http.InferenceServerClient(url) as client:
        told["live"], told["ready"] = client.is_server_live(), client.is_server_ready()
        told["model_ready"] = [
            client.is_model_ready(name, version, headers=dict(headers))
            for name, version in (("image", ""), ("image", "2"), ("image@2", ""), ("nope", ""), ("image", "9"))
        ]
        told["server"] = client.get_server_metadata(headers=dict(headers))
        told["model"] = client.get_model_metadata("image", headers=dict(headers))
        for binary in (True, False):
            given = http.InferInput("input", IMAGES.shape, "UINT8")
            given.set_data_from_numpy(IMAGES, binary_data=binary)
            names = ("score", "p_value", "anomalous", "status", "map")
            asked = [http.InferRequestedOutput(n, binary_data=binary) for n in names]
            found = client.infer("image", [given], outputs=asked, request_id="42", headers=dict(headers))
            told[f"infer_{binary}"] = {n: plain(found.as_numpy(n)) for n in names}
            told["id"] = found.get_response()["id"]
        whole = client.infer(
            "image", [given], model_version="2", headers=dict(headers), priority=2, timeout=10_000_000,
            parameters={"alpha": 0.5},
        )  # fmt: skip
        told["parameters"], told["outputs"] = (
            whole.get_response()["parameters"],
            [o["name"] for o in whole.get_response()["outputs"]],
        )
        told["version"] = whole.get_response()["model_version"]
        vector = http.InferInput("input", [2, 3], "FP32")
        vector.set_data_from_numpy(np.array([[1, 1, 1], [1e30, 0, 0]], np.float32))
        unjudged = client.infer("vector", [vector], headers=dict(headers))
        told["unjudged"] = [str(unjudged.as_numpy("score")[1]), *plain(unjudged.as_numpy("status"))]
        told["errors"] = []
        for call in (
            lambda: client.infer("nope", [given], headers=dict(headers)),
            lambda: client.infer("image", [given]),
            lambda: client.infer("vector", [given], headers=dict(headers)),
            lambda: client.infer("image", [given], headers=dict(headers), request_compression_algorithm="gzip"),
            lambda: client.infer("image", [given], headers=dict(headers), timeout=1),
        ):
            try:
                call()
            except InferenceServerException as error:
                told["errors"].append([error.status(), error.message()])
        told["index"] = client.get_model_repository_index(headers=dict(headers))
        client.unload_model("image", headers=dict(headers))
        told["unloaded"] = client.is_model_ready("image", headers=dict(headers))
        client.load_model("image", headers=dict(headers))
        told["loaded"] = client.is_model_ready("image", headers=dict(headers))
    told["aio"] = asyncio.run(triton_aio(url, headers))
    return told


async def triton_aio(url, headers):
    import tritonclient.http.aio as http

    async with http.InferenceServerClient(url) as client:
        found = []
        for binary in (True, False):
            given = http.InferInput("input", IMAGES.shape, "UINT8")
            given.set_data_from_numpy(IMAGES, binary_data=binary)
            answers = await asyncio.gather(*(client.infer("image", [given], headers=dict(headers)) for _ in range(8)))
            found += [plain(answer.as_numpy("score")) for answer in answers]
        return found


async def kserve(url, key):
    import httpx
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    base, told, headers = f"http://{url}", {}, {"Authorization": f"Bearer {key}"}
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=1)) as client:
        told["live"], told["ready"] = await client.is_server_live(base), await client.is_server_ready(base)
        told["model_ready"] = [
            await client.is_model_ready(base, name, headers=dict(headers)) for name in ("image", "nope")
        ]
        names = ("score", "p_value", "anomalous", "status", "map")
        for binary in (True, False):
            given = InferInput("input", list(IMAGES.shape), "UINT8")
            given.set_data_from_numpy(IMAGES, binary_data=binary)
            asked = [RequestedOutput(n, parameters={"binary_data": binary}) for n in names]
            request = InferRequest("image", [given], request_id="42", request_outputs=asked)
            found = await client.infer(base, request, model_name="image", headers=dict(headers))
            told[f"infer_{binary}"] = {o.name: plain(np.asarray(o.as_numpy())) for o in found.outputs}
            told["id"], told["parameters"] = found.id, found.parameters
        told["errors"] = []
        for accept in ("*/*", "application/json"):
            try:
                await client.infer(base, request, model_name="nope", headers={**headers, "Accept": accept})
            except httpx.HTTPStatusError as error:
                told["errors"].append([error.response.status_code, str(error), error.response.json()["error"]])
    return told


if __name__ == "__main__":
    _, name, url, key = sys.argv
    print(json.dumps(triton(url, key) if name == "triton" else asyncio.run(kserve(url, key)), default=str))
