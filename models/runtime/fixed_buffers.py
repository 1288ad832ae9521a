"""A session with fixed buffers per batch size: what a GPU is fed through.

Inputs go through pinned memory and stay in one place on the device, so that the calls of a batch size can be recorded
once as a CUDA graph and replayed: nothing is launched kernel by kernel any more. Batches are padded to the next power
of two. On the CPU the same code runs and gains nothing, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vaegis.models.runtime.sessions import Cuda, Device, GraphFailure, failures, open_session

DTYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
}
_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


log = logging.getLogger("vaegis.scorer")


@dataclass(frozen=True)
class _Slot:
    """The buffers of one batch size and choice of outputs."""

    host: dict[str, NDArray[Any]]  # pinned where there is a GPU
    inputs: dict[str, ort.OrtValue]
    outputs: list[ort.OrtValue]
    binding: Any
    options: ort.RunOptions


class DirectCalls:
    """Runs a session as it is. Safe between threads."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session, self._options = session, ort.RunOptions()

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """The outputs of a batch."""
        outputs: Sequence[NDArray[np.float32]] = self._session.run(names, feed, self._options)
        return outputs

    def stop(self) -> None:
        """Ends the calls under way, and those to come, with an error."""
        self._options.terminate = True


class FixedBuffers:
    """Runs a session through fixed buffers. Safe between threads; calls wait for each other."""

    def __init__(self, session: ort.InferenceSession, device: str, replay: bool = False) -> None:
        """
        Args:
            device: cuda or cpu, where the session runs.
            replay: the session records CUDA graphs.
        """
        self._session, self._device, self._replay = session, device, replay
        self._inputs = {i.name: (DTYPES[i.type], i.shape[1:]) for i in session.get_inputs()}
        self._tails = {o.name: o.shape[1:] for o in session.get_outputs()}
        self._slots: dict[tuple[int, tuple[str, ...]], _Slot] = {}
        self._lock, self._stopped = threading.Lock(), False

    def stop(self) -> None:
        """Ends the calls under way, and those to come, with an error."""
        self._stopped = True
        for slot in list(self._slots.values()):
            slot.options.terminate = True

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """The outputs of a batch, as `InferenceSession.run` gives them."""
        n = len(feed["input"])
        with self._lock:
            slot = self._slot(1 << (n - 1).bit_length(), tuple(names))
            for name, array in feed.items():
                slot.host[name][:n] = array
                slot.inputs[name].update_inplace(slot.host[name])
            self._session.run_with_iobinding(slot.binding, slot.options)
            return [value.numpy()[:n].copy() for value in slot.outputs]

    def follows(self, tail: tuple[int, ...]) -> bool:
        """Whether what comes out follows what goes in, twice the same: a recording that does not is of no use."""
        rng = np.random.default_rng(0)
        names = ["score"]
        feeds = [
            {
                n: (rng.random((1, *(tail if n == "input" else t))) * (100 if n == "input" else 1)).astype(d)
                for n, (d, t) in self._inputs.items()
            }
            for _ in range(2)
        ]
        first, second, third = (self.run(names, feed)[0] for feed in (*feeds, feeds[0]))
        return bool(np.array_equal(first, third) and not np.array_equal(first, second))

    def _slot(self, size: int, names: tuple[str, ...]) -> _Slot:
        known = self._slots.get((size, names))
        if known is not None:
            return known
        host = {n: np.zeros((size, *tail), dtype) for n, (dtype, tail) in self._inputs.items()}
        if self._device == "cuda":
            for array in host.values():
                _pin(array)
        inputs = {n: ort.OrtValue.ortvalue_from_numpy(a, self._device, 0) for n, a in host.items()}
        outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type([size, *self._tails[n]], np.float32, self._device, 0)
            for n in names
        ]
        binding = self._session.io_binding()
        for n, value in inputs.items():
            binding.bind_ortvalue_input(n, value)
        for n, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(n, value)
        options = ort.RunOptions()
        options.terminate = self._stopped
        if self._replay:
            options.add_run_config_entry("gpu_graph_id", str(len(self._slots) + 1))
        slot = self._slots[(size, names)] = _Slot(host, inputs, outputs, binding, options)
        return slot


def open_graph(
    raw: bytes, device: Device, threads: int, spin: bool, cuda: Cuda, shape: tuple[int, ...]
) -> tuple[ort.InferenceSession, str, DirectCalls | FixedBuffers]:
    """A session, where it runs, and what runs it there: on a GPU fixed buffers, replayed where that works.

    Args:
        shape: of one sample, for a trial.

    Raises:
        Refusal: see `open_session`.
    """
    if cuda.graphs and device != "cpu":
        try:
            session, got = open_session(raw, device, threads, spin, cuda)
            if got == "cpu":
                return session, got, DirectCalls(session)
            with failures("its inputs or outputs are none that a score graph has"):
                buffers = FixedBuffers(session, got, replay=True)
            with failures("it cannot be recorded"):
                follows = buffers.follows(shape)
            if follows:
                return session, got, buffers
            log.warning("CUDA graphs are left out: what they give does not follow their input")
        except GraphFailure as error:  # without CUDA graphs it may run
            log.info("CUDA graphs are left out, as this model allows none: %s", str(error).splitlines()[0][:200])
    session, got = open_session(raw, device, threads, spin, replace(cuda, graphs=False))
    return session, got, FixedBuffers(session, got) if got == "cuda" else DirectCalls(session)


def _pin(array: NDArray[Any]) -> None:
    """Fixes an array's pages in memory, so that the GPU reads them directly; without CUDA's library they stay free."""
    for name in _RUNTIMES:
        try:
            register = ctypes.CDLL(name).cudaHostRegister
        except (OSError, AttributeError):
            continue
        where = ctypes.c_void_p(array.ctypes.data)
        if register(where, ctypes.c_size_t(array.nbytes), 0) == 0:
            weakref.finalize(array, ctypes.CDLL(name).cudaHostUnregister, where)
            return
    log.debug("a buffer of %d bytes could not be pinned", array.nbytes)
