"""What a fit is asked for, and what is shown while it runs: values that are at hand where torch is not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vaegis.models.blocks import Samples
from vaegis.models.inputs import InputOptions
from vaegis.models.sources import Source, SourceOptions


@dataclass(frozen=True)
class FitOptions:
    """What bounds a fit."""

    seed: int = 0
    steps: int | None = None  # at most; None takes the family's recipe
    max_time: float | None = None  # seconds of training, at most
    batch: int | None = None
    rate: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Request:
    """One fit, as a user asks for it."""

    source: Path | Source | Samples  # clean data: where they lie, an opened source, or samples as they are
    name: str
    out: Path  # where the bundle will be; must not exist
    work: Path  # where checkpoints are kept between runs
    family: str = "vae"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reading: SourceOptions = field(default_factory=SourceOptions)  # of a path
    shaping: InputOptions = field(default_factory=InputOptions)  # of a path or source; samples have a spec
    alpha: float = 0.01
    options: FitOptions = field(default_factory=FitOptions)
    resume: bool = False
    parent: str | None = None  # digest of the bundle this one replaces
    generation: bool = False  # judge what the model generates, for the report
    network: Path | None = None  # whose features that judges by; None fits a small VAE for it


@dataclass(frozen=True)
class Labelled:
    """Labelled samples to hold models against."""

    source: Path
    labels: str
    reading: SourceOptions


@dataclass(frozen=True)
class Step:
    """Where the training loop stands."""

    step: int
    total: int
    terms: dict[str, float]  # loss terms of this step
    validate: float | None  # loss of the last epoch


@dataclass(frozen=True)
class Watch:
    """What a person who waits is shown; every member may be a no-op."""

    stage: Callable[[str], None] = lambda _: None  # a sentence on what begins
    note: Callable[[str], None] = lambda _: None  # a choice made or a warning
    read: Callable[[int, int | None], None] = lambda done, total: None  # samples spooled
    step: Callable[[Step], None] = lambda _: None
