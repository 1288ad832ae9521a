"""Families with several players: turns, clipping, alarms, averaged weights, momentum, and going on after a kill."""

import dataclasses

import numpy as np
import pytest
import torch
from fitting import ONE, Stopped, levels, options, state
from toy_families import Duel, Match, Slope

from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Progress
from vaegis.models.inputs import InMemory
from vaegis.training.fit import fit, generator
from vaegis.training.splits import Split


def match(**arguments):
    torch.manual_seed(0)
    return Match(ONE, **arguments)


def spread_out():
    x = np.random.default_rng(0).normal(size=(60, 1)).astype(np.float32)
    return InMemory(ONE, x), Split(np.arange(40), np.arange(40, 50), np.arange(50, 60), 10)


def test_a_player_may_learn_several_times_a_step_each_time_from_other_samples():
    samples, parted = spread_out()
    family = match(turns_of_fast=3)
    fit(family, samples, parted, options(steps=5, batch=4))
    fast = [seen for player, _, seen in family.told if player == "fast"]
    slow = [seen for player, _, seen in family.told if player == "slow"]
    assert [player for player, _, _ in family.told] == ["fast", "fast", "fast", "slow"] * 5
    # 15 batches of 4 from 40 samples: no two alike, and the one-turn player shares the first of each step.
    assert len(set(fast)) == 15
    assert slow == fast[::3]


def test_a_players_loss_leaves_nothing_on_another():
    """The slow player's loss runs through the fast one's number, which must not move or be clipped for it."""
    samples, parted = spread_out()

    class Loud(Match):
        def loss(self, batch, player, at):
            terms = super().loss(batch, player, at)
            if self.training and player == "slow":
                assert not any(p.requires_grad for p in self.fast.parameters())
                assert all(p.requires_grad for p in self.slow.parameters())
                # As huge as it is, it reaches neither the fast player's weights nor its clipped norm.
                terms["total"] = terms["total"] + 1e6 * self.fast.weight.square().sum()
            return terms

    torch.manual_seed(0)
    loud = Loud(ONE)
    quiet = match()
    for family in (loud, quiet):
        fit(family, samples, parted, options(steps=20, batch=4))
    assert loud.fast.weight.item() == quiet.fast.weight.item()
    assert loud.slow.weight.item() == quiet.slow.weight.item()
    assert all(p.requires_grad for p in loud.parameters())


def test_each_players_gradient_is_clipped_by_its_own_norm():
    samples, parted = spread_out()
    norms = {}

    class Steep(Match):
        def loss(self, batch, player, at):
            if self.training and at.step == 3:
                # What the other player's last turn left after clipping.
                other = "slow" if player == "fast" else "fast"
                gradients = [p.grad.flatten() for p in self.players()[other].parameters()]
                norms[other] = torch.cat(gradients).norm().item()
            return {"total": (1e3 if player == "fast" else 1e-3) * super().loss(batch, player, at)["total"]}

    torch.manual_seed(0)
    fit(Steep(ONE, turns_of_fast=1), samples, parted, options(steps=4, batch=4))
    assert norms["fast"] == pytest.approx(1.0, rel=1e-4)
    assert 0 < norms["slow"] < 0.1


def test_what_early_stopping_minimises_is_the_familys_to_say():
    samples, parted = spread_out()

    class Calm(Match):
        def validation_loss(self, batch, at):
            assert not self.training
            assert not torch.is_grad_enabled()
            assert at.share == 1.0
            return batch.x.mean()

    fitted = fit(Calm(ONE), samples, parted, options(steps=50, batch=4))
    assert fitted.history[-1]["validate"] == pytest.approx(samples.take(parted.validate).mean(), rel=1e-6)


def test_by_default_every_player_counts():
    samples, parted = levels(1.0, 1.0)
    duel = Duel(ONE)
    assert fit(duel, samples, parted, options(steps=50)).history[-1]["validate"] == pytest.approx(0.0, abs=1e-6)
    assert duel.one[0].item() + duel.two[0].item() == pytest.approx(0.0, abs=1.0)


def test_an_alarm_ends_the_fit_with_its_sentence(tmp_path):
    samples, parted = spread_out()
    path = tmp_path / "c.safetensors"
    for resume in (False, True):
        with pytest.raises(Refusal, match=r"^The match ran away at step 100; fit with a lower rate\.$"):
            fit(match(stop_at=80), samples, parted, options(batch=4), path=path, resume=resume)


def test_the_average_is_that_of_the_weights():
    samples, parted = spread_out()
    seen = []
    family = match(average=0.8)
    fitted = fit(
        family, samples, parted, options(steps=50, batch=4), show=lambda _: seen.append(family.slow.weight.item())
    )
    torch.manual_seed(0)
    expected = Match(ONE).slow.weight.item()
    for step, weight in enumerate(seen, start=1):
        keep = min(0.8, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight
    assert fitted.best_step == 50
    assert family.slow.weight.item() == pytest.approx(expected, rel=1e-5)
    assert family.slow.weight.item() != pytest.approx(seen[-1], rel=1e-4)
    # What it learned from were its own weights all along.
    plain, unworn = [], match()
    fit(unworn, samples, parted, options(steps=50, batch=4), show=lambda _: plain.append(unworn.slow.weight.item()))
    assert plain == seen


def test_the_average_is_validated_and_kept_as_the_best():
    samples, parted = spread_out()
    fitted = fit(match(average=0.95), samples, parted, options(steps=50, batch=4))
    x = torch.from_numpy(samples.take(parted.validate))
    at = Progress(50, 50, generator(0, -1, torch.device("cpu")))
    with torch.no_grad():
        assert fitted.history[-1]["validate"] == fitted.family.validation_loss(Batch(x), at).item()


def test_momentum_is_the_recipes():
    """Without momentum, AdamW's first and second step along an unchanging slope are alike; with it they are too, but
    after the slope turns only the former turns at once."""
    samples, parted = levels(1.0, 1.0)

    class Turning(Slope):
        momentum = 0.9

        @property
        def recipe(self):
            return dataclasses.replace(super().recipe, momentum=self.momentum)

        def loss(self, batch, player, at):
            return {"total": (self.p if at.step < 10 else -self.p) + 0 * batch.x.mean()}

    class Light(Turning):
        momentum = 0.0

    moved = {}
    for cls in (Turning, Light):
        told = []
        family = cls(ONE, patience=99)
        fit(
            family, samples, parted, options(steps=12, rate=0.01), show=lambda _, f=family, t=told: t.append(f.p.item())
        )
        moved[cls] = told[10] - told[9]
    assert moved[Turning] < 0 < moved[Light]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop", [51, 73, 149])
def test_players_turns_and_averages_are_resumed_bit_for_bit(tmp_path, average, stop):
    samples, parted = spread_out()
    whole = fit(match(average=average), samples, parted, options(seed=3, batch=4))

    def kill(at):
        if at.step == stop:
            raise Stopped

    path = tmp_path / "c.safetensors"
    with pytest.raises(Stopped):
        fit(match(average=average), samples, parted, options(seed=3, batch=4), path=path, show=kill)
    again = match(average=average)
    resumed = fit(again, samples, parted, options(seed=3, batch=4), path=path, resume=True)
    assert min(step for _, step, _ in again.told) == stop - stop % 50
    assert state(resumed) == state(whole)
    assert resumed.history == whole.history
