"""Samples that are arrays in memory already, in a spec's layout: for a fit without files, and without a spool."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Refusal
from vaegis.models.inputs.rows import unusable
from vaegis.models.inputs.spool import Ints, digest_head
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec


@dataclass(eq=False, repr=False)
class InMemory:
    """`vaegis.models.blocks.Samples` as they are. Their digest is that of the same samples read from files.

    Raises:
        Refusal: parts of another form than the spec's, values that no model learns from, or lists of another length.
    """

    spec: InputSpec
    parts: NDArray[Any]  # (m, *spec.shape), in the spec's dtype
    items: Sequence[str] = ()  # (n,) the item each sample comes from; () = all from one
    row: Ints | None = None  # (n,) first row within its item of each window of a series; None: windows are items
    groups: Sequence[str] | None = None  # (n,) samples that must stay on one side of a split
    calibration_groups: Sequence[str] | None = None  # (n,) samples calibrated apart
    conditions: Ints | None = None  # (m,) number of each part's condition in the spec
    each: int = 1  # parts of a sample: tiles of an image
    skipped: Sequence[tuple[str, str]] = ()
    first: Ints = field(init=False)
    count: Ints = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self._check_parts()
        n = len(self)
        self.first = np.arange(n, dtype=np.int64) * self.each
        self.count = np.full(n, self.each, np.int64)
        self.items = self.items or ("arrays",) * n
        lists = {
            "items": (self.items, n),
            "row": (self.row, n),
            "groups": (self.groups, n),
            "calibration_groups": (self.calibration_groups, n),
            "conditions": (self.conditions, len(self.parts)),
        }
        for name, (values, length) in lists.items():
            if values is not None and len(values) != length:
                raise Refusal(f"{name} has {len(values)} entries and must have {length}, one for each; correct it.")
        if (self.conditions is not None) != bool(self.spec.conditions):
            raise Refusal("Conditions are given as numbers into the spec's conditions, where it has some; give both.")
        self.digest = self._digest()

    def _check_parts(self) -> None:
        spec, parts = self.spec, self.parts
        if parts.shape[1:] != spec.shape or parts.dtype != spec.dtype:
            raise Refusal(
                f"The parts are {parts.dtype} of shape {parts.shape}, and the spec takes {spec.dtype} of shape "
                f"(m, {', '.join(map(str, spec.shape))}); convert them."
            )
        if len(parts) % self.each:
            raise Refusal(f"{len(parts)} parts are no whole number of samples of {self.each} parts; give them whole.")
        if isinstance(spec, ImageSpec):
            return
        flat = parts.reshape(len(parts), int(np.prod(spec.shape)))
        bad = unusable(flat, spec.missing).any(axis=1) | np.isnan(flat).all(axis=1)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise Refusal(f"Part {i} holds NaN or infinity that no model learns from; correct it or leave it out.")
        if np.isnan(flat).any():
            # One bit pattern for "missing", so that equal samples have equal bytes.
            self.parts = np.where(np.isnan(parts), np.float32(np.nan), parts)

    def _digest(self) -> str:
        digest = hashlib.sha256(digest_head(self.spec))
        for sample in self.parts.reshape(-1, self.each, *self.spec.shape):
            raw = np.ascontiguousarray(sample).data
            if isinstance(self.spec, ImageSpec):
                digest.update(self.each.to_bytes(8, "little"))
                digest.update(raw)
            else:
                digest.update(hashlib.sha256(raw).digest() if isinstance(self.spec, SeriesSpec) else raw)
        if self.conditions is not None:
            digest.update(b"conditions" + np.asarray(self.conditions, np.int64).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.parts) // self.each

    def take(self, parts: Ints) -> NDArray[Any]:
        """The named parts, (len(parts), *spec.shape), a fresh array in the spec's dtype."""
        return np.array(self.parts[parts])

    def content(self, i: int) -> bytes:
        """A 16-byte digest of sample i: copies of a sample have equal digests."""
        raw = np.ascontiguousarray(self.parts[i * self.each : (i + 1) * self.each])
        return hashlib.blake2b(raw.tobytes(), digest_size=16).digest()
