"""Every error as `application/problem+json` (RFC 9457): a title, a status, a sentence and the request's id."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from vaegis.models.errors import Conflict, NotAuthenticated, Refusal, TooLarge

PROBLEM = "application/problem+json"
TITLES = {400: "Malformed request", 404: "Not found", 405: "Method not allowed", 413: TooLarge.title, 429: "Busy"}


class Full(Refusal):
    """More waits than may."""

    status = 429
    title = "Busy"


class Late(Refusal):
    """The request's own deadline passed before its answer was there."""

    status = 504
    title = "Deadline passed"

    def __init__(self) -> None:
        super().__init__(
            "The deadline that the request set passed before it was scored. Set a later deadline_ms, or send fewer "
            "samples."
        )


class Unloaded(Conflict):
    """The model was unloaded; it answers nothing until somebody loads it."""

    title = "Unloaded"


class NotReady(Refusal):
    """The service is starting, or something that it needs is missing."""

    status = 503
    title = "Not ready"


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


def refused(scope: Scope, refusal: Refusal) -> Response:
    """The response to a refusal."""
    headers = {}
    if isinstance(refusal, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="vaegis"'
    if refusal.status in (429, 503):
        headers["Retry-After"] = str(getattr(refusal, "retry_after", 1))
    return problem(scope, refusal.title, refusal.status, str(refusal), headers)


def answered(scope: Scope, error: HTTPException) -> Response:
    """The response to an error of the framework's."""
    method, path = scope["method"], scope["path"][:200]
    detail = {
        404: f"There is nothing at {path}; /docs lists what there is.",
        405: f"{path} does not take {method}; /docs lists what it takes.",
    }.get(error.status_code, str(error.detail).rstrip(".") + ".")
    title = TITLES.get(error.status_code, "Cannot be processed")
    return problem(scope, title, error.status_code, detail, dict(error.headers or {}))


def unexpected(scope: Scope) -> Response:
    """The response to a failure that only we can mend; its trace is in the log."""
    detail = "Something went wrong here, not in the request. The service's log says what, under this request id."
    return problem(scope, "Internal error", 500, detail)


def install(app: FastAPI) -> None:
    """Gives the app its error handlers; what is unexpected is logged by `vaegis.service.http.envelope`."""

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refused(request.scope, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answered(request.scope, error)

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
        return unexpected(request.scope)

    app.add_exception_handler(Exception, on_failure)
    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
