"""`/v2`: the Open Inference Protocol, version 2, with binary tensors and the model repository.

A model is addressed `NAME`, `NAME@VERSION` or `NAME@ALIAS` as everywhere here, or by its name and the protocol's own
`/versions/VERSION`. What the inference route takes and answers is described for /docs in `oip_docs`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as release
from typing import Annotated, Any

import anyio.to_thread
import orjson
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vaegis.models.blocks import Block
from vaegis.models.calibration import Decision
from vaegis.models.errors import Malformed, Refusal, UnsupportedType
from vaegis.models.inputs.options import Limits
from vaegis.service.http.access import Caller, admin, allow
from vaegis.service.http.context import Service, service_of
from vaegis.service.http.hot import INLINE_BYTES, INLINE_SAMPLES, JSON, Headers, attended, received, reply
from vaegis.service.http.oip.messages import HEADER, Asked, parse
from vaegis.service.http.oip.reading import answer, asked_of, block_of, check_maps, controls_of, inputs_of, outputs_of
from vaegis.service.http.problems import problems
from vaegis.service.http.score.query import Controls
from vaegis.service.serving.judging import decision_for, judge
from vaegis.service.serving.live import Served
from vaegis.service.store.servings import Servings
from vaegis.service.tracing import stage

TAG = "Open Inference Protocol"
EXTENSIONS = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
)
PATH = "/v2/models/{name}/infer"
VERSION_PATH = "/v2/models/{name}/versions/{version}/infer"
_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
TYPES = ("application/json", "application/octet-stream")


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    """The body of a route that reads it itself, for /docs: clients of the protocol do not always name its type."""
    return {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": example}}}}


router = APIRouter(prefix="/v2", tags=[TAG])
Shared = Annotated[Service, Depends(service_of)]
Admin = Annotated[Caller, Depends(admin)]


class Server(BaseModel):
    """What the server is."""

    name: str = Field(examples=["vaegis"])
    version: str
    extensions: list[str] = Field(examples=[list(EXTENSIONS)])


class ServerHealth(BaseModel):
    """Whether the server can answer."""

    live: bool
    ready: bool = Field(description="The store can be reached and every model's champion is open.")


class TensorInfo(BaseModel):
    """An input or output of a model."""

    name: str = Field(examples=["input"])
    datatype: str = Field(examples=["UINT8"])
    shape: list[int] = Field(description="-1 is any number; the batch comes first.", examples=[[-1, 28, 28, 1]])


class ModelInfo(BaseModel):
    """What a model takes and answers."""

    name: str = Field(examples=["digits"])
    versions: list[str] = Field(description="Versions that can be asked for.", examples=[["1", "2"]])
    platform: str = Field(examples=["onnx_onnxv1"])
    inputs: list[TensorInfo]
    outputs: list[TensorInfo] = Field(description="`map` is given only where it is asked for.")


class ModelHealth(BaseModel):
    """Whether a model can answer."""

    name: str = Field(examples=["digits"])
    ready: bool


class IndexEntry(BaseModel):
    """A version of a model in the repository."""

    name: str = Field(examples=["digits"])
    version: str = Field(examples=["2"])
    state: str = Field(description="`READY` or `UNAVAILABLE`.", examples=["READY"])
    reason: str = Field(description="Why it is in that state, where there is something to say.", examples=[""])


class RepositoryState(BaseModel):
    """What became of a model."""

    name: str = Field(examples=["digits"])
    state: str = Field(examples=["READY"])


@router.get("/", include_in_schema=False)
@router.get("", summary="What the server is", responses=problems(401))
async def server() -> Server:
    """Name, version and the extensions of the protocol that are spoken here."""
    return Server(name="vaegis", version=release("vaegis"), extensions=list(EXTENSIONS))


@router.get("/health/live", summary="Is the server alive?")
async def live() -> ServerHealth:
    """Answers 200 as long as the process runs. Needs no key."""
    return ServerHealth(live=True, ready=True)


@router.get("/health/ready", summary="Is the server ready?", responses=problems(503))
def ready(service: Shared) -> ServerHealth:
    """Answers 200 when the store can be reached and every model's champion is open, else 503. Needs no key."""
    service.live.check()
    return ServerHealth(live=True, ready=True)


@router.get(
    "/models/{name}/versions/{version}", summary="The same of one version", responses=problems(401, 404, 409, 422)
)
@router.get("/models/{name}", summary="What a model takes and answers", responses=problems(401, 404, 409, 422, 503))
def model(name: str, service: Shared, version: str | None = None) -> ModelInfo:
    """Inputs and outputs of a model; `name` may be `NAME@VERSION` or `NAME@ALIAS`, `version` a number or an alias."""
    served = service.live.get(address(name, version))
    known = service.registry.show(served.resolved.name)
    return ModelInfo(
        name=served.resolved.name,
        versions=[str(v.version) for v in known.versions],
        platform="onnx_onnxv1",
        inputs=[TensorInfo.model_validate(t, from_attributes=True) for t in inputs_of(served.scorer.spec)],
        outputs=[TensorInfo.model_validate(t, from_attributes=True) for t in outputs_of(served)],
    )


@router.get(
    "/models/{name}/versions/{version}/ready", summary="Is a version ready?", responses=problems(401, 404, 409, 422)
)
@router.get("/models/{name}/ready", summary="Is a model ready?", responses=problems(401, 404, 409, 422, 503))
def model_ready(name: str, service: Shared, version: str | None = None) -> ModelHealth:
    """Answers 200 when the model answers requests, opening it if it is not open yet; 409 where it was unloaded."""
    served = service.live.get(address(name, version))
    return ModelHealth(name=served.resolved.name, ready=True)


@router.post(
    "/repository/index",
    summary="What models there are",
    responses=problems(400, 401, 403, 422, 503),
    openapi_extra=_takes({"ready": False}),
)
async def index(request: Request, service: Shared, _: Admin) -> list[IndexEntry]:
    """Every version of every model. The body may be empty, or `{"ready": true}` for those that answer only. Needs the
    scope `admin`."""
    message = await _object(request)
    only = message.get("ready", False)
    if not isinstance(only, bool):
        raise Malformed('"ready" must be true or false.')
    entries = await anyio.to_thread.run_sync(_entries, service)
    return [entry for entry in entries if entry.state == "READY" or not only]


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model",
    responses=problems(400, 401, 403, 404, 409, 422),
    openapi_extra=_takes({}),
)
async def load(name: str, request: Request, service: Shared, caller: Admin) -> RepositoryState:
    """Has a model answer again after it was unloaded, in every process of the store; opens its champion. The body may
    be empty. Needs the scope `admin`."""
    if given := await _parameters(request):
        raise Refusal(
            f"A model is loaded as it was registered, so the parameter {sorted(given)[0][:70]!r} has no place here; "
            "register other bundles with `vaegis models import`."
        )
    await anyio.to_thread.run_sync(service.live.load, name, caller.name)
    return RepositoryState(name=name, state="READY")


@router.post(
    "/repository/models/{name}/unload",
    summary="Unload a model",
    responses=problems(400, 401, 403, 404, 422),
    openapi_extra=_takes({"parameters": {"unload_dependents": False}}),
)
async def unload(name: str, request: Request, service: Shared, caller: Admin) -> RepositoryState:
    """Closes a model in every process of the store; it answers 409 until it is loaded again, and requests under way
    are answered. The body may be empty. Needs the scope `admin`."""
    given = await _parameters(request)
    if given.keys() - {"unload_dependents"}:  # no model depends on another, whatever it says
        raise Refusal(f"There is no parameter {sorted(given)[0][:70]!r} here; there is unload_dependents.")
    await anyio.to_thread.run_sync(service.live.unload, name, caller.name)
    return RepositoryState(name=name, state="UNAVAILABLE")


class InferPath:
    """ASGI middleware that answers the inference routes and passes the rest on."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["vaegis.route"] = PATH if found[2] is None else VERSION_PATH
        await reply(scope, receive, send, infer(self._service, found[1], found[2], scope, receive))


async def infer(
    service: Service, name: str, version: str | None, scope: Scope, receive: Receive
) -> tuple[bytes, Headers]:
    """Receives, reads, scores and answers.

    Raises:
        Refusal, HTTPException: it is not answered, and why.
    """
    arrived = time.monotonic()
    allow(scope, "score")
    asked_for = address(name, version)
    headers = dict(scope["headers"])
    _check_type(headers)
    if scope["query_string"]:
        raise Refusal('The inference route reads no query; put what it says into the "parameters" of the request.')
    json_bytes = headers.get(HEADER)
    place = service.admission.enter()
    try:
        key = scope["vaegis.request_id"]
        served = service.live.peek(asked_for, key)
        if served is None:
            served = await anyio.to_thread.run_sync(service.live.get, asked_for, key)
        scope["vaegis.model"] = served.resolved.name
        body = await received(receive)
        began = time.perf_counter()
        reading = partial(_read, service, served, body, None if json_bytes is None else json_bytes.decode("latin-1"))
        with stage("decode"):
            if len(body) <= INLINE_BYTES:
                work = reading()
            else:
                work = await anyio.to_thread.run_sync(reading, limiter=service.admission.limiter)
        service.metrics.note(service.metrics.of(served).decoding, time.perf_counter() - began)
        controls, block = work.controls, work.block
        scope["vaegis.samples"] = len(block)
        place.hold(len(block), block.parts.nbytes)
        deadline = None if controls.seconds is None else arrived + controls.seconds
        scoring = judge(service, served, block, work.decision, work.maps, deadline=deadline, bulk=controls.bulk)
        verdicts = await attended(receive, scoring)
        if len(verdicts.errors) == len(verdicts):
            first = next(iter(verdicts.errors.values()))
            raise Refusal(f"No sample could be judged, of {len(verdicts)} sent. The first: {first}")
        writing = partial(answer, served, verdicts, work.id, work.asked)
        with stage("render"):
            if not work.maps and len(verdicts) <= INLINE_SAMPLES:
                content, length = writing()
            else:
                content, length = await anyio.to_thread.run_sync(writing)
    finally:
        place.leave()
    if length is None:
        return content, JSON
    return content, [(b"content-type", b"application/octet-stream"), (HEADER, str(length).encode())]


@dataclass(frozen=True)
class _Work:
    """A request, read."""

    id: str | None
    controls: Controls
    decision: Decision
    asked: tuple[Asked, ...]
    block: Block
    maps: bool


def _read(service: Service, served: Served, body: bytes, json_bytes: str | None) -> _Work:
    request, settings = parse(body, json_bytes), service.settings
    limits = Limits(pixels=settings.max_pixels, samples=settings.max_samples, bytes=settings.max_array_bytes)
    controls = controls_of(request.parameters)
    decision = decision_for(served, controls.alpha, controls.threshold, controls.decide_by, controls.group)
    asked = asked_of(served, request)
    block = block_of(served, request, controls.condition, limits)
    maps = check_maps(served.scorer.spec, block, asked, settings.max_answer_bytes)
    return _Work(request.id, controls, decision, asked, block, maps)


def routes() -> list[Route]:
    """The inference routes, for what is not the hot path: the answer to another method."""
    return [Route(path, _never, methods=["POST"]) for path in (PATH, VERSION_PATH)]


async def _never(request: Request) -> Response:
    raise AssertionError("InferPath answers every POST")


def address(name: str, version: str | None) -> str:
    """What a name and a version stand for.

    Raises:
        Refusal: both name a version.
    """
    if version is None:
        return name
    if "@" in name:
        raise Refusal(f"Both {name[:70]!r} and /versions/{version[:70]} name a version; leave one of them out.")
    return f"{name}@{version}"


def _entries(service: Service) -> list[IndexEntry]:
    open_now = {s.resolved.place for s in service.live.served()}
    states = Servings(service.registry).states()
    found = []
    for known in service.registry.list():
        loaded = states[known.name][1].loaded
        for v in known.versions:
            place = f"{known.name}@{v.version}/{v.digest}"
            reason = "" if place in open_now else "opened when it is first asked for"
            found.append(
                IndexEntry(
                    name=known.name,
                    version=str(v.version),
                    state="READY" if loaded else "UNAVAILABLE",
                    reason=reason if loaded else "unloaded",
                )
            )
    return found


async def _object(request: Request) -> dict[str, Any]:
    """The body's JSON object; an empty body is an empty one. Clients of the protocol do not always name its type."""
    raw = await request.body()
    try:
        message = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}. Send an object, or nothing.") from error
    if not isinstance(message, dict):
        raise Malformed("The body is no JSON object; send one, or nothing.")
    return message


async def _parameters(request: Request) -> dict[str, Any]:
    given = (await _object(request)).get("parameters", {})
    if not isinstance(given, dict):
        raise Malformed('"parameters" must be an object.')
    return given


def _check_type(headers: dict[bytes, bytes]) -> None:
    """Clients of the protocol send JSON and binary tensors under either type, or under none."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind and kind not in TYPES:
        raise UnsupportedType(f"The content type {kind[:70]!r} is not read here; send {' or '.join(TYPES)}.")
    encoding = headers.get(b"content-encoding", b"").strip().lower().decode("latin-1")
    if encoding not in ("", "identity"):
        raise UnsupportedType(f"The content encoding {encoding[:70]!r} is not read here; send the body as it is.")
