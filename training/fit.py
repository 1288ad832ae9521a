"""The one training loop.

Every random draw of step s comes from generators seeded by (seed, s), and the order of samples from (seed, pass):
where a fit stands is therefore its step, its weights and its optimiser's moments, and a fit that is killed and resumed
repeats the uninterrupted one bit for bit on the CPU.

An epoch is one pass over the fit split, or as many as make `EPOCH_LEAST` steps; it ends with the validation loss, the
stopping decision and a checkpoint.

Where players learn in turn, only the parameters of the one whose turn it is require a gradient: another's never get
one from its loss, nor is what they say of it reckoned in vain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from vaegis.models.blocks import Samples, conditions_of, parts_of
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Batches, Family, Progress, Recipe
from vaegis.training import checkpoint
from vaegis.training.allocator import keep_freed
from vaegis.training.augment import augment
from vaegis.training.checkpoint import State
from vaegis.training.request import FitOptions, Step
from vaegis.training.splits import Split
from vaegis.training.weight_average import Average

EPOCH_LEAST = 50  # steps: passes over a few hundred samples are too short to judge
LOOK = 256  # parts per batch of the first, last and validating looks
LOOK_MOST = 50_000  # parts those looks take: statistics of more change nothing
VARIED_LEAST = 2000  # parts that a look at declared variation takes, over several passes where there are fewer


@dataclass(frozen=True)
class Fit:
    """A family with its best weights, on the CPU in evaluation mode, and how it got there."""

    family: Family
    history: list[dict[str, float]]  # per epoch: step, each term's mean, validate
    steps: int
    best_step: int
    seconds: float
    stopped: str  # "steps", "no improvement" or "time"


def fit(
    family: Family,
    samples: Samples,
    split: Split,
    options: FitOptions,
    *,
    key: str = "",
    path: Path | None = None,
    resume: bool = False,
    show: Callable[[Step], None] = lambda _: None,
) -> Fit:
    """Fits a family to the fit split.

    Args:
        key: identifies the fit, so that only its own checkpoint is resumed.
        path: of the checkpoint; None keeps none.
        resume: go on from the checkpoint.
        show: called after every step.

    Raises:
        Refusal: a loss that is not finite (naming the term), a device that is not there, nothing to resume.
    """
    loop = _Loop(family, samples, split, options, key)
    if resume and path is not None:
        loop.restore(path)
    began = time.monotonic() - loop.state.seconds
    while loop.state.step < loop.total and not loop.state.stopped:
        terms = loop.step()
        last = loop.state.step == loop.total or _late(began, options.max_time)
        if last or loop.state.step % loop.epoch == 0:
            loop.end_epoch(last, began)
            if path is not None:
                loop.save(path)
        history = loop.history
        show(Step(loop.state.step, loop.total, terms, history[-1]["validate"] if history else None))
    loop.finish()
    state, seconds = loop.state, time.monotonic() - began
    return Fit(family, loop.history, state.step, state.best_step, seconds, state.stopped or "steps")


class _Loop:
    """A fit under way: the family, what optimises it, and where it stands."""

    def __init__(self, family: Family, samples: Samples, split: Split, options: FitOptions, key: str) -> None:
        self.family, self.samples, self.split, self.seed = family, samples, split, options.seed
        self.recipe = recipe = family.recipe
        self.rate = options.rate or recipe.rate
        accelerator, precision = _device(options.device)
        if accelerator == "cpu":
            keep_freed()
        self.fabric = Fabric(accelerator=accelerator, precision=precision, devices=1)
        fit_parts, self.validate_parts = parts_of(samples, split.fit), parts_of(samples, split.validate)
        batch = min(options.batch or recipe.batch, max(2, len(fit_parts)))
        family.start(looks(samples, fit_parts))
        self.model = self.fabric.setup_module(family)
        self.model.mark_forward_method("loss")
        self.model.mark_forward_method("validation_loss")
        self.learning = [p for p in family.parameters() if p.requires_grad]
        self.optimisers = {name: self._optimiser(player) for name, player in family.players().items()}
        self.average = Average(family, recipe.average)
        steps = options.steps if options.steps is not None else recipe.steps
        self.total = steps if self.optimisers else 0
        self.turns = max((family.turns(player) for player in self.optimisers), default=1)
        self.epoch = max(EPOCH_LEAST, math.ceil(len(fit_parts) / batch))
        self.order = Order(fit_parts, batch, options.seed)
        self.state, self.best = State(key=key), weights(family)
        self.history: list[dict[str, float]] = []
        self.state.history = self.history
        self.sums: dict[str, float] = {}  # of each loss term, since the last epoch ended

    def _optimiser(self, player: nn.Module) -> Optimizer:
        plain = torch.optim.AdamW(
            [p for p in player.parameters() if p.requires_grad],
            lr=self.rate,
            betas=(self.recipe.momentum, 0.999),
            weight_decay=self.recipe.decay,
        )
        return cast(Optimizer, self.fabric.setup_optimizers(plain))

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint of this very fit."""
        self.state, self.best = checkpoint.load(
            path, self.state.key, self.family, self.optimisers, self.average.values, self.fabric.device
        )
        self.history = self.state.history = self.state.history or []

    def save(self, path: Path) -> None:
        checkpoint.save(path, self.state, self.family, self.best, self.optimisers, self.average.values)

    def step(self) -> dict[str, float]:
        """One step of every player; returns its loss terms."""
        self.family.train()
        device, number = self.fabric.device, self.state.step
        at = Progress(number, self.total, generator(self.seed, number, device))
        batches = []
        for turn in range(self.turns):
            batch = _batch(self.samples, self.order.of(number * self.turns + turn)).to(device)
            batches.append(batch._replace(x=augment(batch.x, self.family.spec, at.generator)))
        terms = _step(self.fabric, self.model, self.family, self.optimisers, batches, at, self.rate, self.recipe)
        self.state.step += 1
        self.average.update(self.state.step)
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return terms

    def end_epoch(self, last: bool, began: float) -> None:
        """Validates, notes the epoch and the best weights, and decides whether to stop.

        Args:
            last: no further step is to follow, for want of steps or of time.
            began: on the monotonic clock, less what an interrupted run took.

        Raises:
            Refusal: the validation loss is not finite, or the family raises an alarm.
        """
        state, family = self.state, self.family
        with self.average.worn():
            loss = _validate(
                self.model, family, self.samples, self.validate_parts, self.total, self.seed, self.fabric.device
            )
            current = weights(family)
        steps = state.step - int(self.history[-1]["step"] if self.history else 0)
        self.history.append({"step": state.step, **{k: v / steps for k, v in self.sums.items()}, "validate": loss})
        self.sums = {}
        if not math.isfinite(loss):
            raise Refusal(
                f"The validation loss became {loss} at step {state.step}. Fit with a smaller learning rate or look "
                "for extreme values in the clean data."
            )
        if broken := family.alarm(self.history):
            raise Refusal(broken)
        if loss < state.best:
            state.best, state.best_step, state.waited, self.best = loss, state.step, 0, current
        else:
            state.waited += 1
        if state.step < self.total and state.waited >= self.recipe.patience:
            state.stopped = "no improvement"
        elif state.step < self.total and last:
            state.stopped = "time"
        state.seconds = time.monotonic() - began

    def finish(self) -> None:
        """Gives the family its best weights, and its last look at the clean samples."""
        self.family.load_state_dict(self.best)
        self.family.eval().to("cpu")
        self.family.finish(looks(self.samples, parts_of(self.samples, self.split.last_look), self.seed))
        for parameter in self.learning:
            parameter.requires_grad_(True)


def _step(
    fabric: Fabric,
    model: Any,
    family: Family,
    optimisers: dict[str, Optimizer],
    batches: list[Batch],
    at: Progress,
    rate: float,
    recipe: Recipe,
) -> dict[str, float]:
    """The turns of every player, one batch each; returns the last turn's loss terms, prefixed by the player where there
    are several."""
    losses: dict[str, float] = {}
    turns = [(player, batch) for player in optimisers for batch in batches[: family.turns(player)]]
    for player, batch in turns:
        optimiser = optimisers[player]
        own = {id(p) for group in optimiser.param_groups for p in group["params"]}
        for parameter in family.parameters():
            parameter.requires_grad_(id(parameter) in own)
        for group in optimiser.param_groups:
            group["lr"] = rate * _pace(at)
        optimiser.zero_grad()
        terms = model.loss(batch, player, at)
        for name, value in terms.items():
            number = value.item()
            if not math.isfinite(number):
                raise Refusal(
                    f"The loss term {name} became {number} at step {at.step}. Fit with a smaller learning rate "
                    f"(--rate {rate / 5:g}) or look for extreme values in the clean data."
                )
            losses[name if len(optimisers) == 1 else f"{player}.{name}"] = number
        fabric.backward(terms["total"])
        fabric.clip_gradients(model, optimiser, max_norm=recipe.clip, error_if_nonfinite=False)
        optimiser.step()
    return losses


def _validate(
    model: Any,
    family: Family,
    samples: Samples,
    parts: NDArray[np.int64],
    total: int,
    seed: int,
    device: torch.device,
) -> float:
    """What early stopping minimises, over the validate split at full warm-up; the same draws at every epoch."""
    family.eval()
    loss, count = 0.0, 0
    with torch.no_grad():
        for i, batch in enumerate(looks(samples, parts)()):
            at = Progress(total, total, generator(seed, -1 - i, device))
            loss += model.validation_loss(batch.to(device), at).item() * len(batch.x)
            count += len(batch.x)
    return loss / max(count, 1)


class Order:
    """Which parts each step sees: endless shuffled passes, cut into batches; a function of the step alone."""

    def __init__(self, parts: NDArray[np.int64], batch: int, seed: int) -> None:
        self._parts, self._batch, self._seed = parts, batch, seed
        self._pass, self._shuffled = -1, parts

    def of(self, step: int) -> NDArray[np.int64]:
        n, at, need = len(self._parts), step * self._batch, self._batch
        drawn: list[NDArray[np.int64]] = []
        while need:
            number, offset = divmod(at, n)
            if number != self._pass:
                rng = np.random.default_rng([abs(self._seed), number])
                self._pass, self._shuffled = number, rng.permutation(self._parts)
            drawn.append(self._shuffled[offset : offset + need])
            at, need = at + len(drawn[-1]), need - len(drawn[-1])
        return np.concatenate(drawn)


def looks(samples: Samples, parts: NDArray[np.int64], seed: int | None = None) -> Batches:
    """Passes over the parts in order, on the CPU; an even selection where they are very many.

    Args:
        seed: vary the parts as the spec declares that clean product may vary, over as many passes as show some of it;
            None shows them as they are. What is learned of clean evidence must know of such variation, or the first
            sample that lies at another angle is strange.
    """
    if len(parts) > LOOK_MOST:
        parts = parts[np.linspace(0, len(parts) - 1, LOOK_MOST).astype(np.int64)]
    varied = seed is not None and bool(samples.spec.invariances)
    passes = max(1, math.ceil(VARIED_LEAST / max(1, len(parts)))) if varied else 1

    def look() -> Iterator[Batch]:
        for number in range(passes):
            for i in range(0, len(parts), LOOK):
                batch = _batch(samples, parts[i : i + LOOK])
                if varied:
                    draws = np.random.SeedSequence([abs(seed or 0), number, i, 1]).generate_state(2, np.uint32)
                    own = torch.Generator().manual_seed(int(draws[0]) << 31 ^ int(draws[1]))
                    batch = batch._replace(x=augment(batch.x, samples.spec, own))
                yield batch

    return look


def _batch(samples: Samples, parts: NDArray[np.int64]) -> Batch:
    """Raw parts and their conditions, if there are any."""
    numbers = conditions_of(samples, parts)
    return Batch(torch.from_numpy(samples.take(parts)), None if numbers is None else torch.from_numpy(numbers))


def weights(family: Family) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {k: v.detach().clone() for k, v in family.state_dict().items()}


def generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step."""
    mixed = np.random.SeedSequence([abs(seed), step % 2**32]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(mixed[0]) << 31 ^ int(mixed[1]))


def _pace(at: Progress) -> float:
    """Share of the peak learning rate: linear warm-up over 5 % of the steps, then half a cosine down to 1 %."""
    warm = max(1, at.total // 20)
    if at.step < warm:
        return (at.step + 1) / warm
    done = (at.step - warm) / max(1, at.total - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _late(began: float, limit: float | None) -> bool:
    return limit is not None and time.monotonic() - began >= limit


def _device(device: str) -> tuple[str, Literal["32-true", "bf16-mixed"]]:
    """Fabric's accelerator and precision."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise Refusal("Device cuda was asked for, but torch sees no GPU here; use --device cpu.")
    if device == "cpu" or not there:
        return "cpu", "32-true"
    return "cuda", "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
