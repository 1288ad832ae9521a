"""What `vaegis score` says on the terminal of a source's verdicts."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaegis.models.calibration import Decision
    from vaegis.models.scorer import Verdicts
    from vaegis.models.spec import Kind

LISTED = 5  # strangest samples, and unjudged ones, that are named


class ScoreSummary:
    """Counts verdicts, and remembers the strangest samples and the first that could not be judged."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.unjudged: list[str] = []  # a line each
        self._strangest: list[tuple[float, str]] = []  # a heap of values and lines

    def add(self, verdicts: Verdicts) -> None:
        """Takes a block's verdicts."""
        self.counts.update(verdicts.status)
        block, term = verdicts.block, verdicts.decision.decide_by
        values, strangest = verdicts.evidence[term], self._strangest
        floor = strangest[0][0] if len(strangest) == LISTED else float("-inf")
        for i in (values > floor).nonzero()[0].tolist():
            name = block.items[i]
            sample = f"{name} [{block.index[i]}]" if name else f"[{block.index[i]}]"
            line = f"{sample}  {term} {values[i]:.5g}  p {verdicts.p_values[term][i]:.3g}"
            (heapq.heappushpop if len(strangest) == LISTED else heapq.heappush)(strangest, (float(values[i]), line))
        for i, why in verdicts.errors.items():
            if len(self.unjudged) < LISTED:
                self.unjudged.append(f"{block.items[i] or ''} [{block.index[i]}]: {why}".strip())

    def print(self, console: Any, decision: Decision, kind: Kind) -> None:
        """Says how many samples are anomalous and which are the strangest."""
        counts = self.counts
        rate = f"{decision.alpha:.2%} false alarms" if decision.alpha is not None else "as given"
        beyond = ", extrapolated" if decision.extrapolated else ""
        samples = "time steps" if kind == "series" else "samples"
        console.print(
            f"[bold]{counts['anomalous']:,} of {sum(counts.values()):,} {samples} are anomalous[/] "
            f"({decision.decide_by} above {decision.threshold:.5g}: {rate}{beyond})"
        )
        if self._strangest:
            console.print("  strangest:")
            for _, line in sorted(self._strangest, reverse=True):
                console.print(f"    {line}", markup=False)
        if counts["unjudged"]:
            console.print(f"[yellow]  {counts['unjudged']:,} could not be judged:[/]")
            for line in self.unjudged:
                console.print(f"    {line}", markup=False)
