"""Refusals that only a running service gives, each with the HTTP status that says the same."""

from __future__ import annotations

from vaegis.models.errors import Conflict, Refusal


class Full(Refusal):
    """More waits than may."""

    status = 429
    title = "Busy"


class TooMany(Refusal):
    """A key asks for more than its rate."""

    status = 429
    title = "Too many requests"

    def __init__(self, sentence: str, seconds: int) -> None:
        """`seconds`: until there is room again."""
        super().__init__(sentence)
        self.retry_after = seconds


class Late(Refusal):
    """The request's own deadline passed before its answer was there."""

    status = 504
    title = "Deadline passed"

    def __init__(self) -> None:
        super().__init__(
            "The deadline that the request set passed before it was scored. Set a later deadline_ms, or send fewer "
            "samples."
        )


class Unloaded(Conflict):
    """The model was unloaded; it answers nothing until somebody loads it."""

    title = "Unloaded"


class NotReady(Refusal):
    """The service is starting, or something that it needs is missing."""

    status = 503
    title = "Not ready"


class TooBig(Refusal):
    """A version would not fit in memory even if nothing else were open."""

    status = 507
    title = "Does not fit in memory"
