"""How errors look, for the documentation of the routes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error (RFC 9457), sent as `application/problem+json`."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(description="What kind of error it is.", examples=["Not found"])
    status: int = Field(description="The HTTP status.", examples=[404])
    detail: str = Field(
        description="One sentence: the thing, the value, the remedy.",
        examples=["There is no model 'digit'; there is digits, pump."],
    )
    request_id: str = Field(
        description="The same as the X-Request-ID header; finds the request in the log.",
        examples=["5f0c7d1c2b7e4b0fa5a3f6c1d2e3b4a5"],
    )


_MEANING = {
    400: "The body is not what its type says: broken JSON, npy, Arrow or multipart.",
    401: "A key is needed and none, an unknown or a revoked one was given.",
    403: "The key lacks the scope.",
    404: "No model, version or alias of that name.",
    409: "The state does not allow it.",
    413: "More bytes, samples or pixels than the limit.",
    415: "A content type that is not read here.",
    422: "Understood, but it cannot be done as asked: wrong shape or columns, an alpha that the calibration does not "
    "support, no sample that can be judged.",
    429: "As much waits as may, or the key asks for more than its rate. See Retry-After.",
    500: "A fault of the service; the log says more under the request id.",
    503: "Not ready: models are being opened, or the store cannot be reached. See Retry-After.",
    504: "The request's own deadline_ms passed first.",
    507: "The version needs more memory than all open models may take together.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can end so."""
    return {s: {"description": _MEANING[s], "content": {"application/problem+json": _SCHEMA}} for s in statuses}


_SCHEMA = {"schema": {"$ref": "#/components/schemas/Problem"}}
