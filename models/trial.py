"""Tries a bundle out in a process of its own: what a graph does, only running it tells, and some never end.

Whoever takes a bundle from elsewhere, or lets one answer, tries it first. A graph is a program: it may loop, take all
memory or end its process; so none of that happens here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vaegis.models.errors import Damaged, Unfit

SECONDS = 60.0  # that a trial may take where nothing else is said
ANSWER_MOST = 2**16  # characters of what the process answers


@dataclass(frozen=True)
class TrialResult:
    """What came of running a bundle that is whole and fits its spec."""

    finite: bool  # it gave finite evidence of a sample made up for it


def try_bundle(folder: Path, seconds: float = SECONDS) -> TrialResult:
    """Opens every graph of a bundle and runs its score graph on batches of one and two, within a time limit.

    Raises:
        Damaged: the bundle is not whole.
        Unfit: a graph that this runtime does not open, that takes or gives other than its spec and calibration say,
            or that does not come to an end.
    """
    command = [sys.executable, "-P", "-m", "vaegis.models.trial_process", str(folder.resolve()), str(seconds)]
    try:
        process = subprocess.run(
            command, capture_output=True, timeout=seconds, text=True, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        raise Unfit(
            f"The bundle's graphs did not come to an end within {seconds:g} seconds on one sample and on two, so they "
            "cannot answer anybody. If the machine is slow, raise VAEGIS_OPEN_SECONDS."
        ) from None
    try:
        outcome = json.loads(process.stdout[:ANSWER_MOST])
    except ValueError:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise Unfit(
            f"The bundle's graphs end the process that runs them ({how}): they are broken or need more memory than "
            "there is. Export the model again."
        ) from None
    if "refusal" in outcome:
        raise (Damaged if outcome["status"] == Damaged.status else Unfit)(str(outcome["refusal"]))
    return TrialResult(finite=bool(outcome["finite"]))
