"""Opening onnxruntime sessions: on which device, with how many threads, with which of CUDA's options.

`get_available_providers` lists CUDA on machines without a GPU, and a session that fails to get it falls back without an
error: only the session's own providers tell where a graph runs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from vaegis.models.errors import Damaged, Refusal
from vaegis.models.texts import printable

Device = Literal["auto", "cuda", "cpu"]
Session = ort.InferenceSession
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# Identity over one float, opset 13: shows at the start where graphs will run.
PROBE = bytes.fromhex(
    "080812003a3b0a100a017812017922084964656e74697479120570726f62655a0f0a0178120a0a08080112040a020801620f"
    "0a0179120a0a08080112040a02080142040a00100d"
)

WORDS = 300  # characters of the runtime's own message
SOURCE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |\S*/\S+\.(?:h|cc):\d+ [^\n]*?\) (?=[A-Z])")  # not for users

log = logging.getLogger("vaegis.scorer")


class GraphFailure(Damaged):
    """A graph that onnxruntime does not open or run."""


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turns what onnxruntime raises, which shares no public class, into a refusal.

    Raises:
        GraphFailure: `what`, and the runtime's own words.
    """
    try:
        yield
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        words = printable(SOURCE.sub("", str(error)).strip()[:WORDS]).strip() or type(error).__name__
        raise GraphFailure(
            f"The graph cannot be used: {what} ({words}). Upgrade vaegis if it was made by a newer version, or restore "
            "the bundle from where it came."
        ) from error


@dataclass(frozen=True)
class DeviceInUse:
    """Where graphs run."""

    wanted: Device
    device: str  # cuda or cpu
    fallback: str | None  # why `auto` runs on the CPU


@dataclass(frozen=True)
class Cuda:
    """What is done on a GPU beyond running there."""

    graphs: bool = False  # record each batch size once and replay it: needs the fixed buffers of `fixed_buffers`
    tensorrt: Path | None = None  # folder that keeps TensorRT's engines; None = no TensorRT


def device_in_use(device: Device) -> DeviceInUse:
    """Where graphs of this process will run, tried with the smallest one.

    Raises:
        Refusal: `cuda` was asked for and cannot be had.
    """
    _, got = open_session(PROBE, device, 1)
    return DeviceInUse(device, got, _fallback(has_gpu()) if device == "auto" and got == "cpu" else None)


def open_session(
    raw: bytes, device: Device = "auto", threads: int = 0, spin: bool = True, cuda: Cuda | None = None
) -> tuple[ort.InferenceSession, str]:
    """An onnxruntime session from a graph's bytes, and the device it really runs on.

    Args:
        threads: within one call; 0 leaves it to onnxruntime.
        spin: whether idle threads wait by spinning: a call starts sooner, other work on the cores gets less.

    Raises:
        Refusal: `cuda`, or TensorRT, was asked for and cannot be had.
        GraphFailure: this runtime does not open the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4 if device == "auto" else 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    wanted: list[Any] = [CPU]
    if device != "cpu" and CUDA in ort.get_available_providers() and has_gpu():
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        wanted = [*_providers(cuda or Cuda()), CPU]
        options.use_deterministic_compute = True
    with failures("this version of onnxruntime cannot open it"):
        session = ort.InferenceSession(raw, options, providers=wanted)
    providers = session.get_providers()
    got = "cuda" if CUDA in providers else "cpu"
    if device == "cuda" and got != "cuda":
        raise Refusal(
            "Device cuda was asked for, but onnxruntime has no working CUDA provider here (it needs a GPU, CUDA 13 "
            "and cuDNN 9). Install them or ask for device cpu."
        )
    if cuda is not None and cuda.tensorrt is not None and got == "cuda" and TENSORRT not in providers:
        raise Refusal(
            "TensorRT was asked for, but onnxruntime has no working TensorRT provider here. Install TensorRT 10 or "
            "leave VAEGIS_TENSORRT off."
        )
    if device == "auto" and got == "cpu":
        _fallback(has_gpu())
    return session, got


@cache
def _fallback(gpu: bool) -> str:
    """Why `auto` runs on the CPU; logged the first time."""
    why = "a GPU is here that onnxruntime cannot use (it needs CUDA 13 and cuDNN 9)" if gpu else "no GPU is visible"
    log.log(logging.WARNING if gpu else logging.INFO, "device auto: scoring on the CPU, as %s", why)
    return why


def _providers(cuda: Cuda) -> list[Any]:
    """CUDA, with TensorRT before it where that is wanted."""
    # Scores are compared with a calibration made in whole single precision, and repeat bit for bit: no TF32, and no
    # search for the fastest convolution, which may end differently each time.
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    providers: list[Any] = [(CUDA, {"enable_cuda_graph": "1" if cuda.graphs else "0", **exact})]
    if cuda.tensorrt is not None:
        cuda.tensorrt.mkdir(parents=True, exist_ok=True)
        cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cuda.tensorrt)}
        timing = {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cuda.tensorrt)}
        providers.insert(0, (TENSORRT, {**cache, **timing, "trt_cuda_graph_enable": "1" if cuda.graphs else "0"}))
    return providers


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a device; asking CUDA itself on a bare machine only logs errors."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
