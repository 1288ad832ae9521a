"""`vaegis latent`: the latent space as a map, the samples along it, and what single units do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaegis.models.errors import Conflict, Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaegis.models.blocks import Block
    from vaegis.models.latent import Coder
    from vaegis.models.sources.labels import LabelTable

MOST = 20_000  # samples on a map: more are an even blot
GRID, STEPS, REACH = 9, 9, 2.5  # cells along a side; steps of a traverse; clean standard deviations to either side


@shared.reads()
def latent(
    *,
    source: shared.Source,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For map.png, map.parquet, grid.png and traverse.png.")
    ],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="FILE.csv|column:NAME|key:NAME|folders", help="Colour the points by label or class."
        ),
    ] = None,
    traverse: Annotated[
        str | None,
        typer.Option("--traverse", metavar="3,5|active", help="Move these units one by one; `active`: those in use."),
    ] = None,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Draw where the samples of SOURCE lie in latent space, and what the decoder makes of the places between.

    The map is the plane on which the latents differ most (PCA).

    vaegis latent test.npz --model digits --labels key:y --out digits-latent
    """
    from vaegis.models.bundle import DECODER, ENCODER
    from vaegis.models.latent import linear_probe
    from vaegis.models.outputs.atomic import atomic_files, writing
    from vaegis.models.sources import open_source, read_labels

    if out.exists() and not out.is_dir():
        raise Conflict(f"--out {out} is a file; name a folder.")
    reading = source_options.reading(labels=labels)
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "draw its latent space")
    table = read_labels(open_source(source, reading), coder.spec.kind, labels) if labels is not None else None
    points = _points(coder, opening.open_blocks(coder, source, reading), table)
    if len(points) < 3:
        if not len(points):
            raise Refusal(f"No sample of {source.name} could be read; `vaegis score` says why of each.")
        raise Refusal(f"{source.name} holds {len(points)} readable samples; a map needs three at least.")
    units = _units(traverse, points.latents)
    if units and not coder.has(DECODER):
        coder.need(DECODER, "show what a unit does")
    with writing(f"--out {out}"), atomic_files(out) as folder:
        pages = _write_pages(folder, coder, points, units)
    typer.echo(f"{len(points):,} samples: {', '.join(pages)} in {out}")
    probe = linear_probe(points.latents, points.groups)
    if probe is not None:
        typer.echo(
            f"  a linear probe tells the {probe.labels} labels apart for {probe.accuracy:.1%} of {probe.samples:,} "
            f"samples; by guessing, {probe.chance:.1%}"
        )


@dataclass(frozen=True)
class Points:
    """Samples in latent space."""

    latents: NDArray[np.float32]  # (n, size)
    items: Sequence[str | None]  # (n,)
    index: NDArray[np.int64]  # (n,)
    groups: Sequence[str | None]  # (n,) label, class or condition, by which they are coloured
    conditions: Sequence[int]  # (n,), empty for a model without

    def __len__(self) -> int:
        return len(self.items)


def _points(coder: Coder, blocks: Iterator[Block], table: LabelTable | None) -> Points:
    """Encodes the readable samples, `MOST` or a block more."""
    import numpy as np

    latents: list[Any] = [np.empty((0, coder.size), np.float32)]
    index: list[Any] = [np.empty(0, np.int64)]
    items: list[str | None] = []
    groups: list[str | None] = []
    numbers: list[int] = []
    for block in blocks:
        readable = np.flatnonzero(block.count > 0)
        if not len(readable):
            continue
        first = block.first[readable]
        conditions = block.conditions[first] if block.conditions is not None else None
        latents.append(coder.encode(block.parts[first], conditions)[0])
        names = [block.items[i] for i in readable.tolist()]
        items += names
        index.append(block.index[readable])
        if table is not None:
            label, classes = table.find(names, block.index[readable])
            groups += [c or {0: "clean", 1: "anomalous"}.get(int(v)) for v, c in zip(label, classes, strict=True)]
        elif conditions is not None:
            groups += [coder.spec.conditions[c] for c in conditions.tolist()]
        else:
            groups += [None] * len(readable)
        numbers += conditions.tolist() if conditions is not None else []
        if len(items) >= MOST:
            break
    return Points(np.concatenate(latents), items, np.concatenate(index), groups, numbers)


def _write_pages(folder: Path, coder: Coder, points: Points, units: Sequence[int]) -> list[str]:
    """Writes the map, and what the decoder makes of it where the model has one; returns the files' names."""
    import numpy as np
    import pyarrow as pa

    from vaegis.models.bundle import DECODER
    from vaegis.models.latent import plane_of
    from vaegis.models.latent import traverse as walk
    from vaegis.models.latent.pictures import grid, scatter
    from vaegis.models.outputs.table_file import TableFile

    z, spec = points.latents, coder.spec
    plane = plane_of(z)
    places = plane.place(z)
    shares = f"{plane.shares[0]:.0%} and {plane.shares[1]:.0%} of the latents' variance"
    (folder / "map.png").write_bytes(scatter(places, points.groups, f"{len(z):,} samples; the axes have {shares}"))
    columns = {
        "item": pa.array(points.items, pa.string()),
        "index": pa.array(points.index),
        "x": pa.array(places[:, 0], pa.float64()),
        "y": pa.array(places[:, 1], pa.float64()),
        "group": pa.array(points.groups, pa.string()),
    }
    with TableFile(folder / "map.parquet", pa.schema([(n, c.type) for n, c in columns.items()])) as file:
        file.write(columns)
    pages = ["map.png", "map.parquet"]
    if not coder.has(DECODER):
        return pages
    # Under the condition that most samples have.
    common = int(np.bincount(points.conditions).argmax()) if points.conditions else None
    as_what = f" as {spec.conditions[common]}" if common is not None else ""

    def decode(latents: NDArray[Any]) -> NDArray[Any]:
        return coder.decode(latents, None if common is None else np.full(len(latents), common))

    left, right = np.quantile(places[:, 0], (0.02, 0.98)).tolist()
    top, bottom = np.quantile(places[:, 1], (0.98, 0.02)).tolist()
    across, down = np.linspace(left, right, GRID), np.linspace(top, bottom, GRID)
    cells = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    pictures = decode(plane.back(cells)).reshape(GRID, GRID, *spec.shape)
    title = f"What the decoder makes of the map's places{as_what}"
    (folder / "grid.png").write_bytes(grid(pictures, spec, title))
    pages.append("grid.png")
    if units:
        centre, spread = z.mean(axis=0), z.std(axis=0)
        steps = np.concatenate([walk(centre, u, float(spread[u]), STEPS, REACH) for u in units])
        pictures = decode(steps).reshape(len(units), STEPS, *spec.shape)
        title = f"Units {', '.join(map(str, units))}, {REACH:g} standard deviations either way{as_what}"
        (folder / "traverse.png").write_bytes(grid(pictures, spec, title))
        pages.append("traverse.png")
    return pages


def _units(text: str | None, latents: NDArray[np.float32]) -> list[int]:
    """The units to move: those named, or those whose mean varies by more than 0.01 over the samples, most first."""
    if text is None:
        return []
    if text == "active":
        variance = latents.var(axis=0)
        return [int(u) for u in (-variance).argsort(kind="stable") if variance[u] > 0.01][:16]
    try:
        units = [int(part) for part in shared.names(text)]
    except ValueError:
        units = []
    if not units:
        raise Refusal(f"--traverse {text} names no units; write numbers such as 0,3 or `active`.")
    for unit in units:
        if not 0 <= unit < latents.shape[1]:
            raise Refusal(
                f"--traverse {unit}: the model has {latents.shape[1]} latent numbers, 0 to {latents.shape[1] - 1}."
            )
    return units
