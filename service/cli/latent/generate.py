"""`vaegis generate`: new samples of what the model learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening

MOST = 100_000


def generate(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR|FILE", help="A folder of PNGs (images), or .npz, .parquet, .csv.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, max=MOST, help="How many.")] = 16,
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Same seed, same samples.")] = 0,
    condition: opening.Condition = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of a model that generates step by step; else its own number.")
    ] = None,
    device: shared.Device = "auto",
) -> None:
    """Draw new samples from the model.

    vaegis generate --model bracket --n 16 --out drawn
    """
    import numpy as np

    from vaegis.models.latent import as_raw
    from vaegis.models.latent.coder import condition_for_all
    from vaegis.models.outputs.sample_files import sample_files

    coder = opening.open_coder(model, bundle, device)
    codes = condition_for_all(coder.spec, condition, 1)
    samples = coder.generate(n, seed, None if codes is None else int(codes[0]), steps)
    if samples.shape[1:] != coder.spec.shape:
        raise Refusal(f"The model's sampler gives samples of shape {samples.shape[1:]}, not {coder.spec.shape}.")
    with sample_files(out, coder.spec) as files:
        files.write(as_raw(samples, coder.spec), [None] * n, np.arange(n, dtype=np.int64))
    typer.echo(f"{n:,} samples in {out}")
