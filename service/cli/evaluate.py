"""`vaegis evaluate`: verdicts against labels, and whether the false-alarm promise held."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from vaegis.models.calibration import Decision
    from vaegis.service.fitting import CleanEvaluation, Evaluation, LabelledVerdicts, Proposal


@shared.reads()
def evaluate(
    *,
    source: shared.Source,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="FILE.csv|column:NAME|key:NAME|folders",
            help="0 = clean, anything else an anomaly; folders: good, ok and normal are clean.",
        ),
    ] = None,
    clean_only: Annotated[
        bool, typer.Option("--clean-only", help="Every sample is clean: only false alarms are counted.")
    ] = False,
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    alpha: shared.Alpha = None,
    threshold: shared.Threshold = None,
    decide_by: shared.DecideBy = "score",
    recall: Annotated[
        float | None,
        typer.Option("--recall", metavar="R", help="Propose the threshold that finds this share of the anomalies."),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(
            "--false-alarms", metavar="A", help="Propose the threshold that fresh clean samples exceed at this rate."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")] = False,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Compare a model's verdicts with labels: how well it ranks, what it finds, how often it cries wolf.

    vaegis evaluate test.npz --model bracket --labels key:y --recall 0.95

    vaegis evaluate fresh --model bracket --clean-only --false-alarms 0.01
    """
    from rich.console import Console

    from vaegis.models.outputs.atomic import write_bytes, writing
    from vaegis.service import fitting
    from vaegis.service.cli.score import with_progress

    fitting.need_training()
    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    if (labels is None) != clean_only:
        raise typer.BadParameter(
            "Say by --labels where the labels are, or by --clean-only that every sample is clean; one of these.",
            param_hint="--labels",
        )
    reading = source_options.reading(labels=labels)
    folder = shared.bundle_for(model, bundle)
    outcome = fitting.evaluate(
        source,
        folder,
        labels,
        reading,
        alpha,
        threshold,
        decide_by,
        cast(Any, device),
        with_progress,
        recall,
        false_alarms,
    )
    shared.say_notes(outcome.notes)
    decision = outcome.decision
    figures = {
        **asdict(cast(Any, outcome.evaluation or outcome.all_clean)),
        "decide_by": decision.decide_by,
        "alpha": decision.alpha,
        "threshold": decision.threshold,
        "proposals": [asdict(proposal) for proposal in outcome.proposals],
    }
    if out is not None:
        with writing(f"--out {out}"):
            write_bytes(out, (json.dumps(figures, indent=2) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(figures))
        return
    _tell(Console(highlight=False, soft_wrap=True), outcome)


def _tell(console: Any, outcome: LabelledVerdicts) -> None:
    what = "time steps" if outcome.kind == "series" else "samples"
    if outcome.all_clean is not None:
        _tell_clean(console, outcome.all_clean, outcome.decision, what)
    if outcome.evaluation is not None:
        _tell_ranks(console, outcome.evaluation, outcome.decision, what)
    for proposal in outcome.proposals:
        _tell_proposal(console, proposal, what)


def _tell_ranks(console: Any, result: Evaluation, decision: Decision, what: str) -> None:
    from rich.table import Table

    console.print(f"{result.clean:,} clean and {result.anomalies:,} anomalous {what}, {result.unjudged:,} unjudged")
    table = Table("evidence", "AUROC %", title="How well each term ranks", title_justify="left")
    for term, area in result.auroc.items():
        table.add_row(term, f"{100 * area:.1f}")
    console.print(table)
    console.print(f"By {decision.decide_by} above {decision.threshold:.5g}:")
    console.print(f"  found {result.detection_rate:.1%} of the anomalies; F1 {result.f1:.3f}")
    _tell_false_alarms(console, result, decision, what)
    if result.by_class:
        by_class = Table("class", "samples", "AUROC %", "flagged %", title="By kind of anomaly", title_justify="left")
        for name, (count, area, share) in result.by_class.items():
            by_class.add_row(name, f"{count:,}", f"{100 * area:.1f}", f"{100 * share:.1f}")
        console.print(by_class)


def _tell_clean(console: Any, result: CleanEvaluation, decision: Decision, what: str) -> None:
    console.print(f"{result.clean:,} clean {what}, {result.unjudged:,} unjudged; none is labelled an anomaly")
    console.print(f"By {decision.decide_by} above {decision.threshold:.5g}:")
    _tell_false_alarms(console, result, decision, what)
    low, high = result.interval
    console.print(f"  the rate is {low:.2%} to {high:.2%} (99 %, Clopper-Pearson)")


def _tell_false_alarms(console: Any, result: Evaluation | CleanEvaluation, decision: Decision, what: str) -> None:
    sentence = f"  flagged {result.false_alarm_rate:.2%} of the clean {what}"
    if decision.alpha is not None:
        sentence += f", asked for {decision.alpha:.2%}"
    if result.expected is not None:
        low, high = result.expected
        inside = low <= result.false_alarm_rate <= high
        sentence += f"; luck explains {low:.2%} to {high:.2%} (99 %)"
        if not inside:
            sentence += ". [yellow]This is outside: the clean test samples are not like the clean training samples.[/]"
        if what == "time steps":
            sentence += " [dim](for independent samples; neighbouring time steps are not)[/]"
    console.print(sentence)


def _tell_proposal(console: Any, proposal: Proposal, what: str) -> None:
    goal = "a recall" if proposal.goal == "recall" else "a false-alarm rate"
    console.print(f"For {goal} of {proposal.rate:.2%}: --threshold {proposal.threshold!r} flags")
    for share, of in ((proposal.recall, "anomalies"), (proposal.false_alarms, f"clean {what}")):
        if share is not None:
            interval = f"{share.low:.2%} to {share.high:.2%} (99 %, Clopper-Pearson)"
            console.print(f"  {share.value:.2%} of these {of}; of others {interval}")
