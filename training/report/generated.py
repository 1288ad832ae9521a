"""Generated samples: how good they are, in the report."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

from vaegis.training.generation import Figures, Generation

# Name, what it says, and what is good.
ROWS: tuple[tuple[str, str, str], ...] = (
    ("frechet", "distance of the two clouds of features", "lower"),
    ("precision", "share of samples that lie among the clean ones", "higher"),
    ("recall", "share of clean samples that lie among these", "higher"),
    ("density", "how deep among the clean ones they lie", "higher"),
    ("coverage", "share of clean neighbourhoods that hold one", "higher"),
    ("spread", "variance, as a share of the clean samples'", "near 1"),
    ("inception", "certainty and variety of the network's classes", "higher"),
    ("diversity", "mean perceptual distance between two samples", "near the clean"),
)


def table(found: Generation | None) -> dict[str, Any] | None:
    """For `report.json`."""
    if found is None:
        return None
    return {**asdict(found), "alarms": [{"code": code, "text": text} for code, text in found.alarms]}


def section(found: Generation | None) -> str:
    """For the page."""
    if found is None:
        return ""
    rows = "".join(_row(name, says, good, found.generated, found.clean) for name, says, good in ROWS)
    alarms = "".join(
        f'<li class="warning"><b>Look first</b><span>{escape(text)}</span></li>' for _, text in found.alarms
    )
    rebuilt = (
        f"<p>Perceptual distance of unseen samples to their reconstructions: {found.rebuilt:.3f}.</p>"
        if found.rebuilt is not None
        else ""
    )
    return (
        f"<section><h2>Generated samples</h2><p>{found.samples} generated samples against as many clean ones that the "
        f"model was not fitted on, by features of {escape(found.features)}. The last column is what other clean "
        "samples reach: the best that can be asked for. None of this decides a verdict; it tells how much of clean "
        "product the model knows.</p>"
        + (f"<ul class=warned>{alarms}</ul>" if alarms else "")
        + "<div class=wide><table><thead><tr><th>figure</th><th>what it says</th><th>good</th><th>generated</th>"
        f"<th>clean</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<p>To its nearest fitted sample a generated one has {found.nearest:.0%} of the distance that an unseen clean "
        f"one has; {found.copies:.1%} are all but copies.</p>{rebuilt}</section>"
    )


def _row(name: str, says: str, good: str, made: Figures, clean: Figures) -> str:
    one, other = getattr(made, name), getattr(clean, name)
    if one is None or other is None:
        return ""
    cells = (name, says, good, f"{one:.3g}", f"{other:.3g}")
    return "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
