"""What /docs says about the inference routes of the Open Inference Protocol, which FastAPI cannot derive."""

from __future__ import annotations

from typing import Any

from vaegis.service.http.oip.reading import PARAMETERS
from vaegis.service.http.oip.repository import TAG
from vaegis.service.http.oip.route import PATH, VERSION_PATH
from vaegis.service.http.oip.tensors import BYTES, DATATYPES
from vaegis.service.http.problems import problems

_TEXT = """Scores the tensor `input` and answers with one output per evidence term, and the verdicts.

`name` is `NAME` for the model's champion, `NAME@VERSION` or `NAME@ALIAS`; `GET /v2/models/{name}` says what it takes.

As JSON, the data are nested or flat. As binary tensors, the body is the JSON, whose length in bytes the header
`Inference-Header-Content-Length` says, then the data of each input that has the parameter `binary_data_size`. Where
that header is 0, the whole body is the data of `input`, in the size that the model takes.

All outputs but `map` are given unless `outputs` names some. A sample that cannot be judged has the status `unjudged`,
NaN evidence (null in JSON), and counts as `anomalous`: never read it as good.
"""
_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_DATATYPE = {"type": "string", "enum": [*DATATYPES, BYTES]}
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_DATA = {"type": "array", "items": {}, "description": "Nested or flat."}
_NAME = {"type": "string"}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Given back."},
        "parameters": {
            **_PARAMETERS,
            "description": f"`binary_data_output`: whether outputs come as binary tensors; {', '.join(PARAMETERS)}.",
        },
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": _NAME,
                    "datatype": _DATATYPE,
                    "shape": _SHAPE,
                    "data": _DATA,
                    "parameters": {**_PARAMETERS, "description": "`binary_data_size`, instead of `data`."},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": _NAME, "parameters": {**_PARAMETERS, "description": "`binary_data`"}},
            },
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _NAME,
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {
            **_PARAMETERS,
            "description": "`digest`, `decide_by`, `alpha` (where one decides), `threshold`, `extrapolated`; where "
            "samples could not be judged, their number (`unjudged`) and the first `reason`.",
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": _NAME,
                    "datatype": _DATATYPE,
                    "shape": _SHAPE,
                    "data": _DATA,
                    "parameters": _PARAMETERS,
                },
            },
        },
    },
}
_EXAMPLE = {
    "id": "42",
    "parameters": {"alpha": 0.01},
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 2.0, 0.3, 1.8]}],
    "outputs": [{"name": "score"}, {"name": "anomalous"}, {"name": "status"}],
}
_ANSWERED = {
    "model_name": "pump",
    "model_version": "2",
    "id": "42",
    "parameters": {
        "digest": "3f1c9b5f2f0a4d1e8a57c2f6b9d0e4a13f1c9b5f2f0a4d1e8a57c2f6b9d0e4a1",
        "decide_by": "score",
        "threshold": 3.71,
        "extrapolated": False,
        "alpha": 0.01,
    },
    "outputs": [
        {"name": "score", "datatype": "FP32", "shape": [2], "data": [1.5, 9.25]},
        {"name": "anomalous", "datatype": "BOOL", "shape": [2], "data": [False, True]},
        {"name": "status", "datatype": BYTES, "shape": [2], "data": ["ok", "anomalous"]},
    ],
}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def paths() -> dict[str, Any]:
    """The OpenAPI paths of the inference routes."""
    name = _path_parameter("name", "`NAME`, `NAME@VERSION` or `NAME@ALIAS`.", "digits")
    version = _path_parameter("version", "A version's number, or an alias.", "2")
    return {
        PATH: {"post": _operation("infer", "Score tensors", [name])},
        VERSION_PATH: {"post": _operation("infer_version", "Score tensors by a version", [name, version])},
    }


def _operation(ident: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    failures = problems(400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504)
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of JSON before the binary tensors.",
        "schema": {"type": "integer"},
    }
    success = {
        "description": "At least one sample was judged.",
        "headers": {length["name"]: {"description": length["description"], "schema": length["schema"]}},
        "content": {
            "application/json": {"schema": _ANSWER, "example": _ANSWERED},
            "application/octet-stream": _BINARY,
        },
    }
    body = {"application/json": {"schema": _REQUEST, "example": _EXAMPLE}, "application/octet-stream": _BINARY}
    return {
        "tags": [TAG],
        "summary": summary,
        "description": _TEXT,
        "operationId": ident,
        "parameters": [*parameters, length],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": success, **{str(status): what for status, what in failures.items()}},
    }


def _path_parameter(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }
