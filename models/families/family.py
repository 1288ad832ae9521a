"""The contract every family keeps, and what turns a fitted family into the graph that is exported.

A family is an `nn.Module` that reads raw batches in the layout of its `InputSpec` and says how strange each sample
is, in named terms, higher = stranger, and where. What it is inside is its own business: nothing outside this package
asks. Constructor arguments are the configuration, and each is also an attribute that holds its resolved value.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vaegis.models.errors import Refusal
from vaegis.models.families.fusion import Form, Fusion
from vaegis.models.spec import InputSpec


class Progress(NamedTuple):
    """Where a fit stands. Warm-up and noise depend on nothing else, so a resumed fit repeats the uninterrupted one."""

    step: int  # of the optimiser, from 0
    total: int  # steps the fit will take at most
    generator: torch.Generator  # seeded by the fit's seed and this step

    @property
    def share(self) -> float:
        """Of the fit that is done, in [0, 1]."""
        return self.step / max(self.total, 1)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise in the shape, type and place of a tensor."""
        return torch.randn(like.shape, generator=self.generator, device=self.generator.device).to(like)


class Batch(NamedTuple):
    """Rows that go through a family together."""

    x: Tensor  # raw samples (B, *shape), NaN where missing; where they are decoded, latents (B, L)
    condition: Tensor | None = None  # (B,) int64, the number in `spec.conditions` of each; None where it names none

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(self.x.to(device), None if self.condition is None else self.condition.to(device))


Batches = Callable[[], Iterable[Batch]]  # a fresh pass over clean samples at each call


class Draw(NamedTuple):
    """What new samples are wanted."""

    n: int
    generator: torch.Generator
    condition: Tensor | None = None  # (n,) int64, as of a `Batch`

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise (n, *shape), on the generator's device."""
        return torch.randn(self.n, *shape, generator=self.generator, device=self.generator.device)

    def uniform(self, *shape: int) -> Tensor:
        """Even noise in [0, 1), (n, *shape), on the generator's device."""
        return torch.rand(self.n, *shape, generator=self.generator, device=self.generator.device)


@dataclass(frozen=True)
class Recipe:
    """How a family is best fitted when nothing is said."""

    steps: int  # of the optimiser, at most
    batch: int  # parts a step
    rate: float  # peak learning rate of AdamW; warm-up over the first 5 %, then half a cosine down to 1 %
    decay: float = 1e-4  # weight decay
    clip: float = 1.0  # norm that each player's gradient is clipped to
    patience: int = 20  # epochs without a better validation loss before stopping
    momentum: float = 0.9  # AdamW's beta_1; players that answer each other want less of it
    average: float = 0.0  # of the weights' running average, the share that a step keeps; 0 takes the weights themselves


@dataclass(frozen=True)
class Plan:
    """A graph that is exported beside those that follow from a family's methods."""

    module: nn.Module  # called with the inputs in order; a tensor, or a tuple of as many as there are outputs
    inputs: dict[str, Tensor]  # name -> example of three rows; the first axis is the batch
    outputs: tuple[str, ...]


class Evidence(NamedTuple):
    """What a family says of a batch."""

    terms: dict[str, Tensor]  # name -> (B,), float32, higher = stranger
    map: Tensor  # where: (B, H, W), (B, T, C) or (B, D), float32, in units of clean variation


class Family(nn.Module, ABC):
    """A way of learning what clean product looks like.

    Subclasses take `(spec, *, keyword=default, ...)`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "series", "vector")  # input kinds the mathematics allows
    takes_missing: ClassVar[bool] = True  # whether values may be missing (NaN) where the spec allows it
    conditional: ClassVar[bool] = False  # whether it learns what each sample was made as, where the spec names it

    def __init__(self, spec: InputSpec, meaning: Mapping[str, str], fused: Mapping[str, Form]) -> None:
        """Keeps what every family has.

        Args:
            spec: what the family reads.
            meaning: evidence term -> what it says, for people; the terms that `evidence` gives, in order.
            fused: the terms that enter `score`, and whether through a logarithm.
        """
        super().__init__()
        self.spec = spec
        self.meaning = dict(meaning)
        self.fusion = Fusion(fused)

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """Of a fit with no options, for this spec and these arguments."""

    @abstractmethod
    def start(self, batches: Batches) -> None:
        """Statistics of a first look at the fit split, before any step."""

    @abstractmethod
    def players(self) -> dict[str, nn.Module]:
        """Who learns in turn, by name; empty where nothing is left to learn after `start`."""

    @abstractmethod
    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        """Named scalar terms; `total` is minimised over the player's parameters."""

    def turns(self, player: str) -> int:
        """How often the player learns at each step, each time from other samples; at least 1."""
        return 1

    def validation_loss(self, batch: Batch, at: Progress) -> Tensor:
        """What early stopping minimises: a scalar for samples of the validate split, in evaluation mode and without
        gradients. The players' totals together, unless their game says nothing of how good the model is."""
        total = torch.zeros((), device=batch.x.device)
        for player in self.players():
            total = total + self.loss(batch, player, at)["total"]
        return total

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """At the end of an epoch: a sentence on why the fit is broken and what to do, which ends it; None goes on.

        Args:
            history: a row per epoch so far: `step`, the mean of each loss term (`player.term` where there are several
                players), `validate`. Nothing else may enter, or a resumed fit would end elsewhere.
        """
        return None

    @abstractmethod
    def finish(self, batches: Batches) -> None:
        """Statistics of a last look at the fit split, with the weights as they will be exported."""

    @abstractmethod
    def evidence(self, batch: Batch) -> Evidence:
        """How strange each sample is. Deterministic; evaluation mode."""

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of each sample's latent, each (B, L).

        Raises:
            Refusal: the family has no latent space.
        """
        raise Refusal(f"Family {type(self).__name__} has no latent space to encode into; fit a vae for that.")

    def decode(self, latents: Batch) -> Tensor:
        """Reconstructions (B, *shape) in raw units, float32.

        Raises:
            Refusal: the family has no decoder.
        """
        raise Refusal(f"Family {type(self).__name__} has no decoder; fit a vae for that.")

    def sample(self, draw: Draw) -> Tensor:
        """New samples, (n, *shape) in raw units, float32.

        Raises:
            Refusal: the family cannot generate.
        """
        raise Refusal(f"Family {type(self).__name__} cannot generate samples; fit a vae for that.")

    def more_graphs(self) -> dict[str, Plan]:
        """What a fitted family that generates without a decoder, or from latents that are not N(0, I), ships, by file
        name: `sampler.onnx` (`noise` -> `sample`) or `step.onnx` (`sample`, `time`, `noise` -> `next`)."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Sentences on choices that a user should know of before the fit."""
        return ()

    def log_jacobian(self) -> float | None:
        """Nats from a density of normalised values to one of raw values, for a sample; None where there is no such."""
        return None

    @property
    def latent_size(self) -> int:
        """L, or 0 for a family without a latent space."""
        return 0

    @property
    def decodes(self) -> bool:
        """Whether a graph can turn latents back into samples; one that only encodes says False."""
        return self.latent_size > 0

    def arguments(self) -> dict[str, Any]:
        """The constructor's keywords with their resolved values."""
        return {name: getattr(self, name) for name in keywords(type(self))}

    def score(self, batch: Batch) -> tuple[Tensor, Evidence]:
        """The fused score, (B,), and the evidence behind it."""
        evidence = self.evidence(batch)
        return self.fusion(evidence.terms), evidence


def keywords(family: type[Family]) -> dict[str, inspect.Parameter]:
    """The constructor's keyword parameters by name; those of the parent too, where `**` hands them on."""
    parameters = inspect.signature(family.__init__).parameters
    own = {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        (parent,) = family.__bases__
        return {**own, **keywords(parent)}
    return own


def make(table: Mapping[str, type[Family]], name: str, spec: InputSpec, arguments: Mapping[str, Any]) -> Family:
    """The named family for a spec.

    Raises:
        Refusal: an unknown family or argument (listing the right ones), a value of the wrong type, a kind of input
            that the family's mathematics does not allow, conditions or missing values where it takes none.
    """
    if name not in table:
        raise Refusal(f"There is no family {name!r}; the families are {', '.join(table)}.")
    cls = table[name]
    known = keywords(cls)
    given: dict[str, Any] = {}
    for key, value in arguments.items():
        head, dot, tail = key.partition(".")
        if head not in known:
            raise Refusal(f"Family {name} has no argument {head!r}; its arguments are {', '.join(known)}.")
        if dot and not isinstance(known[head].default, str):
            raise Refusal(f"Argument {head} of family {name} takes one value, not one per column; write {head}=VALUE.")
        if dot:
            base = given.get(head, known[head].default)
            mapping = dict(base) if isinstance(base, Mapping) else {"": base}
            given[head] = {**mapping, tail: value}
        elif isinstance(given.get(head), dict):
            given[head] = {**given[head], "": value}
        else:
            given[head] = _typed(name, head, value, known[head].default)
    if spec.kind not in cls.kinds:
        raise Refusal(f"Family {name} takes {' and '.join(cls.kinds)} inputs, not {spec.kind}; choose another family.")
    if spec.missing == "allow" and not cls.takes_missing:
        able = [key for key, family in table.items() if family.takes_missing]
        raise Refusal(
            f"Family {name} needs every value of a sample; leave --missing allow out, or fit {_any_of(able)}."
        )
    if spec.conditions and not cls.conditional:
        able = [key for key, family in table.items() if family.conditional]
        raise Refusal(f"Family {name} takes no conditions; leave --condition out, or fit {_any_of(able)}.")
    return cls(spec, **given)


def _any_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names) or "another family"


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Refuses an argument that does not lie between two bounds, both allowed.

    Raises:
        Refusal: naming it, its value and the bounds.
    """
    if not low <= value <= high:
        raise Refusal(f"Argument {name} is {value}; it must lie between {low:g} and {high:g}.")


def _typed(family: str, key: str, value: Any, default: Any) -> Any:
    """The value in the type of the argument's default; numbers written as text are read."""
    wanted = type(default)
    if isinstance(value, Mapping) or isinstance(value, wanted) and not isinstance(value, bool):
        return value
    try:
        if wanted is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if wanted is int and float(value) == int(float(value)):
            return int(float(value))
        if wanted is float:
            return float(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(wanted, wanted.__name__)
    raise Refusal(f"Argument {key} of family {family} is {value!r}; it must be {kind}, such as {default!r}.")
