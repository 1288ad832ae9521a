"""`vaegis interpolate`: from one sample to another through the latent space, and sums of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening


@shared.reads("rows", "condition")
def interpolate(
    *,
    samples: Annotated[
        list[str],
        typer.Argument(metavar="A B [C ...]", help="Samples, each a PATH that holds one, or PATH:INDEX of many."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR|FILE", help="A folder of PNGs (images), or .npz, .parquet, .csv.")
    ],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    steps: Annotated[int, typer.Option("--steps", min=2, max=1000, help="Samples from A to B, both included.")] = 8,
    arith: Annotated[
        str | None,
        typer.Option("--arith", metavar="A-B+C", help="This sum of latents instead; the samples are A, B, C, ..."),
    ] = None,
    condition: opening.Condition = None,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Walk from sample A to sample B in latent space, or add and subtract samples there.

    vaegis interpolate good.png worn.png --model bracket --out walk

    vaegis interpolate a.png b.png c.png --arith A-B+C --model bracket --out sum
    """
    import numpy as np

    from vaegis.models.bundle import DECODER, ENCODER
    from vaegis.models.latent import as_raw, combine, parse_arith
    from vaegis.models.latent import interpolate as line
    from vaegis.models.latent.coder import condition_for_all
    from vaegis.models.outputs.sample_files import sample_files

    weights = parse_arith(arith, len(samples)) if arith is not None else None
    if weights is None and len(samples) != 2:
        raise Refusal(f"{len(samples)} samples were given; name two, A and B, or say what to do with them by --arith.")
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "interpolate")
    coder.need(DECODER, "interpolate")
    codes = condition_for_all(coder.spec, condition, len(samples))
    reading = source_options.reading()
    parts = np.concatenate([opening.one_part(coder, text, reading) for text in samples])
    latents, _ = coder.encode(parts, codes)
    # Of a sum, what it was made of comes first and the sum last.
    path = line(latents[0], latents[1], steps) if weights is None else np.vstack([latents, combine(latents, weights)])
    decoded = as_raw(coder.decode(path, condition_for_all(coder.spec, condition, len(path))), coder.spec)
    with sample_files(out, coder.spec) as files:
        names = [None] * len(decoded) if weights is None else [*(chr(65 + i) for i in range(len(samples))), "sum"]
        files.write(decoded, names, np.arange(len(decoded), dtype=np.int64))
    typer.echo(f"{len(decoded)} samples in {out}" if weights is None else f"{arith} is the last sample in {out}")
