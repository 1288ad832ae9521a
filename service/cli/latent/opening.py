"""What the commands on latent spaces share: the model's graphs, the source's blocks, single samples by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vaegis.models.errors import Refusal
from vaegis.service.cli import options as shared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vaegis.models.blocks import Block
    from vaegis.models.latent import Coder
    from vaegis.models.sources import SourceOptions

Condition = Annotated[
    str | None, typer.Option("--condition", metavar="NAME", help="As what, for a model fitted with conditions.")
]


def open_coder(model: str | None, bundle: Path | None, device: str) -> Coder:
    """The graphs of the model that the options name."""
    from vaegis.models.bundle import open_bundle
    from vaegis.models.latent import Coder

    if device not in ("auto", "cuda", "cpu"):
        raise Refusal(f"--device {device} is unknown; write auto, cuda or cpu.")
    return Coder(open_bundle(shared.bundle_for(model, bundle)), cast(Any, device))


def open_blocks(coder: Coder, source: Path, reading: SourceOptions, gaps: bool = False) -> Iterator[Block]:
    """The samples of a source, and notes on how it is read; `gaps` lets values be missing whatever the model says."""
    from vaegis.models import inputs
    from vaegis.models.sources import open_source

    spec = coder.spec
    if gaps and spec.kind != "image":
        spec = replace(spec, missing="allow")
    opened = open_source(source, reading)
    shared.say_notes(inputs.notes_of(opened, spec))
    return inputs.blocks(opened, spec, roi=coder.bundle.roi)


def _blocks(coder: Coder, source: Path, reading: SourceOptions) -> Iterator[Block]:
    from vaegis.models import inputs
    from vaegis.models.sources import open_source

    return inputs.blocks(open_source(source, reading), coder.spec, roi=coder.bundle.roi)


def one_part(coder: Coder, text: str, reading: SourceOptions) -> NDArray[np.generic]:
    """The raw part (1, *shape) that `PATH` or `PATH:INDEX` names: an image, a vector, a window, or of a series the
    window whose verdict row INDEX takes.

    Raises:
        Refusal: more samples than one and no index, no such sample, or one that cannot be read.
    """
    path, index = Path(text), None
    if not path.exists() and (match := re.fullmatch(r"(.+):(\d+)", text)):
        path, index = Path(match[1]), int(match[2])
    any_condition = replace(reading, condition=f"is:{coder.spec.conditions[0]}") if coder.spec.conditions else reading
    samples = 0
    for block in _blocks(coder, path, any_condition):
        samples += len(block)
        for i, number in enumerate(block.index.tolist()):
            if index is not None and number != index:
                continue
            if index is None and samples > 1:
                break
            if not block.count[i]:
                raise Refusal(f"{text} cannot be used: {block.errors.get(i, 'it could not be read.')}")
            if block.count[i] > 1:
                raise Refusal(f"{text} is cut into {block.count[i]} tiles; only whole images have one latent.")
            if index is not None or _only(coder, path, any_condition):
                first = int(block.first[i])
                return block.parts[first : first + 1]
    if index is not None:
        raise Refusal(f"{path} holds no sample {index}; it holds {samples}, from 0.")
    raise Refusal(f"{path} holds more than one sample; name one as {path}:INDEX.")


def _only(coder: Coder, path: Path, reading: SourceOptions) -> bool:
    """Whether there is one sample only."""
    total = 0
    for block in _blocks(coder, path, reading):
        total += len(block)
        if total > 1:
            return False
    return total == 1
