"""Every error as `application/problem+json` (RFC 9457): a title, a status, a sentence and the request's id."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from vaegis.models.errors import NotAuthenticated, Refusal, TooLarge
from vaegis.service.errors import TooMany

PROBLEM = "application/problem+json"
TITLES = {400: "Malformed request", 404: "Not found", 405: "Method not allowed", 413: TooLarge.title, 429: "Busy"}


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


def body(title: str, status: int, detail: str, request_id: str) -> dict[str, Any]:
    """A problem's members."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "request_id": request_id}


def problem(
    scope: Scope, title: str, status: int, detail: str, headers: dict[str, str] | None = None, reason: str = ""
) -> Response:
    """The response; `reason` is what the metric of rejected requests calls it."""
    scope["vaegis.rejected"] = reason or title.lower().replace(" ", "_")
    members, kind = body(title, status, detail, scope.get("vaegis.request_id", "")), PROBLEM
    if scope["path"] == "/v2" or scope["path"].startswith("/v2/"):
        members["error"] = detail  # where clients of the Open Inference Protocol look
        kind = _protocol_type(scope)
    return Response(orjson.dumps(members), status, headers, kind)


def _protocol_type(scope: Scope) -> str:
    """The content type of an error of that protocol: plain JSON for who asks for that and no other."""
    accepted = Headers(scope=scope).get("accept", "*/*")
    return "application/json" if "application/json" in accepted and "*/*" not in accepted else PROBLEM


def of_refusal(scope: Scope, refusal: Refusal) -> Response:
    """The response to a refusal."""
    headers = {}
    if isinstance(refusal, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="vaegis"'
    if refusal.status in (429, 503):
        headers["Retry-After"] = str(refusal.retry_after if isinstance(refusal, TooMany) else 1)
    return problem(scope, refusal.title, refusal.status, str(refusal), headers)


def of_framework_error(scope: Scope, error: HTTPException) -> Response:
    """The response to an error of the framework's."""
    method, path = scope["method"], scope["path"][:200]
    detail = {
        404: f"There is nothing at {path}; /docs lists what there is.",
        405: f"{path} does not take {method}; /docs lists what it takes.",
    }.get(error.status_code, str(error.detail).rstrip(".") + ".")
    title = TITLES.get(error.status_code, "Cannot be processed")
    return problem(scope, title, error.status_code, detail, dict(error.headers or {}))


def of_failure(scope: Scope) -> Response:
    """The response to a failure that only we can mend; its trace is in the log."""
    detail = "Something went wrong here, not in the request. The service's log says what, under this request id."
    return problem(scope, "Internal error", 500, detail)


def install(app: FastAPI) -> None:
    """Gives the app its error handlers; what is unexpected is logged by `vaegis.service.http.envelope`."""

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return of_refusal(request.scope, error)

    async def on_framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return of_framework_error(request.scope, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            detail = "The body is not JSON; send an object as /docs shows it."
            return problem(request.scope, "Malformed request", 400, detail)
        where = ".".join(str(p) for p in first["loc"][1:]) or "the body"
        detail = f"{where} in the {first['loc'][0]} cannot be used: {first['msg']}. /docs shows what it takes."
        return problem(request.scope, Refusal.title, 422, detail)

    async def on_failure(request: Request, error: Exception) -> Response:
        return of_failure(request.scope)

    app.add_exception_handler(Exception, on_failure)
    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_framework_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
