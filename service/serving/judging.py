"""Blocks of samples -> verdicts, for every protocol that the service speaks."""

from __future__ import annotations

import math
import time

from vaegis.models.blocks import Block
from vaegis.models.calibration import Decision, decide
from vaegis.models.scorer import Verdicts
from vaegis.service.errors import Late
from vaegis.service.http.context import Service
from vaegis.service.serving.live import Served
from vaegis.service.tracing import record

DECISIONS_MOST = 64  # of a version, that are remembered


async def judge(
    service: Service,
    served: Served,
    block: Block,
    decision: Decision,
    maps: bool,
    *,
    deadline: float | None = None,
    bulk: bool = False,
) -> Verdicts:
    """Verdicts on a block's samples, counted in the metrics.

    Args:
        maps: whether the maps of the samples are needed.
        deadline: `time.monotonic()` after which nobody waits for the answer any more.
        bulk: lets requests that somebody waits for go first.
    """
    left = math.inf if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise Late
    began = time.perf_counter()
    try:
        found, queued = await served.batcher.find(block, maps, bulk, None if deadline is None else left)
    except TimeoutError as error:
        raise Late from error
    verdicts = served.scorer.judged(block, decision, found)
    seconds = time.perf_counter() - began
    of = service.metrics.of(served)
    service.metrics.note(of.queue, queued)
    service.metrics.note(of.inference, seconds - queued)
    record("queue", seconds, seconds - queued)
    record("infer", seconds - queued, 0.0)
    service.metrics.count(served, verdicts)
    service.live.shadows.offer(served, verdicts)
    return verdicts


def decision_for(
    served: Served,
    alpha: float | None = None,
    threshold: float | None = None,
    decide_by: str = "score",
    group: str | None = None,
) -> Decision:
    """The decision that a request asks for; at the model's own rate where it names none.

    Raises:
        Refusal: an alpha out of range or beyond what the clean samples can support, an unknown term or group.
    """
    asked = (alpha, threshold, decide_by, group)
    found = served.decisions.get(asked)
    if found is None:
        if alpha is None and threshold is None:
            alpha = served.scorer.bundle.manifest.alpha
        found = decide(served.scorer.calibration, alpha, threshold, decide_by, group)
        if len(served.decisions) < DECISIONS_MOST:
            served.decisions[asked] = found
    return found
