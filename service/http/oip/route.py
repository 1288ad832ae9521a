"""`POST /v2/models/{name}/infer`: the hot path of the Open Inference Protocol, version 2, with binary tensors.

What it takes and answers is described for /docs in `vaegis.service.http.oip.docs`.
"""

from __future__ import annotations

import re
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vaegis.models.errors import Refusal, UnsupportedType
from vaegis.models.inputs.options import Limits
from vaegis.models.scorer import Verdicts
from vaegis.service.http.access import allow
from vaegis.service.http.context import Service
from vaegis.service.http.hot import JSON, Content, HotExchange, reply
from vaegis.service.http.oip.answer import answer, map_form
from vaegis.service.http.oip.messages import HEADER, OutputChoice, parse
from vaegis.service.http.oip.reading import block_of, choices_of, controls_of
from vaegis.service.http.oip.repository import address
from vaegis.service.serving.judging import Question, Reader, decision_for
from vaegis.service.serving.served import Served

PATH = "/v2/models/{name}/infer"
VERSION_PATH = "/v2/models/{name}/versions/{version}/infer"
_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
TYPES = ("application/json", "application/octet-stream")


class InferPath:
    """ASGI middleware that answers the inference routes and passes the rest on."""

    def __init__(self, app: ASGIApp, service: Service, limits: Limits) -> None:
        self._app, self._judging, self._limits = app, service.judging, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        scope["vaegis.route"] = PATH if match[2] is None else VERSION_PATH
        await reply(scope, receive, send, self._infer(match[1], match[2], scope, receive))

    async def _infer(self, name: str, version: str | None, scope: Scope, receive: Receive) -> Content:
        arrived = time.monotonic()
        allow(scope, "score")
        model = address(name, version)
        headers = dict(scope["headers"])
        _check_type(headers)
        if scope["query_string"]:
            raise Refusal('The inference route reads no query; put what it says into the "parameters" of the request.')
        length = headers.get(HEADER)
        json_bytes = None if length is None else length.decode("latin-1")
        return await self._judging.answer(InferExchange(json_bytes, self._limits, model, arrived, scope, receive))


class InferExchange(HotExchange):
    """A request for inference: its body says everything."""

    __slots__ = ("_json_bytes", "_limits")

    def __init__(
        self, json_bytes: str | None, limits: Limits, address: str, arrived: float, scope: Scope, receive: Receive
    ) -> None:
        """`json_bytes`: the header `Inference-Header-Content-Length`, if there is one."""
        super().__init__(address, arrived, scope, receive)
        self._json_bytes, self._limits = json_bytes, limits

    def reader(self, served: Served) -> Reader[Content]:
        """See `vaegis.service.serving.judging.Exchange`."""
        self.scope["vaegis.model"] = served.resolved.name
        return Reader(partial(self._read, served))

    def _read(self, served: Served, body: bytes) -> Question[Content]:
        request = parse(body, self._json_bytes)
        controls = controls_of(request.parameters)
        decision = decision_for(served, controls)
        outputs = choices_of(served, request)
        block = block_of(served, request, controls.condition, self._limits)
        write = partial(_write, served, request.id, outputs)
        return Question(controls, decision, block, map_form(outputs), False, write)


def _write(served: Served, id: str | None, outputs: tuple[OutputChoice, ...], verdicts: Verdicts) -> Content:
    content, length = answer(served, verdicts, id, outputs)
    if length is None:
        return content, JSON
    return content, [(b"content-type", b"application/octet-stream"), (HEADER, str(length).encode())]


def routes() -> list[Route]:
    """The inference routes, for what is not the hot path: the answer to another method."""
    return [Route(path, _never, methods=["POST"]) for path in (PATH, VERSION_PATH)]


async def _never(request: Request) -> Response:
    raise AssertionError("InferPath answers every POST")


def _check_type(headers: dict[bytes, bytes]) -> None:
    """Clients of the protocol send JSON and binary tensors under either type, or under none."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind and kind not in TYPES:
        raise UnsupportedType(f"The content type {kind[:70]!r} is not read here; send {' or '.join(TYPES)}.")
    encoding = headers.get(b"content-encoding", b"").strip().lower().decode("latin-1")
    if encoding not in ("", "identity"):
        raise UnsupportedType(f"The content encoding {encoding[:70]!r} is not read here; send the body as it is.")
