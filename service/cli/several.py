"""What `vaegis fit` does with several families, or with a sweep of arguments: many fits, one table, one page."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegis.models.errors import Conflict, Refusal
from vaegis.models.outputs.atomic import write_bytes, writing
from vaegis.service.cli import options as shared
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry, check_name

if TYPE_CHECKING:
    from rich.console import Console

    from vaegis.training.comparison.families import Entry, Labelled
    from vaegis.training.pipeline import Made, Request, Watch

IN_TERMINAL = ("family", "AUROC %", "found", "false", "bits", "fit s", "ms")  # what 80 characters hold
PAGE, FIGURES = "compare.html", "compare.json"


def families(text: str) -> tuple[str, ...] | None:
    """The families that `--family` names, or None where it is one."""
    if text.strip() != "all" and "," not in text:
        return None
    from vaegis.training.comparison.families import named

    return named(text)


def test_of(source: Path | None, labels: str | None, request: Request) -> Labelled | None:
    """What `--test` and `--labels` say.

    Raises:
        Refusal: one without the other.
    """
    if source is None and labels is None:
        return None
    if source is None or labels is None:
        raise Refusal("--test and --labels go together: a source of labelled samples, and where their labels are.")
    from vaegis.training.comparison.families import Labelled

    # Read as the clean source is, but whole, and without its groups.
    reading = replace(request.reading, rows=None, group_by=None, labels=labels)
    return Labelled(source, labels, reading)


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
        found = [shared.value_of(t) for t in texts]
        if any(found.count(v) > 1 for v in found):
            raise Refusal(f"--sweep {pair} names a value twice; name each once.")
        axes[key] = found
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]


def compared(
    request: Request,
    names: Sequence[str],
    test: Labelled | None,
    out: Path | None,
    settings: Settings,
    console: Console,
    watch: Watch,
) -> tuple[list[Entry], list[str], Path]:
    """Fits all, keeps each as NAME-FAMILY or under `out`, and writes the page.

    Returns:
        What came of each, a sentence on where each is, and the page.
    """
    from vaegis.training.comparison.families import compare, examples
    from vaegis.training.comparison.page import page

    if out is not None and out.exists():
        raise Conflict(f"{out} exists already; name another --out folder, which is made.")
    if out is None:
        for name in names:
            check_name(f"{request.name}-{name}")
    beside = settings.home if out is None else _standing(out)
    beside.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".fit-", dir=beside))
    try:
        at = [0]

        def begun(name: str) -> None:
            at[0] += 1
            console.print(f"Family {name}, {at[0]} of {len(names)}", style="bold cyan", markup=False)

        spec, entries = compare(replace(request, out=aside / "all"), names, test, watch, begun)
        made = [e for e in entries if e.made is not None]
        first = made[0].made
        assert first is not None
        shown = examples(first.bundle, *((test.source, test.reading) if test else (request.source, request.reading)))
        files = {
            PAGE: page(request.name, spec, entries, shown, test is not None),
            FIGURES: _figures(request.name, entries),
        }
        folder = out if out is not None else settings.home / "comparisons" / request.name
        kept = _kept(request.name, made, out, settings)
        with writing(f"The comparison in {folder}"):
            for name, raw in files.items():
                write_bytes(folder / name, raw)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return entries, kept, folder / PAGE


def _standing(out: Path) -> Path:
    """The nearest folder above that exists: what is made aside is then renamed, not copied."""
    return next(folder for folder in out.absolute().parents if folder.is_dir())


def _kept(name: str, made: Sequence[Entry], out: Path | None, settings: Settings) -> list[str]:
    """Each bundle to where it belongs; a sentence each."""
    said = []
    if out is not None:
        out.mkdir(parents=True)
        for entry in made:
            assert entry.made is not None
            entry.made.bundle.path.rename(out / entry.name)
            said.append(str(out / entry.name))
        return said
    with closing(Registry.open(settings)) as registry:
        for entry in made:
            assert entry.made is not None
            model = f"{name}-{entry.name}"
            said.append(shared.kept(registry.add(model, entry.made.bundle.path, move=True), model))
    return said


def _figures(name: str, entries: Sequence[Entry]) -> bytes:
    rows = [{"family": e.name, "why": e.why, **(asdict(e.figures) if e.figures is not None else {})} for e in entries]
    return (json.dumps({"format": 1, "name": name, "families": rows}, indent=1) + "\n").encode()


def swept(request: Request, pairs: Sequence[str], console: Console, watch: Watch) -> Made:
    """Fits every setting, says which clean evidence chose, and puts that bundle at `request.out`."""
    from rich.table import Table

    from vaegis.training.comparison.families import sweep

    settings = grid(pairs)
    if request.out.exists():
        raise Conflict(f"{request.out} exists already; a bundle is never altered. Name another --out folder.")
    aside = Path(tempfile.mkdtemp(prefix=".sweep-", dir=_standing(request.out)))
    try:

        def begun(name: str) -> None:
            console.print(f"With {name}", style="bold cyan", markup=False)

        found = sweep(replace(request, out=aside / "all"), settings, watch, begun)
        table = Table("setting", "clean evidence", "standard error", "fit s", "", title=f"By the {found.by}")
        for one in found.candidates:
            mark = "chosen" if one is found.chosen else ""
            table.add_row(one.name, f"{one.value:.5g}", f"{one.error:.2g}", f"{one.made.fitted.seconds:.1f}", mark)
        console.print(table)
        for name, why in found.failed.items():
            console.print(f"  left out {name}: {why}", style="yellow", markup=False)
        console.print(
            f"  chose {found.chosen.name}: the first within one standard error of the best. Lower is better; only "
            "clean samples were looked at.",
            markup=False,
        )
        chosen = found.chosen.made
        request.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.bundle.path.rename(request.out)
        return replace(chosen, bundle=replace(chosen.bundle, path=request.out))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def tell(console: Console, entries: Sequence[Entry], kept: Sequence[str], page: Path) -> None:
    """The comparison on the terminal."""
    from rich.table import Table

    from vaegis.training.comparison.page import COLUMNS, cells

    shown = [COLUMNS.index(name) for name in IN_TERMINAL]
    table = Table(*IN_TERMINAL)
    for entry in entries:
        if entry.made is not None:
            row = cells(entry)
            table.add_row(*(row[i] for i in shown))
    console.print(table)
    for entry in entries:
        if entry.why is not None:
            console.print(f"  {entry.name}: {entry.why}", markup=False)
    for said in kept:
        console.print(f"  {said}", markup=False)
    console.print(f"  page: {page}", markup=False)
