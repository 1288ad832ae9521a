"""`POST /v1/models/{model}/score`: a plain ASGI route, since it is the hot path and its bodies are no pydantic models.

What it takes and answers is described for /docs in `score_docs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import anyio.to_thread
import orjson
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models import inputs
from models.blocks import Block
from models.errors import Malformed, Refusal, UnsupportedType
from models.inputs.options import Limits
from models.scorer import UNJUDGED
from models.sources.options import listed
from models.spec import SeriesSpec
from service import multipart
from service.answer import Maps, render
from service.auth import allow
from service.live import Served
from service.scoring import decision_for, judge
from service.state import Service, service_of

PATH = "/v1/models/{model}/score"
CONTROLS = ("alpha", "threshold", "decide_by", "maps", "group", "condition")
MAPS = ("none", "png", "array")


@dataclass(frozen=True)
class Controls:
    """The query of a request."""

    alpha: float | None
    threshold: float | None
    decide_by: str
    maps: Maps
    group: str | None
    condition: str | None  # of every sample


@dataclass(frozen=True)
class Body:
    """A request's body and what is needed to read it."""

    content_type: str  # the whole header
    raw: bytes
    limits: Limits


def _json(served: Served, body: Body) -> Block:
    try:
        data = orjson.loads(body.raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(
            f'The body is not JSON: {error}. Send {{"data": [...]}} with finite numbers; NaN and Infinity are no JSON.'
        ) from error
    if not isinstance(data, dict):
        raise Malformed('The JSON body is no object; send {"data": [...]}.')
    return inputs.from_json(served.scorer.spec, data, roi=served.scorer.bundle.roi, limits=body.limits)


def _raw(served: Served, body: Body) -> Block:
    return inputs.from_raw(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _npy(served: Served, body: Body) -> Block:
    return inputs.from_npy(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _arrow(served: Served, body: Body) -> Block:
    return inputs.from_arrow(served.scorer.spec, body.raw, limits=body.limits)


def _files(served: Served, body: Body) -> Block:
    files = multipart.files(body.content_type, body.raw, body.limits.samples)
    return inputs.from_files(served.scorer.spec, files, roi=served.scorer.bundle.roi, limits=body.limits)


READERS: dict[str, Callable[[Served, Body], Block]] = {
    "multipart/form-data": _files,
    "application/json": _json,
    "application/octet-stream": _raw,
    "application/x-npy": _npy,
    "application/vnd.apache.arrow.stream": _arrow,
}


async def score(request: Request) -> Response:
    """Receives, decodes, scores and answers; all that is not waiting happens in one of a few threads."""
    service, address = service_of(request), request.path_params["model"]
    request.scope["vaegis.route"] = PATH
    allow(request.scope, "score")
    controls = parse_controls(request.query_params)
    with service.turns.taken():
        key = request.scope["vaegis.request_id"]
        served = service.live.peek(address, key)
        if served is None:
            served = await anyio.to_thread.run_sync(service.live.get, address, key)
        request.scope["vaegis.model"] = served.resolved.name
        decision = decision_for(served, controls.alpha, controls.threshold, controls.decide_by, controls.group)
        content_type = request.headers.get("content-type", "")
        reader = _reader(content_type, request.headers.get("content-encoding", "identity"))
        body = Body(content_type, await request.body(), _limits(service))
        began = time.perf_counter()
        decoding = partial(_decoded, served, reader, body, controls.condition)
        block = await anyio.to_thread.run_sync(decoding, limiter=service.turns.limiter)
        service.metrics.decoding.labels(served.resolved.name).observe(time.perf_counter() - began)
        # The events of a series name the guilty channels, which the maps tell.
        maps = controls.maps != "none" or isinstance(served.scorer.spec, SeriesSpec)
        verdicts = await judge(service, served, block, decision, maps)
        request.scope["vaegis.samples"] = len(verdicts)
        if all(status == UNJUDGED for status in verdicts.status):
            first = next(iter(verdicts.errors.values()), "The request holds none.")
            raise Refusal(f"No sample could be judged, of {len(verdicts)} sent. The first: {first}")
        rendering = partial(render, served, verdicts, controls.maps)
        answer = await anyio.to_thread.run_sync(rendering, limiter=service.turns.limiter)
    return Response(answer, media_type="application/json")


def route() -> Route:
    """The route, for the app."""
    return Route(PATH, score, methods=["POST"])


def _decoded(served: Served, reader: Callable[[Served, Body], Block], body: Body, condition: str | None) -> Block:
    return _declared(served, reader(served, body), condition)


def _declared(served: Served, block: Block, condition: str | None) -> Block:
    """The block with the query's condition for every sample, where the model takes conditions.

    Raises:
        Refusal: none is given, or both the query and the body give one; the model does not know it.
    """
    spec = served.scorer.spec
    if condition is not None:
        if block.conditions is not None:
            raise Refusal('Both the query and the body give a "condition"; leave one of them out.')
        inputs.number_of(spec, condition)
        return inputs.declare(block, spec, [condition] * len(block))
    if spec.conditions and block.conditions is None:
        raise Refusal(
            f"The model was fitted with conditions ({listed(spec.conditions, 20)}). Add ?condition=NAME for all "
            'samples of the request, or in JSON "condition": [...], one per sample.'
        )
    return block


def parse_controls(query: QueryParams) -> Controls:
    """The query's controls.

    Raises:
        Refusal: an unknown control, one given twice, or a value that it cannot have.
    """
    for name, _ in query.multi_items():
        if name not in CONTROLS:
            raise Refusal(f"There is no query parameter {name[:70]!r}; there is {', '.join(CONTROLS)}.")
        if len(query.getlist(name)) > 1:
            raise Refusal(f"The query parameter {name} is given {len(query.getlist(name))} times; give it once.")
    maps = query.get("maps", "none")
    if maps not in MAPS:
        raise Refusal(f"The query parameter maps cannot be {maps[:70]!r}; it is one of {', '.join(MAPS)}.")
    return Controls(
        alpha=_number(query, "alpha"),
        threshold=_number(query, "threshold"),
        decide_by=query.get("decide_by", "score"),
        maps=cast(Maps, maps),
        group=query.get("group"),
        condition=query.get("condition"),
    )


def _number(query: QueryParams, name: str) -> float | None:
    text: Any = query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refusal(f"The query parameter {name} cannot be {text[:70]!r}; give a number such as 0.01.")
    return value


def _reader(content_type: str, encoding: str) -> Callable[[Served, Body], Block]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in READERS:
        given = f"The content type {kind[:70]!r} is not one that" if kind else "The request has no Content-Type that"
        raise UnsupportedType(f"{given} can be scored; send one of {', '.join(READERS)}.")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedType(f"The content encoding {encoding[:70]!r} is not read here; send the body as it is.")
    return READERS[kind]


def _limits(service: Service) -> Limits:
    settings = service.settings
    return Limits(pixels=settings.max_pixels, samples=settings.max_samples, bytes=settings.max_array_bytes)
