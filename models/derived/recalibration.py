"""Recalibration: the same graphs with a calibration of fresh clean samples, no refit.

What is learned stays, p-values and thresholds are those of today's clean product: a lamp was changed, a station moved,
or a rate is asked for that the first clean samples were too few for. The report of the fit tells of the calibration
that it replaces, so the new bundle goes without one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from vaegis.models.blocks import Samples
from vaegis.models.bundle import CALIBRATION, SCORE, Bundle, write_bundle
from vaegis.models.calibration import decide, to_bytes
from vaegis.models.derived.calibrating import LEAST, calibrate_graph, independent, usable_alpha
from vaegis.models.derived.copies import copies_of
from vaegis.models.errors import Refusal
from vaegis.models.manifest import SplitSizes, installed_versions
from vaegis.models.runtime.graph import Graph

REPORT = "report/"  # what its files' names start with


@dataclass(frozen=True)
class Recalibration:
    """A bundle with a calibration of its own, and how it differs from the one that it is made of."""

    bundle: Bundle
    samples: int  # clean samples that it is calibrated on
    independent: int  # of these
    threshold: float  # of the score, at the bundle's own rate
    flagged_before: float  # share of these samples that the former threshold, at its own rate, flags


def recalibrate_bundle(
    bundle: Bundle, samples: Samples, out: Path, alpha: float | None = None, group_by: str | None = None
) -> Recalibration:
    """Writes the bundle with a calibration on clean samples.

    Args:
        samples: clean samples that the model was not fitted on, loaded by its spec.
        alpha: the rate used when none is asked for; None keeps the bundle's. Raised to what the samples support.
        group_by: by what the samples were declared as lots, for the manifest.

    Raises:
        Refusal: too few samples, a rate that is none, or evidence that is no finite number.
    """
    rate = bundle.manifest.alpha if alpha is None else alpha
    if not 0.0 < rate < 1.0:
        raise Refusal(f"The false-alarm rate alpha is {rate}; give a number between 0 and 1, such as 0.01.")
    copies = copies_of(samples)
    n = len(copies.counted)
    if n < LEAST:
        given = f"{n} clean samples" if n == len(samples) else f"{n} distinct clean samples, of {len(samples)},"
        raise Refusal(f"{given} were given; calibrating takes {LEAST} at least. Add clean samples.")
    effective = independent(samples, copies.counted, copies)
    graph = Graph(bundle.read(SCORE), bundle.spec, "cpu")
    calibration, evidence = calibrate_graph(graph, samples, copies.counted, effective)
    rate = usable_alpha(calibration, rate)
    before = decide(bundle.calibration, bundle.manifest.alpha)
    manifest = bundle.manifest
    training = replace(
        manifest.training,
        split=replace(manifest.training.split or SplitSizes(), calibrate=n),
        calibrate=n,
        calibrate_independent=effective,
        calibrate_digest=samples.digest,
        calibrated_on_data_of=(),
        group_by=group_by,
    )
    files = {m: bundle.read(m) for m in manifest.files if m != CALIBRATION and not m.startswith(REPORT)}
    manifest = replace(
        manifest,
        alpha=rate,
        training=training,
        lineage=replace(manifest.lineage, digest=bundle.digest),
        versions={**manifest.versions, **installed_versions()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    written = write_bundle(out, {**files, CALIBRATION: to_bytes(calibration)}, manifest)
    flagged = float((evidence["score"] > before.threshold).mean())
    return Recalibration(written, n, effective, decide(calibration, rate).threshold, flagged)
