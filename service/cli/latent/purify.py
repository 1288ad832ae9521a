"""`vaegis purify`: each sample as the model holds clean product to be, and what it differs by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening


@shared.reads()
def purify(
    *,
    source: shared.Source,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR|FILE", help="A folder of PNGs (images), or .npz, .parquet, .csv.")
    ],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Rebuild each sample from its latent: what clean product would have looked like there, and the difference.

    vaegis purify line4/today --model bracket --out clean
    """
    import numpy as np

    from vaegis.models.bundle import DECODER, ENCODER
    from vaegis.models.latent import as_raw, assembled, stacked
    from vaegis.models.outputs.sample_files import sample_files, signed
    from vaegis.models.spec import ImageSpec

    reading = source_options.reading()
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "purify")
    coder.need(DECODER, "purify")
    spec = coder.spec
    image = isinstance(spec, ImageSpec)
    if out.resolve() == source.resolve():
        raise Refusal(f"--out {out} is SOURCE itself; name another place.")
    stream = opening.open_blocks(coder, source, reading)
    count = unread = 0
    with sample_files(out, spec, ("difference",)) as files:
        for block in stream:
            if not len(block.parts):
                unread += len(block)
                continue
            rebuilt = coder.decode(coder.encode(block.parts, block.conditions)[0], block.conditions)
            clean, raw = assembled(block, rebuilt, spec), assembled(block, block.parts, spec)
            there = [i for i, one in enumerate(clean) if one is not None]
            unread += len(block) - len(there)
            count += len(there)
            # Images of a tiled model may differ in size.
            runs = [[i] for i in there] if image and block.extents is not None else [there] if there else []
            for run in runs:
                pure = as_raw(stacked(clean, run), spec)
                left = stacked(raw, run).astype(np.float32) - pure
                shown = signed(left, spec) if isinstance(spec, ImageSpec) and out.suffix != ".npz" else left
                stamps = [block.timestamps[i] for i in run] if block.timestamps is not None else None
                files.write(pure, [block.items[i] for i in run], block.index[run], stamps, difference=shown)
    if not count:
        raise Refusal(f"None of the {unread} samples of {source.name} could be read; `vaegis score` says why of each.")
    remark = f"; {unread:,} could not be read" if unread else ""
    typer.echo(f"{count:,} samples rebuilt: {out}{remark}")
