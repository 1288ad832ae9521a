"""The answers of the service as values, for `vaegis.service.client`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Verdict:
    """On one sample."""

    index: int  # place in the request, or row within the item
    status: str  # ok, anomalous or unjudged
    anomalous: bool  # true also where it is unjudged: nothing unjudged may pass as clean
    score: float  # higher is stranger; NaN where unjudged
    p_value: float  # of the deciding term
    p_tail: float  # the same from a fitted tail; NaN where there is none
    evidence: Mapping[str, float]  # every other term
    p_values: Mapping[str, float]  # of those
    map: NDArray[np.float32] | None  # where it is strange, if asked for
    item: str | None  # file or name that was sent
    timestamp: Any  # as sent
    error: str | None  # why it is unjudged


@dataclass(frozen=True)
class Event:
    """Anomalous rows of a series, merged."""

    start: int  # first row
    end: int  # last row
    peak: int  # row of the largest score
    peak_score: float
    channels: tuple[str, ...]  # guiltiest first
    item: str | None
    start_timestamp: Any
    end_timestamp: Any


@dataclass(frozen=True)
class Verdicts:
    """On all samples of a request, column by column; arrays have the length n."""

    model: str
    version: int
    digest: str  # of the bundle that judged
    kind: str  # image, series or vector
    decide_by: str
    alpha: float | None  # None where a threshold was asked for
    threshold: float
    extrapolated: bool  # the threshold lies beyond the clean samples, in their fitted tail
    index: NDArray[np.int64]
    status: tuple[str, ...]  # ok, anomalous or unjudged
    anomalous: NDArray[np.bool_]  # true also where unjudged: nothing unjudged may pass as clean
    score: Floats  # NaN where unjudged, as all below
    p_value: Floats
    p_tail: Floats
    evidence: Mapping[str, Floats]
    p_values: Mapping[str, Floats]
    maps: tuple[NDArray[np.float32] | None, ...] | None
    items: tuple[str | None, ...]
    timestamps: tuple[Any, ...]
    warmup: NDArray[np.bool_]  # rows of a series before its first full window ends
    errors: Mapping[int, str]  # place -> why it is unjudged
    events: tuple[Event, ...]  # of a series

    def __len__(self) -> int:
        return len(self.status)

    def __iter__(self) -> Iterator[Verdict]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Verdict:
        return Verdict(
            index=int(self.index[i]),
            status=self.status[i],
            anomalous=bool(self.anomalous[i]),
            score=float(self.score[i]),
            p_value=float(self.p_value[i]),
            p_tail=float(self.p_tail[i]),
            evidence={t: float(v[i]) for t, v in self.evidence.items()},
            p_values={t: float(v[i]) for t, v in self.p_values.items()},
            map=None if self.maps is None else self.maps[i],
            item=self.items[i],
            timestamp=self.timestamps[i],
            error=self.errors.get(i % len(self)),
        )


@dataclass(frozen=True)
class Model:
    """A model in the list."""

    name: str
    kind: str
    family: str
    champion: int | None  # the version that answers where none is named
    versions: int  # how many there are
    aliases: Mapping[str, int]


@dataclass(frozen=True)
class Description:
    """A model, seen through one of its versions."""

    name: str
    version: int
    digest: str
    kind: str
    family: str
    alpha: float  # false-alarm rate used where none is asked for
    smallest_alpha: float  # the lowest that can be asked for
    input: Mapping[str, Any]  # what a sample is: size and depth, or columns and window
    evidence: Mapping[str, str]  # each term and what it means
    thresholds: Mapping[float, float]  # alpha -> threshold of the score
    groups: tuple[str, ...]  # that are calibrated apart
    aliases: Mapping[str, int]
    versions: tuple[int, ...]


@dataclass(frozen=True)
class Moved:
    """Where an alias points now."""

    name: str
    alias: str
    version: int
    previous: int | None


def described(answer: Mapping[str, Any]) -> Description:
    """From the answer of `GET /v1/models/{model}`."""
    calibration = answer["calibration"]
    same = ("name", "version", "digest", "kind", "family", "alpha", "input", "evidence", "aliases")
    return Description(
        **{name: answer[name] for name in same},
        smallest_alpha=calibration["smallest_alpha"],
        thresholds={t["alpha"]: t["threshold"] for t in answer["thresholds"]},
        groups=tuple(calibration["groups"]),
        versions=tuple(v["version"] for v in answer["versions"]),
    )


def read_verdicts(answer: Mapping[str, Any]) -> Verdicts:
    """From the answer of the scoring route."""
    rows = answer["results"]
    judged = [r["status"] != UNJUDGED for r in rows]
    terms = next((list(r["evidence"]) for r, good in zip(rows, judged, strict=True) if good), [])
    nothing: dict[str, Any] = {}

    def column(name: str) -> Floats:
        return np.array([r.get(name) for r in rows], np.float64)  # None becomes NaN

    def evidence(what: str) -> dict[str, Floats]:
        evidence = [r.get("evidence", nothing) for r in rows]
        return {t: np.array([e.get(t, nothing).get(what) for e in evidence], np.float64) for t in terms}

    return Verdicts(
        **{n: answer[n] for n in ("model", "version", "digest", "kind", "decide_by", "alpha")},
        threshold=answer["threshold"],
        extrapolated=answer["extrapolated"],
        index=np.array([r["index"] for r in rows], np.int64),
        status=tuple(r["status"] for r in rows),
        anomalous=np.array([r.get("anomalous", True) for r in rows], np.bool_),
        score=column("score"),
        p_value=column("p_value"),
        p_tail=column("p_tail"),
        evidence=evidence("value"),
        p_values=evidence("p_value"),
        maps=tuple(_map(r.get("map")) for r in rows) if any("map" in r for r in rows) else None,
        items=tuple(r.get("item") for r in rows),
        timestamps=tuple(r.get("timestamp") for r in rows),
        warmup=np.array([r.get("warmup", False) for r in rows], np.bool_),
        errors={i: r["error"]["detail"] for i, r in enumerate(rows) if "error" in r},
        events=tuple(_event(e) for e in answer.get("events", ())),
    )


def _map(answer: Mapping[str, Any] | None) -> NDArray[np.float32] | None:
    if answer is None:
        return None
    return np.frombuffer(base64.b64decode(answer["data"]), "<f4").reshape(answer["shape"])


def _event(answer: Mapping[str, Any]) -> Event:
    same = ("start", "end", "peak", "peak_score")
    return Event(
        **{name: answer[name] for name in same},
        channels=tuple(answer["channels"]),
        item=answer.get("item"),
        start_timestamp=answer.get("start_timestamp"),
        end_timestamp=answer.get("end_timestamp"),
    )
