"""How good generated samples are: as varied and as real as clean ones, and no copies of them.

For features a_1..a_m of real samples and b_1..b_n of generated ones, with means, covariances and balls
B_k(a_i) around each a_i that reach its k-th nearest other real sample,

    frechet    = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))      Heusel et al. 2017, arXiv:1706.08500
    precision  = share of b_j within some B_k(a_i)                          Kynkaanniemi et al. 2019, arXiv:1904.06991
    recall     = share of a_i within some ball of the generated samples, k = 3
    density    = mean_j #{i: b_j in B_k(a_i)} / k                           Naeem et al. 2020, arXiv:2002.09797
    coverage   = share of B_k(a_i) that hold some b_j, k = 5
    inception  = exp(mean_j KL(p(y|b_j) || p(y)))                           Salimans et al. 2016, arXiv:1606.03498
    perceptual = mean over layers and places of |u - v|^2, u and v feature maps of unit length  (LPIPS: Zhang et al.
                 2018, arXiv:1801.03924, without its trained weights)

None has a scale of its own: each is told beside what real samples reach against other real samples, as many. Features
come from a network that the user gives, else from the encoder of a small VAE fitted on the same data, which favours
what a VAE sees; figures of different feature networks must not be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaegis.models.blocks import Samples, conditions_of
from vaegis.models.bundle import DECODER, ENCODER, SAMPLER, STEP
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch
from vaegis.models.families.vae import VAE
from vaegis.models.latent import Coder, as_raw
from vaegis.models.manifest import Manifest
from vaegis.models.runtime.sessions import open_session
from vaegis.models.spec import InputSpec
from vaegis.training.fit import fit
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST, LEAST = 500, 60  # samples of each kind
VALUES = 2**22  # through a generating graph
BY_STEPS = 64  # samples of a model that generates step by step: each costs as many runs as there are steps
REFERENCE_STEPS = 300  # of the small VAE
NEAR = 0.25  # of the median distance of an unseen clean sample to its nearest fitted one: nearer is a copy
COPIES, COLLAPSED, NARROW = 0.05, 0.3, 0.25  # alarms: share of copies, of the clean coverage, of the clean variance


@dataclass(frozen=True)
class GenerationFigures:
    """Of one set of samples against real ones."""

    frechet: float
    precision: float
    recall: float
    density: float
    coverage: float
    spread: float  # total variance of the features, as a share of the real samples'
    inception: float | None  # where the feature network gives classes
    diversity: float | None  # mean perceptual distance between two samples, where it gives feature maps


@dataclass(frozen=True)
class Alarm:
    """What is wrong with generated samples."""

    code: str  # stable, for programs
    text: str


@dataclass(frozen=True)
class Generation:
    """Of one fitted model."""

    samples: int  # generated, and real ones they are held against
    features: str  # where the features come from
    generated: GenerationFigures
    clean: GenerationFigures  # what as many other clean samples reach
    nearest: float  # median distance to the nearest fitted sample, in units of that of unseen clean samples
    copies: float  # share of generated samples nearer than `NEAR`
    rebuilt: float | None  # mean perceptual distance of unseen samples to their reconstructions
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True)
class Unwritten:
    """The graphs of a bundle that is not written yet, as `Coder` reads them."""

    spec: InputSpec
    manifest: Manifest
    graphs: Mapping[str, bytes]
    roi: NDArray[np.bool_] | None = None

    def read(self, name: str) -> bytes:
        return self.graphs[name]


def unwritten(family: str, arguments: Mapping[str, Any], spec: InputSpec, graphs: Mapping[str, bytes]) -> Unwritten:
    """A model before its bundle is."""
    manifest = Manifest(
        family=family,
        arguments=dict(arguments),
        spec={},
        evidence={},
        alpha=0.0,
        versions={},
        created="",
        files=dict.fromkeys(graphs, ""),
    )
    return Unwritten(spec, manifest, graphs)


def measure(
    model: Unwritten,
    samples: Samples,
    split: Split,
    seed: int = 0,
    network: Path | None = None,
    steps: int = REFERENCE_STEPS,
) -> Generation | None:
    """Generates samples and holds them against clean ones that the model was not fitted on; None if it generates none.

    Args:
        network: an ONNX file whose input takes the model's raw samples, and whose first output of two axes is taken as
            features; see docs/models.md.
        steps: of the small VAE that gives the features without one.

    Raises:
        Refusal: the network cannot be used.
    """
    coder = Coder(model, "cpu")
    if not any(coder.has(graph) for graph in (DECODER, SAMPLER, STEP)):
        return None
    rng = np.random.default_rng(seed)
    n = int(np.clip(VALUES // int(np.prod(samples.spec.shape)), LEAST, MOST))
    if not coder.has(DECODER) and not coder.has(SAMPLER):
        n = min(n, BY_STEPS)
    rest = np.sort(np.concatenate([split.validate, split.calibrate]))
    n = min(n, len(rest), len(split.fit))
    if n < LEAST // 2:
        return None
    real, other = (samples.first[rng.choice(side, n, replace=False)] for side in (rest, split.fit))
    fitted = samples.first[rng.choice(split.fit, min(len(split.fit), 4 * MOST), replace=False)]
    x, conditions = samples.take(real), conditions_of(samples, real)
    new = _generated(coder, conditions, n, seed)
    look = Network(network, samples.spec) if network is not None else ReferenceSet(samples, split, seed, steps)
    features = {
        "real": look(x, conditions),
        "new": look(new, conditions),
        "other": look(samples.take(other), conditions_of(samples, other)),
    }
    distances = Nearest(samples.take(fitted))
    away, usual = distances(new), float(np.median(distances(x)))
    generated, clean = figures(features["real"], features["new"]), figures(features["real"], features["other"])
    copies = float((away < NEAR * usual).mean())
    rebuilt = None
    if features["real"].maps and coder.has(ENCODER) and coder.has(DECODER):
        back = as_raw(coder.decode(coder.encode(x, conditions)[0], conditions), samples.spec)
        rebuilt = float(perceptual(features["real"].maps, look(back, conditions).maps).mean())
    return Generation(
        samples=n,
        features=look.says,
        generated=generated,
        clean=clean,
        nearest=float(np.median(away)) / max(usual, 1e-12),
        copies=copies,
        rebuilt=rebuilt,
        alarms=tuple(_alarms(generated, clean, copies)),
    )


def _generated(coder: Coder, conditions: Ints | None, n: int, seed: int) -> NDArray[Any]:
    """n samples, under as many of each condition as the real ones have, in their order."""
    if conditions is None:
        return as_raw(coder.generate(n, seed), coder.spec)
    new = np.empty((n, *coder.spec.shape), coder.spec.dtype)
    for condition in np.unique(conditions).tolist():
        chosen = conditions == condition
        new[chosen] = as_raw(coder.generate(int(chosen.sum()), seed + condition, condition), coder.spec)
    return new


def _alarms(generated: GenerationFigures, clean: GenerationFigures, copies: float) -> Iterator[Alarm]:
    if generated.spread < NARROW or generated.coverage < COLLAPSED * clean.coverage:
        yield Alarm(
            "mode collapse",
            f"Generated samples cover {generated.coverage:.0%} of the clean ones, where clean samples cover "
            f"{clean.coverage:.0%}, and have {generated.spread:.0%} of their variance: the model makes few kinds of "
            "product. Fit longer, or with another seed or objective.",
        )
    if copies > COPIES:
        yield Alarm(
            "memorising",
            f"{copies:.0%} of the generated samples are all but copies of fitted ones. Add clean samples, or take a "
            "smaller model.",
        )


@dataclass(frozen=True)
class Features:
    """What a feature network says of samples."""

    features: Floats  # (n, F)
    classes: Floats | None = None  # (n, K) probabilities
    maps: tuple[NDArray[np.float32], ...] = ()  # each (n, C, ...)


class ReferenceSet:
    """Features of a small VAE: posterior means of an encoder fitted on the fit split."""

    def __init__(self, samples: Samples, split: Split, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.says = f"the encoder of a small VAE fitted on the same data ({steps} steps)"
        vae = VAE(samples.spec, latent=min(16, int(np.prod(samples.spec.shape))))
        self._vae = fit(vae, samples, split, FitOptions(seed=seed, steps=steps, device="cpu")).family

    def __call__(self, x: NDArray[Any], conditions: Ints | None) -> Features:
        means = []
        for i in range(0, len(x), 256):
            condition = torch.from_numpy(conditions[i : i + 256]) if conditions is not None else None
            with torch.no_grad():
                raw = torch.from_numpy(np.ascontiguousarray(x[i : i + 256]))
                means.append(self._vae.encode(Batch(raw, condition))[0])
        return Features(torch.cat(means).double().numpy())


class Network:
    """Features of an ONNX network: raw samples in the model's layout in; out come features of two axes, if it likes
    `logits` or `probabilities` of classes, and feature maps of three axes or more."""

    def __init__(self, path: Path, spec: InputSpec) -> None:
        """Opens it.

        Raises:
            Refusal: no ONNX network, more inputs than one, another input shape, or no output of two axes.
        """
        try:
            self._session = open_session(path.read_bytes(), "cpu")[0]
        except OSError as error:
            raise Refusal(f"--features {path} cannot be read ({error.strerror}); name an .onnx file.") from error
        except Exception as error:  # onnxruntime's errors share no class that it makes public
            first = str(error).splitlines()[0][:200]
            raise Refusal(f"--features {path.name} is no ONNX network that onnxruntime can run ({first}).") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = [s if isinstance(s, int) else None for s in inputs[0].shape[1:]]
        fits = len(shape) == len(spec.shape) and all(
            a is None or a == b for a, b in zip(shape, spec.shape, strict=True)
        )
        if len(inputs) != 1 or not fits:
            raise Refusal(
                f"--features {path.name} takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}; it must take the "
                f"model's raw samples alone, [batch, {', '.join(map(str, spec.shape))}]."
            )
        self._type = np.float32 if "float" in inputs[0].type else spec.dtype
        classes = ("logits", "probabilities")
        flat = [o.name for o in outputs if len(o.shape) == 2 and o.name not in classes]
        self._classes = next((o.name for o in outputs if o.name in classes), None)
        self._maps = [o.name for o in outputs if len(o.shape) > 2]
        if not flat and self._classes is None:
            raise Refusal(f"--features {path.name} gives no output [batch, features]; name one among its outputs.")
        self._features = flat[0] if flat else str(self._classes)
        self._input = inputs[0].name
        self.says = f"the network {path.name}, output {self._features}"

    def __call__(self, x: NDArray[Any], conditions: Ints | None) -> Features:
        names = [self._features, *([self._classes] if self._classes else []), *self._maps]
        runs = []
        for i in range(0, len(x), 64):
            runs.append(self._session.run(names, {self._input: np.ascontiguousarray(x[i : i + 64], self._type)}))
        whole = dict(zip(names, (np.concatenate(parts) for parts in zip(*runs, strict=True)), strict=True))
        features = whole[self._features].astype(np.float64)
        if not np.isfinite(features).all():
            raise Refusal(f"{self.says} is not finite for every clean sample; look at the network.")
        classes = whole[self._classes].astype(np.float64) if self._classes else None
        if classes is not None and self._classes == "logits":
            powers = np.exp(classes - classes.max(axis=1, keepdims=True))
            classes = powers / powers.sum(axis=1, keepdims=True)
        return Features(features, classes, tuple(whole[name] for name in self._maps))


class Nearest:
    """Distances to the nearest of some samples, each column or channel in units of its spread over them."""

    def __init__(self, x: NDArray[Any]) -> None:
        values = np.nan_to_num(x.astype(np.float64))
        axes = tuple(range(values.ndim - 1))
        self._centre, spread = values.mean(axis=axes), values.std(axis=axes)
        self._spread = np.where(spread > 1e-12, spread, 1.0)
        self._flat = ((values - self._centre) / self._spread).reshape(len(x), -1)

    def __call__(self, x: NDArray[Any]) -> Floats:
        """(n,) root mean squared differences."""
        flat = ((np.nan_to_num(x.astype(np.float64)) - self._centre) / self._spread).reshape(len(x), -1)
        return np.asarray(distances(flat, self._flat).min(axis=1) / math.sqrt(flat.shape[1]))


def figures(real: Features, other: Features) -> GenerationFigures:
    """Of some samples against real ones."""
    a, b = real.features, other.features
    near, far = distances(a, a), distances(a, b)
    precision, recall = precision_recall(near, far, distances(b, b))
    density, coverage = density_coverage(near, far)
    diversity = None
    if other.maps:
        turned = tuple(np.roll(m, 1, axis=0) for m in other.maps)
        diversity = float(perceptual(other.maps, turned).mean())
    return GenerationFigures(
        frechet=frechet(a, b),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        spread=float(b.var(axis=0).sum() / max(float(a.var(axis=0).sum()), 1e-30)),
        inception=inception(other.classes) if other.classes is not None else None,
        diversity=diversity,
    )


def frechet(a: Floats, b: Floats) -> float:
    """Squared Frechet distance of normal distributions with the two sets' means and covariances."""
    one, two = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    powers, axes = np.linalg.eigh(one)
    root = (axes * np.sqrt(np.maximum(powers, 0))) @ axes.T
    # (S_a S_b)^(1/2) has the eigenvalues of (S_a^(1/2) S_b S_a^(1/2))^(1/2), which is symmetric.
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return max(0.0, float(gap + np.trace(one) + np.trace(two) - 2 * shared))


def precision_recall(real: Floats, across: Floats, new: Floats, k: int = 3) -> tuple[float, float]:
    """From distances among real samples (m, m), of real to generated ones (m, n), and among those (n, n)."""
    inside = across <= radius(real, k)[:, None]
    covered = across <= radius(new, k)[None, :]
    return float(inside.any(axis=0).mean()), float(covered.any(axis=1).mean())


def density_coverage(real: Floats, across: Floats, k: int = 5) -> tuple[float, float]:
    """From distances among real samples (m, m), and of real to generated ones (m, n)."""
    inside = across <= radius(real, k)[:, None]
    return float(inside.sum(axis=0).mean() / k), float(inside.any(axis=1).mean())


def radius(among: Floats, k: int) -> Floats:
    """(m,) distance of each sample to its k-th nearest other one, from distances among them (m, m)."""
    k = min(k, len(among) - 1)
    return np.asarray(np.partition(among, k, axis=1)[:, k])


def inception(classes: Floats) -> float:
    """From (n, K) class probabilities: 1, all alike, to K, each certain and all classes equally often."""
    overall = classes.mean(axis=0)
    nats = (classes * (np.log(np.maximum(classes, 1e-30)) - np.log(np.maximum(overall, 1e-30)))).sum(axis=1)
    return float(np.exp(nats.mean()))


def perceptual(one: tuple[NDArray[np.float32], ...], two: tuple[NDArray[np.float32], ...]) -> Floats:
    """(n,) distances from the feature maps (n, C, ...) of each layer."""
    total = np.zeros(len(one[0]))
    for a, b in zip(one, two, strict=True):
        gap = (_unit(a) - _unit(b)) ** 2
        total += gap.sum(axis=1).reshape(len(a), -1).mean(axis=1)
    return total / len(one)


def _unit(maps: NDArray[np.float32]) -> Floats:
    values = maps.astype(np.float64)
    return np.asarray(values / np.maximum(np.sqrt((values**2).sum(axis=1, keepdims=True)), 1e-10))


def distances(a: Floats, b: Floats) -> Floats:
    """(m, n) Euclidean distances; those of a set to itself have an exact zero diagonal."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    lengths = np.sqrt(np.maximum(squared, 0))
    if a is b:
        np.fill_diagonal(lengths, 0.0)
    return np.asarray(lengths)
