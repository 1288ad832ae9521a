"""A bundle tried out, in a process that may be ended: its graphs opened, its score graph run on one sample and on two.

    python -P -m vaegis.models.trial_process FOLDER SECONDS

prints one JSON object: `finite`, or `refusal` and its `status` and `title`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.bundle import SCORE, Bundle, open_bundle
from vaegis.models.bundle_files import list_files
from vaegis.models.calibration import ALL
from vaegis.models.errors import Refusal, Unfit
from vaegis.models.runtime.sessions import Session, failures, open_session
from vaegis.models.spec import InputSpec

INPUT, MASK, CONDITION, MAP = "input", "mask", "condition", "map"
FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}
MEMORY = 4 * 2**30  # bytes that a trial may take, beside what its graphs weigh
COPIES = 8  # of a graph's bytes, while it is opened
OVERTIME = 10  # seconds of processor time beyond those allowed: for when nobody is left to end the process


@dataclass(frozen=True)
class Slot:
    """An input or output, as the runtime states it."""

    name: str
    type: str
    shape: list[int | str | None]


def examine(folder: str) -> bool:
    """Whether a bundle's score graph gives finite evidence of any sample made up for it.

    Raises:
        Refusal: the bundle is not whole.
        Unfit: a graph that this runtime does not open, or that does not take or give what the spec and the calibration
            say.
    """
    bundle = open_bundle(folder)
    for name in bundle.manifest.files:
        if name.endswith(".onnx") and name != SCORE:
            _opened(bundle, name)
    session = _opened(bundle, SCORE)
    _check_inputs(bundle.spec, {i.name: Slot(i.name, i.type, i.shape) for i in session.get_inputs()})
    terms = list(bundle.calibration.groups[ALL].terms)
    _check_outputs(terms, {o.name: Slot(o.name, o.type, o.shape) for o in session.get_outputs()})
    dtype = _dtype(bundle.spec, next(i.type for i in session.get_inputs() if i.name == INPUT))
    finite = False
    for sample in _samples(bundle, dtype):
        evidence = [_evidence(session, bundle.spec, terms, np.stack([sample] * n)) for n in (1, 2)]
        finite = finite or all(bool(np.isfinite(e).all()) for e in evidence)
        if finite:
            break
    return finite


def _opened(bundle: Bundle, name: str) -> Session:
    try:
        return open_session(bundle.read(name), "cpu", 1, spin=False)[0]
    except Refusal as refusal:
        raise Unfit(f"{name}: {refusal}") from refusal


def _dtype(spec: InputSpec, stated: str) -> np.dtype[Any]:
    """Of the graph's input: the spec's own; for floats, also single precision, as bundles of format 1 have it."""
    if spec.kind == "image":
        return spec.dtype
    return np.dtype(FLOATS[stated])


def _check_inputs(spec: InputSpec, inputs: dict[str, Slot]) -> None:
    needed = {INPUT}
    needed |= {MASK} if spec.missing == "allow" else set()
    needed |= {CONDITION} if spec.conditions else set()
    if set(inputs) != needed:
        raise Unfit(
            f"{SCORE} takes the inputs {_names(inputs)} and its spec says {_names(needed)}; export the model again."
        )
    kinds = {"uint8": {"tensor(uint8)"}, "uint16": {"tensor(uint16)"}}
    types = {
        INPUT: kinds.get(spec.dtype.name, set(FLOATS)),
        MASK: set(FLOATS),
        CONDITION: {"tensor(int64)"},
    }
    shapes: dict[str, list[int]] = {INPUT: [*spec.shape], MASK: [*spec.shape], CONDITION: []}
    for slot in inputs.values():
        if slot.type not in types[slot.name]:
            raise Unfit(
                f"{SCORE} takes {slot.name} as {slot.type} and its spec says {_names(types[slot.name])}; export the "
                "model again."
            )
        if len(slot.shape) != 1 + len(shapes[slot.name]) or slot.shape[1:] != shapes[slot.name]:
            raise Unfit(
                f"{SCORE} takes {slot.name} as {slot.shape} and its spec says ['batch', "
                f"{', '.join(map(str, shapes[slot.name]))}]; export the model again."
            )
        if isinstance(slot.shape[0], int):
            raise Unfit(f"{SCORE} takes batches of {slot.shape[0]} alone; export it for batches of any size.")


def _check_outputs(terms: list[str], outputs: dict[str, Slot]) -> None:
    if set(outputs) != {*terms, MAP}:
        raise Unfit(
            f"{SCORE} gives {_names(outputs)} and the calibration holds {_names(terms)}, and a map is needed; export "
            "the model again."
        )
    for slot in outputs.values():
        if slot.type != "tensor(float)":
            raise Unfit(f"{SCORE} gives {slot.name} as {slot.type}, not as tensor(float); export the model again.")


def _names(names: Any) -> str:
    return ", ".join(f"{n!r:.60}" for n in sorted(names)[:20])


def _samples(bundle: Bundle, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Samples made up for a bundle, likely ones last: constant ones, and what the graph's constants are centred on."""
    spec = bundle.spec
    for level in (1, 100, 0):
        yield np.full(spec.shape, level, dtype)
    if spec.kind == "image":
        return
    for values in _constants(bundle.read(SCORE)):
        if values.size in (spec.shape[-1], int(np.prod(spec.shape))) and np.isfinite(values).all():
            flat = np.tile(values.reshape(-1), int(np.prod(spec.shape)) // values.size)
            yield flat.reshape(spec.shape).astype(dtype)


def _constants(raw: bytes) -> Iterator[NDArray[Any]]:
    """A graph's constants of floating point."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(raw).graph
    tensors = [*graph.initializer]
    tensors += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    for tensor in tensors:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            with suppress(ValueError):
                yield numpy_helper.to_array(tensor)


def _evidence(session: Session, spec: InputSpec, terms: list[str], batch: NDArray[Any]) -> NDArray[np.float64]:
    """(terms, n) evidence of a batch of n samples."""
    n = len(batch)
    feed = {INPUT: batch}
    for slot in session.get_inputs():
        if slot.name == MASK:
            feed[MASK] = np.ones(batch.shape, FLOATS[slot.type])
        elif slot.name == CONDITION:
            feed[CONDITION] = np.zeros(n, np.int64)
    try:
        with failures("onnxruntime fails to run it"):
            outputs = dict(zip([*terms, MAP], session.run([*terms, MAP], feed), strict=True))
    except Refusal as refusal:
        raise Unfit(f"{SCORE}: {refusal}") from refusal
    for name, values in outputs.items():
        expected = (n, *spec.map_shape) if name == MAP else (n,)
        if values.shape != expected:
            raise Unfit(
                f"{SCORE} gives {name!r:.60} of shape {values.shape} for {n} sample{'s' if n > 1 else ''}, where "
                f"{expected} is right; export the model again."
            )
    return np.array([outputs[t] for t in terms], np.float64)


def _limit(folder: str, seconds: float) -> None:
    """Bounds what this process may take, where the system can."""
    try:
        import resource
    except ImportError:
        return
    weight = 0
    with suppress(Refusal):  # whatever is wrong with the folder, opening it says so
        weight = sum(size for name, size in list_files(Path(folder)).items() if name.endswith(".onnx"))
    memory = MEMORY + COPIES * weight
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + OVERTIME),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def main(folder: str, seconds: float) -> None:
    """Examines a bundle and says what came of it."""
    _limit(folder, seconds)
    try:
        outcome: dict[str, object] = {"finite": examine(folder)}
    except Refusal as refusal:
        outcome = {"refusal": str(refusal), "status": refusal.status, "title": refusal.title}
    except MemoryError:
        sentence = "The bundle needs more memory than a trial may take; fit a smaller model."
        outcome = {"refusal": sentence, "status": Unfit.status, "title": Unfit.title}
    print(json.dumps(outcome))  # noqa: T201 - what this process is for


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
