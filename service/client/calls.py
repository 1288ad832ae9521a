"""Requests to the service as values, and what to do with what comes of them; nothing here sends anything."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from vaegis.service.client.verdicts import Description, Model, Moved, Verdicts, described, read_verdicts

File = str | Path | tuple[str, bytes]  # a path, or a name and a content
T = TypeVar("T")

BUSY = (429, 503)  # this service, or a proxy before it, says that it will take the request in a moment
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between attempts, where the service names none
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)  # nothing of the request was sent
BROKEN = (*UNSENT, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class ServiceError(Exception):
    """A request that was not answered as asked; the text is a sentence that says why."""


class Unreachable(ServiceError):
    """No answer came: the service is not there, the connection broke, or it took too long."""


class Problem(ServiceError):
    """The service answered with an error."""

    def __init__(self, status: int, title: str, detail: str, request_id: str) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail, self.request_id = status, title, detail, request_id


class Options(TypedDict, total=False):
    """How samples are judged, and what is said of them; everything may be left out."""

    alpha: float  # false-alarm rate to decide at; the model's own
    threshold: float  # decide at this value of the deciding term instead
    decide_by: str  # `score`, or an evidence term
    group: str  # calibration group to decide within
    maps: bool  # also answer where each sample is strange
    condition: str | Sequence[str]  # what all samples, or each, were made as
    deadline: float  # seconds after which the answer is of no use
    bulk: bool  # lets requests that somebody waits for go first


class ArrayOptions(Options, total=False):
    """The same for arrays, whose samples have no names of their own."""

    columns: Sequence[str]  # names of the last axis; columns then go by name
    timestamps: Sequence[str | float]  # of the rows of a series; given back
    items: Sequence[str]  # a name per sample; given back


@dataclass(frozen=True)
class Retries:
    """How often and how long a request is tried again."""

    most: int = 3  # after the first attempt
    patience: float = 30.0  # seconds of waiting in all; a longer one that the service asks for is an error at once


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any], T]  # of the answer's JSON
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    kind: str = ""  # content type
    files: list[tuple[str, tuple[str, bytes, str]]] | None = None
    repeatable: bool = True  # once more does no harm


def attempts(call: Call[Any], retries: Retries) -> Generator[float, httpx.Response | httpx.TransportError, Any]:
    """Yields the seconds to wait before each attempt, is sent what came of it, and returns the answer's JSON.

    Raises:
        ServiceError: there is no answer, and another attempt may not or would not bring one.
    """
    waited, pause = 0.0, FIRST_WAIT
    outcome = yield 0.0
    for remaining in range(retries.most, -1, -1):
        error, again = _failure(call, outcome)
        if error is None:
            assert isinstance(outcome, httpx.Response)
            return orjson.loads(outcome.content)
        retry_after = _retry_after(outcome) if isinstance(outcome, httpx.Response) else None
        # A little more than asked, and never the same: those that were sent away together must not return together.
        wait = (retry_after if retry_after is not None else pause) * random.uniform(1.0, 1.25)
        if not again or not remaining or waited + wait > retries.patience:
            raise error
        waited, pause = waited + wait, min(2 * pause, LONGEST_WAIT)
        outcome = yield wait
    raise AssertionError("the last attempt either returns or raises")


def _failure(call: Call[Any], outcome: httpx.Response | httpx.TransportError) -> tuple[ServiceError | None, bool]:
    """What went wrong, if anything, and whether another attempt may help and does no harm."""
    if isinstance(outcome, httpx.TransportError):
        what = str(outcome) or type(outcome).__name__
        if isinstance(outcome, httpx.TimeoutException):
            what = f"it took too long ({type(outcome).__name__})"
        error = Unreachable(f"{call.method} {call.path} was not answered: {what}. Look whether the service runs there.")
        return error, isinstance(outcome, BROKEN if call.repeatable else UNSENT)
    if outcome.is_success:
        return None, False
    # A 429 is said before anything is done; a 503 may come from a proxy, which does not know what was done.
    again = outcome.status_code == 429 or (outcome.status_code in BUSY and call.repeatable)
    return _problem(outcome), again


def _problem(response: httpx.Response) -> Problem:
    try:
        problem = orjson.loads(response.content)
        title, detail, request_id = problem["title"], problem["detail"], problem.get("request_id", "")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        # Something between here and the service.
        title, request_id = response.reason_phrase or "Error", response.headers.get("X-Request-ID", "")
        detail = f"The answer was {response.status_code} {response.reason_phrase}, and no error of this service."
    return Problem(response.status_code, str(title), str(detail), str(request_id))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the service asks to be left alone; None where it does not say."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def score(model: str, data: ArrayLike, options: ArrayOptions) -> Call[Verdicts]:
    query = _query(options, ArrayOptions)
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"The data are {array.dtype} and must be numbers, in lists of one length per level.")
    names = {k: list(v) for k, v in options.items() if k in ("columns", "timestamps", "items")}  # type: ignore[call-overload]
    condition = options.get("condition")
    if condition is not None and not isinstance(condition, str):
        names["condition"] = list(condition)
    if names:
        body = {"data": np.ascontiguousarray(array), **names}
        content, kind = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), "application/json"
    else:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        content, kind = file.getvalue(), "application/x-npy"
    return Call("POST", _path(model, "/score"), read_verdicts, query, content, kind)


def score_files(model: str, files: Sequence[File], options: Options) -> Call[Verdicts]:
    if isinstance(files, (str, bytes, Path)):
        raise TypeError("score_files takes a list of files; put the one into brackets.")
    query = _query(options, Options)
    if not isinstance(options.get("condition", ""), str):
        raise ValueError("Files take one condition for all; send those of each condition by themselves.")
    parts = []
    for file in files:
        name, content = file if isinstance(file, tuple) else (Path(file).name, Path(file).read_bytes())
        parts.append(("file", (name, content, "application/octet-stream")))
    return Call("POST", _path(model, "/score"), read_verdicts, query, files=parts)


def _query(options: Mapping[str, Any], known: type[Options]) -> dict[str, str]:
    names = list(known.__annotations__)
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"There is no option {unknown[0]!r}; there is {', '.join(names)}.")
    query = {k: repr(float(options[k])) for k in ("alpha", "threshold") if options.get(k) is not None}
    query |= {k: options[k] for k in ("decide_by", "group") if options.get(k) is not None}
    if isinstance(options.get("condition"), str):
        query["condition"] = options["condition"]
    if options.get("maps"):
        query["maps"] = "array"
    if options.get("deadline") is not None:
        query["deadline_ms"] = repr(float(options["deadline"]) * 1000)
    if options.get("bulk"):
        query["priority"] = "bulk"
    return query


def models() -> Call[list[Model]]:
    def read(answer: Any) -> list[Model]:
        names = list(Model.__annotations__)
        return [Model(**{name: m[name] for name in names}) for m in answer["models"]]

    return Call("GET", "/v1/models", read)


def describe(model: str) -> Call[Description]:
    return Call("GET", _path(model), described)


def promote(model: str, version: int | str, alias: str) -> Call[Moved]:
    body = orjson.dumps({"version": version, "alias": alias})
    return Call("POST", _path(model, "/promote"), _moved, {}, body, "application/json", repeatable=False)


def rollback(model: str, alias: str) -> Call[Moved]:
    body = orjson.dumps({"alias": alias})
    return Call("POST", _path(model, "/rollback"), _moved, {}, body, "application/json", repeatable=False)


def repository(model: str, verb: str) -> Call[None]:
    path = f"/v2/repository/models/{quote(model, safe='@')}/{verb}"
    return Call("POST", path, lambda answer: None, repeatable=False)


def _moved(answer: Any) -> Moved:
    return Moved(**{name: answer[name] for name in Moved.__annotations__})


def _path(model: str, rest: str = "") -> str:
    return f"/v1/models/{quote(model, safe='@')}{rest}"
