"""What a decoder's outputs say of the values: p(x | z), value by value.

y is the normalised value and x the raw one, both (B, C, ...); `out` is the decoder's output for them. Log-densities
are in nats per normalised value; the constant log-Jacobian of the normalisation, which moves no comparison between
samples, is added only where bits per dimension are reported (docs/scoring.md).

    bernoulli   y in [0, 1]    y log p + (1 - y) log(1 - p),              p = sigmoid(out)
    gaussian    real           -1/2 ((y - m)^2 / v + log 2 pi v),         v fixed, per feature or predicted
    laplace     real           -|y - m| / b - log 2 b,                    b as v
    poisson     counts         x log r - r - log x!,                      r = exp(out)
    categorical codes 0..K-1   log softmax(out)[x]                        written `categorical:K`
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.errors import Refusal
from vaegis.models.spec import ImageSpec, InputSpec, VectorSpec

VARIANCES = ("fixed", "feature", "predicted")
CONTINUOUS = ("bernoulli", "gaussian", "laplace")
UNSEEN = -20.0  # nats of a code that is none of the declared categories: stranger than any that was seen


class Likelihood(nn.Module, ABC):
    """Of every value of a sample."""

    outputs: int  # decoder outputs per value

    @abstractmethod
    def log_prob(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Nats per value, the shape of y."""

    @abstractmethod
    def mean(self, out: Tensor) -> Tensor:
        """The expected normalised value."""

    def error(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """Squared error per value, in normalised units."""
        return (y - self.mean(out)).square()

    def check(self, x: Tensor) -> None:
        """Whether raw (B, C, ...) clean values can be what it describes.

        Raises:
            Refusal: naming what they should be.
        """

    def natural(self, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale of the normalisation that it needs, (C,), of values with this mean and spread."""
        return mean, spread

    def settle(self, centre: Tensor, scale: Tensor, rounding: Tensor) -> None:
        """Takes note of the normalisation, (C,), and of the variance of what normalised values were rounded by."""


class Bernoulli(Likelihood):
    outputs = 1

    def __init__(self, top: float = 0.0) -> None:
        """`top`: the largest of the whole numbers that raw values are, from 0; 0 where they are shares already."""
        super().__init__()
        self.top = top

    def check(self, x: Tensor) -> None:
        values = torch.where(x.isnan(), 0.0, x)
        if not self.top and bool((values - values.clamp(0, 1)).any()):
            raise Refusal("Likelihood bernoulli needs values from 0 to 1, and these data go beyond; use gaussian.")

    def natural(self, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mean), torch.full_like(spread, self.top or 1.0)

    def log_prob(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return -functional.binary_cross_entropy_with_logits(out, y, reduction="none")

    def mean(self, out: Tensor) -> Tensor:
        return out.sigmoid()


class LocationScale(Likelihood):
    """Gaussian or Laplace: a location from the decoder, a scale that is fixed, learned per feature, or predicted."""

    floor: Tensor  # smallest variance: that of the rounding error of the data

    def __init__(self, shape: tuple[int, ...], variance: str, sigma: float, laplace: bool) -> None:
        super().__init__()
        self.variance, self.laplace = variance, laplace
        self.outputs = 2 if variance == "predicted" else 1
        self.register_buffer("floor", torch.tensor(1e-4))
        if variance == "feature":
            self.log_variance = nn.Parameter(torch.full(shape, 2 * math.log(sigma)))
        else:
            self.register_buffer("log_variance", torch.full((1,) * len(shape), 2 * math.log(sigma)))

    def _split(self, out: Tensor) -> tuple[Tensor, Tensor]:
        if self.outputs == 1:
            return out, self.log_variance.exp() + self.floor
        mean, raw = out.chunk(2, dim=1)
        # softplus rather than exp: a predicted variance must not run away in one step
        return mean, functional.softplus(raw) + self.floor

    def log_prob(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        mean, variance = self._split(out)
        if self.laplace:
            scale = (variance / 2).sqrt()
            return -(y - mean).abs() / scale - (2 * scale).log()
        return -0.5 * ((y - mean).square() / variance + (2 * math.pi * variance).log())

    def mean(self, out: Tensor) -> Tensor:
        return self._split(out)[0]

    def settle(self, centre: Tensor, scale: Tensor, rounding: Tensor) -> None:
        self.floor.copy_(rounding.clamp(1e-6, 1e-2))


class ColumnLikelihoods(Likelihood):
    """A likelihood of its own for each column of a table."""

    centre: Tensor  # (D,) of the normalisation, to get from raw to normalised means
    scale: Tensor  # (D,)

    def __init__(self, columns: tuple[str, ...], by_column: Mapping[str, str], rest: Likelihood) -> None:
        super().__init__()
        self.rest, self.columns = rest, columns
        self.register_buffer("centre", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(len(columns)))
        self.kinds = [by_column.get(c, "") for c in columns]
        self.plain = [i for i, k in enumerate(self.kinds) if not k]
        self.widths = [_categories(k) if k.startswith("categorical") else 1 for k in self.kinds]
        self.outputs = 0  # varies by column: `total` is what the decoder needs
        self.total = sum(w for w, k in zip(self.widths, self.kinds, strict=True) if k) + rest.outputs * len(self.plain)

    def _parts(self, out: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """The plain columns' outputs, and each special column's."""
        at = self.rest.outputs * len(self.plain)
        special: dict[int, Tensor] = {}
        for i, kind in enumerate(self.kinds):
            if kind:
                special[i] = out[:, at : at + self.widths[i]]
                at += self.widths[i]
        return out[:, : self.rest.outputs * len(self.plain)], special

    def _gather(self, plain: Tensor | None, special: dict[int, Tensor]) -> Tensor:
        columns = [
            special[i] if i in special else plain[:, self.plain.index(i)]  # type: ignore[index]
            for i in range(len(self.columns))
        ]
        return torch.stack(columns, dim=1)

    def log_prob(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        head, special = self._parts(out)
        values = {}
        for i, o in special.items():
            if self.kinds[i] == "poisson":
                rate = o[:, 0].clamp(-20, 20)
                values[i] = x[:, i] * rate - rate.exp() - _log_factorial(x[:, i])
            else:
                known = self._one_hot(x[:, i], i)
                values[i] = (o.log_softmax(1) * known).sum(1) + UNSEEN * (1 - known.sum(1))
        plain = self.rest.log_prob(y[:, self.plain], x[:, self.plain], head) if self.plain else None
        return self._gather(plain, values)

    def mean(self, out: Tensor) -> Tensor:
        head, special = self._parts(out)
        values = {}
        for i, o in special.items():
            raw = o[:, 0].clamp(-20, 20).exp() if self.kinds[i] == "poisson" else o.argmax(1).to(out.dtype)
            values[i] = (raw - self.centre[i]) / self.scale[i]
        return self._gather(self.rest.mean(head) if self.plain else None, values)

    def error(self, y: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """A categorical column's error is 1 - p(x): a distance between codes would mean nothing."""
        squared = (y - self.mean(out)).square()
        _, special = self._parts(out)
        columns = list(squared.unbind(1))
        for i, o in special.items():
            if self.kinds[i] != "poisson":
                columns[i] = 1 - (o.softmax(1) * self._one_hot(x[:, i], i)).sum(1)
        return torch.stack(columns, dim=1)

    def _one_hot(self, codes: Tensor, column: int) -> Tensor:
        """(B, K); all zero for a code that is none of the K."""
        levels = torch.arange(self.widths[column], device=codes.device, dtype=codes.dtype)
        return (codes[:, None] == levels).to(codes.dtype)

    def check(self, x: Tensor) -> None:
        for i, kind in enumerate(self.kinds):
            values = x[:, i][~x[:, i].isnan()]
            whole = (values == values.round()) & (values >= 0)
            if kind == "poisson" and not bool(whole.all()):
                raise Refusal(
                    f"Column {self.columns[i]!r} holds {values[~whole][0]:g}; likelihood poisson needs counts 0, 1, 2."
                )
            if kind.startswith("categorical"):
                whole &= values < self.widths[i]
                if not bool(whole.all()):
                    raise Refusal(
                        f"Column {self.columns[i]!r} holds {values[~whole][0]:g}; likelihood {kind} needs codes 0 to "
                        f"{self.widths[i] - 1}."
                    )
        self.rest.check(x[:, self.plain])

    def natural(self, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        centre, scale = mean.clone(), spread.clone()
        centre[self.plain], scale[self.plain] = self.rest.natural(mean[self.plain], spread[self.plain])
        return centre, scale

    def settle(self, centre: Tensor, scale: Tensor, rounding: Tensor) -> None:
        self.centre.copy_(centre)
        self.scale.copy_(scale)
        self.rest.settle(centre[self.plain], scale[self.plain], rounding)


def likelihood_for(
    spec: InputSpec, shape: tuple[int, ...], named: str | Mapping[str, str], variance: str, sigma: float
) -> Likelihood:
    """The named likelihood for values of an inner shape (C, ...).

    Raises:
        Refusal: an unknown name, column or variance, or counts and categories asked of anything but a table.
    """
    by_column = {k: v for k, v in named.items() if k} if isinstance(named, Mapping) else {}
    base = named.get("", "gaussian") if isinstance(named, Mapping) else named
    if base not in CONTINUOUS:
        raise Refusal(
            f"Likelihood {base!r} is not one for every value; choose {', '.join(CONTINUOUS)}. Counts and categories "
            "are set per column of a table: likelihood.COLUMN=poisson or likelihood.COLUMN=categorical:K."
        )
    if variance not in VARIANCES:
        raise Refusal(f"Variance {variance!r} is unknown; choose {', '.join(VARIANCES)}.")
    if not sigma > 0:
        raise Refusal(f"Argument sigma is {sigma}; a standard deviation must be above 0, such as 1.0.")
    if not by_column:
        return _of_every_value(spec, shape, base, variance, sigma)
    if not isinstance(spec, VectorSpec):
        raise Refusal(f"A likelihood per column needs a table; the input is {spec.kind}. Set one likelihood for all.")
    for column, kind in by_column.items():
        if column not in spec.columns:
            raise Refusal(f"There is no column {column!r}; the columns are {', '.join(spec.columns[:20])}.")
        if kind != "poisson" and not kind.startswith("categorical"):
            raise Refusal(f"Likelihood {kind!r} of column {column} is unknown; choose poisson or categorical:K.")
        if kind.startswith("categorical"):
            _categories(kind)
    plain = len(spec.columns) - len(by_column)
    return ColumnLikelihoods(spec.columns, by_column, _of_every_value(spec, (plain,), base, variance, sigma))


def _of_every_value(spec: InputSpec, shape: tuple[int, ...], base: str, variance: str, sigma: float) -> Likelihood:
    if base == "bernoulli":
        return Bernoulli(2.0**spec.depth - 1 if isinstance(spec, ImageSpec) else 0.0)
    return LocationScale(shape, variance, sigma, base == "laplace")


def _categories(kind: str) -> int:
    """K of `categorical:K`."""
    number = kind.partition(":")[2]
    if not number.isdigit() or int(number) < 2:
        raise Refusal(f"Likelihood {kind!r} does not say how many categories; write categorical:5 for codes 0 to 4.")
    return int(number)


def _log_factorial(x: Tensor) -> Tensor:
    """log x! by Stirling's series from x + 8 downwards: lgamma has no ONNX operator."""
    x = x.clamp_min(0)
    y = x + 9.0
    series = (y - 0.5) * y.log() - y + 0.5 * math.log(2 * math.pi) + 1 / (12 * y) - 1 / (360 * y**3)
    product = torch.ones_like(x)
    for k in range(1, 9):
        product = product * (x + k)
    return series - product.log()
