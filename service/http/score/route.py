"""`POST /v1/models/{model}/score`: a plain ASGI route, since it is the hot path and its bodies are no pydantic models.

What it takes and answers is described for /docs in `vaegis.service.http.score.docs`.
"""

from __future__ import annotations

import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vaegis.models.calibration import Decision
from vaegis.models.inputs.options import Limits
from vaegis.models.scorer import Verdicts
from vaegis.service.decoding.pool import Decoders
from vaegis.service.http.access import allow
from vaegis.service.http.context import Service
from vaegis.service.http.hot import JSON, Content, HotExchange, reply
from vaegis.service.http.score.answer import render
from vaegis.service.http.score.query import controls_of
from vaegis.service.http.score.reading import Body, Form, declare, files, form_of
from vaegis.service.serving.controls import Controls
from vaegis.service.serving.judging import MapForm, Question, Reader, decision_for
from vaegis.service.serving.served import Served

PATH = "/v1/models/{model}/score"
# float32 as base64; a PNG is smaller
MAPS = MapForm(lambda values: values * 4 * 4 // 3, ", or leave maps out")


class ScorePath:
    """ASGI middleware that answers the scoring route itself, past FastAPI's own layers, and passes the rest on."""

    def __init__(self, app: ASGIApp, service: Service, limits: Limits) -> None:
        self._app, self._judging, self._decoders, self._limits = app, service.judging, service.decoders, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = _address(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if not address:
            await self._app(scope, receive, send)
            return
        scope["vaegis.route"] = PATH
        await reply(scope, receive, send, self._score(address, scope, receive))

    async def _score(self, address: str, scope: Scope, receive: Receive) -> Content:
        arrived = time.monotonic()
        allow(scope, "score")
        controls = controls_of(scope["query_string"])
        exchange = ScoreExchange(controls, self._limits, self._decoders, address, arrived, scope, receive)
        return await self._judging.answer(exchange)


def _address(path: str) -> str:
    """The model that a path of the scoring route names; empty for another path."""
    if not (path.startswith("/v1/models/") and path.endswith("/score")):
        return ""
    address = path[11:-6]
    return "" if "/" in address else address


class ScoreExchange(HotExchange):
    """A scoring request: its query says how to judge, its content type how to read."""

    __slots__ = ("_controls", "_decoders", "_limits")

    def __init__(
        self,
        controls: Controls,
        limits: Limits,
        decoders: Decoders,
        address: str,
        arrived: float,
        scope: Scope,
        receive: Receive,
    ) -> None:
        super().__init__(address, arrived, scope, receive)
        self._controls, self._limits, self._decoders = controls, limits, decoders

    def reader(self, served: Served) -> Reader[Content]:
        """See `vaegis.service.serving.judging.Exchange`."""
        self.scope["vaegis.model"] = served.resolved.name
        decision = decision_for(served, self._controls)
        headers = dict(self.scope["headers"])
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        form = form_of(content_type, headers.get(b"content-encoding", b"").decode("latin-1"))
        deadline = self._controls.deadline(self.arrived)
        read = partial(self._read, served, decision, form, content_type, deadline)
        return Reader(read, deadline, self._decoders.limiter if form is files else None)

    def _read(
        self,
        served: Served,
        decision: Decision,
        form: Form,
        content_type: str,
        deadline: float | None,
        raw: bytes,
    ) -> Question[Content]:
        controls = self._controls
        images = partial(self._decoders.read, deadline=deadline)
        block = declare(served, form(served, Body(content_type, raw, self._limits, images)), controls.condition)
        maps = None if controls.maps == "none" else MAPS
        return Question(controls, decision, block, maps, True, partial(self._write, served))

    def _write(self, served: Served, verdicts: Verdicts) -> Content:
        return render(served, verdicts, self._controls.maps), JSON


def route() -> Route:
    """The route, for what is not the hot path: the answer to another method."""
    return Route(PATH, _never, methods=["POST"])


async def _never(request: Request) -> Response:
    raise AssertionError("ScorePath answers every POST")
