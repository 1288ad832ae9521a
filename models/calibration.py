"""Held-out clean evidence -> p-values, thresholds and a tail.

For a sample of evidence s against n clean calibration values c_1..c_n, the conformal p-value

    p(s) = (1 + #{c_i >= s}) / (n + 1)

is at most alpha with probability at most alpha when the sample is exchangeable with the calibration set, whatever
the model (Vovk, Gammerman and Shafer 2005). It cannot fall under 1 / (n + 1). Below that a generalised Pareto tail

    p_tail(s) = share * (1 + xi (s - u) / sigma) ** (-1 / xi),   s > u

over the largest clean values (Pickands 1975; fitted by probability-weighted moments, Hosking and Wallis 1987) goes on
for one more decade, marked as extrapolated. xi is kept >= 0: a lighter tail would promise an end to what clean
product can do, and no finite sample shows that.

Everything is decided on raw evidence, in float64, by comparison with values that came out of the exported graph.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegis.models.errors import Damaged, Refusal
from vaegis.models.plain_arrays import read_arrays

ALL = ""  # the group of every calibration sample
TAIL_SHARE = 0.1  # of the calibration set, above which the tail is fitted
RESTORE = "restore the bundle from where it came."
TAIL_LEAST = 20  # exceedances below which no tail is fitted: its shape would be noise

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto distribution over what lies above `start`."""

    start: float  # u: the value the tail begins above, in units of the term
    shape: float  # xi >= 0
    scale: float  # sigma > 0
    share: float  # P(clean > u)

    def p(self, values: Values) -> Values:
        """P(clean >= value), for values above `start`."""
        excess = np.maximum(values - self.start, 0.0) / self.scale
        if self.shape < 1e-9:
            return self.share * np.exp(-excess)
        return np.asarray(self.share * (1.0 + self.shape * excess) ** (-1.0 / self.shape))

    def quantile(self, alpha: float) -> float:
        """The value that a share alpha < `share` of clean samples exceeds."""
        ratio = alpha / self.share
        if self.shape < 1e-9:
            return self.start - self.scale * math.log(ratio)
        return float(self.start + self.scale / self.shape * (ratio**-self.shape - 1.0))


def fit_tail(values: Values) -> Tail | None:
    """The tail of ascending clean values, or None where they are too few or too equal to show one."""
    n = len(values)
    exceed = max(TAIL_LEAST, math.ceil(TAIL_SHARE * n))
    if n < 2 * exceed:
        return None
    start = float(values[n - exceed - 1])
    excess = values[values > start] - start
    if len(excess) < TAIL_LEAST:
        return None
    m = len(excess)
    first = float(excess.mean())
    # E[X (1 - F(X))], the probability-weighted moment, from the order statistics.
    second = float(np.mean(excess * (m - 1 - np.arange(m)) / (m - 1)))
    if first <= 0 or not math.isfinite(first) or first <= 2 * second:
        return None
    shape = 2.0 - first / (first - 2.0 * second)
    scale = 2.0 * first * second / (first - 2.0 * second)
    if shape < 0:
        shape, scale = 0.0, first
    return Tail(start=start, shape=min(shape, 0.9), scale=scale, share=(m + 1) / (n + 1))


@dataclass(frozen=True)
class Reference:
    """The clean values of one evidence term in one group."""

    values: Values  # (n,) ascending
    tail: Tail | None

    def p_value(self, values: Values) -> Values:
        """Conformal p-values, (m,) in (0, 1]; NaN stays NaN."""
        at_least = len(self.values) - np.searchsorted(self.values, values, side="left")
        return np.where(np.isnan(values), np.nan, (1.0 + at_least) / (len(self.values) + 1.0))

    def p_tail(self, values: Values) -> Values:
        """Tail p-values, (m,): the conformal ones up to the tail's start, the tail's beyond; NaN without a tail."""
        if self.tail is None:
            return np.full(len(values), np.nan)
        return np.where(values > self.tail.start, self.tail.p(values), self.p_value(values))


@dataclass(frozen=True)
class Group:
    """The calibration of one group of samples."""

    terms: dict[str, Reference]
    effective: int  # independent clean samples: all, or for a series the windows that do not overlap


@dataclass(frozen=True)
class Calibration:
    """Of a bundle: a reference per group and term, and the colour scale of its maps."""

    groups: dict[str, Group]  # ALL is always there
    map_range: tuple[float, float]  # clean median and 99.9 % quantile of map values: the ends of the colour scale

    def group(self, name: str | None) -> Group:
        """The named group's calibration; that of all samples for None.

        Raises:
            Refusal: a group that calibration never saw.
        """
        if name is None or name == ALL:
            return self.groups[ALL]
        if name not in self.groups:
            known = sorted(g for g in self.groups if g != ALL)
            where = f"It knows {', '.join(known[:10])}." if known else "It was calibrated without groups."
            raise Refusal(f"The model has no calibration for group {name!r}. {where} Leave the group out to use all.")
        return self.groups[name]


@dataclass(frozen=True)
class Decision:
    """How evidence becomes a verdict: anomalous if `decide_by` exceeds `threshold`."""

    decide_by: str
    alpha: float | None  # the false-alarm rate asked for; None when the threshold was given
    threshold: float  # in units of the deciding term
    extrapolated: bool  # the threshold lies beyond the clean samples, in the fitted tail
    group: str | None = None


def calibrate(
    evidence: dict[str, NDArray[Any]],
    groups: list[str] | None,
    effective: int | dict[str, int] | None,
    map_range: tuple[float, float],
) -> Calibration:
    """A calibration from the evidence of held-out clean samples.

    Args:
        evidence: term -> (n,) values that came out of the exported graph.
        groups: the calibration group of each sample, or None.
        effective: independent samples: of all, or per group; None counts each sample.
        map_range: see `Calibration`.

    Raises:
        Refusal: a value that is not finite.
    """
    for name, values in evidence.items():
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise Refusal(
                f"Evidence {name} of clean calibration sample {bad} is {values[bad]}, not a finite number. "
                "Look at that sample, or fit with a smaller learning rate."
            )
    every = np.asarray(groups) if groups is not None else None
    by_group: dict[str, Group] = {}
    for name in [ALL, *sorted(set(groups or ()))]:
        pick = slice(None) if name == ALL or every is None else np.flatnonzero(every == name)
        terms = {t: _reference(np.asarray(v, np.float64)[pick]) for t, v in evidence.items()}
        count = len(next(iter(terms.values())).values)
        independent = effective.get(name) if isinstance(effective, dict) else (effective if name == ALL else None)
        by_group[name] = Group(terms=terms, effective=count if independent is None else independent)
    return Calibration(groups=by_group, map_range=map_range)


def _reference(values: Values) -> Reference:
    ordered = np.sort(values)
    return Reference(values=ordered, tail=fit_tail(ordered))


def decide(
    calibration: Calibration,
    alpha: float | None = None,
    threshold: float | None = None,
    decide_by: str = "score",
    group: str | None = None,
) -> Decision:
    """The threshold that gives the false-alarm rate asked for.

    Args:
        alpha: false-alarm rate in (0, 1); give this or `threshold`.
        threshold: in units of the deciding term; overrides calibration.
        decide_by: `score` or an evidence term.
        group: the calibration group, or None for all.

    Raises:
        Refusal: an alpha out of range or beyond what the clean samples can support, an unknown term or group.
    """
    chosen = calibration.group(group)
    if decide_by not in chosen.terms:
        raise Refusal(f"There is no evidence {decide_by!r} to decide by; the model gives {', '.join(chosen.terms)}.")
    if threshold is not None:
        if alpha is not None:
            raise Refusal(f"Both alpha {alpha} and threshold {threshold} were given; give one of them.")
        if not math.isfinite(threshold):
            raise Refusal(f"The threshold {threshold} is not a finite number; give one in units of {decide_by}.")
        return Decision(decide_by, None, float(threshold), False, group)
    if alpha is None or not 0.0 < alpha < 1.0:
        raise Refusal(f"The false-alarm rate alpha is {alpha}; give a number between 0 and 1, such as 0.01.")
    reference, n = chosen.terms[decide_by], len(chosen.terms[decide_by].values)
    extrapolated = alpha * (chosen.effective + 1) < 1.0 - 1e-9
    if extrapolated and (alpha * (chosen.effective + 1) < 0.1 - 1e-9 or reference.tail is None):
        raise Refusal(_too_few(alpha, chosen.effective, reference.tail is not None))
    if extrapolated and reference.tail is not None and alpha < reference.tail.share:
        return Decision(decide_by, alpha, reference.tail.quantile(alpha), True, group)
    # p(s) <= alpha exactly when fewer than rank clean values reach s, so when s exceeds the rank-th largest.
    rank = min(n, math.floor(alpha * (n + 1) + 1e-9))
    return Decision(decide_by, alpha, float(reference.values[n - rank]), extrapolated, group)


def smallest_alpha(group: Group, decide_by: str = "score") -> float:
    """The lowest false-alarm rate that can be asked for."""
    lowest = 1.0 / (group.effective + 1)
    return lowest * 0.1 if group.terms[decide_by].tail is not None else lowest


def _too_few(alpha: float, samples: int, tail: bool) -> str:
    """Names the rate, the count, and both remedies."""
    needed = math.ceil(1.0 / alpha - 1e-9) - 1
    lowest = (0.1 if tail else 1.0) / (samples + 1)
    return (
        f"A false-alarm rate of {alpha:.3g} needs {needed} independent clean calibration samples; this model has "
        f"{samples}. Refit with more clean samples or ask for alpha {_round_up(lowest):g} or more."
    )


def _round_up(x: float) -> float:
    """To two significant digits, upwards, so that the number named is one that works."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return float(f"{math.ceil(x / unit - 1e-9) * unit:.6g}")


def to_bytes(calibration: Calibration) -> bytes:
    """As `calibration.npz`: float64 arrays and fixed-width text, no objects."""
    names = list(calibration.groups)
    terms = list(calibration.groups[ALL].terms)
    arrays: dict[str, NDArray[Any]] = {
        "groups": np.array(names, dtype=np.str_),
        "terms": np.array(terms, dtype=np.str_),
        "effective": np.array([calibration.groups[g].effective for g in names], np.int64),
        "map_range": np.array(calibration.map_range, np.float64),
    }
    for g, name in enumerate(names):
        for t, term in enumerate(terms):
            reference = calibration.groups[name].terms[term]
            arrays[f"values_{g}_{t}"] = reference.values
            if reference.tail is not None:
                tail = reference.tail
                arrays[f"tail_{g}_{t}"] = np.array([tail.start, tail.shape, tail.scale, tail.share], np.float64)
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **arrays)
    return out.getvalue()


def from_bytes(raw: bytes) -> Calibration:
    """The inverse of `to_bytes`: whole, or refused. A value that is no number would make every sample look clean.

    Raises:
        Damaged: not such a file, or one that holds what no calibration can.
    """
    try:
        arrays = read_arrays(raw)
        names, terms = (_names(arrays, key) for key in ("groups", "terms"))
        effective = arrays["effective"]
        if effective.shape != (len(names),) or effective.dtype.kind not in "iu":
            raise ValueError("effective does not hold a whole number for every group")
        _check_names(names, terms)
        groups: dict[str, Group] = {}
        for g, name in enumerate(names):
            references = {term: _stored_reference(arrays, f"{g}_{t}") for t, term in enumerate(terms)}
            sizes = {len(r.values) for r in references.values()}
            if len(sizes) != 1 or not 1 <= int(effective[g]) <= min(sizes):
                raise ValueError(
                    f"group {g} states {int(effective[g])} independent samples, and its terms hold {sorted(sizes)[:5]}"
                )
            groups[name] = Group(terms=references, effective=int(effective[g]))
        low, high = _numbers(arrays, "map_range", 2)
        if low > high:
            raise ValueError(f"map_range goes from {low:g} down to {high:g}")
    except KeyError as error:
        raise Damaged(f"calibration.npz cannot be read (it lacks {error}); {RESTORE}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise Damaged(f"calibration.npz cannot be read ({error}); {RESTORE}") from error
    return Calibration(groups=groups, map_range=(low, high))


def _names(arrays: Mapping[str, NDArray[Any]], key: str) -> list[str]:
    array = arrays[key]
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"{key} is no list of names")
    return [str(n) for n in array.tolist()]


def _check_names(groups: list[str], terms: list[str]) -> None:
    for what, names, needed in (("groups", groups, ALL), ("terms", terms, "score")):
        if len(set(names)) != len(names):
            raise ValueError(f"one of its {what} is named twice")
        if needed not in names:
            raise ValueError("it holds no group of all samples" if needed == ALL else f"it holds no {needed}")


def _numbers(arrays: Mapping[str, NDArray[Any]], key: str, count: int | None = None) -> list[float]:
    """Finite numbers, one after the other."""
    array = arrays[key]
    if array.ndim != 1 or array.dtype != np.float64 or (count is not None and len(array) != count):
        raise ValueError(f"{key} is no list of {'' if count is None else f'{count} '}numbers in double precision")
    if not np.isfinite(array).all():
        raise ValueError(f"{key} holds {array[~np.isfinite(array)][0]}, which is no finite number")
    return [float(x) for x in array] if count is not None else []


def _stored_reference(arrays: Mapping[str, NDArray[Any]], at: str) -> Reference:
    _numbers(arrays, f"values_{at}")
    values = arrays[f"values_{at}"]
    if (values[1:] < values[:-1]).any():
        raise ValueError(f"values_{at} do not ascend")
    if f"tail_{at}" not in arrays:
        return Reference(values=values, tail=None)
    tail = Tail(*_numbers(arrays, f"tail_{at}", 4))
    if not (0.0 <= tail.shape < 1.0 and tail.scale > 0.0 and 0.0 < tail.share <= 1.0):
        raise ValueError(
            f"tail_{at} has shape {tail.shape:g}, scale {tail.scale:g} and share {tail.share:g}, as no fitted tail has"
        )
    return Reference(values=values, tail=tail)
