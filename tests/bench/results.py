"""Results: one JSON line per fit, appended as it ends, and the evidence behind it beside them.

A row is the same fit as another if set, part, family, options, steps, seed and code are. The code is known by a
digest over the sources of `models` and `training`, so a change of either measures anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.bench.sets import REPOSITORY

DEFAULT = REPOSITORY / ".vaegis" / "bench" / "quality.jsonl"

Row = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """One fit that is wanted."""

    set: str
    part: str
    family: str
    options: Mapping[str, Any]  # --set arguments of the family, and what else was asked of the fit
    steps: int | None
    seed: int

    def same(self, row: Row) -> bool:
        """Whether a row is a finished answer to this, whatever the code."""
        mine = (self.set, self.part, self.family, dict(self.options), self.steps, self.seed)
        asked = (row["set"], row["part"], row["family"], row["options"], row["asked_steps"], row["seed"])
        return mine == asked and "error" not in row

    def key(self, code: str) -> str:
        """Names this fit's evidence file."""
        facts = [self.set, self.part, self.family, dict(self.options), self.steps, self.seed, code]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def code_version() -> str:
    """Digest over what decides a figure: the sources of models and training."""
    digest = hashlib.sha256()
    for package in ("models", "training"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Results:
    """A file of rows, and the folder of evidence beside it."""

    path: Path

    def rows(self) -> list[Row]:
        """Every whole row, oldest first; a line that a killed run left unfinished is passed over."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def find(self, wish: Wish, code: str | None) -> Row | None:
        """The latest finished row for a wish, of one version of the code or (None) of any."""
        for row in reversed(self.rows()):
            if wish.same(row) and code in (None, row["code"]):
                return row
        return None

    def add(self, row: Row, evidence: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Appends a row; its evidence first, so that a row never lacks it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if evidence is not None:
            raw = io.BytesIO()
            np.savez_compressed(raw, allow_pickle=False, **evidence)
            file = self._evidence(row)
            file.parent.mkdir(exist_ok=True)
            aside = file.with_suffix(".part")
            aside.write_bytes(raw.getvalue())
            os.replace(aside, file)
        # A killed run may have left half a line; it must not swallow this one.
        torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as out:
            out.write(("\n" if torn else "") + json.dumps(row, allow_nan=False) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def evidence(self, row: Row) -> dict[str, NDArray[Any]] | None:
        """Of a row: `label`, `test_TERM` and, ascending, `clean_TERM` of the calibration samples; None if not kept."""
        file = self._evidence(row)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as data:
            return dict(data)

    def _evidence(self, row: Row) -> Path:
        return self.path.parent / "evidence" / f"{row['key']}.npz"
