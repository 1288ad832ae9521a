"""The one act of judging: a request, whatever wire it came by -> verdicts -> its answer.

A wire brings an `Exchange`: which model is addressed, where its bytes come from, and how they are read into a
`Question`, which knows how its answer is written. All that lies between stands here, once, and knows no wire.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import anyio
import anyio.to_thread

from vaegis.models.blocks import Block
from vaegis.models.calibration import Decision, decide
from vaegis.models.errors import Refusal, TooLarge
from vaegis.models.scorer import Verdicts
from vaegis.models.spec import InputSpec, SeriesSpec
from vaegis.service.errors import Late
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.controls import Controls
from vaegis.service.serving.observers import Observer, Timing
from vaegis.service.serving.served import Served
from vaegis.service.tracing import record, stage

# Smaller bodies and answers are dealt with at once: handing them to a thread takes longer, and holds the same lock.
INLINE_BYTES, INLINE_SAMPLES = 1 << 19, 256
DECISIONS_MOST = 64  # of a version, that are remembered

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class MapForm:
    """How an answer holds maps."""

    size: Callable[[int], int]  # bytes of answer for so many values
    remedy: str  # what makes the answer smaller, after "Send fewer samples at a time"


@dataclass(frozen=True, slots=True)
class Question(Generic[Answer]):
    """Samples, how they shall be judged, and how that is answered."""

    controls: Controls
    decision: Decision
    block: Block
    maps: MapForm | None  # None where the answer holds none
    events: bool  # the answer names the events of a series, and their guilty channels
    write: Callable[[Verdicts], Answer]


@dataclass(frozen=True, slots=True)
class Reader(Generic[Answer]):
    """Reads one request's body."""

    read: Callable[[bytes], Question[Answer]]
    deadline: float | None = None  # `time.monotonic()`, where it is known before the body is read
    limiter: anyio.CapacityLimiter | None = None  # of the threads that wait for decoders, where it needs one


class Exchange(Protocol[Answer]):
    """One request on its wire."""

    address: str  # of the model
    key: str  # tells requests apart, for the canary
    arrived: float  # `time.monotonic()`

    def reader(self, served: Served) -> Reader[Answer]:
        """What reads the body for this version; called before the body is received.

        Raises:
            Refusal: the request can be refused without its body.
        """

    def body(self) -> Awaitable[bytes]:
        """Receives the body."""

    def count(self, samples: int) -> None:
        """Takes note of how many samples there are."""

    def attend(self, work: Coroutine[Any, Any, Verdicts]) -> Awaitable[Verdicts]:
        """Does the work, unless whoever asked leaves first."""


class ServedModels(Protocol):
    """The models in service, by address."""

    def peek(self, address: str, key: str = "") -> Served | None:
        """The version that answers, where that needs no waiting."""

    def get(self, address: str, key: str = "") -> Served:
        """The version that answers, opened if need be."""


class Judging:
    """Judges requests of every wire."""

    def __init__(
        self,
        models: ServedModels,
        admission: Admission,
        observers: tuple[Observer, ...],
        samples_read: Callable[[Served, float], None],
        answer_bytes: int,
    ) -> None:
        """
        Args:
            observers: are told of all verdicts, in this order.
            samples_read: called with the seconds that it took to turn a body into samples.
            answer_bytes: the most that the maps of one answer may take.
        """
        self._models, self._admission, self._observers = models, admission, observers
        self._samples_read, self._answer_bytes = samples_read, answer_bytes

    async def answer(self, exchange: Exchange[Answer]) -> Answer:
        """Receives, reads, judges and answers a request.

        Raises:
            Refusal: it is not answered, and why; whatever else the exchange raises.
        """
        place = self._admission.enter()
        try:
            served = self._models.peek(exchange.address, exchange.key)
            if served is None:
                served = await anyio.to_thread.run_sync(self._models.get, exchange.address, exchange.key)
            reader = exchange.reader(served)
            question = await self._question(served, reader, await exchange.body())
            block, controls = question.block, question.controls
            exchange.count(len(block))
            place.hold(len(block), block.parts.nbytes)
            if question.maps is not None:
                check_maps(served.scorer.spec, block, question.maps, self._answer_bytes)
            maps = question.maps is not None or (question.events and isinstance(served.scorer.spec, SeriesSpec))
            deadline = controls.deadline(exchange.arrived)
            verdicts = await exchange.attend(
                self.judge(served, block, question.decision, maps, deadline=deadline, bulk=controls.bulk)
            )
            if len(verdicts.errors) == len(verdicts):
                first = next(iter(verdicts.errors.values()), "The request holds none.")
                raise Refusal(f"No sample could be judged, of {len(verdicts)} sent. The first: {first}")
            with stage("render"):
                if question.maps is None and len(verdicts) <= INLINE_SAMPLES:
                    return question.write(verdicts)
                return await anyio.to_thread.run_sync(question.write, verdicts)
        finally:
            place.leave()

    async def judge(
        self,
        served: Served,
        block: Block,
        decision: Decision,
        maps: bool,
        *,
        deadline: float | None = None,
        bulk: bool = False,
    ) -> Verdicts:
        """Verdicts on a block's samples; the observers are told.

        Args:
            maps: whether the maps of the samples are needed.
            deadline: `time.monotonic()` after which nobody waits for the answer any more.
            bulk: lets requests that somebody waits for go first.

        Raises:
            Late: the deadline passed.
        """
        left = math.inf if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise Late
        began = time.perf_counter()
        try:
            output, queue = await served.batcher.find(block, maps, bulk, None if deadline is None else left)
        except TimeoutError as error:
            raise Late from error
        verdicts = served.scorer.judge(block, decision, output)
        seconds = time.perf_counter() - began
        record("queue", seconds, seconds - queue)
        record("infer", seconds - queue, 0.0)
        timing = Timing(queue, seconds - queue)
        for observer in self._observers:
            observer.verdicts_given(served, verdicts, timing)
        return verdicts

    async def _question(self, served: Served, reader: Reader[Answer], body: bytes) -> Question[Answer]:
        """Reads a body, on a thread where that takes a while."""
        began = time.perf_counter()
        with stage("decode"):
            if reader.limiter is None and len(body) <= INLINE_BYTES:
                question = reader.read(body)
            else:
                left = None if reader.deadline is None else reader.deadline - time.monotonic()
                limiter = reader.limiter or self._admission.limiter
                try:
                    async with asyncio.timeout(left):
                        question = await anyio.to_thread.run_sync(reader.read, body, limiter=limiter)
                except TimeoutError as error:
                    raise Late from error
        self._samples_read(served, time.perf_counter() - began)
        return question


def decision_for(served: Served, controls: Controls) -> Decision:
    """The decision that a request asks for; at the model's own rate where it names none.

    Raises:
        Refusal: an alpha out of range or beyond what the clean samples can support, an unknown term or group.
    """
    key = (controls.alpha, controls.threshold, controls.decide_by, controls.group)
    decision = served.decisions.get(key)
    if decision is None:
        alpha = controls.alpha
        if alpha is None and controls.threshold is None:
            alpha = served.scorer.bundle.manifest.alpha
        decision = decide(served.scorer.calibration, alpha, controls.threshold, controls.decide_by, controls.group)
        if len(served.decisions) < DECISIONS_MOST:
            served.decisions[key] = decision
    return decision


def check_maps(spec: InputSpec, block: Block, form: MapForm, most: int) -> None:
    """Holds what an answer with maps will take to a limit, before anything is scored.

    Raises:
        TooLarge: more than `most` bytes.
    """
    if block.extents is not None:  # the map of a tiled image has the image's size
        values = sum(height * width for height, width in block.extents)
    elif isinstance(spec, SeriesSpec) and block.warmup is not None:  # that of a row, a value for each column
        values = len(block) * len(spec.columns)
    else:
        values = len(block) * math.prod(spec.map_shape)
    size = form.size(values)
    if size > most:
        raise TooLarge(
            f"The maps of {len(block)} samples make an answer of about {size} bytes, more than the {most} of "
            f"VAEGIS_MAX_ANSWER_BYTES. Send fewer samples at a time{form.remedy}."
        )
