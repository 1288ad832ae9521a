"""What /docs says about the scoring route, which FastAPI cannot derive: its bodies are no pydantic models."""

from __future__ import annotations

from typing import Any

from vaegis.service.http.problems import problems
from vaegis.service.http.score.route import PATH

_TEXT = """Scores samples and says of each how strange it is, where, and whether that is anomalous.

`model` is `NAME` for the model's champion, `NAME@VERSION` or `NAME@ALIAS`.

| Content-Type | body |
|---|---|
| `multipart/form-data` | one or more files in fields `file`: images (PNG, JPEG, BMP, TIFF, WebP), csv, parquet |
| `application/json` | `{"data": ...}`: images as integers (N,H,W) or (N,H,W,C), one series (T,C), vectors (N,D) |
| `application/octet-stream` | the raw array, little-endian, in the model's type and layout; N follows from its length |
| `application/x-npy` | a NumPy `.npy` file |
| `application/vnd.apache.arrow.stream` | an Arrow IPC stream with the model's columns |

A sample that cannot be judged, such as a broken image among good ones, is answered in place with status `unjudged` and
its reason. If any sample was scored the answer is 200, else 422.

    curl -F file=@part.png 'http://127.0.0.1:8000/v1/models/digits/score?alpha=0.01'
"""

_NUMBER = {"type": "number"}
_NULLABLE = {"type": ["number", "null"]}
_EXAMPLE = {
    "model": "digits",
    "version": 2,
    "digest": "3f1c9b5f2f0a4d1e8a57c2f6b9d0e4a13f1c9b5f2f0a4d1e8a57c2f6b9d0e4a1",
    "kind": "image",
    "decide_by": "score",
    "alpha": 0.01,
    "threshold": 3.71,
    "extrapolated": False,
    "results": [
        {
            "index": 0,
            "item": "part.png",
            "status": "anomalous",
            "score": 9.42,
            "p_value": 0.0049,
            "p_tail": 0.0008,
            "anomalous": True,
            "evidence": {"reconstruction_error": {"value": 0.031, "p_value": 0.0049}},
        },
        {
            "index": 1,
            "item": "torn.png",
            "status": "unjudged",
            "error": {"title": "Cannot be judged", "status": 422, "detail": "torn.png: not a readable image."},
        },
    ],
}
_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "`NAME`, `NAME@VERSION` or `NAME@ALIAS`.",
        "schema": {"type": "string"},
        "example": "digits",
    },
    {
        "name": "alpha",
        "in": "query",
        "description": "False-alarm rate to decide at, between 0 and 1; the model's own if left out.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    },
    {
        "name": "threshold",
        "in": "query",
        "description": "Decide at this value of the deciding term instead of at a rate. Not together with alpha.",
        "schema": _NUMBER,
    },
    {
        "name": "decide_by",
        "in": "query",
        "description": "`score`, or the name of an evidence term.",
        "schema": {"type": "string", "default": "score"},
    },
    {
        "name": "maps",
        "in": "query",
        "description": "Where each sample is strange: as a picture (`png`) or as numbers (`array`), in base64.",
        "schema": {"type": "string", "enum": ["none", "png", "array"], "default": "none"},
    },
    {
        "name": "group",
        "in": "query",
        "description": "Calibration group to decide within, for models that were fitted with groups.",
        "schema": {"type": "string"},
    },
    {
        "name": "condition",
        "in": "query",
        "description": "What every sample was made as, for models that were fitted with conditions; JSON may say it of "
        "each sample instead.",
        "schema": {"type": "string"},
    },
    {
        "name": "deadline_ms",
        "in": "query",
        "description": "Milliseconds from the arrival of the request after which its answer is of no use: what has not "
        "been scored by then is dropped and the answer is 504.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
    {
        "name": "priority",
        "in": "query",
        "description": "`bulk` takes what `interactive` requests leave.",
        "schema": {"type": "string", "enum": ["interactive", "bulk"], "default": "interactive"},
    },
]
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        }
    },
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["data"],
            "properties": {
                "data": {"type": "array", "items": {}, "description": "Nested finite numbers."},
                "columns": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Names of the last axis; columns then go by name, not by place.",
                },
                "timestamps": {"type": "array", "items": {}, "description": "One per row of a series; given back."},
                "items": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "A name per sample.",
                },
                "condition": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "What each sample (row of a series) was made as, for models fitted with conditions.",
                },
            },
        },
        "examples": {
            "vectors": {"summary": "Two vectors", "value": {"data": [[0.1, 2.0], [0.3, 1.8]], "columns": ["a", "b"]}},
            "image": {"summary": "A 2x2 grey image", "value": {"data": [[[0, 255], [17, 3]]]}},
            "series": {
                "summary": "Three rows of a series",
                "value": {
                    "data": [[50.1, 6.2], [50.4, 6.3], [50.2, 6.1]],
                    "columns": ["speed", "flow"],
                    "timestamps": ["2026-01-01T00:00:00", "2026-01-01T00:00:01", "2026-01-01T00:00:02"],
                },
            },
        },
    },
    "application/octet-stream": _BINARY,
    "application/x-npy": _BINARY,
    "application/vnd.apache.arrow.stream": _BINARY,
}
_EVIDENCE = {"type": "object", "properties": {"value": _NUMBER, "p_value": _NUMBER}}
_MAP = {
    "type": "object",
    "description": '`{"png": base64}` or `{"shape", "dtype", "data": base64}`, little-endian; with `maps` only.',
}
_RESULT = {
    "type": "object",
    "required": ["index", "status"],
    "properties": {
        "index": {"type": "integer", "description": "Place in the request, or row within the item."},
        "item": {"type": "string", "description": "File or name that was sent."},
        "timestamp": {"description": "As sent."},
        "status": {"type": "string", "enum": ["ok", "anomalous", "unjudged"]},
        "score": {**_NUMBER, "description": "Higher is stranger; in the model's own unit."},
        "p_value": {**_NUMBER, "description": "Conformal p-value of the deciding term: small is strange."},
        "p_tail": {**_NULLABLE, "description": "The same from a fitted tail; null where there is none."},
        "anomalous": {"type": "boolean", "description": "The deciding term exceeds the threshold."},
        "warmup": {"type": "boolean", "description": "Series: judged by the first full window."},
        "evidence": {"type": "object", "additionalProperties": _EVIDENCE},
        "map": _MAP,
        "error": {"type": "object", "description": "Why it is unjudged; such a sample has no score."},
    },
}
_EVENT = {
    "type": "object",
    "required": ["start", "end"],
    "properties": {
        "start": {"type": "integer", "description": "First anomalous row."},
        "end": {"type": "integer", "description": "Last anomalous row."},
        "item": {"type": "string"},
        "start_timestamp": {},
        "end_timestamp": {},
        "peak_score": _NUMBER,
        "peak": {"type": "integer", "description": "Row of the largest score."},
        "channels": {"type": "array", "items": {"type": "string"}, "description": "Guilty channels, guiltiest first."},
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model", "version", "digest", "kind", "decide_by", "threshold", "extrapolated", "results"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "digest": {"type": "string"},
        "kind": {"type": "string", "enum": ["image", "series", "vector"]},
        "decide_by": {"type": "string"},
        "alpha": {**_NULLABLE, "description": "The rate decided at; null where a threshold was given."},
        "threshold": _NUMBER,
        "extrapolated": {"type": "boolean", "description": "The threshold lies beyond the clean samples."},
        "results": {"type": "array", "items": _RESULT},
        "events": {"type": "array", "items": _EVENT, "description": "Series only."},
    },
}


def paths() -> dict[str, Any]:
    """The OpenAPI path of the route."""
    return {PATH: {"post": _operation()}}


def _operation() -> dict[str, Any]:
    success = {"description": "At least one sample was judged.", "content": {"application/json": {}}}
    success["content"] = {"application/json": {"schema": _ANSWER, "example": _EXAMPLE}}
    failures = problems(400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504)
    return {
        "tags": ["Scoring"],
        "summary": "Score samples",
        "description": _TEXT,
        "operationId": "score",
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": _BODY},
        "responses": {"200": success, **{str(status): what for status, what in failures.items()}},
    }
