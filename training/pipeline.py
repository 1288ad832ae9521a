"""Clean data -> a calibrated bundle: every stage in turn, and what a person who waits is told.

Nothing is written where the bundle will be until all of it is proven; whatever fails leaves no bundle behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from vaegis.models import spec as specs
from vaegis.models.bundle import CALIBRATION, ROI, WEIGHTS, Bundle, write_bundle
from vaegis.models.calibration import Calibration, to_bytes
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import Family
from vaegis.models.manifest import Lineage, Manifest, Proof, SplitSizes, Training, installed_versions
from vaegis.models.sources import Source
from vaegis.models.spec import InputSpec
from vaegis.training import report, stages
from vaegis.training.export import Gate
from vaegis.training.fit import Fit, fit
from vaegis.training.generation import Network
from vaegis.training.report import Report
from vaegis.training.request import Request, Watch
from vaegis.training.splits import Split
from vaegis.training.stages import CalibratedExport, Judgement, Partition, Reading

INTERRUPTED = "An interrupted fit of this very command is kept; this run starts anew. Add --resume to go on from it."
LIBRARIES = ("torch", "lightning-fabric")  # that made a fit, beside those that run graphs


@dataclass(frozen=True)
class FittedBundle:
    """A bundle, and how it came to be."""

    bundle: Bundle
    fit: Fit
    split: Split
    calibration: Calibration
    gate: Gate
    report: Report
    notes: tuple[str, ...]  # what the user should know: choices made, warnings


@dataclass(frozen=True)
class Draft:
    """All that a bundle and its report are written from."""

    request: Request
    reading: Reading
    partition: Partition
    fit: Fit
    export: CalibratedExport
    judgement: Judgement
    notes: tuple[str, ...]


def run(request: Request, watch: Watch | None = None) -> FittedBundle:
    """Fits, calibrates and writes a bundle.

    Raises:
        Refusal: anything a user can cause, before the bundle's folder exists.
    """
    watch, notes = watch or Watch(), []

    def tell(texts: Iterable[str]) -> None:
        for text in texts:
            notes.append(text)
            watch.note(text)

    check(request)
    options = request.options
    with tempfile.TemporaryDirectory(prefix="vaegis-fit-") as folder:
        watch.stage("Reading the clean data")
        family, reading = _begin(request, Path(folder), watch, tell)
        partition = stages.partition_samples(reading.samples, options.seed)
        tell(partition.notes)
        key = checkpoint_key(request, family.spec, reading.samples.digest)
        path = request.work / key[:32] / "checkpoint.safetensors"
        if path.exists() and not request.resume:
            tell([INTERRUPTED])
        samples, split = partition.samples, partition.split
        watch.stage(f"Fitting {request.family} on {len(split.fit)} samples ({specs.describe(family.spec)})")
        result = fit(family, samples, split, options, key=key, path=path, resume=request.resume, show=watch.step)
        watch.stage("Exporting and calibrating")
        stages.fuse(family, samples, split, options.seed)
        export = stages.export_family(family, partition)
        tell(export.notes)
        calibrated = stages.calibrate_export(export, partition, request.alpha)
        tell(calibrated.notes)
        judgement = Judgement()
        if request.generation or request.network is not None:
            watch.stage("Judging what it generates")
            judgement = stages.judge_generation(
                family, request.family, export.graphs, partition, options.seed, request.network
            )
            tell(judgement.notes)
        watch.stage("Writing the report")
        bundle = write(Draft(request, reading, partition, result, calibrated, judgement, tuple(notes)))
    path.unlink(missing_ok=True)
    return bundle


def check(request: Request) -> None:
    """Answers at once what needs no look at the data.

    Raises:
        Refusal: the bundle's folder exists or cannot be made, a rate that is none, or an unknown family.
    """
    if request.out.exists():
        raise Conflict(f"{request.out} exists already; a bundle is never altered. Name another --out folder.")
    standing = next(folder for folder in request.out.absolute().parents if folder.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise Refusal(
            f"The bundle cannot be written to {request.out}: {standing} is no folder to write in. Name another."
        )
    if not 0.0 < request.alpha < 1.0:
        raise Refusal(f"The false-alarm rate alpha is {request.alpha}; give a number between 0 and 1, such as 0.01.")
    stages.check_family(request.family)


def spec_of(request: Request) -> InputSpec:
    """The shape of the input of what the request fits, from a first look at the data."""
    if isinstance(request.source, Path | Source):
        return stages.survey_source(request.source, request.reading, request.shaping).spec
    return request.source.spec


def _begin(
    request: Request, folder: Path, watch: Watch, tell: Callable[[Iterable[str]], None]
) -> tuple[Family, Reading]:
    """The family, and the clean samples. It is built before they are spooled: a wrong argument is answered at once."""
    if isinstance(request.source, Path | Source):
        survey = stages.survey_source(request.source, request.reading, request.shaping)
        tell(survey.notes)
        family = _family(request, survey.spec, tell)
        reading = stages.read_samples(survey, folder, watch.read)
        tell(reading.notes)
        return family, reading
    samples = request.source
    return _family(request, samples.spec, tell), Reading(samples, stages.roi_of(samples.spec, request.shaping))


def _family(request: Request, spec: InputSpec, tell: Callable[[Iterable[str]], None]) -> Family:
    family = stages.new_family(request.family, request.arguments, spec, request.options.seed)
    tell(family.notes())
    if request.network is not None:
        Network(request.network, spec)  # opened once before the fit, so that a wrong one is answered at once
    return family


def write(draft: Draft) -> FittedBundle:
    """Writes the report and the bundle.

    Raises:
        Refusal: the folder exists by now, or cannot be written.
    """
    request, family, export = draft.request, draft.fit.family, draft.export
    training = training_record(draft)
    rendering = report.build(facts_of(draft, training))
    files = {
        **export.graphs,
        CALIBRATION: to_bytes(export.calibration),
        WEIGHTS: save({k: v.contiguous() for k, v in family.state_dict().items()}),
        **rendering.files,
    }
    if draft.reading.roi is not None:
        files[ROI] = _npy(draft.reading.roi)
    manifest = Manifest(
        family=request.family,
        arguments=family.arguments(),
        spec=specs.to_json(family.spec),
        evidence=stages.meaning(family),
        alpha=export.alpha,
        training=training,
        lineage=Lineage(digest=request.parent),
        versions=installed_versions(*LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    bundle = write_bundle(request.out, files, manifest)
    return FittedBundle(
        bundle, draft.fit, draft.partition.split, export.calibration, export.gate, rendering.report, draft.notes
    )


def facts_of(draft: Draft, training: Training) -> report.Facts:
    """What the report is made from."""
    family, export = draft.fit.family, draft.export
    return report.Facts(
        name=draft.request.name,
        family=draft.request.family,
        arguments=family.arguments(),
        spec=family.spec,
        meaning=stages.meaning(family),
        samples=draft.partition.samples,
        split=draft.partition.split,
        history=draft.fit.history,
        graphs=export.graphs,
        calibration=export.calibration,
        decision=export.decision,
        training=training,
        notes=draft.notes,
        log_jacobian=family.log_jacobian(),
        generation=draft.judgement.generation,
        evidence=export.evidence,
        roi=draft.reading.roi,
    )


def checkpoint_key(request: Request, spec: InputSpec, digest: str) -> str:
    """What makes two fits the same."""
    options = request.options
    facts = [digest, specs.to_json(spec), request.family, dict(request.arguments), options.seed, options.steps]
    facts += [options.batch, options.rate, version("torch")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def training_record(draft: Draft) -> Training:
    """What the manifest says of the fit."""
    samples, split, result, gate = draft.partition.samples, draft.partition.split, draft.fit, draft.export.gate
    return Training(
        digest=samples.digest,
        samples=len(samples),
        skipped=len(samples.skipped),
        split=SplitSizes(**split.counts()),
        calibrate=len(split.calibrate),
        calibrate_independent=split.effective,
        calibrate_digest=samples.digest,
        group_by=_group_by(draft.request),
        seed=draft.request.options.seed,
        steps=result.steps,
        best_step=result.best_step,
        stopped=result.stopped,
        seconds=round(result.seconds, 2),
        parameters=sum(p.numel() for p in result.family.parameters()),
        gate=Proof(samples=gate.samples, torch=gate.torch, batch=gate.batch),
    )


def _group_by(request: Request) -> str | None:
    if isinstance(request.source, Path):
        return request.reading.group_by
    return request.source.options.group_by if isinstance(request.source, Source) else None


def _npy(array: NDArray[np.bool_]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
