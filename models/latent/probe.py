"""A linear probe: how well labels can be read off latents by a straight cut (Alain and Bengio 2016, arXiv:1610.01644).

Ridge regression onto one-hot labels; the largest answer is the label. Judged on samples that it was not fitted on, by
five folds in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS, RIDGE = 5, 1e-3  # the latter of each standardised latent's variance


@dataclass(frozen=True)
class Probe:
    """What it reached."""

    accuracy: float  # share of samples told right
    chance: float  # share of the most frequent label
    labels: int  # different ones
    samples: int


def linear_probe(latents: NDArray[np.float32], labels: Sequence[str | None]) -> Probe | None:
    """Of (n, L) latents; samples without a label are left out. None where there are fewer than two labels of `FOLDS`
    samples each."""
    there = [i for i, label in enumerate(labels) if label is not None]
    names, codes, counts = np.unique([str(labels[i]) for i in there], return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < FOLDS:
        return None
    z = latents[there].astype(np.float64)
    # Samples of a label are dealt out in turn, so that each fold has of all labels, however a source is sorted.
    fold = np.empty(len(z), np.int64)
    for code in range(len(names)):
        chosen = np.flatnonzero(codes == code)
        fold[chosen] = np.arange(len(chosen)) % FOLDS
    right = 0
    for test_fold in range(FOLDS):
        rest = fold != test_fold
        centre, spread = z[rest].mean(axis=0), z[rest].std(axis=0)
        x = np.column_stack([(z - centre) / np.where(spread > 1e-12, spread, 1.0), np.ones(len(z))])
        target = np.eye(len(names))[codes[rest]]
        gram = x[rest].T @ x[rest] + RIDGE * len(z) * np.eye(x.shape[1])
        answer = x[~rest] @ np.linalg.solve(gram, x[rest].T @ target)
        right += int((answer.argmax(axis=1) == codes[~rest]).sum())
    return Probe(right / len(z), float(counts.max() / len(z)), len(names), len(z))
