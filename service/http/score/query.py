"""The query of a scoring request."""

from __future__ import annotations

import math
from typing import cast

from starlette.datastructures import QueryParams

from vaegis.models.errors import Refusal
from vaegis.service.serving.controls import DEFAULT, MAPS, PRIORITIES, Controls, Maps, choice, finite, time_left

CONTROLS = ("alpha", "threshold", "decide_by", "maps", "group", "condition", "deadline_ms", "priority")


def controls_of(text: bytes) -> Controls:
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
    maps = choice("query parameter maps", query.get("maps", "none"), MAPS)
    priority = choice("query parameter priority", query.get("priority", "interactive"), PRIORITIES)
    milliseconds = _number(query, "deadline_ms")
    seconds = time_left(
        None if milliseconds is None else milliseconds / 1000,
        f"The query parameter deadline_ms is {milliseconds or 0:g}; give the milliseconds that there are.",
    )
    return Controls(
        alpha=_number(query, "alpha"),
        threshold=_number(query, "threshold"),
        decide_by=query.get("decide_by", "score"),
        maps=cast(Maps, maps),
        group=query.get("group"),
        condition=query.get("condition"),
        seconds=seconds,
        bulk=priority == "bulk",
    )


def _number(query: QueryParams, name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    return finite(f"query parameter {name}", value, text, " such as 0.01")
