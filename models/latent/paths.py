"""Paths through a latent space: straight lines, sums and differences, one unit at a time."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Refusal

Floats = NDArray[np.float32]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def interpolate(start: Floats, end: Floats, steps: int) -> Floats:
    """(steps, L) from one latent (L,) to another, both included, in equal steps along the straight line."""
    share = np.linspace(0.0, 1.0, steps)[:, None]
    return np.asarray((1 - share) * start + share * end, np.float32)


def traverse(centre: Floats, unit: int, spread: float, steps: int, reach: float) -> Floats:
    """(steps, L): the centre (L,) with one unit moved from -reach to +reach times its spread."""
    z = np.tile(np.asarray(centre, np.float32), (steps, 1))
    z[:, unit] += np.linspace(-reach, reach, steps, dtype=np.float32) * np.float32(spread)
    return z


def parse_arith(text: str, samples: int) -> dict[int, float]:
    """`A-B+C` as weights by sample number: {0: 1, 1: -1, 2: 1}; a weight may stand before a letter, as in `A+0.5*B`.

    Raises:
        Refusal: anything else, or a letter for which no sample was given.
    """
    plain = text.replace(" ", "")
    term = r"[+-]?(?:\d+(?:\.\d+)?\*)?[A-Z]"
    if not re.fullmatch(f"{term}(?:(?=[+-]){term})*", plain):
        raise Refusal(f"--arith {text!r} is no sum of samples; write for example A-B+C or A+0.5*B.")
    weights: dict[int, float] = {}
    for sign, weight, letter in re.findall(r"([+-]?)(?:(\d+(?:\.\d+)?)\*)?([A-Z])", plain):
        number = LETTERS.index(letter)
        if number >= samples:
            raise Refusal(
                f"--arith names {letter}, and {samples} samples were given, {LETTERS[0]} to {LETTERS[samples - 1]}; "
                "give another sample or another sum."
            )
        weights[number] = weights.get(number, 0.0) + (-1.0 if sign == "-" else 1.0) * float(weight or 1.0)
    return weights


def combine(latents: Floats, weights: dict[int, float]) -> Floats:
    """(L,) the weighted sum of rows of (n, L)."""
    total = np.zeros(latents.shape[1])
    for number, weight in weights.items():
        total = total + weight * latents[number]
    return np.asarray(total, np.float32)
