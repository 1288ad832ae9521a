"""`vaegis latent`: the latent space as a map, the samples along it, and what single units do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaegis.models.errors import Conflict, Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening

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
    asked: shared.Asked,
    device: shared.Device = "auto",
) -> None:
    """Draw where the samples of SOURCE lie in latent space, and what the decoder makes of the places between.

    The map is the plane on which the latents differ most (PCA).

    vaegis latent test.npz --model digits --labels key:y --out digits-latent
    """
    import numpy as np
    import pyarrow as pa

    from vaegis.models.bundle import DECODER, ENCODER
    from vaegis.models.latent import linear_probe, plane_of
    from vaegis.models.latent import traverse as walk
    from vaegis.models.latent.pictures import grid, scatter
    from vaegis.models.outputs.sample_files import TableFile
    from vaegis.models.outputs.score_file import writing
    from vaegis.models.sources import open_source, read_labels

    if out.exists() and not out.is_dir():
        raise Conflict(f"--out {out} is a file; name a folder.")
    reading = asked.reading(labels=labels)
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "draw its latent space")
    table = read_labels(open_source(source, reading), coder.spec.kind, labels) if labels is not None else None
    latents, items, index = [], [], []
    groups: list[str | None] = []
    told: list[int] = []
    for block in opening.open_blocks(coder, source, reading):
        there = np.flatnonzero(block.count > 0)
        if not len(there):
            continue
        first = block.first[there]
        conditions = block.conditions[first] if block.conditions is not None else None
        latents.append(coder.encode(block.parts[first], conditions)[0])
        names = [block.items[i] for i in there.tolist()]
        items += names
        index.append(block.index[there])
        if table is not None:
            label, classes = table.find(names, block.index[there])
            groups += [c or {0: "clean", 1: "anomalous"}.get(int(v)) for v, c in zip(label, classes, strict=True)]
        elif conditions is not None:
            groups += [coder.spec.conditions[c] for c in conditions.tolist()]
        else:
            groups += [None] * len(there)
        told += conditions.tolist() if conditions is not None else []
        if len(items) >= MOST:
            break
    if not items:
        raise Refusal(f"No sample of {source.name} could be read; `vaegis score` says why of each.")
    z = np.concatenate(latents)
    if len(z) < 3:
        raise Refusal(f"{source.name} holds {len(z)} readable samples; a map needs three at least.")
    units = _units(traverse, z)
    plane = plane_of(z)
    places = plane.place(z)
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
    shares = f"{plane.shares[0]:.0%} and {plane.shares[1]:.0%} of the latents' variance"
    with writing(f"--out {out}"):
        (out / "map.png").write_bytes(scatter(places, groups, f"{len(z):,} samples; the axes have {shares}"))
    schema = [
        ("item", pa.string()),
        ("index", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("group", pa.string()),
    ]
    with TableFile(out / "map.parquet", pa.schema(schema)) as file:
        named = {"item": pa.array(items, pa.string()), "group": pa.array(groups, pa.string())}
        at = {"index": pa.array(np.concatenate(index)), "x": pa.array(places[:, 0]), "y": pa.array(places[:, 1])}
        file.write({**named, **at})
    made = ["map.png", "map.parquet"]
    if coder.has(DECODER):
        # Under the condition that most samples have.
        common = int(np.bincount(told).argmax()) if told else None
        left, right = np.quantile(places[:, 0], (0.02, 0.98)).tolist()
        top, bottom = np.quantile(places[:, 1], (0.98, 0.02)).tolist()
        across, down = np.linspace(left, right, GRID), np.linspace(top, bottom, GRID)
        cells = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        pictures = coder.decode(plane.back(cells), None if common is None else np.full(len(cells), common))
        as_what = f" as {coder.spec.conditions[common]}" if common is not None else ""
        title = f"What the decoder makes of the map's places{as_what}"
        with writing(f"--out {out}"):
            (out / "grid.png").write_bytes(grid(pictures.reshape(GRID, GRID, *coder.spec.shape), coder.spec, title))
        made.append("grid.png")
        if units:
            centre, spread = z.mean(axis=0), z.std(axis=0)
            steps = np.concatenate([walk(centre, u, float(spread[u]), STEPS, REACH) for u in units])
            moved = coder.decode(steps, None if common is None else np.full(len(steps), common))
            title = f"Units {', '.join(map(str, units))}, {REACH:g} standard deviations either way{as_what}"
            with writing(f"--out {out}"):
                rows_of = moved.reshape(len(units), STEPS, *coder.spec.shape)
                (out / "traverse.png").write_bytes(grid(rows_of, coder.spec, title))
            made.append("traverse.png")
    elif units:
        coder.need(DECODER, "show what a unit does")
    typer.echo(f"{len(z):,} samples: {', '.join(made)} in {out}")
    found = linear_probe(z, groups)
    if found is not None:
        typer.echo(
            f"  a linear probe tells the {found.labels} labels apart for {found.accuracy:.1%} of {found.samples:,} "
            f"samples; by guessing, {found.chance:.1%}"
        )


def _units(text: str | None, z: object) -> list[int]:
    """The units to move: those named, or those whose mean varies by more than 0.01 over the samples, most first."""
    import numpy as np

    latents = np.asarray(z)
    if text is None:
        return []
    if text == "active":
        variance = latents.var(axis=0)
        return [int(u) for u in np.argsort(-variance, kind="stable") if variance[u] > 0.01][:16]
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
