"""Is it alive, is it ready, what does it count."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse, Response

from vaegis.service.http.context import Service, service_of
from vaegis.service.http.problems import problems
from vaegis.service.metrics import CONTENT_TYPE

router = APIRouter(tags=["Operation"])


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


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Answers 200 as long as the process runs. Needs no key."""
    return Health(status="alive")


@router.get("/readyz", summary="Can it score?", responses=problems(503))
def readyz(service: Annotated[Service, Depends(service_of)]) -> Ready:
    """Answers 200 when the store can be reached and every model's champion is open, else 503. Needs no key."""
    warnings = service.live.check()
    models = [f"{s.resolved.name}@{s.resolved.version}" for s in service.live.served()]
    placed = service.live.placed
    return Ready(
        status="ready",
        device=placed.device,
        fallback=placed.fallback,
        warnings=list(warnings),
        models=sorted(models),
    )


@router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse, responses=problems(401))
def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """In Prometheus's text format; docs/operations.md lists them. Needs any key, once there is one."""
    return Response(service.metrics.page(), media_type=CONTENT_TYPE)
