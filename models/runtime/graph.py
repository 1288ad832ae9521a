"""A score graph, open on a device: raw parts in, raw evidence out, in calls of a size that suits the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.runtime.fixed_buffers import open_graph
from vaegis.models.runtime.sessions import Cuda, Device, GraphFailure, failures
from vaegis.models.spec import InputSpec

CUDA = Cuda()

BATCH_VALUES = 2**18  # values per graph call: enough to fill a core, small enough to stay in its cache
BATCH_MOST = 1024
CUDA_VALUES = 2**24  # a GPU is filled by more
# See `Pace`.
SOON_SECONDS, QUICK_SECONDS, SLOW_SECONDS, PAYS, WORTH, TURNS = 0.0005, 0.006, 0.05, 1.2, 8, 4


@dataclass(frozen=True)
class Pace:
    """How many parts a graph is best called with."""

    best: int  # the most that are done within a few milliseconds, or up to which doubling made more of each second
    soon: int  # so few that they are done sooner than a thread could be told to do them; may be 0
    enough: int  # the fewest that cost eight times what a call costs beside them: larger calls hardly do more a second


class Graph:
    """A score graph, open on a device. Safe to call from several threads."""

    def __init__(
        self,
        raw: bytes,
        spec: InputSpec,
        device: Device = "auto",
        threads: int = 0,
        spin: bool = True,
        cuda: Cuda = CUDA,
    ) -> None:
        """Opens the graph.

        Args:
            device: `cuda` is strict; `auto` takes CUDA where it works and says when it does not.
            threads: of onnxruntime within one call; 0 leaves it to onnxruntime.
            spin: whether its idle threads wait by spinning: a call starts sooner, other work on the cores gets less.
            cuda: what is done on a GPU beyond running there.

        Raises:
            Refusal: `cuda` was asked for and cannot be had.
            GraphFailure: this runtime does not open the graph.
        """
        self.spec = spec
        session, self.device, self._calls = open_graph(raw, device, threads, spin, cuda, spec.shape)
        names = [o.name for o in session.get_outputs() if o.name != "map"]
        self.terms = ["score", *(n for n in names if n != "score")]
        inputs = {i.name for i in session.get_inputs()}
        self._masked, self._conditional = "mask" in inputs, "condition" in inputs
        values = CUDA_VALUES if self.device == "cuda" else BATCH_VALUES
        self._most = max(1, min(BATCH_MOST, values // int(np.prod(spec.shape))))
        self._batch = self._most  # parts of a call

    @property
    def batch(self) -> int:
        """Parts of a call where none are named."""
        return self._batch

    def run(
        self, parts: NDArray[Any], maps: bool = False, batch: int = 0, conditions: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs for (m, *spec.shape) parts: every term (m,), and `map` if asked for.

        Args:
            batch: parts per call; 0 chooses.
            conditions: (m,) numbers of the parts' conditions, for a graph that takes them.

        Raises:
            GraphFailure: the runtime fails at it, or it was stopped.
        """
        assert self._conditional == (conditions is not None)
        names = [*self.terms, "map"] if maps else self.terms
        size = batch or self._batch
        runs = []
        for i in range(0, len(parts), size):
            feed = self._feed(parts[i : i + size])
            if conditions is not None:
                feed["condition"] = conditions[i : i + size]
            with failures("onnxruntime fails to run it"):
                runs.append(self._calls.run(names, feed))
        if not runs:
            shape = (0, *self.spec.map_shape)
            return {n: np.empty(shape if n == "map" else 0, np.float32) for n in names}
        return {n: np.concatenate([r[i] for r in runs]) if len(runs) > 1 else runs[0][i] for i, n in enumerate(names)}

    def stop(self) -> None:
        """Ends the calls under way, and those to come, with a refusal: for a graph that does not end by itself."""
        self._calls.stop()

    def warm(self) -> Pace:
        """Runs every batch size 1, 2, 4, ..., so that no request waits for what a first run allocates, and finds out
        what suits this machine.

        Raises:
            GraphFailure: it cannot be run, or does not give one value for each sample.

        From now on larger batches are run as several calls of `Pace.enough`, whose values stay in the core's cache.
        """
        self._check(1)
        self._check(2)
        seconds: dict[int, float] = {}  # of a call, by its size
        size = 1
        while True:
            parts = np.zeros((size, *self.spec.shape), self.spec.dtype)
            self._timed(parts, True)
            seconds[size] = min(self._timed(parts) for _ in range(3))
            paid = size == 1 or 2 * seconds[size // 2] >= PAYS * seconds[size]
            # The next size is not tried to be found wanting: its memory would be kept.
            if 2 * size > self._most or 2 * seconds[size] > (SLOW_SECONDS if paid else QUICK_SECONDS):
                break
            size *= 2
        # By turns, so that what else the machine does for a moment does not fall on one size alone.
        for _ in range(TURNS):
            for n in seconds:
                seconds[n] = min(seconds[n], self._timed(np.zeros((n, *self.spec.shape), self.spec.dtype)))
        # What one more sample costs, and a call beside its samples: far steadier than one size's time over another's.
        each = min(s / n for n, s in seconds.items())
        beside = max(seconds[1] - each, 0.0)
        self._batch = next((n for n in seconds if n * each >= WORTH * beside), size)
        return Pace(size, max((n for n, s in seconds.items() if s <= SOON_SECONDS), default=0), self._batch)

    def _check(self, size: int) -> None:
        """Refuses outputs that are not one for each sample: they would be taken for those of others."""
        conditions = np.zeros(size, np.int64) if self._conditional else None
        outputs = self.run(np.zeros((size, *self.spec.shape), self.spec.dtype), True, size, conditions)
        for name, values in outputs.items():
            expected = (size, *self.spec.map_shape) if name == "map" else (size,)
            if values.shape != expected:
                raise GraphFailure(
                    f"The graph gives {name!r:.60} of shape {values.shape} for a batch of {size}, where {expected} is "
                    "right. Export the model again, or restore the bundle from where it came."
                )

    def _timed(self, parts: NDArray[Any], maps: bool = False) -> float:
        conditions = np.zeros(len(parts), np.int64) if self._conditional else None
        began = time.perf_counter()
        self.run(parts, maps, len(parts), conditions)
        return max(time.perf_counter() - began, 1e-9)

    def _feed(self, parts: NDArray[Any]) -> dict[str, NDArray[Any]]:
        parts = np.ascontiguousarray(parts)
        if not self._masked:
            return {"input": parts}
        observed = ~np.isnan(parts)
        return {"input": np.where(observed, parts, np.float32(0)), "mask": observed.astype(np.float32)}
