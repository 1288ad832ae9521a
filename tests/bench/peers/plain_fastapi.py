"""FastAPI and onnxruntime with nothing between them: one graph call a request, on the event loop, raw evidence out."""

from __future__ import annotations

import orjson
from fastapi import FastAPI, Request, Response
from graph import Graph

graph = Graph()
app = FastAPI()


@app.post("/score")
async def score(request: Request) -> Response:
    found = graph.run(orjson.loads(await request.body())["data"])
    answer = {name: values.tolist() for name, values in found.items()}
    return Response(orjson.dumps(answer), media_type="application/json")
