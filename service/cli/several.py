"""What `vaegis fit` does with several families, or with a sweep of arguments: many fits, one table, one page."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegis.models.errors import Refusal
from vaegis.service import fitting
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    from rich.console import Console

IN_TERMINAL = ("family", "AUROC %", "found", "false", "bits", "fit s", "ms")  # what 80 characters hold


def families(text: str) -> tuple[str, ...] | None:
    """The families that `--family` names, or None where it is one."""
    return fitting.family_names(text) if text.strip() == "all" or "," in text else None


def test_of(source: Path | None, labels: str | None, request: fitting.Request) -> fitting.Labelled | None:
    """What `--test` and `--labels` say.

    Raises:
        Refusal: one without the other.
    """
    if source is None and labels is None:
        return None
    if source is None or labels is None:
        raise Refusal("--test and --labels go together: a source of labelled samples, and where their labels are.")
    # Read as the clean source is, but whole, and without its groups.
    reading = replace(request.reading, rows=None, group_by=None, labels=labels)
    return fitting.Labelled(source, labels, reading)


def grid(pairs: Sequence[str]) -> list[dict[str, Any]]:
    """`latent=8,16` and `beta=1,2` -> every combination, the last key varying fastest.

    Raises:
        Refusal: a pair without `=` or values, or one key twice.
    """
    axes: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, values = pair.partition("=")
        key, texts = key.strip(), shared.names(values)
        if not equals or not key or not texts:
            raise Refusal(f"--sweep {pair} is not KEY=A,B,C; write for example --sweep latent=8,16,32.")
        if key in axes:
            raise Refusal(f"--sweep names {key} twice; list all its values at once.")
        listed = [shared.value_of(t) for t in texts]
        if any(listed.count(v) > 1 for v in listed):
            raise Refusal(f"--sweep {pair} names a value twice; name each once.")
        axes[key] = listed
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]


def family_begun(console: Console, names: Sequence[str]) -> Callable[[str], None]:
    """Prints each family as its fit begins."""

    def tell_family(name: str) -> None:
        console.print(f"Family {name}, {names.index(name) + 1} of {len(names)}", style="bold cyan", markup=False)

    return tell_family


def setting_begun(console: Console) -> Callable[[str], None]:
    """Prints each setting of a sweep as its fit begins."""
    return lambda name: console.print(f"With {name}", style="bold cyan", markup=False)


def tell_sweep(console: Console, outcome: fitting.Outcome) -> None:
    """What a sweep chose, and from what, on the terminal."""
    from rich.table import Table

    sweep = outcome.sweep
    assert sweep is not None
    table = Table("setting", "clean evidence", "standard error", "fit s", "", title=f"By the {sweep.by}")
    for candidate in sweep.candidates:
        mark = "chosen" if candidate is sweep.chosen else ""
        seconds = f"{candidate.result.fit.seconds:.1f}"
        table.add_row(candidate.name, f"{candidate.value:.5g}", f"{candidate.error:.2g}", seconds, mark)
    console.print(table)
    for name, why in sweep.failed.items():
        console.print(f"  left out {name}: {why}", style="yellow", markup=False)
    console.print(
        f"  chose {sweep.chosen.name}: the first within one standard error of the best. Lower is better; only "
        "clean samples were looked at.",
        markup=False,
    )


def tell(console: Console, name: str, comparison: fitting.Comparison) -> None:
    """The comparison on the terminal."""
    from rich.table import Table

    shown = [comparison.columns.index(column) for column in IN_TERMINAL]
    table = Table(*IN_TERMINAL)
    for row in comparison.rows.values():
        table.add_row(*(row[i] for i in shown))
    console.print(table)
    for entry in comparison.entries:
        if entry.why is not None:
            console.print(f"  {entry.name}: {entry.why}", markup=False)
    for family, placement in comparison.placements.items():
        console.print(f"  {shared.placement_phrase(placement, f'{name}-{family}')}", markup=False)
    console.print(f"  page: {comparison.page}", markup=False)
