"""Generated samples: how good they are, in the report."""

from __future__ import annotations

from html import escape

from vaegis.training.generation import Generation, GenerationFigures

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


def section(generation: Generation | None) -> str:
    """For the page."""
    if generation is None:
        return ""
    rows = "".join(_row(name, says, good, generation.generated, generation.clean) for name, says, good in ROWS)
    alarms = "".join(
        f'<li class="warning"><b>Look first</b><span>{escape(alarm.text)}</span></li>' for alarm in generation.alarms
    )
    rebuilt = (
        f"<p>Perceptual distance of unseen samples to their reconstructions: {generation.rebuilt:.3f}.</p>"
        if generation.rebuilt is not None
        else ""
    )
    figures = (
        f"<section><h2>Generated samples</h2><p>{generation.samples} generated samples against as many clean ones that "
        f"the model was not fitted on, by features of {escape(generation.features)}. The last column is what other "
        "clean samples reach: the best that can be asked for. None of this decides a verdict; it tells how much of "
        "clean product the model knows.</p>"
    )
    nearest = (
        f"<p>To its nearest fitted sample a generated one has {generation.nearest:.0%} of the distance that an unseen "
        f"clean one has; {generation.copies:.1%} are all but copies.</p>"
    )
    return (
        figures
        + (f"<ul class=warned>{alarms}</ul>" if alarms else "")
        + "<div class=wide><table><thead><tr><th>figure</th><th>what it says</th><th>good</th><th>generated</th>"
        f"<th>clean</th></tr></thead><tbody>{rows}</tbody></table></div>{nearest}{rebuilt}</section>"
    )


def _row(name: str, says: str, good: str, generated: GenerationFigures, clean: GenerationFigures) -> str:
    value, usual = getattr(generated, name), getattr(clean, name)
    if value is None or usual is None:
        return ""
    cells = (name, says, good, f"{value:.3g}", f"{usual:.3g}")
    return "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
