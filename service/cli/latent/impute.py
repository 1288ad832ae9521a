"""`vaegis impute`: missing values filled in by what the model holds most plausible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared
from vaegis.service.cli.latent import opening

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaegis.models.blocks import Block
    from vaegis.models.latent import Coder


@shared.reads()
def impute(
    *,
    source: shared.Source,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR|FILE", help="A folder of PNGs (images), or .npz, .parquet, .csv.")
    ],
    model: shared.ModelName = None,
    bundle: shared.BundleFolder = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="MASK.png|DIR", help="Images: what is not black is missing; one, or one each."),
    ] = None,
    source_options: shared.ReadingOptions,
    device: shared.Device = "auto",
) -> None:
    """Fill in missing values: NaN in series and tables, the pixels of --mask in images.

    Observed values are returned as they came, and the file says which were filled in.

    vaegis impute pump.csv --model pump --out whole.parquet
    """
    from vaegis.models.bundle import DECODER, ENCODER
    from vaegis.models.outputs.sample_files import sample_files

    reading = source_options.reading()
    coder = opening.open_coder(model, bundle, device)
    coder.need(ENCODER, "impute")
    coder.need(DECODER, "impute")
    if (mask is not None) != (coder.spec.kind == "image"):
        raise Refusal(
            "The model takes images; say by --mask which of their pixels are missing."
            if mask is None
            else f"--mask goes with images, and the model takes {coder.spec.kind} data, whose missing values are NaN."
        )
    if getattr(coder.spec, "tile", False):
        raise Refusal("The model cuts images into tiles; impute with one that takes them whole.")
    filled = moving = unread = 0
    with sample_files(out, coder.spec, ("imputed",)) as files:
        for block in opening.open_blocks(coder, source, reading, gaps=True):
            done = _filled(coder, block, mask)
            if done is None:
                unread += len(block)
                continue
            there, values, missing, settled = done
            unread += len(block) - len(there)
            filled += int(missing.sum())
            moving += int((~settled).sum())
            stamps = [block.timestamps[i] for i in there] if block.timestamps is not None else None
            marks = missing.astype(values.dtype) * (255 if values.dtype == "uint8" else 1)
            notes = [None if s else "had not settled" for s in settled]
            items, index = [block.items[i] for i in there], block.index[there]
            files.write(values, items, index, stamps, notes, imputed=marks)
    typer.echo(f"{filled:,} values filled in: {out}")
    if moving:
        typer.echo(f"{moving:,} samples had not settled; take their values with care.", err=True)
    if unread:
        typer.echo(f"{unread:,} samples could not be completed (nothing observed, or not readable).", err=True)


def _filled(coder: Coder, block: Block, mask: Path | None) -> tuple[Any, Any, Any, Any] | None:
    """Which samples, their completed values, what was missing of each, and whether its parts had settled."""
    import numpy as np

    from vaegis.models.latent import assembled, stacked
    from vaegis.models.latent import impute as complete

    there = np.flatnonzero(block.count > 0)
    if not len(there):
        return None
    if mask is not None:
        parts = block.parts[block.first[there]]
        missing = np.stack([np.broadcast_to(_mask(mask, block.items[i], p)[..., None], p.shape)
                            for i, p in zip(there.tolist(), parts, strict=True)])  # fmt: skip
        codes = block.conditions[block.first[there]] if block.conditions is not None else None
        done = complete(coder, parts, missing, codes)
        return there, done.values, missing, done.settled
    holes = np.isnan(block.parts)
    done = complete(coder, block.parts, holes, block.conditions)
    values = assembled(block, done.values, coder.spec)
    # A row is missing where it was in the source: the mean over its windows of what stood there is no number.
    raw = assembled(block, block.parts, coder.spec)
    there = np.array([i for i in there if values[i] is not None], np.int64)
    completed, original = stacked(values, there.tolist()), stacked(raw, there.tolist())
    missing = np.isnan(original)
    return there, np.where(missing, completed, original), missing, done.settled[block.first[there]]


def _mask(mask: Path, item: str | None, part: NDArray[np.generic]) -> NDArray[np.bool_]:
    """(H, W), True where pixels are missing."""
    import numpy as np

    from vaegis.models.pixels import Unreadable, decode

    path = mask
    if mask.is_dir():
        stem = Path(item or "")
        tried = [mask / stem.with_suffix(s) for s in (".png", stem.suffix or ".png", ".bmp", ".tif")]
        path = next((p for p in tried if p.is_file()), tried[0])
    try:
        hidden = np.asarray(decode(path.read_bytes()).any(axis=-1))
    except OSError as error:
        raise Refusal(f"--mask: {path} cannot be read ({error.strerror}); give a mask image for {item}.") from error
    except Unreadable as error:
        raise Refusal(f"--mask: {path.name}: {error}.") from error
    if hidden.shape != part.shape[:2]:
        raise Refusal(
            f"--mask: {path.name} is {hidden.shape[0]}x{hidden.shape[1]} and the images are "
            f"{part.shape[0]}x{part.shape[1]}; draw it on one of them."
        )
    if hidden.all():
        raise Refusal(f"--mask: {path.name} marks every pixel as missing; leave some to go by.")
    return hidden
