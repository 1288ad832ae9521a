"""Families small enough to follow by hand."""

import torch
from torch import nn

from vaegis.models.families import Evidence, Family, Recipe


class Level(Family):
    """One number p that follows the mean of the samples: loss (p - mean x)^2; evidence (x - p)^2."""

    def __init__(self, spec, *, patience=50, rate=0.02):
        super().__init__(spec, {"away": "squared distance from the level"}, {"away": "log"})
        self.patience, self.rate = patience, rate
        self.p = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.calls = []

    @property
    def recipe(self):
        return Recipe(steps=400, batch=16, rate=self.rate, decay=0.0, patience=self.patience)

    def start(self, batches):
        self.calls.append("start")

    def players(self):
        return {"level": self}

    def loss(self, batch, player, at):
        away = (self.p - batch.x.mean()) ** 2
        return {"total": away, "level": self.p.detach()}

    def finish(self, batches):
        self.calls.append("finish")
        self.seen.fill_(sum(len(batch.x) for batch in batches()))

    def evidence(self, batch):
        heat = (batch.x - self.p) ** 2
        return Evidence({"away": heat.mean(1)}, heat)


class Slope(Level):
    """A loss whose gradient is always 1, so that AdamW moves p by exactly the learning rate."""

    def loss(self, batch, player, at):
        return {"total": self.p + 0 * batch.x.mean()}


class Stuck(Level):
    """A loss that never changes."""

    def loss(self, batch, player, at):
        return {"total": 0 * self.p + 1.0}


class Broken(Level):
    """A term that is no number from step 3 on."""

    def loss(self, batch, player, at):
        bad = torch.tensor(float("nan") if at.step >= 3 and torch.is_grad_enabled() else 1.0)
        return {"total": (self.p - batch.x.mean()) ** 2, "penalty": bad}


class BlindToCleanSamples(Level):
    """A loss that is a number on what it learns from, and none on what it is validated on."""

    def loss(self, batch, player, at):
        penalty = torch.tensor(float("nan") if not torch.is_grad_enabled() else 0.0)
        return {"total": (self.p - batch.x.mean()) ** 2 + penalty}


class Duel(Level):
    """Two players with a number each, whose losses touch both numbers."""

    def __init__(self, spec):
        super().__init__(spec)
        self.one, self.two = (
            nn.ParameterList([nn.Parameter(torch.zeros(()))]),
            nn.ParameterList([nn.Parameter(torch.zeros(()))]),
        )
        del self.p

    def players(self):
        return {"one": self.one, "two": self.two}

    def loss(self, batch, player, at):
        a, b = self.one[0], self.two[0]
        return {"total": (a + b) if player == "one" else -(a + b)}

    def evidence(self, batch):
        return Evidence({"away": batch.x.mean(1)}, batch.x)


class Statistic(Level):
    """Nothing to learn after a first look."""

    def players(self):
        return {}


class Match(Level):
    """Two players: `fast` follows the samples and `slow` follows `fast`, which learns `turns_of_fast` times a step.

    Each writes down the sample means it saw, and `slow`'s loss has a gradient for `fast`'s number too.
    """

    def __init__(self, spec, *, turns_of_fast=3, average=0.0, momentum=0.9, stop_at=None):
        super().__init__(spec)
        del self.p
        self.turns_of_fast, self.average, self.momentum, self.stop_at = turns_of_fast, average, momentum, stop_at
        self.fast, self.slow = nn.Linear(1, 1), nn.Linear(1, 1)
        self.told = []

    @property
    def recipe(self):
        return Recipe(steps=400, batch=4, rate=0.02, average=self.average, momentum=self.momentum)

    def players(self):
        return {"fast": self.fast, "slow": self.slow}

    def turns(self, player):
        return self.turns_of_fast if player == "fast" else 1

    def loss(self, batch, player, at):
        x = batch.x
        if self.training:
            self.told.append((player, at.step, x.mean().item()))
        noise = torch.randn(x.shape, generator=at.generator)
        fast = self.fast(x + 0.1 * noise)
        away = (fast - x).square().mean() if player == "fast" else (self.slow(x) - fast).square().mean()
        return {"total": away}

    def validation_loss(self, batch, at):
        return self.loss(batch, "slow", at)["total"]

    def alarm(self, history):
        if self.stop_at is not None and history[-1]["step"] >= self.stop_at:
            return f"The match ran away at step {history[-1]['step']:g}; fit with a lower rate."
        return None

    def evidence(self, batch):
        heat = (self.slow(batch.x) - batch.x).square()
        return Evidence({"away": heat.mean(1)}, heat)
