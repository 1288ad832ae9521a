"""`vaegis encode`: the latents of a source as a table, for clustering or another model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening

if TYPE_CHECKING:
    from vaegis.models.blocks import Block
    from vaegis.models.latent import Coder


@shared.reads()
def encode(
    *,
    source: shared.Source,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A row per sample: .parquet or .csv.")],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Write the latent mean and log-variance of every sample in SOURCE.

    vaegis encode line4/today --model bracket --out latents.parquet
    """
    import pyarrow as pa

    from vaegis.models.bundle import ENCODER
    from vaegis.models.outputs.table_file import TableFile

    reading = source_options.reading()
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "encode")
    stream = opening.open_blocks(coder, source, reading)
    size = coder.size
    names = [f"{what}_{i}" for what in ("mean", "log_variance") for i in range(size)]
    fields = [("item", pa.string()), ("index", pa.int64()), ("part", pa.int64()), ("timestamp", pa.string())]
    schema = pa.schema([*fields, *((n, pa.float32()) for n in names), ("error", pa.string())])
    count = failed = 0
    with TableFile(out, schema, forms=(".parquet", ".csv")) as file:
        for block in stream:
            file.write(_rows(coder, block, names))
            count += len(block)
            failed += int((block.count == 0).sum())
    unread = f", {failed:,} of them unread" if failed else ""
    typer.echo(f"{count:,} samples{unread}: {size} latent numbers each in {out}")


def _rows(coder: Coder, block: Block, names: list[str]) -> dict[str, Any]:
    """A row per sample, or per tile of a tiled image; nulls where a sample could not be read."""
    import numpy as np
    import pyarrow as pa

    repeats = np.maximum(block.count, 1)
    sample = np.repeat(np.arange(len(block)), repeats)
    part = np.arange(len(sample)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    readable = block.count[sample] > 0
    values = np.full((len(sample), len(names)), np.nan, np.float32)
    if readable.any():
        latents = np.concatenate(coder.encode(block.parts, block.conditions), axis=1)
        values[readable] = latents[(block.first[sample] + part)[readable]]
    stamps = block.timestamps
    return {
        "item": pa.array([block.items[i] for i in sample.tolist()], pa.string()),
        "index": pa.array(block.index[sample]),
        "part": pa.array(part),
        "timestamp": pa.array([None if stamps is None else str(stamps[i]) for i in sample.tolist()], pa.string()),
        **{n: pa.array(values[:, i], from_pandas=True) for i, n in enumerate(names)},
        "error": pa.array([block.errors.get(i) for i in sample.tolist()], pa.string()),
    }
