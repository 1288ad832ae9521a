"""The OpenAPI document of all routes, those included that FastAPI does not know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vaegis.service.http.oip import docs as oip_docs
from vaegis.service.http.problems import Problem
from vaegis.service.http.score import docs as score_docs


def complete(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document: what FastAPI derives, the scoring routes, errors and keys."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        document["paths"] = {**score_docs.paths(), **document["paths"], **oip_docs.paths()}
        parts = document.setdefault("components", {})
        parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        parts["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key made by `vaegis keys create`."},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
        }
        document["security"] = [{}, {"bearer": []}, {"key": []}]
        app.openapi_schema = document
    return app.openapi_schema
