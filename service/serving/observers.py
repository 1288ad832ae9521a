"""Who is told when verdicts were given: metrics, shadows; a place of its own for whatever else wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vaegis.models.scorer import Verdicts
from vaegis.service.serving.served import Served


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request's verdicts went, in seconds."""

    queue: float  # until its first batch ran
    inference: float  # from then until its verdicts


class Observer(Protocol):
    """Takes note of verdicts. Called on the event loop, before the answer is written: it must not wait."""

    def verdicts_given(self, served: Served, verdicts: Verdicts, timing: Timing) -> None: ...
