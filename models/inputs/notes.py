"""What a user should know of how a source is read by a model, before its samples are judged."""

from __future__ import annotations

from vaegis.models.errors import Refusal
from vaegis.models.sources import Source, TableFiles
from vaegis.models.sources.options import listed
from vaegis.models.sources.tables import Table, timestamp_column
from vaegis.models.spec import ImageSpec, InputSpec


def notes_of(source: Source, spec: InputSpec) -> tuple[str, ...]:
    """Sentences on what of a source is passed over; of tables the first that can be opened speaks for all."""
    if not isinstance(source, TableFiles) or isinstance(spec, ImageSpec):
        return source.notes
    return (*source.notes, *_columns_passed_over(source, spec.columns))


def _columns_passed_over(source: TableFiles, wanted: tuple[str, ...]) -> list[str]:
    table = _first(source)
    if table is None or not set(wanted) <= set(table.schema.names):
        return []
    options = source.options
    known = {
        *wanted,
        *options.exclude,
        timestamp_column(table, options),
        options.label_column,
        options.condition_column,
        options.calibrate_by,
        options.group_by,
    }
    others = [name for name in table.schema.names if name and name not in known]
    if not others:
        return []
    columns = "Column" if len(others) == 1 else "Columns"
    return [f"{columns} of {table.name} that the model does not take: {listed(others)}."]


def _first(source: TableFiles) -> Table | None:
    for name in source.names():
        try:
            return source.open(name)
        except Refusal:
            continue
    return None
