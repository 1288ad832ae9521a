"""Missing values filled in by the model: encode, decode, put the decoded values where there were none, and again.

Rezende, Mohamed and Wierstra (2014, arXiv:1401.4082, appendix F) alternate z ~ q(z|x) and x_missing ~ p(x|z), a Markov
chain whose missing values come to follow their distribution given the observed ones as well as q allows. Here both
draws are replaced by their means. The same source then gives the same answer, the answer is one that can be read as
"what would most plausibly stand here", and the iteration has a fixed point that can be tested for. What is given up is
the spread: it does not say how sure a value is. Nothing guarantees that the map from x to its reconstruction contracts,
so the number of rounds is bounded, and samples that still move are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.bundle import DECODER, ENCODER
from vaegis.models.latent.coder import Coder, Ints
from vaegis.models.latent.samples import as_raw

ROUNDS = 200
SETTLED = 1e-4  # of a column's or channel's spread: the largest move of a value that has settled
DRAWS = 64  # from the prior, to learn that spread


@dataclass(frozen=True)
class Imputed:
    """Completed parts."""

    values: NDArray[Any]  # (m, *shape) in the spec's dtype; observed values as they came
    settled: NDArray[np.bool_]  # (m,)
    rounds: int


def impute(coder: Coder, parts: NDArray[Any], missing: NDArray[np.bool_], conditions: Ints | None = None) -> Imputed:
    """Fills in the missing values of (m, *shape) parts.

    Args:
        missing: of the parts' shape, or broadcast to it.

    Raises:
        Refusal: the model lacks an encoder or a decoder.
    """
    coder.need(ENCODER, "impute")
    coder.need(DECODER, "impute")
    spec = coder.spec
    missing = np.broadcast_to(missing, parts.shape)
    moving = np.flatnonzero(missing.reshape(len(parts), -1).any(axis=1))
    values = np.array(parts)
    settled = np.ones(len(parts), bool)
    if not len(moving):
        return Imputed(values, settled, 0)
    codes = conditions[moving] if conditions is not None else None
    tolerance = SETTLED * _spread(coder, codes)
    holes, known = missing[moving], np.nan_to_num(parts[moving]) if parts.dtype.kind == "f" else parts[moving]
    if spec.missing == "allow":
        # The encoder knows what it is to see a part of a sample, so it begins from what was observed alone.
        first = coder.decode(coder.encode(np.where(holes, np.nan, known), codes)[0], codes)
    else:
        first = coder.decode(np.zeros((len(moving), coder.size), np.float32), codes)
    x = np.where(holes, as_raw(first, spec), known)
    left = np.arange(len(moving))  # that still move
    rounds = 0
    while len(left) and rounds < ROUNDS:
        rounds += 1
        some = codes[left] if codes is not None else None
        again = as_raw(coder.decode(coder.encode(x[left], some)[0], some), spec)
        after = np.where(holes[left], again, x[left])
        move = np.abs(after.astype(np.float64) - x[left]) > tolerance
        x[left] = after
        left = left[move.reshape(len(left), -1).any(axis=1)]
    values[moving] = np.where(holes, x, parts[moving])
    settled[moving[left]] = False
    return Imputed(values, settled, rounds)


def _spread(coder: Coder, codes: Ints | None) -> NDArray[np.float64]:
    """Standard deviation per column or channel of what the decoder makes of the prior; at least a pixel's step."""
    z = np.random.default_rng(0).standard_normal((DRAWS, coder.size), np.float32)
    drawn = coder.decode(z, None if codes is None else np.resize(codes, DRAWS)).astype(np.float64)
    axes = tuple(range(drawn.ndim - 1))
    return np.asarray(np.maximum(drawn.std(axis=axes), 1e-12))
