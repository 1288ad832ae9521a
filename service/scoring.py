"""Blocks of samples -> verdicts, for every protocol that the service speaks."""

from __future__ import annotations

import time
from functools import partial

import anyio.to_thread

from models.blocks import Block
from models.calibration import Decision, decide
from models.scorer import Verdicts
from service.live import Served
from service.state import Service


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
    began = time.perf_counter()
    work = partial(served.scorer.verdicts, block, decision, maps)
    verdicts = await anyio.to_thread.run_sync(work, limiter=service.turns.limiter)
    service.metrics.inference.labels(served.resolved.name).observe(time.perf_counter() - began)
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
    if alpha is None and threshold is None:
        alpha = served.scorer.bundle.manifest.alpha
    return decide(served.scorer.calibration, alpha, threshold, decide_by, group)
