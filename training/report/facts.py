"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.blocks import Samples
from vaegis.models.calibration import Calibration, Decision
from vaegis.models.manifest import Training
from vaegis.models.spec import InputSpec
from vaegis.training.generation import Generation
from vaegis.training.splits import Split


@dataclass(frozen=True)
class Facts:
    """Everything the report is made from."""

    name: str
    family: str
    arguments: Mapping[str, Any]
    spec: InputSpec
    meaning: Mapping[str, str]  # evidence term -> what it says, `score` first
    samples: Samples
    split: Split
    history: list[dict[str, float]]  # per epoch: step, loss terms, validate
    graphs: Mapping[str, bytes]  # file name -> ONNX
    calibration: Calibration
    decision: Decision  # at the bundle's own rate
    training: Training
    notes: tuple[str, ...]
    # Sum over a sample's values of log(scale) of the normalisation y = (x - centre) / scale, nats. None where the
    # likelihood is no density of y (bernoulli, counts, categories); bits per dimension are then left out.
    log_jacobian: float | None = None
    # Term -> (n,) raw evidence of `split.calibrate`, in its order, where it is at hand; None runs the graph again.
    evidence: Mapping[str, NDArray[np.float64]] | None = None
    generation: Generation | None = None  # of samples that the model made; None where it makes none or was not asked
    roi: NDArray[np.bool_] | None = None  # (H, W): where images are inspected; None is everywhere
