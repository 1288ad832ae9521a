"""Requests for inference -> how to judge, which outputs to answer with, and samples.

Values that are known to be unusable before the graph runs refuse the whole request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models import inputs
from vaegis.models.blocks import Block
from vaegis.models.errors import Malformed, Refusal, TooLarge
from vaegis.models.inputs.options import Limits
from vaegis.models.sources.options import listed
from vaegis.models.spec import InputSpec
from vaegis.service.http.oip.described import CONDITION, INPUT, MAP, MASK, Described, inputs_of, outputs_of
from vaegis.service.http.oip.messages import STATEFUL, InferenceRequest, OutputChoice
from vaegis.service.http.oip.tensors import BYTES, NAMES, Tensor
from vaegis.service.serving.controls import PRIORITIES, Controls, choice, finite, time_left
from vaegis.service.serving.served import Served

PARAMETERS = ("alpha", "threshold", "decide_by", "group", "condition", "priority", "timeout", "deadline_ms")


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
    seconds = time_left(seconds, "The parameter timeout or deadline_ms leaves no time to answer; give more, or none.")
    return Controls(
        alpha=_number(parameters, "alpha"),
        threshold=_number(parameters, "threshold"),
        decide_by=_text(parameters, "decide_by") or "score",
        group=_text(parameters, "group"),
        condition=_text(parameters, "condition"),
        seconds=seconds,
        bulk=_bulk(parameters.get("priority", 0)),
    )


def choices_of(served: Served, request: InferenceRequest) -> tuple[OutputChoice, ...]:
    """The outputs that a request wants: all but the map, where it names none.

    Raises:
        Refusal: the model has no such output.
    """
    names = [tensor.name for tensor in outputs_of(served)]
    if request.outputs is None:
        return tuple(OutputChoice(name, request.binary) for name in names if name != MAP)
    for output in request.outputs:
        if output.name not in names:
            raise Refusal(f"The model has no output {output.name[:70]!r}; it has {', '.join(names)}.")
    return request.outputs


def block_of(served: Served, request: InferenceRequest, condition: str | None, limits: Limits) -> Block:
    """The samples of a request.

    Raises:
        Malformed: data that do not fill their shape.
        Refusal: inputs, shapes or datatypes that the model does not take; a value that cannot be judged.
        TooLarge: more samples or bytes than the limit.
    """
    spec = served.scorer.spec
    known = {tensor.name: tensor for tensor in inputs_of(spec)}
    tensors = request.inputs if request.bare is None else {INPUT: _bare(spec, request.bare)}
    if unknown := [name for name in tensors if name not in known]:
        raise Refusal(f"The model takes no input {unknown[0][:70]!r}; it takes {', '.join(known)}.")
    if INPUT not in tensors:
        raise Refusal(f"The input {INPUT!r} is missing; the model takes it as {_form(known[INPUT])}.")
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
    shape = known.shape
    fits = len(tensor.shape) == len(shape) and all(w in (-1, s) for s, w in zip(tensor.shape, shape, strict=True))
    if not fits:
        raise Refusal(
            f"The input {tensor.name!r} has the shape {list(tensor.shape)}; the model takes {_form(known)}, where -1 "
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
    observed = mask.array("FP32")
    if not np.isin(observed, (0, 1)).all():
        raise Refusal(f"The input {MASK!r} holds something else than 1 (observed) and 0 (missing).")
    return np.where(observed == 1, values, np.float32(np.nan))


def _conditions(spec: InputSpec, tensor: Tensor | None, name: str | None, n: int) -> list[str] | None:
    """The condition of each sample, by its name."""
    if tensor is None and name is None:
        if spec.conditions:
            raise Refusal(
                f"The model was fitted with conditions ({listed(spec.conditions, 20)}). Send the input {CONDITION!r}, "
                f"INT64 numbers from 0 or {BYTES} names, one per sample, or the parameter {CONDITION!r} for all."
            )
        return None
    if name is not None:
        if tensor is not None:
            raise Refusal(f"Both an input and a parameter give the {CONDITION}; leave one of them out.")
        inputs.number_of(spec, name)
        return [name] * n
    assert tensor is not None
    if tensor.shape not in ((n,), (n, 1)):
        raise Refusal(f"The input {CONDITION!r} has the shape {list(tensor.shape)}; it must be [{n}], one per sample.")
    if tensor.datatype == BYTES:
        return tensor.words()
    numbers = tensor.array("INT64").reshape(-1)
    unknown = numbers[(numbers < 0) | (numbers >= len(spec.conditions))]
    if len(unknown):
        numbered = [f"{i} ({known})" for i, known in enumerate(spec.conditions)]
        raise Refusal(f"The input {CONDITION!r} holds {unknown[0]}; the model knows {listed(numbered, 20)}.")
    return [spec.conditions[i] for i in numbers.tolist()]


def _form(tensor: Described) -> str:
    return f"{tensor.datatype} of the shape {list(tensor.shape)}"


def _bulk(priority: Any) -> bool:
    """Whether requests of a priority let others go first: by this service's words, or by the protocol's numbers."""
    if isinstance(priority, int) and not isinstance(priority, bool) and priority >= 0:
        return priority > 1  # 0 is the default, 1 the highest
    more = ", or a number: 0 and 1 are interactive, larger ones bulk"
    return choice("parameter priority", priority, PRIORITIES, more) == "bulk"


def _number(parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    number = None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    return finite(f"parameter {name}", number, value)


def _text(parameters: Mapping[str, Any], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(f"The parameter {name} cannot be {str(value)[:70]!r}; give a text.")
    return value
