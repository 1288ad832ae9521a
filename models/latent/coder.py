"""A bundle's encoder, decoder and sampler graphs, open."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vaegis.models.bundle import DECODER, ENCODER, SAMPLER, STEP
from vaegis.models.errors import Refusal
from vaegis.models.inputs import number_of
from vaegis.models.manifest import Manifest
from vaegis.models.runtime.graph import BATCH_MOST, BATCH_VALUES
from vaegis.models.runtime.sessions import Device, Session, open_session
from vaegis.models.spec import InputSpec

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Graphs(Protocol):
    """A bundle, or what will be one."""

    @property
    def spec(self) -> InputSpec: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def roi(self) -> NDArray[np.bool_] | None: ...
    def read(self, name: str) -> bytes: ...


class Coder:
    """Latents of raw parts, and raw parts of latents. A graph is opened when it is first needed."""

    def __init__(self, bundle: Graphs, device: Device = "auto") -> None:
        self.bundle, self.spec = bundle, bundle.spec
        self._device = device
        self._open: dict[str, Session] = {}
        self._batch = max(1, min(BATCH_MOST, BATCH_VALUES // int(np.prod(self.spec.shape))))

    def has(self, graph: str) -> bool:
        """Whether the bundle holds the graph."""
        return graph in self.bundle.manifest.files

    def need(self, graph: str, to: str) -> None:
        """Refuses where the bundle does not hold a graph.

        Raises:
            Refusal: naming the family, the graph, what it is needed for and the remedy.
        """
        if not self.has(graph):
            what = graph.removesuffix(".onnx")
            raise Refusal(
                f"A model of family {self.bundle.manifest.family} has no {what}, so it cannot {to}; fit one of a "
                "family that has (docs/models.md)."
            )

    @property
    def size(self) -> int:
        """L, latent numbers."""
        self.need(ENCODER, "encode")
        return int(self._session(ENCODER).get_outputs()[0].shape[-1])

    def encode(self, parts: NDArray[Any], conditions: Ints | None = None) -> tuple[Floats, Floats]:
        """Mean and log-variance of the latents of (m, *shape) raw parts, each (m, L); NaN is a missing value.

        Args:
            conditions: (m,) numbers, for a model that takes them.
        """
        self.need(ENCODER, "encode")
        session = self._session(ENCODER)
        masked = "mask" in {i.name for i in session.get_inputs()}
        batches = []
        for i in range(0, max(len(parts), 1), self._batch):
            some = np.ascontiguousarray(parts[i : i + self._batch])
            feed: dict[str, NDArray[Any]] = {"input": some}
            if masked:
                observed = ~np.isnan(some)
                feed = {"input": np.where(observed, some, np.float32(0)), "mask": observed.astype(np.float32)}
            batches.append(session.run(["mean", "log_variance"], feed | self._condition(conditions, i)))
        return np.concatenate([f[0] for f in batches]), np.concatenate([f[1] for f in batches])

    def decode(self, latents: NDArray[Any], conditions: Ints | None = None) -> Floats:
        """Reconstructions of (m, L) latents in raw units, (m, *shape)."""
        self.need(DECODER, "turn latents into samples")
        session = self._session(DECODER)
        z = np.asarray(latents, np.float32)
        batches = []
        for i in range(0, max(len(z), 1), self._batch):
            feed: dict[str, NDArray[Any]] = {"latent": z[i : i + self._batch]}
            batches.append(session.run(["reconstruction"], feed | self._condition(conditions, i))[0])
        return np.concatenate(batches)

    def generate(self, n: int, seed: int, condition: int | None = None, steps: int | None = None) -> Floats:
        """New samples in raw units, (n, *shape): the sampler's, else the decoder's of latents from N(0, I), else what
        the step graph makes of noise.

        Args:
            condition: number of the condition that all of them have, for a model that takes them.
            steps: of a step graph; None takes the number that the model was fitted with.

        Raises:
            Refusal: the model has none of the three, or its number of steps is not known.
        """
        rng = np.random.default_rng(seed)
        conditions = np.full(n, condition, np.int64) if condition is not None else None
        # A model that has both says by its sampler that its latents do not come from N(0, I).
        if self.has(SAMPLER):
            return self._sample(rng, n, conditions)
        if self.has(DECODER):
            size = int(self._session(DECODER).get_inputs()[0].shape[-1])
            return self.decode(rng.standard_normal((n, size), np.float32), conditions)
        if self.has(STEP):
            return self._step(rng, n, conditions, steps)
        raise Refusal(
            f"A model of family {self.bundle.manifest.family} has neither decoder nor sampler, so it cannot generate; "
            "fit one of a family that can (docs/models.md)."
        )

    def _sample(self, rng: np.random.Generator, n: int, conditions: Ints | None) -> Floats:
        session = self._session(SAMPLER)
        shape = _shape(session, "noise")
        batches = []
        for i in range(0, n, self._batch):
            noise = rng.standard_normal((min(self._batch, n - i), *shape), np.float32)
            batches.append(session.run(["sample"], {"noise": noise} | self._condition(conditions, i))[0])
        return np.concatenate(batches)

    def _step(self, rng: np.random.Generator, n: int, conditions: Ints | None, steps: int | None) -> Floats:
        """From noise at time T to a sample, by T steps that count down to 1."""
        # What draws one place after the other needs as many steps as there are places.
        total = steps or self.bundle.manifest.arguments.get("steps", _places(self.spec))
        if not isinstance(total, int) or total < 1:
            raise Refusal("The model generates step by step and does not say in how many; give --steps.")
        session = self._session(STEP)
        shape = _shape(session, "sample")
        batches = []
        for i in range(0, n, self._batch):
            count = min(self._batch, n - i)
            x = rng.standard_normal((count, *shape), np.float32)
            for time in range(total, 0, -1):
                feed = {
                    "sample": x,
                    "time": np.full(count, time, np.int64),
                    "noise": rng.standard_normal((count, *shape), np.float32),
                }
                x = session.run(["next"], feed | self._condition(conditions, i))[0]
            batches.append(x)
        samples = np.concatenate(batches)
        return samples.reshape(n, *self.spec.shape) if samples.size == n * int(np.prod(self.spec.shape)) else samples

    def _condition(self, conditions: Ints | None, at: int) -> dict[str, NDArray[Any]]:
        assert bool(self.spec.conditions) == (conditions is not None)
        return {} if conditions is None else {"condition": conditions[at : at + self._batch]}

    def _session(self, graph: str) -> Session:
        if graph not in self._open:
            self._open[graph] = open_session(self.bundle.read(graph), self._device)[0]
        return self._open[graph]


def _places(spec: InputSpec) -> int:
    """Pixels of an image, rows of a window or columns of a vector."""
    return int(np.prod(spec.shape if spec.kind == "vector" else spec.shape[:-1]))


def _shape(session: Session, name: str) -> tuple[int, ...]:
    """Of one row of the named input."""
    described = next(i for i in session.get_inputs() if i.name == name)
    return tuple(int(side) for side in described.shape[1:])


def condition_for_all(spec: InputSpec, condition: str | None, n: int) -> Ints | None:
    """(n,) the number of one condition for all, None for a model without conditions.

    Raises:
        Refusal: unknown, lacking, or given to a model that has none.
    """
    if condition is not None:
        return np.full(n, number_of(spec, condition), np.int64)
    if spec.conditions:
        raise Refusal(
            f"The model was fitted with conditions; say which with --condition, one of {', '.join(spec.conditions)}."
        )
    return None
