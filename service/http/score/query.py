"""The query of a scoring request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import QueryParams

from vaegis.models.errors import Refusal
from vaegis.service.http.score.answer import Maps

CONTROLS = ("alpha", "threshold", "decide_by", "maps", "group", "condition", "deadline_ms", "priority")
MAPS = ("none", "png", "array")
PRIORITIES = ("interactive", "bulk")


@dataclass(frozen=True)
class Controls:
    """The query of a request."""

    alpha: float | None = None
    threshold: float | None = None
    decide_by: str = "score"
    maps: Maps = "none"
    group: str | None = None
    condition: str | None = None  # of every sample
    seconds: float | None = None  # from the arrival of the request until its answer is of no use
    bulk: bool = False  # lets interactive requests go first


DEFAULT = Controls()


def parsed(text: bytes) -> Controls:
    """The controls of a query string.

    Raises:
        Refusal: an unknown control, one given twice, or a value that it cannot have.
    """
    if not text:
        return DEFAULT
    query = QueryParams(text)
    for name, _ in query.multi_items():
        if name not in CONTROLS:
            raise Refusal(f"There is no query parameter {name[:70]!r}; there is {', '.join(CONTROLS)}.")
        if len(query.getlist(name)) > 1:
            raise Refusal(f"The query parameter {name} is given {len(query.getlist(name))} times; give it once.")
    maps = query.get("maps", "none")
    if maps not in MAPS:
        raise Refusal(f"The query parameter maps cannot be {maps[:70]!r}; it is one of {', '.join(MAPS)}.")
    priority = query.get("priority", "interactive")
    if priority not in PRIORITIES:
        raise Refusal(
            f"The query parameter priority cannot be {priority[:70]!r}; it is one of {', '.join(PRIORITIES)}."
        )
    milliseconds = _number(query, "deadline_ms")
    if milliseconds is not None and milliseconds <= 0:
        raise Refusal(f"The query parameter deadline_ms is {milliseconds:g}; give the milliseconds that there are.")
    return Controls(
        alpha=_number(query, "alpha"),
        threshold=_number(query, "threshold"),
        decide_by=query.get("decide_by", "score"),
        maps=cast(Maps, maps),
        group=query.get("group"),
        condition=query.get("condition"),
        seconds=None if milliseconds is None else milliseconds / 1000,
        bulk=priority == "bulk",
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
