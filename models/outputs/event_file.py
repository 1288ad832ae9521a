"""The event file: a row per event of a series, as Parquet, csv or JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from vaegis.models.errors import Refusal
from vaegis.models.events import Event, EventTracker, in_time
from vaegis.models.outputs.table_file import TableFile
from vaegis.models.scorer import Verdicts
from vaegis.models.spec import InputSpec, SeriesSpec

OPTION = "--events"
SEPARATOR = ";"  # between the channels of an event in a csv file; the other forms hold lists


def schema(form: str) -> pa.Schema:
    """The columns, in order, of a file that ends in `form`."""
    return pa.schema(
        [
            ("item", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("start_timestamp", pa.string()),
            ("end_timestamp", pa.string()),
            ("peak", pa.int64()),
            ("peak_score", pa.float64()),
            ("channels", pa.string() if form == ".csv" else pa.list_(pa.string())),
        ]
    )


class EventFile:
    """Takes the verdicts of a series block by block; use as a context manager.

    An event that runs over the border of two blocks is one event.
    """

    def __init__(self, path: Path, spec: InputSpec) -> None:
        """Checks the path and that the model takes a series.

        Raises:
            Refusal: another ending than the three; a model of images or vectors.
            Conflict: `path` is a folder.
        """
        if not isinstance(spec, SeriesSpec):
            raise Refusal(
                f"{OPTION} {path.name} asks for stretches of time, and the model takes single {spec.kind}s; leave "
                f"{OPTION} out, or give a model of series."
            )
        self._path = path
        self._tracker = EventTracker(spec.columns)
        self._table = TableFile(path, schema(path.suffix), OPTION)

    def write(self, verdicts: Verdicts) -> None:
        """Takes a block with its maps; writes the events that it ended.

        Raises:
            Refusal: the samples are windows, which have no order in time; the disk is full.
        """
        if not in_time(verdicts.block):
            raise Refusal(
                f"{OPTION} {self._path.name} needs rows in order of time, and SOURCE holds windows, each a sample by "
                f"itself; give the series as rows, or leave {OPTION} out."
            )
        self._write(self._tracker.add(verdicts))

    def _write(self, events: Sequence[Event]) -> None:
        if not events:
            return
        channels = [list(e.channels) for e in events]
        starts, ends = [e.start_timestamp for e in events], [e.end_timestamp for e in events]
        joined = [SEPARATOR.join(names) for names in channels]
        self._table.write(
            {
                "item": pa.array([e.item for e in events], pa.string()),
                "start": pa.array([e.start for e in events], pa.int64()),
                "end": pa.array([e.end for e in events], pa.int64()),
                "start_timestamp": pa.array([None if t is None else str(t) for t in starts], pa.string()),
                "end_timestamp": pa.array([None if t is None else str(t) for t in ends], pa.string()),
                "peak": pa.array([e.peak for e in events], pa.int64()),
                "peak_score": pa.array([e.peak_score for e in events], pa.float64()),
                "channels": pa.array(joined, pa.string()) if self._path.suffix == ".csv" else pa.array(channels),
            }
        )

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write(self._tracker.close())
        except BaseException as failure:
            self._table.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._table.__exit__(kind, error, trace)
