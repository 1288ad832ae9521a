"""`vaegis evaluate`: verdicts against labels, and whether the false-alarm promise held."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from vaegis.models.calibration import Decision
    from vaegis.training.evaluate import Evaluation


@shared.reads()
def evaluate(
    *,
    source: shared.Source,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="FILE.csv|column:NAME|key:NAME|folders",
            help="0 = clean, anything else an anomaly; folders: good, ok and normal are clean.",
        ),
    ],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    alpha: shared.Alpha = None,
    threshold: shared.Threshold = None,
    decide_by: shared.DecideBy = "score",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
    asked: shared.Asked,
    device: shared.Device = "auto",
) -> None:
    """Compare a model's verdicts with labels: how well it ranks, what it finds, how often it cries wolf.

    vaegis evaluate test.npz --model bracket --labels key:y
    """
    import numpy as np
    from rich.console import Console

    from vaegis.models.outputs.atomic import write_bytes, writing
    from vaegis.models.sources import open_source, read_labels
    from vaegis.service.cli.fit import need_training
    from vaegis.service.cli.score import open_scoring, with_progress

    need_training()
    from vaegis.training.evaluate import evaluate as compare

    reading = asked.reading(labels=labels)
    scorer, decision, stream = open_scoring(
        source, shared.bundle_for(model, bundle), alpha, threshold, decide_by, None, device, reading
    )
    table = read_labels(open_source(source, reading), scorer.spec.kind, labels)
    evidence: dict[str, list[Any]] = {t: [] for t in scorer.terms}
    flagged, label, classes = [], [], []
    for verdicts in with_progress(stream):
        found, named = table.find(verdicts.block.items, verdicts.block.index)
        if (found < 0).any():
            i = int((found < 0).argmax())
            raise Refusal(
                f"{verdicts.block.items[i]} [{verdicts.block.index[i]}] has no label in {labels}; label every sample."
            )
        label.append(found)
        classes += named
        flagged.append(verdicts.anomalous)
        for term, values in verdicts.evidence.items():
            evidence[term].append(values)
    n = scorer.calibration.group(None).effective
    result = compare(
        {t: np.concatenate(v) for t, v in evidence.items()},
        np.concatenate(flagged),
        np.concatenate(label).astype(np.int64),
        classes,
        decision,
        n,
    )
    facts = {
        **asdict(result),
        "decide_by": decision.decide_by,
        "alpha": decision.alpha,
        "threshold": decision.threshold,
    }
    if out is not None:
        with writing(f"--out {out}"):
            write_bytes(out, (json.dumps(facts, indent=2) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(facts))
        return
    _tell(Console(highlight=False, soft_wrap=True), result, decision, scorer.spec.kind == "series")


def _tell(console: Any, result: Evaluation, decision: Decision, series: bool) -> None:
    from rich.table import Table

    what = "time steps" if series else "samples"
    console.print(f"{result.clean:,} clean and {result.anomalies:,} anomalous {what}, {result.unjudged:,} unjudged")
    table = Table("evidence", "AUROC %", title="How well each term ranks", title_justify="left")
    for term, area in result.auroc.items():
        table.add_row(term, f"{100 * area:.1f}")
    console.print(table)
    console.print(f"By {decision.decide_by} above {decision.threshold:.5g}:")
    console.print(f"  found {result.detection_rate:.1%} of the anomalies; F1 {result.f1:.3f}")
    said = f"  flagged {result.false_alarm_rate:.2%} of the clean {what}"
    if decision.alpha is not None:
        said += f", asked for {decision.alpha:.2%}"
    if result.expected is not None:
        low, high = result.expected
        inside = low <= result.false_alarm_rate <= high
        said += f"; luck explains {low:.2%} to {high:.2%} (99 %)"
        if not inside:
            said += ". [yellow]This is outside: the clean test samples are not like the clean training samples.[/]"
        if series:
            said += " [dim](for independent samples; neighbouring time steps are not)[/]"
    console.print(said)
    if result.by_class:
        by_class = Table("class", "samples", "AUROC %", "flagged %", title="By kind of anomaly", title_justify="left")
        for name, (count, area, share) in result.by_class.items():
            by_class.add_row(name, f"{count:,}", f"{100 * area:.1f}", f"{100 * share:.1f}")
        console.print(by_class)
