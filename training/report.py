"""The report of a fit: `report.json` for programs, a self-contained `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.blocks import Samples
from models.calibration import Calibration, Decision
from models.spec import InputSpec
from training.splits import Split


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
    training: Mapping[str, Any]
    notes: tuple[str, ...]


def build(facts: Facts) -> dict[str, bytes]:
    """Relative path -> bytes."""
    return {
        "report/report.json": json.dumps({"name": facts.name, "training": dict(facts.training)}).encode(),
        "report/report.html": b"<!doctype html>",
    }
