"""Requests -> full batches: while one graph call runs, the next one forms from everything that waits.

A version has one `Batcher`. Nothing waits for company: a request that finds the graph idle is run at the end of the
same turn of the event loop, on the loop itself where that is sooner done than handed to a thread. One that does not
shares the next call with others that wait, as many as a call does best with (`Pace`). A further call runs beside the
first only where there is a whole batch for it, so that a second core never makes batches smaller. Where all are at work
and a whole batch waits, a thread is handed its next one ahead, and need not wait for the loop in between.

A request larger than a batch takes one batch at a time and then queues again behind the others; bulk requests fill what
interactive ones leave. Whoever gave up (deadline passed, client gone) is passed over before the graph runs. Whatever a
sample gets depends on that sample alone; if a call fails, its requests are run again one by one, so that each has its
own error.

Queues are touched on the event loop only, so there are no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Block
from vaegis.models.runtime.graph import Pace
from vaegis.models.scorer import GraphOutput, Scorer, join


@dataclass(eq=False, slots=True)
class Job:
    """One request's samples on their way through the graph."""

    parts: NDArray[Any]
    conditions: NDArray[np.int64] | None
    maps: bool
    bulk: bool
    done: asyncio.Future[GraphOutput]
    since: float  # `time.perf_counter()` when it began to wait
    dispatched: int = 0  # parts that a batch has been made of
    queued: float = 0.0  # seconds until its first batch ran
    outputs: dict[int, GraphOutput] = field(default_factory=dict)  # first part -> of it and those that follow


@dataclass(frozen=True, slots=True)
class Piece:
    """Parts start to stop of a job."""

    job: Job
    start: int
    stop: int


@dataclass(eq=False, slots=True)
class Lane:
    """A thread that runs calls, one after the other."""

    thread: ThreadPoolExecutor
    calls: int = 0  # calls that it runs or is to run next


class Batcher:
    """Gathers the samples of concurrent requests into calls of one version's graph."""

    def __init__(
        self, scorer: Scorer, pace: Pace, lanes: int, on_call: Callable[[int], None] = lambda size: None
    ) -> None:
        """
        Args:
            lanes: calls that may run at the same time.
            on_call: called with the size of every call.
        """
        self._scorer, self._pace, self._on_call = scorer, pace, on_call
        self._lanes = [Lane(ThreadPoolExecutor(1, "vaegis-graph")) for _ in range(lanes)]
        # The last one at work is the next: its core has the graph's buffers in its cache.
        self._idle = list(self._lanes)
        self._interactive: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._waiting = 0  # parts in both
        self._due = False  # a dispatch is on its way

    async def find(
        self, block: Block, maps: bool, bulk: bool = False, seconds: float | None = None
    ) -> tuple[GraphOutput, float]:
        """What the graph says of a block's parts, and the seconds until it was asked.

        Cancelling this, or the end of the `seconds` that there are for it, drops what has not run yet.

        Raises:
            TimeoutError: the seconds are over.
        """
        if not len(block.parts):
            return self._scorer.find(block.parts, maps, block.conditions), 0.0
        loop = asyncio.get_running_loop()
        job = Job(block.parts, block.conditions, maps, bulk, loop.create_future(), time.perf_counter())
        (self._bulk if bulk else self._interactive).append(job)
        self._waiting += len(block.parts)
        if not self._due:
            # Not at once: requests that came in with this one are still to be read in this turn of the loop.
            self._due = True
            loop.call_soon(self._dispatch, loop)
        if seconds is None:
            return await job.done, job.queued
        async with asyncio.timeout(seconds):
            return await job.done, job.queued

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = False
        if 0 < self._waiting <= self._pace.soon and len(self._idle) == len(self._lanes):
            batch = self._form()
            self._deliver(batch, self._results(batch))
        while self._waiting and (lane := self._lane()) is not None:
            batch = self._form()
            if not batch:
                break
            if not lane.calls:
                self._idle.remove(lane)
            lane.calls += 1
            lane.thread.submit(self._run, loop, lane, batch)

    def _lane(self) -> Lane | None:
        """Who takes the next batch; None while what waits had better wait for company."""
        if len(self._idle) == len(self._lanes):
            return self._idle[-1]
        if self._waiting < self._pace.best:
            return None
        return self._idle[-1] if self._idle else next((lane for lane in self._lanes if lane.calls == 1), None)

    def _form(self) -> list[Piece]:
        """The next batch: from whoever has waited longest, a piece each, interactive before bulk.

        One request may fill it to the best size; of several no more are gathered than are enough, so that the first
        ones' answers are written while the next ones' graph call runs.
        """
        batch: list[Piece] = []
        best, size = self._pace.best, 0
        for queue in (self._interactive, self._bulk):
            for _ in range(len(queue)):
                if size >= self._pace.enough:
                    break
                job = queue.popleft()
                if job.done.done():
                    self._waiting -= len(job.parts) - job.dispatched
                    continue
                stop = min(job.dispatched + best - size, len(job.parts))
                batch.append(Piece(job, job.dispatched, stop))
                size += stop - job.dispatched
                self._waiting -= stop - job.dispatched
                job.dispatched = stop
                if stop < len(job.parts):
                    queue.append(job)
        return batch

    def _run(self, loop: asyncio.AbstractEventLoop, lane: Lane, batch: list[Piece]) -> None:
        """On a thread: runs the graph, and hands what it says back to the loop."""
        awaited = [p for p in batch if not p.job.done.done()]  # it may have waited here for the call before
        loop.call_soon_threadsafe(self._done, loop, lane, awaited, self._results(awaited) if awaited else [])

    def _results(self, batch: list[Piece]) -> list[GraphOutput | Exception]:
        now = time.perf_counter()
        for piece in batch:
            if not piece.start:
                piece.job.queued = now - piece.job.since
        try:
            return [*self._call(batch)]
        except Exception as error:  # noqa: BLE001 - it becomes the answer of the request that caused it
            return [error] if len(batch) == 1 else [self._alone(piece) for piece in batch]

    def _call(self, batch: list[Piece]) -> list[GraphOutput]:
        parts = [p.job.parts[p.start : p.stop] for p in batch]
        conditions = [p.job.conditions[p.start : p.stop] for p in batch if p.job.conditions is not None]
        maps = any(p.job.maps for p in batch)
        outputs = self._scorer.find(
            parts[0] if len(parts) == 1 else np.concatenate(parts),
            maps,
            np.concatenate(conditions) if conditions else None,
        )
        if len(batch) == 1:
            return [outputs]
        ends = np.cumsum([len(p) for p in parts]).tolist()
        return [outputs.cut(end - p.stop + p.start, end, p.job.maps) for p, end in zip(batch, ends, strict=True)]

    def _alone(self, piece: Piece) -> GraphOutput | Exception:
        try:
            return self._call([piece])[0]
        except Exception as error:  # noqa: BLE001 - as above
            return error

    def _done(
        self, loop: asyncio.AbstractEventLoop, lane: Lane, batch: list[Piece], outputs: list[GraphOutput | Exception]
    ) -> None:
        lane.calls -= 1
        if not lane.calls:
            self._idle.append(lane)
        self._dispatch(loop)  # first: the graph need not wait for answers to be written
        self._deliver(batch, outputs)

    def _deliver(self, batch: list[Piece], outputs: list[GraphOutput | Exception]) -> None:
        if batch:
            self._on_call(sum(p.stop - p.start for p in batch))
        for piece, output in zip(batch, outputs, strict=True):
            job, size = piece.job, len(piece.job.parts)
            if job.done.done():
                continue
            if isinstance(output, Exception):
                job.done.set_exception(output)
            elif piece.stop - piece.start == size:
                job.done.set_result(output)
            else:
                job.outputs[piece.start] = output
                if sum(len(f) for f in job.outputs.values()) == size:
                    job.done.set_result(join([job.outputs[start] for start in sorted(job.outputs)]))
