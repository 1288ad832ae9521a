"""One family with several arguments, of which clean evidence chooses.

Clean evidence of the validate split decides alone. No anomaly is looked at, or the detection rate that is
measured on them later would be a promise already broken; nor the calibrate split, or thresholds would be set on the
very samples that the model was chosen for. Where there is a likelihood (or a bound of it) its mean decides: it charges
both for what a model cannot describe and for what it describes without need, so that held-out samples tell too large a
model from a good one. Else the standardised reconstruction error does. That falls as long as more latent numbers still
describe clean product, whether or not they describe defects too; it is the best that clean samples can say. In both
cases the first candidate that lies within one standard error of the best is taken, so that whoever lists the plainest
first is not given a larger model for a difference that is luck (Breiman et al. 1984).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vaegis.models.errors import Refusal
from vaegis.models.families import FAMILIES, make
from vaegis.training.comparison.families import EXACT
from vaegis.training.pipeline import FittedBundle, run, spec_of
from vaegis.training.report import Report
from vaegis.training.request import Request, Watch

NOT_COMPARABLE = ("resolution", "likelihood")  # arguments that change what is measured, not how well


@dataclass(frozen=True)
class Candidate:
    """One setting of a sweep."""

    arguments: Mapping[str, Any]  # those swept
    result: FittedBundle
    value: float  # held-out clean evidence, lower is better
    error: float  # its standard error

    @property
    def name(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.arguments.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep chose, and from what."""

    candidates: Sequence[Candidate]
    chosen: Candidate
    by: str  # what decided, in words
    failed: Mapping[str, str] = field(default_factory=dict)  # candidate -> why it could not be fitted


def sweep(
    request: Request, grid: Sequence[Mapping[str, Any]], watch: Watch, begun: Callable[[str], None] = lambda _: None
) -> Sweep:
    """Fits the family with each setting into a numbered folder under `request.out`, and chooses one.

    Raises:
        Refusal: fewer than two settings, one that changes what is measured, or none that could be fitted.
    """
    if len(grid) < 2:
        raise Refusal("A sweep needs two values or more to choose from, such as --sweep latent=8,16,32.")
    for key in {k.partition(".")[0] for arguments in grid for k in arguments}:
        if key in NOT_COMPARABLE:
            raise Refusal(
                f"Argument {key} changes what is measured, so that clean evidence cannot choose it; fit each with "
                f"--set {key}=... and compare them with vaegis evaluate."
            )
    if request.resume:
        raise Refusal("--resume goes on with one fit; a sweep begins anew.")
    spec = spec_of(request)
    for arguments in grid:  # a wrong argument is answered before the first fit
        make(FAMILIES, request.family, spec, {**request.arguments, **arguments})
    candidates, failed, by = [], {}, ""
    for i, arguments in enumerate(grid):
        name = ", ".join(f"{k}={v}" for k, v in arguments.items())
        begun(name)
        try:
            result = run(
                replace(request, arguments={**request.arguments, **arguments}, out=request.out / str(i)), watch
            )
        except Refusal as error:
            failed[name] = str(error)
            continue
        by, value, standard_error = standing(result.report)
        candidates.append(Candidate(arguments, result, value, standard_error))
    if not candidates:
        raise Refusal(f"None of the settings could be fitted. {next(iter(failed.items()))[1]}")
    return Sweep(candidates, choose(candidates), by, failed)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The first within one standard error of the best."""
    best = min(candidates, key=lambda c: c.value)
    return next(c for c in candidates if c.value <= best.value + best.error)


def standing(report: Report) -> tuple[str, float, float]:
    """What decides, in words, its mean over the validate split, and the standard error of that.

    Raises:
        Refusal: the family has neither a likelihood nor a reconstruction error.
    """
    likelihood, terms = report.likelihood, report.terms
    if likelihood is not None:
        term, offset = likelihood.term, likelihood.log_jacobian or 0.0
        exact = "negative log-likelihood" if term == EXACT else "negative bound of the log-likelihood"
        by = f"{exact} of held-out clean samples, nats"
    elif "reconstruction_error" in terms:
        term, offset = "reconstruction_error", 0.0
        by = "standardised reconstruction error of held-out clean samples"
    else:
        raise Refusal(f"Family {report.family} has no clean evidence that a sweep could choose by; compare by hand.")
    validate, counts = terms[term].validate, report.samples
    assert validate.mean is not None and validate.sd is not None
    # Overlapping windows are no independent samples.
    independent = validate.samples * min(1.0, counts.independent / max(counts.calibrate, 1))
    return by, validate.mean + offset, validate.sd / math.sqrt(max(independent, 1.0))
