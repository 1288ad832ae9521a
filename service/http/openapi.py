"""The framework's app, its OpenAPI document and the page that shows it.

The document tells of all routes, those included that FastAPI does not know; the page loads nothing from elsewhere.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from vaegis.service.http.access import OPEN_FOLDER
from vaegis.service.http.oip import docs as oip_docs
from vaegis.service.http.oip.repository import TAG as OIP_TAG
from vaegis.service.http.problems import Problem
from vaegis.service.http.score import docs as score_docs

_DESCRIPTION = """
Anomaly detection by VAE reconstruction scoring: clean images, sensor series or tables in, calibrated verdicts out.

1. See which models there are: `GET /v1/models`, and what one takes: `GET /v1/models/{model}`.
2. Score samples: `POST /v1/models/{model}/score`.

Every verdict has a **p-value**: the share of clean samples that would look at least as strange. A sample is anomalous
where that is at most **alpha**, the rate of false alarms you ask for. Every error is `application/problem+json` with a
sentence that says what to do. If the service has keys, send one as `Authorization: Bearer KEY`.
"""
_TAGS = [
    {"name": "Scoring", "description": "Samples in, verdicts out."},
    {"name": "Models", "description": "What there is, what it takes, which version answers."},
    {"name": OIP_TAG, "description": "Version 2, with binary tensors and the model repository; see docs/oip.md."},
    {"name": "Operation", "description": "For whoever runs the service."},
]
_DOCS, _DOCUMENT, _ASSETS = "/docs", "/openapi.json", OPEN_FOLDER.rstrip("/")


class Api(FastAPI):
    """FastAPI with a document that tells of the hot routes too."""

    def __init__(self, release: str, lifespan: Any) -> None:
        super().__init__(
            title="Vaegis",
            summary="Is this clean product?",
            description=_DESCRIPTION,
            version=release,
            openapi_url=_DOCUMENT,
            openapi_tags=_TAGS,
            docs_url=None,  # the page is among `documentation`
            redoc_url=None,
            lifespan=lifespan,
            redirect_slashes=False,
            telemetry={"tracing": False, "metrics": False, "logs": False},  # there are our own
        )

    def openapi(self) -> dict[str, Any]:
        """What FastAPI derives, the scoring routes, errors and keys."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title,
                version=self.version,
                summary=self.summary,
                description=self.description,
                routes=self.routes,
                tags=self.openapi_tags,
            )
            document["paths"] = {**score_docs.paths(), **document["paths"], **oip_docs.paths()}
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            parts["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by `vaegis keys create`."},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
            }
            document["security"] = [{}, {"bearer": []}, {"key": []}]
            self.openapi_schema = document
        return self.openapi_schema


def documentation() -> list[BaseRoute]:
    """The page that shows the document, and what it loads."""
    return [
        Mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")])),
        Route(_DOCS, _page),
        Route("/", _to_page),
    ]


async def _page(request: Request) -> HTMLResponse:
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        title="Vaegis - Swagger UI",
        openapi_url=f"{root}{_DOCUMENT}",
        swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},  # schemas show beside their routes
    )


async def _to_page(_: Request) -> Response:
    """Whoever opens the bare address in a browser wants the documentation."""
    return RedirectResponse(_DOCS)
