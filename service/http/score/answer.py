"""Verdicts -> the body of an answer. Columns become lists once; only then rows are made of them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from vaegis.models.events import Event, events
from vaegis.models.outputs.colours import to_png
from vaegis.models.scorer import UNJUDGED, Verdicts
from vaegis.models.spec import SeriesSpec
from vaegis.service.serving.controls import Maps
from vaegis.service.serving.served import Served


def render(served: Served, verdicts: Verdicts, maps: Maps) -> bytes:
    """The JSON of an answer, as docs/http.md describes it."""
    decision, spec = verdicts.decision, served.scorer.spec
    answer: dict[str, Any] = {
        "model": served.resolved.name,
        "version": served.resolved.version,
        "digest": served.resolved.digest,
        "kind": spec.kind,
        "decide_by": decision.decide_by,
        "alpha": decision.alpha,
        "threshold": decision.threshold,
        "extrapolated": decision.extrapolated,
        "results": list(_results(verdicts, maps, served.scorer.calibration.map_range)),
    }
    if isinstance(spec, SeriesSpec):
        timed = verdicts.block.timestamps is not None
        answer["events"] = [_event(e, timed) for e in events(verdicts, spec.columns)]
    return orjson.dumps(answer)


def _results(v: Verdicts, maps: Maps, scale: tuple[float, float]) -> Iterator[dict[str, Any]]:
    block, deciding = v.block, v.decision.decide_by
    index = block.index.tolist()
    score, p_value, p_tail = v.evidence["score"].tolist(), v.p_values[deciding].tolist(), v.p_tail.tolist()
    anomalous = v.anomalous.tolist()
    warmup = None if block.warmup is None else block.warmup.tolist()
    terms = [(t, c.tolist(), v.p_values[t].tolist()) for t, c in v.evidence.items() if t != "score"]
    for i, status in enumerate(v.status):
        row: dict[str, Any] = {"index": index[i]}
        if block.items[i] is not None:
            row["item"] = block.items[i]
        if block.timestamps is not None:
            row["timestamp"] = block.timestamps[i]
        row["status"] = status
        if status == UNJUDGED:
            # JSON has no NaN and would show null: a sample without a verdict has no score member at all.
            row["error"] = {"title": "Cannot be judged", "status": 422, "detail": v.errors[i]}
            yield row
            continue
        row["score"] = score[i]
        row["p_value"] = p_value[i]
        row["p_tail"] = p_tail[i]  # NaN where there is no tail: null
        row["anomalous"] = anomalous[i]
        if warmup is not None:
            row["warmup"] = warmup[i]
        row["evidence"] = {t: {"value": c[i], "p_value": p[i]} for t, c, p in terms}
        if maps != "none" and v.maps is not None:
            values = v.maps[i]
            row["map"] = None if values is None else _map(values, maps, scale)
        yield row


def _map(values: NDArray[np.float32], form: Maps, scale: tuple[float, float]) -> dict[str, Any]:
    if form == "png":
        return {"png": base64.b64encode(to_png(values, scale)).decode()}
    raw = np.ascontiguousarray(values, "<f4").tobytes()
    return {"shape": list(values.shape), "dtype": "float32", "data": base64.b64encode(raw).decode()}


def _event(event: Event, timed: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"start": event.start, "end": event.end}
    if event.item is not None:
        row["item"] = event.item
    if timed:
        row["start_timestamp"], row["end_timestamp"] = event.start_timestamp, event.end_timestamp
    row["peak_score"], row["peak"], row["channels"] = event.peak_score, event.peak, list(event.channels)
    return row
