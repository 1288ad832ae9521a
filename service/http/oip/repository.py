"""What the Open Inference Protocol asks beside inference: the server, its health, its models, their repository.

A model is addressed `NAME`, `NAME@VERSION` or `NAME@ALIAS` as everywhere here, or by its name and the protocol's own
`/versions/VERSION`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as release
from typing import Annotated, Any

import anyio.to_thread
import orjson
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.requests import Request

from vaegis.models.errors import Malformed, Refusal
from vaegis.service.http.access import Caller, admin
from vaegis.service.http.context import Service
from vaegis.service.http.oip.described import inputs_of, outputs_of
from vaegis.service.http.problems import problems
from vaegis.service.store.registry import Model
from vaegis.service.store.servings import Servings, State

TAG = "Open Inference Protocol"
EXTENSIONS = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
)

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


class Repository:
    """The routes of one service; what each says of itself is shown on /docs."""

    def __init__(self, service: Service) -> None:
        self._registry, self._live = service.registry, service.live

    async def server(self) -> Server:
        """Name, version and the extensions of the protocol that are spoken here."""
        return Server(name="vaegis", version=release("vaegis"), extensions=list(EXTENSIONS))

    async def live(self) -> ServerHealth:
        """Answers 200 as long as the process runs. Needs no key."""
        return ServerHealth(live=True, ready=True)

    def ready(self) -> ServerHealth:
        """Answers 200 when the store can be reached and every model's champion is open, else 503. Needs no key."""
        self._live.check()
        return ServerHealth(live=True, ready=True)

    def model(self, name: str, version: str | None = None) -> ModelInfo:
        """Inputs and outputs of a model; `name` may be `NAME@VERSION` or `NAME@ALIAS`, `version` a number or an
        alias."""
        served = self._live.get(address(name, version))
        model = self._registry.show(served.resolved.name)
        return ModelInfo(
            name=served.resolved.name,
            versions=[str(v.version) for v in model.versions],
            platform="onnx_onnxv1",
            inputs=[TensorInfo.model_validate(t, from_attributes=True) for t in inputs_of(served.scorer.spec)],
            outputs=[TensorInfo.model_validate(t, from_attributes=True) for t in outputs_of(served)],
        )

    def model_ready(self, name: str, version: str | None = None) -> ModelHealth:
        """Answers 200 when the model answers requests, opening it if it is not open yet; 409 where it was unloaded."""
        served = self._live.get(address(name, version))
        return ModelHealth(name=served.resolved.name, ready=True)

    async def index(self, request: Request, _: Admin) -> list[IndexEntry]:
        """Every version of every model. The body may be empty, or `{"ready": true}` for those that answer only. Needs
        the scope `admin`."""
        message = await _object(request)
        only = message.get("ready", False)
        if not isinstance(only, bool):
            raise Malformed('"ready" must be true or false.')
        places = {s.resolved.place for s in self._live.served()}
        listing = await anyio.to_thread.run_sync(entries, self._registry.list, Servings(self._registry).states, places)
        return [entry for entry in listing if entry.state == "READY" or not only]

    async def load(self, name: str, request: Request, caller: Admin) -> RepositoryState:
        """Has a model answer again after it was unloaded, in every process of the store; opens its champion. The body
        may be empty. Needs the scope `admin`."""
        if given := await _parameters(request):
            raise Refusal(
                f"A model is loaded as it was registered, so the parameter {sorted(given)[0][:70]!r} has no place "
                "here; register other bundles with `vaegis models import`."
            )
        await anyio.to_thread.run_sync(self._live.load, name, caller.name)
        return RepositoryState(name=name, state="READY")

    async def unload(self, name: str, request: Request, caller: Admin) -> RepositoryState:
        """Closes a model in every process of the store; it answers 409 until it is loaded again, and requests under way
        are answered. The body may be empty. Needs the scope `admin`."""
        given = await _parameters(request)
        if given.keys() - {"unload_dependents"}:  # no model depends on another, whatever it says
            raise Refusal(f"There is no parameter {sorted(given)[0][:70]!r} here; there is unload_dependents.")
        await anyio.to_thread.run_sync(self._live.unload, name, caller.name)
        return RepositoryState(name=name, state="UNAVAILABLE")


def router(service: Service) -> APIRouter:
    """The routes, for the app."""
    does, routes = Repository(service), APIRouter(prefix="/v2", tags=[TAG])
    get, post = partial(routes.add_api_route, methods=["GET"]), partial(routes.add_api_route, methods=["POST"])
    get("", does.server, summary="What the server is", responses=problems(401))
    get("/", does.server, include_in_schema=False)
    get("/health/live", does.live, summary="Is the server alive?")
    get("/health/ready", does.ready, summary="Is the server ready?", responses=problems(503))
    of_model, of_version = problems(401, 404, 409, 422, 503), problems(401, 404, 409, 422)
    get("/models/{name}", does.model, summary="What a model takes and answers", responses=of_model)
    get("/models/{name}/versions/{version}", does.model, summary="The same of one version", responses=of_version)
    get("/models/{name}/ready", does.model_ready, summary="Is a model ready?", responses=of_model)
    get(
        "/models/{name}/versions/{version}/ready", does.model_ready, summary="Is a version ready?", responses=of_version
    )
    post(
        "/repository/index",
        does.index,
        summary="What models there are",
        responses=problems(400, 401, 403, 422, 503),
        openapi_extra=_takes({"ready": False}),
    )
    post(
        "/repository/models/{name}/load",
        does.load,
        summary="Load a model",
        responses=problems(400, 401, 403, 404, 409, 422),
        openapi_extra=_takes({}),
    )
    post(
        "/repository/models/{name}/unload",
        does.unload,
        summary="Unload a model",
        responses=problems(400, 401, 403, 404, 422),
        openapi_extra=_takes({"parameters": {"unload_dependents": False}}),
    )
    return routes


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


def entries(
    models: Callable[[], tuple[Model, ...]], states: Callable[[], dict[str, State]], places: set[str]
) -> list[IndexEntry]:
    """An entry for every version.

    Args:
        models: reads the models there are. It is asked first: of a model registered meanwhile, `states` knows more
            than is listed, and never less.
        states: reads how every model is served.
        places: of the versions that are open.
    """
    all_models = models()
    served = states()
    listing = []
    for model in all_models:
        loaded = served[model.name][1].loaded
        for v in model.versions:
            reason = "" if f"{model.name}@{v.version}/{v.digest}" in places else "opened when it is first asked for"
            listing.append(
                IndexEntry(
                    name=model.name,
                    version=str(v.version),
                    state="READY" if loaded else "UNAVAILABLE",
                    reason=reason if loaded else "unloaded",
                )
            )
    return listing


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    """The body of a route that reads it itself, for /docs: clients of the protocol do not always name its type."""
    return {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": example}}}}


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
