"""Command-line options that several commands share, and how their texts become values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from vaegis.models.errors import Refusal
from vaegis.models.spec import SPECS, Kind

if TYPE_CHECKING:
    from vaegis.models.sources import SourceOptions
    from vaegis.service.fitting import Placement
    from vaegis.service.store.registry import Registered

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of images, an .npz or .npy file, a csv or Parquet file, or a folder of those.",
    ),
]
KindOption = Annotated[
    str | None,
    typer.Option("--kind", metavar="image|series|vector", help="What SOURCE holds, where its form does not say it."),
]
Key = Annotated[str | None, typer.Option("--key", help="Which array of an .npz; else `x`, else the first.")]
Columns = Annotated[
    str | None, typer.Option("--columns", metavar="A,B,...", help="The columns to use, in this order; else every one.")
]
Exclude = Annotated[str | None, typer.Option("--exclude", metavar="A,B,...", help="Columns to leave out.")]
Timestamp = Annotated[str | None, typer.Option("--timestamp", metavar="NAME", help="The timestamp column.")]
Sep = Annotated[str | None, typer.Option("--sep", help="Separator of csv fields; else detected.")]
Decimal = Annotated[
    str | None, typer.Option("--decimal", metavar=".|,", help="Decimal mark of csv numbers; else detected.")
]
Thousands = Annotated[
    str | None,
    typer.Option("--thousands", metavar=".|,|'|space", help="What stands between thousands in csv; else detected."),
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", metavar="NAME", help="Encoding of csv, such as latin-1 or utf-16.")
]
Comment = Annotated[
    str | None, typer.Option("--comment", metavar="'#'", help="Lines of csv that begin so are passed over.")
]
Skip = Annotated[
    int | None, typer.Option("--skip", metavar="N", min=0, help="Lines above the header of csv that are passed over.")
]
SkipAfterHeader = Annotated[
    int | None,
    typer.Option("--skip-after-header", metavar="N", min=0, help="Rows below the header of csv, such as one of units."),
]
NaTexts = Annotated[
    list[str] | None,
    typer.Option("--na", metavar="TEXT", help="What stands for no value in csv fields, such as #DIV/0!; repeatable."),
]
Rows = Annotated[
    str | None, typer.Option("--rows", metavar="A:B", help="Only rows (or samples) A up to, not including, B.")
]
Condition = Annotated[
    str | None,
    typer.Option(
        "--condition",
        metavar="FILE.csv|column:NAME|key:NAME|folders|is:NAME",
        help="What each sample was made as (class, recipe), for models fitted with conditions; is:NAME says it of all.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cuda|cpu", help="cuda is strict; auto takes the GPU where it works."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME[@VERSION]", help="A registered model; its champion by default.")
]
BundleFolder = Annotated[Path | None, typer.Option("--bundle", metavar="DIR", help="A bundle's folder instead.")]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", help="False-alarm rate to decide at; else the model's own.", show_default=False),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Decide by this value of the deciding term instead of a rate.", show_default=False
    ),
]
DecideBy = Annotated[str, typer.Option("--decide-by", metavar="TERM", help="`score` or an evidence term.")]


@dataclass(frozen=True)
class ReadingOptions:
    """How a source is to be read, as the options say it that every command takes which reads one; see `reads`."""

    kind: KindOption = None
    key: Key = None
    columns: Columns = None
    exclude: Exclude = None
    timestamp: Timestamp = None
    sep: Sep = None
    decimal: Decimal = None
    thousands: Thousands = None
    encoding: Encoding = None
    comment: Comment = None
    skip: Skip = None
    skip_after_header: SkipAfterHeader = None
    na: NaTexts = None
    rows: Rows = None
    condition: Condition = None

    def reading(
        self,
        group_by: str | None = None,
        calibrate_by: str | None = None,
        labels: str | None = None,
        condition: str | None = None,
    ) -> SourceOptions:
        """How to read it, with what only some commands ask.

        Raises:
            Refusal: an unknown kind, or rows that are no range.
        """
        from vaegis.models.sources import SourceOptions, parse_rows

        if self.kind is not None and self.kind not in SPECS:
            raise Refusal(f"--kind {self.kind} is unknown; choose {', '.join(SPECS)}.")
        return SourceOptions(
            kind=cast(Kind | None, self.kind),
            key=self.key,
            columns=names(self.columns),
            exclude=names(self.exclude),
            timestamp=self.timestamp,
            sep={"tab": "\t", "\\t": "\t"}.get(self.sep, self.sep) if self.sep else None,
            decimal=self.decimal,
            thousands=" " if self.thousands == "space" else self.thousands,
            encoding=self.encoding,
            comment=self.comment,
            skip=self.skip,
            skip_after_header=self.skip_after_header,
            na=tuple(self.na or ()),
            rows=parse_rows(self.rows) if self.rows else None,
            group_by=group_by,
            calibrate_by=calibrate_by,
            labels=labels,
            condition=condition if condition is not None else self.condition,
        )


def reads(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `ReadingOptions`, in the place of its parameter `source_options`.

    Args:
        without: those that it does not take.
    """
    hints = get_type_hints(ReadingOptions, include_extras=True)
    options = [Parameter(n, Parameter.KEYWORD_ONLY, default=None, annotation=t) for n, t in hints.items()]
    options = [o for o in options if o.name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command, eval_str=True).parameters
        parameters = [q for n, p in own.items() for q in (options if n == "source_options" else [p])]

        @wraps(command)
        def run(**given: Any) -> None:
            source_options = ReadingOptions(**{o.name: given.pop(o.name) for o in options})
            command(**given, source_options=source_options)

        # What Typer reads the options from.
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def say_notes(notes: Sequence[str]) -> None:
    """Puts notes on how a source is read to standard error."""
    for note in notes:
        typer.secho(f"  note: {note}", err=True, fg="yellow")


def names(text: str | None) -> tuple[str, ...]:
    """`a, b` -> ("a", "b")."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def size(text: str | None) -> tuple[int, int] | None:
    """`HxW` in pixels, or one number for both."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if match is None:
        raise Refusal(f"--size {text} is not a size; write HEIGHTxWIDTH in pixels, such as 128x96.")
    return int(match[1]), int(match[2] or match[1])


def duration(text: str | None) -> float | None:
    """`90s`, `10m`, `1.5h` or plain seconds, in seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise Refusal(f"--max-time {text} is not a time; write 90s, 10m or 1.5h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def arguments(pairs: Sequence[str], recipe: Path | None) -> dict[str, Any]:
    """A family's arguments: those of a recipe file, overridden by `--set key=value` pairs.

    Raises:
        Refusal: a pair without `=`, a recipe that is not TOML.
    """
    settings: dict[str, Any] = {}
    if recipe is not None:
        import tomllib

        try:
            settings = tomllib.loads(recipe.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise Refusal(f"--recipe {recipe} cannot be read as TOML: {error}.") from error
        settings = {k: v for key, value in settings.items() for k, v in _flat(key, value)}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise Refusal(f"--set {pair} is not key=value; write for example --set latent=32.")
        settings[key.strip()] = value_of(value.strip())
    return settings


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    """A TOML table `[likelihood]` becomes dotted keys."""
    if isinstance(value, dict):
        return [(f"{key}.{k}" if k else key, v) for k, v in value.items()]
    return [(key, value)]


def value_of(text: str) -> Any:
    """A number where the text is one."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def bundle_for(model: str | None, bundle: Path | None) -> Path:
    """The folder of the bundle that the options name.

    Raises:
        Refusal: both or neither given; an unknown model.
    """
    if (model is None) == (bundle is None):
        raise Refusal("Name the model by --model NAME or its folder by --bundle DIR, one of the two.")
    if bundle is not None:
        return bundle
    assert model is not None
    from vaegis.service.settings import read_settings
    from vaegis.service.store.registry import Registry

    with closing(Registry.open(read_settings())) as registry:
        return registry.resolve(model).path


def registration_phrase(added: Registered, name: str) -> str:
    """What became of a bundle that was registered, in a phrase."""
    text = f"{name} version {added.version}"
    text += ", registered before" if added.known else ", now its champion" if added.promoted else ""
    if not added.promoted and not added.known:
        text += f"; promote it with: vaegis models promote {name}@{added.version}"
    return text


def placement_phrase(placement: Placement, name: str) -> str:
    """Where a bundle is kept, in a phrase."""
    return f"{placement.path}" if placement.registered is None else registration_phrase(placement.registered, name)
