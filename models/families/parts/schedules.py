"""How fast a sample drowns in noise, and every formula of diffusion that follows from it alone.

    q(x_t | x_0) = N(sqrt(A_t) x_0, (1 - A_t) I),   t = 1..T,   A_t = prod_{s <= t} (1 - b_s),   A_0 = 1

    linear      b_t from 1e-4 to 0.02 in even steps, for T = 1000; times 1000/T for another T    Ho et al. 2020
    quadratic   the same ends, sqrt(b_t) in even steps                                           Song et al. 2021
    cosine      A_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2), s = 0.008, b_t <= 0.999
                                                                                                 Nichol, Dhariwal 2021

With the signal-to-noise ratio S_t = A_t / (1 - A_t) and an estimate x' of x_0 (equivalently e = (x_t - sqrt(A_t) x') /
sqrt(1 - A_t) of the noise):

    posterior   q(x_{t-1} | x_t, x_0) = N(m, v I),   v = b_t (1 - A_{t-1}) / (1 - A_t)
                m = sqrt(A_{t-1}) b_t / (1 - A_t) x_0 + sqrt(1 - b_t) (1 - A_{t-1}) / (1 - A_t) x_t
    ancestral   x_{t-1} drawn from it with x' for x_0                                            Ho et al. 2020
    DDIM        x_s = sqrt(A_s) x' + sqrt(1 - A_s) e                    no draw; any s < t       Song et al. 2021
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SCHEDULES = ("linear", "quadratic", "cosine")
FIRST, LAST = 1e-4, 0.02  # b_1 and b_T at T = 1000
OFFSET = 0.008  # s of the cosine: the first steps add a little noise at all
MOST = 0.999  # of a b_t


def alpha_bar(schedule: str, steps: int) -> Tensor:
    """A_0 .. A_T, (T + 1,), double precision."""
    t = torch.arange(steps + 1, dtype=torch.float64)
    if schedule == "cosine":
        f = ((t / steps + OFFSET) / (1 + OFFSET) * math.pi / 2).cos().square()
        beta = 1 - f[1:] / f[:-1]
    else:
        ends = torch.tensor([FIRST, LAST], dtype=torch.float64) * 1000 / steps
        if schedule == "quadratic":
            beta = torch.linspace(float(ends[0].sqrt()), float(ends[1].sqrt()), steps, dtype=torch.float64).square()
        else:
            beta = torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64)
    product = torch.cumprod(1 - beta.clamp(max=MOST), 0)
    return torch.cat([torch.ones(1, dtype=torch.float64), product])


class Schedule(nn.Module):
    """A schedule's tables, and the steps that need no network. Every `t` and `s` is (B,) int64."""

    signal: Tensor  # (T + 1,) sqrt(A_t)
    sigma: Tensor  # (T + 1,) sqrt(1 - A_t)
    ratio: Tensor  # (T + 1,) S_t; infinite at 0
    from_start: Tensor  # (T + 1,) the posterior mean's weight of x_0, of x_t, and its standard deviation; 0 at 0
    from_here: Tensor
    spread: Tensor

    def __init__(self, schedule: str, steps: int) -> None:
        super().__init__()
        self.steps = steps
        a = alpha_bar(schedule, steps)
        before = torch.cat([a[:1], a[:-1]])
        beta = 1 - a / before
        noise = (1 - a).clamp_min(1e-20)
        tables = {
            "signal": a.sqrt(),
            "sigma": (1 - a).sqrt(),
            "ratio": a / (1 - a),
            "from_start": before.sqrt() * beta / noise,
            "from_here": (1 - beta).sqrt() * (1 - before) / noise,
            "spread": (beta * (1 - before) / noise).sqrt(),
        }
        for name, table in tables.items():
            # Not part of a bundle's weights: they follow from the arguments.
            self.register_buffer(name, table.float(), persistent=False)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of (B, ...) x_0 with the given noise."""
        return wide(self.signal[t], x) * x + wide(self.sigma[t], x) * noise

    def start(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_0 that x_t comes from, if the noise is this."""
        return (x - wide(self.sigma[t], x) * noise) / wide(self.signal[t], x)

    def posterior(self, start: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(x_{t-1} | x_t, x_0), the latter (B, 1, ...)."""
        mean = wide(self.from_start[t], x) * start + wide(self.from_here[t], x) * x
        return mean, wide(self.spread[t], x)

    def jump(self, x: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """DDIM's step from x_t to x_s, given the noise in x_t."""
        return wide(self.signal[s], x) * self.start(x, t, noise) + wide(self.sigma[s], x) * noise


def wide(values: Tensor, like: Tensor) -> Tensor:
    """(B,) beside (B, ...)."""
    return values.view(-1, *(1,) * (like.dim() - 1))
