"""A clean source -> a calibrated bundle: open, split, fit, fuse, export, calibrate, prove, report, write.

Nothing is written where the bundle will be until all of it is proven; whatever fails leaves no bundle behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from vaegis.models import inputs, sources
from vaegis.models import spec as specs
from vaegis.models.blocks import Samples, conditions_of, parts_of
from vaegis.models.bundle import CALIBRATION, ROI, SCORE, WEIGHTS, Bundle, write_bundle
from vaegis.models.calibration import ALL, Calibration, Decision, decide, smallest_alpha, to_bytes
from vaegis.models.derived.calibrating import calibrate_graph, usable_alpha
from vaegis.models.errors import Conflict, Refusal
from vaegis.models.families import FAMILIES, Family, conditioned, make
from vaegis.models.inputs import InputOptions
from vaegis.models.manifest import Lineage, Manifest, Proof, SplitSizes, Training, installed_versions
from vaegis.models.runtime.graph import Graph
from vaegis.models.sources import SourceOptions
from vaegis.training import report
from vaegis.training.export import Gate, doubled, export, export_score, gate
from vaegis.training.fit import FitOptions, Fitted, Step, fit, looks
from vaegis.training.generation import Network, measure, unwritten
from vaegis.training.splits import Split, split

FEW_OF_ONE = 50  # clean samples of one condition, of which fewer are worth a note
LIBRARIES = ("torch", "lightning-fabric")  # that made a fit, beside those that run graphs


@dataclass(frozen=True)
class Request:
    """One fit, as a user asks for it."""

    source: Path
    name: str
    out: Path  # where the bundle will be; must not exist
    work: Path  # where checkpoints are kept between runs
    family: str = "vae"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reading: SourceOptions = field(default_factory=SourceOptions)
    shaping: InputOptions = field(default_factory=InputOptions)
    alpha: float = 0.01
    options: FitOptions = field(default_factory=FitOptions)
    resume: bool = False
    parent: str | None = None  # digest of the bundle this one replaces
    generation: bool = False  # judge what the model generates, for the report
    network: Path | None = None  # whose features that judges by; None fits a small VAE for it


@dataclass(frozen=True)
class Made:
    """What a fit gave."""

    bundle: Bundle
    fitted: Fitted
    split: Split
    calibration: Calibration
    gate: Gate
    notes: tuple[str, ...]  # what the user should know: choices made, warnings


@dataclass(frozen=True)
class Watch:
    """What a person who waits is shown; every member may be a no-op."""

    stage: Callable[[str], None] = lambda _: None  # a sentence on what begins
    note: Callable[[str], None] = lambda _: None  # a choice made or a warning
    read: Callable[[int, int | None], None] = lambda done, total: None  # samples spooled
    step: Callable[[Step], None] = lambda _: None


def run(request: Request, watch: Watch | None = None) -> Made:
    """Fits, calibrates and writes a bundle.

    Raises:
        Refusal: anything a user can cause, before the bundle's folder exists.
    """
    watch = watch or Watch()
    if request.out.exists():
        raise Conflict(f"{request.out} exists already; a bundle is never altered. Name another --out folder.")
    standing = next(folder for folder in request.out.absolute().parents if folder.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise Refusal(
            f"The bundle cannot be written to {request.out}: {standing} is no folder to write in. Name another."
        )
    if not 0.0 < request.alpha < 1.0:
        raise Refusal(f"The false-alarm rate alpha is {request.alpha}; give a number between 0 and 1, such as 0.01.")
    if request.family not in FAMILIES:
        raise Refusal(f"There is no family {request.family!r}; the families are {', '.join(FAMILIES)}.")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        watch.note(text)

    watch.stage("Reading the clean data")
    source = sources.open_source(request.source, request.reading)
    spec, said = inputs.infer_spec(source, request.shaping)
    for text in said:
        note(text)
    # Built once before the data are spooled, so that a wrong argument is answered at once; and under the seed.
    torch.manual_seed(request.options.seed)
    family = make(FAMILIES, request.family, spec, request.arguments)
    for text in family.notes():
        note(text)
    roi = inputs.read_roi(request.shaping.roi) if request.shaping.roi is not None else None
    if request.network is not None:
        Network(request.network, spec)  # opened once before the fit, so that a wrong one is answered at once
    with tempfile.TemporaryDirectory(prefix="vaegis-fit-") as folder:
        samples = inputs.load(source, spec, Path(folder), roi=roi, progress=watch.read)
        for item, why in samples.skipped[:3]:
            note(f"Left out {item}: {why}")
        if len(samples.skipped) > 3:
            note(f"{len(samples.skipped)} items were left out in all.")
        parted = split(samples, request.options.seed)
        for text in _few(samples, parted):
            note(text)
        key = _key(request, spec, samples.digest)
        path = request.work / key[:32] / "checkpoint.safetensors"
        if path.exists() and not request.resume:
            note(
                "An interrupted fit of this very command is kept; this run starts anew. Add --resume to go on from it."
            )
        watch.stage(f"Fitting {request.family} on {len(parted.fit)} samples ({specs.describe(spec)})")
        fitted = fit(
            family, samples, parted, request.options, key=key, path=path, resume=request.resume, show=watch.step
        )
        watch.stage("Exporting and calibrating")
        fuse(family, samples, parted, request.options.seed)
        graphs, proof = _exported(family, samples, parted, note)
        scored = Graph(graphs[SCORE], spec, "cpu")
        calibration, evidence = calibrate_graph(scored, samples, parted.calibrate, parted.effective)
        alpha, decision = _default(calibration, request.alpha, note)
        judged = None
        if request.generation or request.network is not None:
            watch.stage("Judging what it generates")
            model = unwritten(request.family, family.arguments(), spec, graphs)
            try:
                judged = measure(model, samples, parted, request.options.seed, request.network)
            except Refusal as refusal:  # what it generates decides no verdict, so it must not cost the model
                note(f"What the model generates could not be judged: {refusal}")
        watch.stage("Writing the report")
        arguments = family.arguments()
        training = _training(request, samples, parted, fitted, proof)
        facts = report.Facts(
            name=request.name,
            family=request.family,
            arguments=arguments,
            spec=spec,
            meaning=_meaning(family),
            samples=samples,
            split=parted,
            history=fitted.history,
            graphs=graphs,
            calibration=calibration,
            decision=decision,
            training=training,
            notes=tuple(notes),
            log_jacobian=family.log_jacobian(),
            generation=judged,
            evidence=evidence,
            roi=roi,
        )
        files = {
            **graphs,
            CALIBRATION: to_bytes(calibration),
            WEIGHTS: save({k: v.contiguous() for k, v in family.state_dict().items()}),
            **report.build(facts),
        }
        if roi is not None:
            files[ROI] = _npy(roi)
        manifest = Manifest(
            family=request.family,
            arguments=arguments,
            spec=specs.to_json(spec),
            evidence=_meaning(family),
            alpha=alpha,
            training=training,
            lineage=Lineage(digest=request.parent),
            versions=installed_versions(*LIBRARIES),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        bundle = write_bundle(request.out, files, manifest)
    path.unlink(missing_ok=True)
    return Made(bundle, fitted, parted, calibration, proof, tuple(notes))


def _exported(
    family: Family, samples: Samples, parted: Split, note: Callable[[str], None]
) -> tuple[dict[str, bytes], Gate]:
    """The graphs, and the proof that the score graph says what torch says.

    Raises:
        Refusal: it does not.
    """
    parts = parts_of(samples, parted.calibrate)
    told = conditions_of(samples, parts)
    graphs = export(family)
    try:
        return graphs, gate(family, graphs[SCORE], samples.take, parts, told)
    except Refusal:
        finer = doubled(family)
        if finer is None:
            raise
    graphs[SCORE] = export_score(finer)
    proof = gate(finer, graphs[SCORE], samples.take, parts, told)
    note(
        "Beside the little that this model leaves unexplained, what single precision rounds away is too much, so its "
        "score graph computes in double precision; scoring takes longer."
    )
    return graphs, proof


def fuse(family: Family, samples: Samples, parted: Split, seed: int) -> None:
    """Fits the fused score on the validate split, varied as clean product may vary."""
    family.eval()
    found: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for x, condition in conditioned(looks(samples, parts_of(samples, parted.validate), seed)):
            for term, values in family.evidence(x, condition).terms.items():
                found.setdefault(term, []).append(values)
    family.fusion.fit({t: torch.cat(v) for t, v in found.items()})


def _few(samples: Samples, parted: Split) -> Iterator[str]:
    """Sentences on conditions with few clean samples.

    Raises:
        Refusal: one has none among those that are fitted.
    """
    if samples.conditions is None:
        return
    names = samples.spec.conditions
    fitted, read = (
        np.bincount(samples.conditions[samples.first[side]], minlength=len(names))
        for side in (parted.fit, np.arange(len(samples)))
    )
    for name, count, total in zip(names, fitted.tolist(), read.tolist(), strict=True):
        if not count:
            raise Refusal(
                f"Condition {name!r} has {total} clean samples, and none of them is left to learn from. Add clean "
                "samples of it, or leave it out."
            )
        if total < FEW_OF_ONE:
            yield f"Condition {name!r} has only {total} clean samples; its verdicts will be poor. Add some."


def _default(calibration: Calibration, alpha: float, note: Callable[[str], None]) -> tuple[float, Decision]:
    """The rate used when none is asked for: the one given, or the lowest the clean samples can support."""
    group = calibration.groups[ALL]
    usable = usable_alpha(calibration, alpha)
    if usable > alpha:
        note(
            f"A false-alarm rate of {alpha:g} needs more than the {group.effective} independent clean samples held out "
            f"for calibration; this model's own rate is {usable:g}. Add clean samples for a lower one."
        )
        alpha = usable
    decision = decide(calibration, alpha)
    if decision.extrapolated:
        note(
            f"At a false-alarm rate of {alpha:g} the threshold is extrapolated beyond the {group.effective} "
            "independent clean samples held out for calibration, and verdicts say so. Add clean samples to "
            "measure it."
        )
    for name, one in calibration.groups.items():
        if name != ALL and alpha < smallest_alpha(one):
            note(f"Group {name!r} has only {one.effective} calibration samples; asking for it at {alpha:g} is refused.")
    return alpha, decision


def _meaning(family: Family) -> dict[str, str]:
    terms = ", ".join(family.fusion.terms)
    return {"score": f"{terms} together, in clean standard deviations above the clean mean", **family.meaning}


def _key(request: Request, spec: specs.InputSpec, digest: str) -> str:
    """What makes two fits the same."""
    options = request.options
    facts = [digest, specs.to_json(spec), request.family, dict(request.arguments), options.seed, options.steps]
    facts += [options.batch, options.rate, version("torch")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _training(request: Request, samples: Samples, parted: Split, fitted: Fitted, proof: Gate) -> Training:
    return Training(
        digest=samples.digest,
        samples=len(samples),
        skipped=len(samples.skipped),
        split=SplitSizes(**parted.counts()),
        calibrate=len(parted.calibrate),
        calibrate_independent=parted.effective,
        calibrate_digest=samples.digest,
        group_by=request.reading.group_by,
        seed=request.options.seed,
        steps=fitted.steps,
        best_step=fitted.best_step,
        stopped=fitted.stopped,
        seconds=round(fitted.seconds, 2),
        parameters=sum(p.numel() for p in fitted.family.parameters()),
        gate=Proof(samples=proof.samples, torch=proof.torch, batch=proof.batch),
    )


def _npy(array: NDArray[np.bool_]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
