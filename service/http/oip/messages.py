"""The inference request: its JSON, and the binary tensors that may follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from vaegis.models.errors import Malformed, Refusal
from vaegis.service.http.oip.tensors import BYTES, DATATYPES, Tensor

HEADER = b"inference-header-content-length"  # bytes of JSON before the binary tensors
MOST_DIMENSIONS = 8
MOST_INPUTS = 16
STATEFUL = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True)
class OutputChoice:
    """An output that the answer shall hold."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferenceRequest:
    """A request for inference, checked for form."""

    id: str | None
    parameters: Mapping[str, Any]  # of the request, without `binary_data_output`
    inputs: dict[str, Tensor]
    outputs: tuple[OutputChoice, ...] | None  # None: those that are given unasked
    binary: bool = False  # of outputs that do not say
    bare: memoryview | None = field(default=None, repr=False)  # the whole body, where it is the one input's bytes


def parse(body: bytes, json_bytes: str | None) -> InferenceRequest:
    """A request's body.

    Args:
        json_bytes: the header `Inference-Header-Content-Length`; None where everything is JSON, 0 where everything
            is the data of the one input.

    Raises:
        Malformed: not the form that the protocol asks for.
    """
    view = memoryview(body)
    if json_bytes is None:
        header, tail = view, view[len(view) :]
    else:
        length = _length(json_bytes, len(body))
        if length == 0:
            return InferenceRequest(None, {}, {}, None, bare=view)
        header, tail = view[:length], view[length:]
    try:
        message = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        where = "The body" if json_bytes is None else f"The first {len(header)} bytes of the body"
        raise Malformed(
            f"{where} cannot be read as JSON: {error}. NaN and Infinity are no JSON. Where binary tensors follow the "
            "JSON, say how long it is, in bytes, in the header Inference-Header-Content-Length."
        ) from error
    if not isinstance(message, dict):
        raise Malformed('The JSON is no object; send {"inputs": [...]}.')
    value = message.get("id")
    if value is not None and not isinstance(value, str):
        raise Malformed('"id" must be a string.')
    parameters = dict(_parameters(message, "the request"))
    binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    inputs = _inputs(message.get("inputs"), tail)
    return InferenceRequest(value, parameters, inputs, _outputs(message.get("outputs"), binary), binary)


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Malformed(f"Inference-Header-Content-Length is {text[:40]!r}, which is no number of bytes.")
    if int(text) > most:
        raise Malformed(
            f"Inference-Header-Content-Length announces {text} bytes of JSON, and the whole body has {most}; send "
            "the number of bytes of the JSON before the binary tensors."
        )
    return int(text)


def _inputs(value: Any, tail: memoryview) -> dict[str, Tensor]:
    if not isinstance(value, list) or not value or len(value) > MOST_INPUTS:
        raise Malformed(f'"inputs" must be a list of tensors, 1 to {MOST_INPUTS} of them.')
    tensors: dict[str, Tensor] = {}
    at = 0
    for item in value:
        name = _name(item, "input")
        if name in tensors:
            raise Malformed(f"The input {name!r} is given twice.")
        parameters = _parameters(item, f"the input {name!r}")
        size = parameters.get("binary_data_size")
        if unknown := sorted(set(parameters) - {"binary_data_size"}):
            raise Refusal(
                f"The input {name!r} has the parameter {unknown[0][:70]!r}, which is not known here; send its data "
                'as JSON, or as binary data with "binary_data_size".'
            )
        datatype = item.get("datatype")
        if not isinstance(datatype, str) or (datatype != BYTES and datatype not in DATATYPES):
            raise Malformed(
                f"The input {name!r} has the datatype {str(datatype)[:40]!r}; there is {', '.join(DATATYPES)}, {BYTES}."
            )
        data: list[Any] | memoryview
        if size is None:
            listed = item.get("data")
            if not isinstance(listed, list):
                raise Malformed(f'The input {name!r} has no list "data", and no "binary_data_size" either.')
            data = listed
        else:
            if "data" in item:
                raise Malformed(f'The input {name!r} has both "data" and "binary_data_size"; send one of them.')
            if not _whole(size) or at + size > len(tail):
                raise Malformed(
                    f"The input {name!r} announces {str(size)[:20]} bytes of binary data, and after the JSON and the "
                    f"inputs before it the body has {len(tail) - at}."
                )
            data = tail[at : at + size]
            at += size
        tensors[name] = Tensor(name, datatype, _shape(name, item.get("shape")), data)
    if at != len(tail):
        raise Malformed(f"{len(tail) - at} bytes are left after the tensors that the inputs announce.")
    return tensors


def _outputs(value: Any, binary: bool) -> tuple[OutputChoice, ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise Malformed('"outputs" must be a list of {"name": ...}.')
    choices = []
    for item in value:
        name = _name(item, "output")
        parameters = _parameters(item, f"the output {name!r}")
        if unknown := sorted(set(parameters) - {"binary_data"}):
            raise Refusal(
                f"The output {name!r} has the parameter {unknown[0][:70]!r}, which is not known here; there is "
                "binary_data."
            )
        choices.append(OutputChoice(name, _flag(parameters.get("binary_data", binary), "binary_data")))
    names = [choice.name for choice in choices]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Malformed(f"The output {twice[0]!r} is asked for twice.")
    return tuple(choices)


def _name(item: Any, what: str) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise Malformed(f'Every {what} must be an object with a "name".')
    name: str = item["name"]
    if len(name) > 200:
        raise Malformed(f"The name of an {what} has {len(name)} characters, more than any has here.")
    return name


def _parameters(holder: dict[str, Any], of: str) -> dict[str, Any]:
    value = holder.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, (str, int, float, bool)) for v in value.values()):
        raise Malformed(f'The "parameters" of {of} must be an object of texts, numbers and truth values.')
    return value


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS or not all(_whole(n) for n in value):
        raise Malformed(
            f'The input {name!r} has no "shape" of whole numbers, 0 or more, such as [1, 28, 28, 1]; at most '
            f"{MOST_DIMENSIONS} of them."
        )
    if math.prod(value) > 2**40:
        raise Malformed(f"The input {name!r} has the shape {value}, which no body holds.")
    return tuple(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f'The parameter "{name}" must be true or false.')
    return value
