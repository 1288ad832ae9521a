"""Is it alive, is it ready, what does it count."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse, Response

from vaegis.service.http.context import Service
from vaegis.service.http.problems import problems
from vaegis.service.metrics import CONTENT_TYPE


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["alive"])


class Ready(BaseModel):
    """The service can score."""

    status: str = Field(examples=["ready"])
    device: str = Field(description="Where graphs run: `cuda` or `cpu`.", examples=["cpu"])
    fallback: str | None = Field(
        description="Why graphs run on the CPU though `auto` looked for a GPU.",
        examples=["no NVIDIA GPU is visible here"],
    )
    warnings: list[str] = Field(description="What is wrong without stopping any answer.", examples=[[]])
    models: list[str] = Field(description="Versions that are open.", examples=[["digits@1"]])


class Operation:
    """The routes of one service; what each says of itself is shown on /docs."""

    def __init__(self, service: Service) -> None:
        self._live, self._metrics = service.live, service.metrics

    async def healthz(self) -> Health:
        """Answers 200 as long as the process runs. Needs no key."""
        return Health(status="alive")

    def readyz(self) -> Ready:
        """Answers 200 when the store can be reached and every model's champion is open, else 503. Needs no key."""
        warnings = self._live.check()
        models = [f"{s.resolved.name}@{s.resolved.version}" for s in self._live.served()]
        placed = self._live.placed
        return Ready(
            status="ready",
            device=placed.device,
            fallback=placed.fallback,
            warnings=list(warnings),
            models=sorted(models),
        )

    def metrics(self) -> Response:
        """In Prometheus's text format; docs/operations.md lists them. Needs any key, once there is one."""
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)


def router(service: Service) -> APIRouter:
    """The routes, for the app."""
    does, routes = Operation(service), APIRouter(tags=["Operation"])
    get = partial(routes.add_api_route, methods=["GET"])
    get("/healthz", does.healthz, summary="Is the process alive?")
    get("/readyz", does.readyz, summary="Can it score?", responses=problems(503))
    get(
        "/metrics",
        does.metrics,
        summary="Counters for Prometheus",
        response_class=PlainTextResponse,
        responses=problems(401),
    )
    return routes
