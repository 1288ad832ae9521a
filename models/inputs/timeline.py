"""Time along the rows of a series: the step from one to the next, gaps, and files at another rate.

Windows know rows, not time. Where the clean data have one step, the model remembers it (`SeriesSpec.step`): rows more
than two steps apart begin another run, no window lies across, and an item at another rate is not judged as if it were
at this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaegis.models.inputs.rows import Rows
from vaegis.models.inputs.timestamps import comparable

GAP = 2.0  # steps; a row further than this from the one above begins another run
TOLERANCE = 0.1  # of a step; steps and rates within this are the same
_REGULAR = 0.9  # share of steps that must be the same for the data to have a step at all

Steps = NDArray[np.float64]


class Clock:
    """The steps between the rows of one item, chunk by chunk."""

    def __init__(self) -> None:
        self.last: Any = None

    def steps(self, stamps: Sequence[Any]) -> Steps | None:
        """Per row, seconds since the one above (NaN at the first); numbers without a unit are taken for seconds.

        None where the timestamps are in no form that can be compared.
        """
        column = pa.array(stamps)
        values = comparable(column)
        if values is None or not len(values):
            return None
        before = values[0] if self.last is None or type(self.last) is not type(values[0]) else self.last
        steps = np.diff(values, prepend=before).astype(np.float64)
        if pa.types.is_string(column.type):
            steps /= 1e9
        if self.last is None:
            steps[0] = np.nan
        self.last = values[-1]
        return steps


@dataclass
class Rhythm:
    """What the timestamps of clean data say of their step."""

    steps: list[float]  # the median of each item
    regular: int = 0  # rows one step after the one above
    others: int = 0
    gaps: int = 0
    comparable: bool = True

    def add(self, chunks: Iterable[Rows]) -> Iterator[Rows]:
        """The rows of one item, unchanged, its steps noted as they pass."""
        clock, step = Clock(), None
        for chunk in chunks:
            if chunk.stamps is not None and len(chunk.stamps) and self.comparable:
                steps = clock.steps(chunk.stamps)
                self.comparable = steps is not None and not bool((steps <= 0).any())
                if self.comparable and steps is not None and len(steps) > 1:
                    if step is None:
                        step = float(np.nanmedian(steps))
                        self.steps.append(step)
                    same = int((np.abs(steps - step) <= TOLERANCE * step).sum())
                    self.regular += same
                    self.others += int(np.isfinite(steps).sum()) - same
                    self.gaps += int((steps > GAP * step).sum())
            yield chunk

    def step(self) -> float | None:
        """The step of the data; None where they have none, or not one."""
        if not self.steps or not self.comparable or self.regular < _REGULAR * (self.regular + self.others):
            return None
        step = float(np.median(self.steps))
        return step if all(abs(s - step) <= TOLERANCE * step for s in self.steps) else None

    def notes(self) -> list[str]:
        """What a user should know of it."""
        step = self.step()
        if step is None:
            if self.steps and self.comparable:
                return ["The rows are not at one step in time: gaps and other sampling rates will not be noticed."]
            return []
        if not self.gaps:
            return []
        gaps = "1 gap" if self.gaps == 1 else f"{self.gaps} gaps"
        return [f"The timestamps have {gaps} of more than {GAP:g} steps of {seconds(step)}: no window lies across."]


def runs(chunks: Iterable[Rows], step: float | None) -> Iterator[Iterator[Rows]]:
    """The rows of one item, parted at gaps; an item at another rate is one row with the error."""
    if step is None:
        yield iter(chunks)
        return
    for _, pieces in groupby(_pieces(chunks, step), key=lambda piece: piece[0]):
        yield (rows for _, rows in pieces)


def gap_rows(clock: Clock, stamps: Sequence[Any] | None, step: float | None, count: int) -> NDArray[np.bool_]:
    """Per row of a chunk, whether a gap is above it."""
    steps = clock.steps(stamps) if step is not None and stamps is not None and len(stamps) else None
    if step is None or steps is None or bool((steps <= 0).any()):
        return np.zeros(count, bool)
    return np.asarray(steps > GAP * step)


def seconds(step: float) -> str:
    """A step as a user writes it."""
    return f"{step:.6g}s"


def _pieces(chunks: Iterable[Rows], step: float) -> Iterator[tuple[int, Rows]]:
    clock, run, rated = Clock(), 0, False
    for chunk in chunks:
        if chunk.error is not None or chunk.stamps is None or not len(chunk.stamps):
            yield run, chunk
            continue
        steps = clock.steps(chunk.stamps)
        if steps is None or bool((steps <= 0).any()):
            yield run, chunk
            continue
        if not rated and len(steps) > 2:
            rated, own = True, float(np.nanmedian(steps))
            if abs(own - step) > TOLERANCE * step:
                why = _other_rate(chunk.item, own, step)
                yield run, replace(chunk.piece(0, 0), error=why)
                return
        cuts = [0, *np.flatnonzero(steps > GAP * step).tolist(), len(steps)]
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):
            if low:
                run += 1
            elif high == 0:
                # The gap is between this chunk and the one above.
                run += 1
                continue
            if high > low:
                yield run, chunk.piece(low, high)


def _other_rate(item: str | None, own: float, step: float) -> str:
    remedy = (
        f"average it to a row every {seconds(step)}, or fit a model to clean data at its rate"
        if own < step
        else f"record it at that rate, or fit a model to clean data at a row every {seconds(own)}"
    )
    title = item or "The series"
    return f"{title} has a row every {seconds(own)}, and the model's clean data one every {seconds(step)}; {remedy}."
