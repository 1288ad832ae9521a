"""What a request may ask beside its samples, the same on every wire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vaegis.models.errors import Refusal

Maps = Literal["none", "png", "array"]
MAPS: tuple[Maps, ...] = get_args(Maps)
PRIORITIES = ("interactive", "bulk")


@dataclass(frozen=True)
class Controls:
    """How a request wants its samples judged."""

    alpha: float | None = None
    threshold: float | None = None
    decide_by: str = "score"
    maps: Maps = "none"
    group: str | None = None
    condition: str | None = None  # of every sample
    seconds: float | None = None  # from the arrival of the request until its answer is of no use
    bulk: bool = False  # lets interactive requests go first

    def deadline(self, arrived: float) -> float | None:
        """`time.monotonic()` after which nobody waits for the answer any more, of a request that arrived then."""
        return None if self.seconds is None else arrived + self.seconds


DEFAULT = Controls()


def finite(what: str, value: float | None, given: object, example: str = "") -> float:
    """A number that can be calculated with.

    Args:
        what: the control, as the wire calls it, such as "query parameter alpha".
        value: the number; None where what was given is none.
        given: what was given, for the sentence.
        example: what the sentence says after "give a number".

    Raises:
        Refusal: it is no finite number.
    """
    if value is None or not math.isfinite(value):
        raise Refusal(f"The {what} cannot be {str(given)[:70]!r}; give a number{example}.")
    return value


def choice(what: str, given: object, choices: tuple[str, ...], more: str = "") -> str:
    """One of a control's words.

    Args:
        more: what the sentence says after the list of words.

    Raises:
        Refusal: it is none of them.
    """
    if not isinstance(given, str) or given not in choices:
        raise Refusal(f"The {what} cannot be {str(given)[:70]!r}; it is one of {', '.join(choices)}{more}.")
    return given


def time_left(seconds: float | None, sentence: str) -> float | None:
    """The seconds that there are for the answer; None where there is no end to them.

    Raises:
        Refusal: there are none, in the words of `sentence`.
    """
    if seconds is not None and seconds <= 0:
        raise Refusal(sentence)
    return seconds
