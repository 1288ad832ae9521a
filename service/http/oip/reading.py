"""Requests for inference -> blocks, and verdicts -> the outputs that answer them.

A tensor has no place for "could not be judged", so a sample without a verdict has NaN evidence and p-values (null in
JSON), the status `unjudged`, and is `anomalous`: whoever reads nothing but that must not take it for clean. Values that
are known to be unusable before the graph runs refuse the whole request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from vaegis.models import inputs
from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal, TooLarge
from vaegis.models.inputs.options import Limits
from vaegis.models.scorer import UNJUDGED, Verdicts
from vaegis.models.sources.options import listed
from vaegis.models.spec import ImageSpec, InputSpec
from vaegis.service.http.oip.messages import STATEFUL, Asked, Request
from vaegis.service.http.oip.tensors import BYTES, NAMES, Tensor, to_bytes, to_json
from vaegis.service.http.score.query import PRIORITIES, Controls
from vaegis.service.serving.live import Served

INPUT, MASK, CONDITION, MAP = "input", "mask", "condition", "map"
PARAMETERS = ("alpha", "threshold", "decide_by", "group", "condition", "priority", "timeout", "deadline_ms")
JSON_BYTES = 12  # of a 32-bit float, as a number in JSON
Data = NDArray[Any] | Sequence[str]


@dataclass(frozen=True)
class Described:
    """An input or output in a model's metadata; -1 in the shape is any number."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def inputs_of(spec: InputSpec) -> list[Described]:
    """What a model takes. Images of any size, in one request all of the same, where the model tiles or resizes."""
    shape: tuple[int, ...] = spec.shape
    if isinstance(spec, ImageSpec) and (spec.tile or spec.fit == "resize"):
        shape = (-1, -1, spec.channels)
    found = [Described(INPUT, NAMES[spec.dtype], (-1, *shape))]
    if spec.missing == "allow" and spec.dtype.kind == "f":
        found.append(Described(MASK, "FP32", (-1, *shape)))
    if spec.conditions:
        found.append(Described(CONDITION, "INT64", (-1,)))
    return found


def outputs_of(served: Served) -> list[Described]:
    """What a model answers; the map comes last, and only when it is asked for."""
    spec = served.scorer.spec
    map_shape = (-1, -1) if isinstance(spec, ImageSpec) and spec.tile else spec.map_shape
    return [
        *(Described(term, "FP32", (-1,)) for term in served.scorer.terms),
        Described("p_value", "FP64", (-1,)),
        Described("p_tail", "FP64", (-1,)),
        Described("anomalous", "BOOL", (-1,)),
        Described("status", BYTES, (-1,)),
        Described(MAP, "FP32", (-1, *map_shape)),
    ]


def controls_of(parameters: Mapping[str, Any]) -> Controls:
    """The parameters of a request.

    Raises:
        Refusal: an unknown one, or a value that it cannot have.
    """
    if stateful := [name for name in STATEFUL if name in parameters]:
        raise Refusal(f"The parameter {stateful[0]} asks for a state between requests, which no model here has.")
    if unknown := sorted(set(parameters) - set(PARAMETERS)):
        raise Refusal(f"There is no parameter {unknown[0][:70]!r}; there is {', '.join(PARAMETERS)}.")
    timeout, deadline_ms = _number(parameters, "timeout"), _number(parameters, "deadline_ms")
    if timeout is not None and deadline_ms is not None:
        raise Refusal("Both timeout (microseconds) and deadline_ms were given; give one of them.")
    seconds = None
    if timeout is not None:
        seconds = timeout / 1e6
    elif deadline_ms is not None:
        seconds = deadline_ms / 1e3
    if seconds is not None and seconds <= 0:
        raise Refusal("The parameter timeout or deadline_ms leaves no time to answer; give more, or none.")
    return Controls(
        alpha=_number(parameters, "alpha"),
        threshold=_number(parameters, "threshold"),
        decide_by=_text(parameters, "decide_by") or "score",
        group=_text(parameters, "group"),
        condition=_text(parameters, "condition"),
        seconds=seconds,
        bulk=_bulk(parameters.get("priority", 0)),
    )


def asked_of(served: Served, request: Request) -> tuple[Asked, ...]:
    """The outputs that a request wants: all but the map, where it names none.

    Raises:
        Refusal: the model has no such output.
    """
    names = [one.name for one in outputs_of(served)]
    if request.outputs is None:
        return tuple(Asked(name, request.binary) for name in names if name != MAP)
    for asked in request.outputs:
        if asked.name not in names:
            raise Refusal(f"The model has no output {asked.name[:70]!r}; it has {', '.join(names)}.")
    return request.outputs


def block_of(served: Served, request: Request, condition: str | None, limits: Limits) -> Block:
    """The samples of a request.

    Raises:
        Malformed: data that do not fill their shape.
        Refusal: inputs, shapes or datatypes that the model does not take; a value that cannot be judged.
        TooLarge: more samples or bytes than the limit.
    """
    spec = served.scorer.spec
    known = {one.name: one for one in inputs_of(spec)}
    tensors = request.inputs if request.bare is None else {INPUT: _bare(spec, request.bare)}
    if unknown := [name for name in tensors if name not in known]:
        raise Refusal(f"The model takes no input {unknown[0][:70]!r}; it takes {', '.join(known)}.")
    if INPUT not in tensors:
        raise Refusal(f"The input {INPUT!r} is missing; the model takes it as {_said(known[INPUT])}.")
    values = _values(tensors[INPUT], known[INPUT], limits)
    if MASK in tensors:
        values = _masked(values, tensors[MASK])
    block = inputs.from_array(spec, values, roi=served.scorer.bundle.roi, limits=limits)
    words = _conditions(spec, tensors.get(CONDITION), condition, len(block))
    if words is not None:
        block = inputs.declare(block, spec, words)
    if block.errors:
        first = min(block.errors)
        more = f", and {len(block.errors) - 1} more samples" if len(block.errors) > 1 else ""
        raise Refusal(f"Sample {first} of the request{more} cannot be judged: {block.errors[first]}")
    return block


def answer(served: Served, verdicts: Verdicts, id: str | None, asked: Sequence[Asked]) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON where binary tensors follow."""
    decision = verdicts.decision
    parameters: dict[str, Any] = {
        "digest": served.resolved.digest,
        "decide_by": decision.decide_by,
        "threshold": decision.threshold,
        "extrapolated": decision.extrapolated,
    }
    if decision.alpha is not None:
        parameters["alpha"] = decision.alpha
    if verdicts.errors:
        first = min(verdicts.errors)
        parameters["unjudged"] = len(verdicts.errors)
        parameters["reason"] = f"Sample {first}: {verdicts.errors[first]}"
    made: dict[str, Any] = {"model_name": served.resolved.name, "model_version": str(served.resolved.version)}
    if id is not None:
        made["id"] = id
    made["parameters"] = parameters
    tails: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    datatypes = {one.name: one.datatype for one in outputs_of(served)}
    for one in asked:
        values = _output(one.name, served.scorer.spec, verdicts)
        shape = list(values.shape) if isinstance(values, np.ndarray) else [len(values)]
        output: dict[str, Any] = {"name": one.name, "datatype": datatypes[one.name], "shape": shape}
        if one.binary:
            tails.append(to_bytes(values))
            output["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            output["data"] = to_json(values)
        outputs.append(output)
    made["outputs"] = outputs
    header = orjson.dumps(made, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *tails]), len(header)) if tails else (header, None)


def check_maps(spec: InputSpec, block: Block, asked: Sequence[Asked], most: int) -> bool:
    """Whether the map is asked for.

    Raises:
        TooLarge: the maps of so many samples are more than `most` bytes of answer.
    """
    wanted = [one for one in asked if one.name == MAP]
    if not wanted:
        return False
    if block.extents is not None:
        values = sum(height * width for height, width in block.extents)
    else:
        values = len(block) * math.prod(spec.map_shape)
    size = values * (4 if wanted[0].binary else JSON_BYTES)
    if size > most:
        raise TooLarge(
            f"The maps of {len(block)} samples make an answer of about {size} bytes, more than the {most} of "
            "VAEGIS_MAX_ANSWER_BYTES. Send fewer samples at a time, ask for binary data, or leave the map out."
        )
    return True


def _output(name: str, spec: InputSpec, v: Verdicts) -> Data:
    if name == "p_value":
        return v.p_values[v.decision.decide_by]
    if name == "p_tail":
        return v.p_tail
    if name == "anomalous":
        return np.asarray(v.anomalous | [status == UNJUDGED for status in v.status])
    if name == "status":
        return v.status
    if name == MAP:
        return _maps(spec, v)
    return v.evidence[name].astype(np.float32)  # as the graph gave it


def _maps(spec: InputSpec, v: Verdicts) -> NDArray[np.float32]:
    assert v.maps is not None
    found = [m for m in v.maps if m is not None]
    nothing = np.full(found[0].shape if found else spec.map_shape, np.nan, np.float32)
    return np.stack([nothing if m is None or s == UNJUDGED else m for m, s in zip(v.maps, v.status, strict=True)])


def _bare(spec: InputSpec, raw: memoryview) -> Tensor:
    """The whole body as the input, in the size of the graph's; the batch follows from the length."""
    size = math.prod(spec.shape) * spec.dtype.itemsize
    if not raw or len(raw) % size:
        raise Malformed(
            f"The body has {len(raw)} bytes; a sample of the model has {size} ({spec.dtype.name}, shape "
            f"{list(spec.shape)}), so send a multiple of that."
        )
    return Tensor(INPUT, NAMES[spec.dtype], (len(raw) // size, *spec.shape), raw)


def _values(tensor: Tensor, known: Described, limits: Limits) -> NDArray[Any]:
    wanted = known.shape
    fits = len(tensor.shape) == len(wanted) and all(w in (-1, s) for s, w in zip(tensor.shape, wanted, strict=True))
    if not fits:
        raise Refusal(
            f"The input {tensor.name!r} has the shape {list(tensor.shape)}; the model takes {_said(known)}, where -1 "
            "is any number."
        )
    if 0 in tensor.shape:
        raise Refusal(f"The input {tensor.name!r} holds nothing: its shape is {list(tensor.shape)}.")
    if tensor.shape[0] > limits.samples:
        raise TooLarge(f"The request holds {tensor.shape[0]} samples, more than the {limits.samples} that one may.")
    return tensor.array(known.datatype)


def _masked(values: NDArray[Any], mask: Tensor) -> NDArray[Any]:
    """The values, NaN where the mask says that there are none."""
    if mask.shape != values.shape:
        raise Refusal(
            f"The input {MASK!r} has the shape {list(mask.shape)}; it must have that of {INPUT!r}, "
            f"{list(values.shape)}."
        )
    seen = mask.array("FP32")
    if not np.isin(seen, (0, 1)).all():
        raise Refusal(f"The input {MASK!r} holds something else than 1 (observed) and 0 (missing).")
    return np.where(seen == 1, values, np.float32(np.nan))


def _conditions(spec: InputSpec, tensor: Tensor | None, one: str | None, n: int) -> list[str] | None:
    """The condition of each sample, by its name."""
    if tensor is None and one is None:
        if spec.conditions:
            raise Refusal(
                f"The model was fitted with conditions ({listed(spec.conditions, 20)}). Send the input {CONDITION!r}, "
                f"INT64 numbers from 0 or {BYTES} names, one per sample, or the parameter {CONDITION!r} for all."
            )
        return None
    if one is not None:
        if tensor is not None:
            raise Refusal(f"Both an input and a parameter give the {CONDITION}; leave one of them out.")
        inputs.number_of(spec, one)
        return [one] * n
    assert tensor is not None
    if tensor.shape not in ((n,), (n, 1)):
        raise Refusal(f"The input {CONDITION!r} has the shape {list(tensor.shape)}; it must be [{n}], one per sample.")
    if tensor.datatype == BYTES:
        return tensor.words()
    found = tensor.array("INT64").reshape(-1)
    if ((found < 0) | (found >= len(spec.conditions))).any():
        wrong = found[(found < 0) | (found >= len(spec.conditions))][0]
        numbered = [f"{i} ({name})" for i, name in enumerate(spec.conditions)]
        raise Refusal(f"The input {CONDITION!r} holds {wrong}; the model knows {listed(numbered, 20)}.")
    return [spec.conditions[i] for i in found.tolist()]


def _said(one: Described) -> str:
    return f"{one.datatype} of the shape {list(one.shape)}"


def _bulk(priority: Any) -> bool:
    """Whether requests of a priority let others go first: by this service's words, or by the protocol's numbers."""
    if isinstance(priority, int) and not isinstance(priority, bool) and priority >= 0:
        return priority > 1  # 0 is the default, 1 the highest
    if priority not in PRIORITIES:
        raise Refusal(
            f"The parameter priority cannot be {str(priority)[:70]!r}; it is one of {', '.join(PRIORITIES)}, or a "
            "number: 0 and 1 are interactive, larger ones bulk."
        )
    return bool(priority == "bulk")


def _number(parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f"The parameter {name} cannot be {str(value)[:70]!r}; give a number.")
    return float(value)


def _text(parameters: Mapping[str, Any], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(f"The parameter {name} cannot be {str(value)[:70]!r}; give a text.")
    return value
