"""`POST /v1/models/{model}/score`: a plain ASGI route, since it is the hot path and its bodies are no pydantic models.

What it takes and answers is described for /docs in `score_docs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vaegis.models import inputs
from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal, UnsupportedType
from vaegis.models.inputs.options import Limits
from vaegis.models.sources.options import listed
from vaegis.models.spec import SeriesSpec
from vaegis.service.errors import Late
from vaegis.service.http import multipart
from vaegis.service.http.access import allow
from vaegis.service.http.context import Service
from vaegis.service.http.hot import INLINE_BYTES, INLINE_SAMPLES, JSON, Headers, attended, received, reply
from vaegis.service.http.score.answer import check_maps, render
from vaegis.service.http.score.query import parsed
from vaegis.service.serving.judging import decision_for, judge
from vaegis.service.serving.live import Served
from vaegis.service.tracing import stage

PATH = "/v1/models/{model}/score"


@dataclass(frozen=True)
class Body:
    """A request's body and what is needed to read it."""

    content_type: str  # the whole header
    raw: bytes
    limits: Limits
    images: inputs.Reader  # what decodes them


def _json(served: Served, body: Body) -> Block:
    try:
        data = orjson.loads(body.raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(
            f'The body is not JSON: {error}. Send {{"data": [...]}} with finite numbers; NaN and Infinity are no JSON.'
        ) from error
    if not isinstance(data, dict):
        raise Malformed('The JSON body is no object; send {"data": [...]}.')
    truths = b"e" in body.raw  # as both words do; one letter is looked for many times faster
    return inputs.from_json(served.scorer.spec, data, roi=served.scorer.bundle.roi, limits=body.limits, truths=truths)


def _raw(served: Served, body: Body) -> Block:
    return inputs.from_raw(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _npy(served: Served, body: Body) -> Block:
    return inputs.from_npy(served.scorer.spec, body.raw, roi=served.scorer.bundle.roi, limits=body.limits)


def _arrow(served: Served, body: Body) -> Block:
    return inputs.from_arrow(served.scorer.spec, body.raw, limits=body.limits)


def _files(served: Served, body: Body) -> Block:
    files = multipart.files(body.content_type, body.raw, body.limits.samples)
    spec, roi = served.scorer.spec, served.scorer.bundle.roi
    return inputs.from_files(spec, files, roi=roi, limits=body.limits, reader=body.images)


READERS: dict[str, Callable[[Served, Body], Block]] = {
    "multipart/form-data": _files,
    "application/json": _json,
    "application/octet-stream": _raw,
    "application/x-npy": _npy,
    "application/vnd.apache.arrow.stream": _arrow,
}


class ScorePath:
    """ASGI middleware that answers the scoring route itself, past FastAPI's own layers, and passes the rest on."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = _address(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if not address:
            await self._app(scope, receive, send)
            return
        scope["vaegis.route"] = PATH
        await reply(scope, receive, send, score(self._service, address, scope, receive))


def _address(path: str) -> str:
    """The model that a path of the scoring route names; empty for another path."""
    if not (path.startswith("/v1/models/") and path.endswith("/score")):
        return ""
    address = path[11:-6]
    return "" if "/" in address else address


async def score(service: Service, address: str, scope: Scope, receive: Receive) -> tuple[bytes, Headers]:
    """Receives, decodes, scores and answers.

    Raises:
        Refusal, HTTPException: it is not answered, and why.
    """
    arrived = time.monotonic()
    allow(scope, "score")
    controls = parsed(scope["query_string"])
    deadline = None if controls.seconds is None else arrived + controls.seconds
    headers = dict(scope["headers"])
    place = service.admission.enter()
    try:
        served = service.live.peek(address, scope["vaegis.request_id"])
        if served is None:
            served = await anyio.to_thread.run_sync(service.live.get, address, scope["vaegis.request_id"])
        scope["vaegis.model"] = served.resolved.name
        decision = decision_for(served, controls.alpha, controls.threshold, controls.decide_by, controls.group)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        reader = _reader(content_type, headers.get(b"content-encoding", b"").decode("latin-1"))
        raw = await received(receive)
        began = time.perf_counter()
        images = partial(service.decoders.read, deadline=deadline)
        body = Body(content_type, raw, _limits(service), images)
        decoding = partial(_decoded, served, reader, body, controls.condition)
        with stage("decode"):
            if len(raw) <= INLINE_BYTES and reader is not _files:
                block = decoding()
            else:
                owner = service.decoders if reader is _files else service.admission
                try:
                    async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                        block = await anyio.to_thread.run_sync(decoding, limiter=owner.limiter)
                except TimeoutError as error:
                    raise Late from error
        service.metrics.note(service.metrics.of(served).decoding, time.perf_counter() - began)
        scope["vaegis.samples"] = len(block)
        place.hold(len(block), block.parts.nbytes)
        if controls.maps != "none":
            check_maps(served.scorer.spec, block, service.settings.max_answer_bytes)
        # The events of a series name the guilty channels, which the maps tell.
        maps = controls.maps != "none" or isinstance(served.scorer.spec, SeriesSpec)
        scoring = judge(service, served, block, decision, maps, deadline=deadline, bulk=controls.bulk)
        verdicts = await attended(receive, scoring)
        if len(verdicts.errors) == len(verdicts):
            first = next(iter(verdicts.errors.values()), "The request holds none.")
            raise Refusal(f"No sample could be judged, of {len(verdicts)} sent. The first: {first}")
        with stage("render"):
            if controls.maps == "none" and len(verdicts) <= INLINE_SAMPLES:
                return render(served, verdicts, controls.maps), JSON
            return await anyio.to_thread.run_sync(render, served, verdicts, controls.maps), JSON
    finally:
        place.leave()


def route() -> Route:
    """The route, for what is not the hot path: the answer to another method."""
    return Route(PATH, _never, methods=["POST"])


async def _never(request: Request) -> Response:
    raise AssertionError("ScorePath answers every POST")


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
