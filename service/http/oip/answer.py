"""Verdicts -> the outputs that answer a request for inference.

A tensor has no place for "could not be judged", so a sample without a verdict has NaN evidence and p-values (null in
JSON), the status `unjudged`, and is `anomalous`: whoever reads nothing but that must not take it for clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from vaegis.models.scorer import UNJUDGED, Verdicts
from vaegis.models.spec import InputSpec
from vaegis.service.http.oip.described import MAP, outputs_of
from vaegis.service.http.oip.messages import OutputChoice
from vaegis.service.http.oip.tensors import to_bytes, to_json
from vaegis.service.serving.judging import MapForm
from vaegis.service.serving.served import Served

JSON_BYTES = 12  # of a 32-bit float, as a number in JSON
Data = NDArray[Any] | Sequence[str]


def map_form(outputs: Sequence[OutputChoice]) -> MapForm | None:
    """How an answer with these outputs holds maps; None where the map is not among them."""
    choice = next((o for o in outputs if o.name == MAP), None)
    if choice is None:
        return None
    each = 4 if choice.binary else JSON_BYTES
    return MapForm(lambda values: values * each, ", ask for binary data, or leave the map out")


def answer(
    served: Served, verdicts: Verdicts, id: str | None, outputs: Sequence[OutputChoice]
) -> tuple[bytes, int | None]:
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
    message: dict[str, Any] = {"model_name": served.resolved.name, "model_version": str(served.resolved.version)}
    if id is not None:
        message["id"] = id
    message["parameters"] = parameters
    tails: list[bytes] = []
    written: list[dict[str, Any]] = []
    datatypes = {tensor.name: tensor.datatype for tensor in outputs_of(served)}
    for choice in outputs:
        values = _output(choice.name, served.scorer.spec, verdicts)
        shape = list(values.shape) if isinstance(values, np.ndarray) else [len(values)]
        output: dict[str, Any] = {"name": choice.name, "datatype": datatypes[choice.name], "shape": shape}
        if choice.binary:
            tails.append(to_bytes(values))
            output["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            output["data"] = to_json(values)
        written.append(output)
    message["outputs"] = written
    header = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *tails]), len(header)) if tails else (header, None)


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
    judged = [m for m in v.maps if m is not None]
    nothing = np.full(judged[0].shape if judged else spec.map_shape, np.nan, np.float32)
    return np.stack([nothing if m is None or s == UNJUDGED else m for m, s in zip(v.maps, v.status, strict=True)])
