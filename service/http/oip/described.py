"""What a model takes and answers, as tensors with a name, a datatype and a shape."""

from __future__ import annotations

from dataclasses import dataclass

from vaegis.models.spec import ImageSpec, InputSpec
from vaegis.service.http.oip.tensors import BYTES, NAMES
from vaegis.service.serving.served import Served

INPUT, MASK, CONDITION, MAP = "input", "mask", "condition", "map"


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
    tensors = [Described(INPUT, NAMES[spec.dtype], (-1, *shape))]
    if spec.missing == "allow" and spec.dtype.kind == "f":
        tensors.append(Described(MASK, "FP32", (-1, *shape)))
    if spec.conditions:
        tensors.append(Described(CONDITION, "INT64", (-1,)))
    return tensors


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
