"""The plane through clean latents on which they differ most, and the way back from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plane:
    """x = (z - centre) axes; the axes are orthonormal, in order of variance."""

    centre: NDArray[np.float64]  # (L,)
    axes: NDArray[np.float64]  # (L, 2); the second is nothing where L = 1
    shares: tuple[float, float]  # of the latents' variance along each

    def place(self, latents: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, L) -> (n, 2)."""
        return np.asarray((latents - self.centre) @ self.axes)

    def back(self, places: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n, 2) -> the latents (n, L) on the plane."""
        return (self.centre + places @ self.axes.T).astype(np.float32)


def plane_of(latents: NDArray[np.float32]) -> Plane:
    """The first two principal axes of (n, L) latents. An axis points to where its largest entry is positive, so that
    the same latents always give the same picture."""
    z = latents.astype(np.float64)
    centre = z.mean(axis=0)
    _, sizes, rows = np.linalg.svd(z - centre, full_matrices=False)
    axes, power = np.zeros((z.shape[1], 2)), np.zeros(2)
    for i in range(min(2, len(rows))):
        axes[:, i] = rows[i] * (1 if rows[i][np.abs(rows[i]).argmax()] >= 0 else -1)
        power[i] = sizes[i] ** 2
    shares = power / max(float((sizes**2).sum()), 1e-30)
    return Plane(centre, axes, (float(shares[0]), float(shares[1])))
