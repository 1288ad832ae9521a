import dataclasses
import math

import numpy as np
import pytest
import torch
from fitting import ONE, Stopped, levels, options, state
from lightning_fabric import Fabric
from toy_families import BlindToCleanSamples, Broken, Duel, Level, Slope, Statistic, Stuck

from toy_data import SERIES, VECTORS, vectors, windows
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Progress
from vaegis.models.families.vae import VAE
from vaegis.models.inputs import InMemory
from vaegis.training.fit import EPOCH_LEAST, Order, fit, looks
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split

SAMPLES = InMemory(VECTORS, vectors(200, 1))
PARTED = Split(np.arange(0, 120), np.arange(120, 150), np.arange(150, 200), 50)


def vae(spec=VECTORS):
    torch.manual_seed(0)
    return VAE(spec, width=8, latent=2)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 10), (7, 20), (1, 2), (64, 64)])
def test_the_order_is_a_function_of_the_step(n, batch):
    parts = np.arange(n) * 3
    order = Order(parts, batch, 5)
    seen = [order.of(step) for step in range(12)]
    assert {len(s) for s in seen} == {batch}
    for step in (11, 0, 7, 3):
        assert (Order(parts, batch, 5).of(step) == seen[step]).all()
        assert (order.of(step) == seen[step]).all()
    flat = np.concatenate(seen)
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start : start + n]) == parts.tolist()


def test_passes_and_seeds_shuffle_anew():
    order = Order(np.arange(50), 50, 0)
    assert order.of(0).tolist() != order.of(1).tolist() != list(range(50))
    assert Order(np.arange(50), 50, 1).of(0).tolist() != order.of(0).tolist()


def test_looks_see_every_part_once_and_at_each_call():
    parts = np.arange(600) % 200
    for _ in range(2):
        batches = list(looks(SAMPLES, parts)())
        assert [len(batch.x) for batch in batches] == [256, 256, 88]
        assert torch.equal(torch.cat([batch.x for batch in batches]), torch.from_numpy(SAMPLES.parts[parts]))


def test_a_level_is_learned():
    samples, parted = levels(3.0, 3.0)
    fitted = fit(Level(ONE), samples, parted, options(rate=0.05))
    assert fitted.family.p.item() == pytest.approx(3.0, abs=0.05)
    assert (fitted.steps, fitted.stopped) == (200, "steps")
    assert fitted.family.calls == ["start", "finish"]
    assert fitted.family.seen == 40
    assert not fitted.family.training
    assert [row["step"] for row in fitted.history] == [50, 100, 150, 200]
    assert fitted.history[-1]["validate"] == pytest.approx(0.0, abs=1e-2)


def test_a_row_of_history_is_the_mean_over_its_steps():
    samples, parted = levels(1.0, 5.0)
    told = []
    fitted = fit(Level(ONE), samples, parted, options(steps=70), show=lambda at: told.append(at))
    assert [at.step for at in told] == list(range(1, 71))
    assert {at.total for at in told} == {70}
    first, last = told[:EPOCH_LEAST], told[EPOCH_LEAST:]
    for row, steps in zip(fitted.history, (first, last), strict=True):
        assert row["total"] == pytest.approx(np.mean([s.terms["total"] for s in steps]))
        assert row["level"] == pytest.approx(np.mean([s.terms["level"] for s in steps]))
    assert told[-1].validate == fitted.history[-1]["validate"]
    assert told[0].validate is None


def test_the_best_weights_are_kept_and_not_the_last():
    # On its way from 0 to 10 the level passes 1, where the validation samples lie.
    samples, parted = levels(10.0, 1.0)
    fitted = fit(Level(ONE), samples, parted, options(steps=400, rate=0.02))
    losses = {row["step"]: row["validate"] for row in fitted.history}
    assert fitted.best_step == min(losses, key=losses.get) < 400
    assert (fitted.family.p.item() - 1) ** 2 == pytest.approx(min(losses.values()), rel=1e-5)


def test_a_fit_stops_when_validation_no_longer_improves():
    samples, parted = levels(1.0, 1.0)
    fitted = fit(Stuck(ONE, patience=2), samples, parted, options(steps=1000))
    # An improvement over nothing at step 50, then two epochs of patience.
    assert (fitted.best_step, fitted.steps, fitted.stopped) == (50, 150, "no improvement")


def test_a_fit_stops_when_its_time_is_over():
    samples, parted = levels(1.0, 1.0)
    fitted = fit(Level(ONE), samples, parted, options(max_time=1e-9))
    assert (fitted.steps, fitted.stopped, fitted.best_step) == (1, "time", 1)
    assert len(fitted.history) == 1
    assert fit(Level(ONE), samples, parted, options(max_time=3600.0)).stopped == "steps"


def test_the_learning_rate_warms_up_and_falls():
    samples, parted = levels(1.0, 1.0)
    told = []
    family = Slope(ONE, patience=99)
    fit(family, samples, parted, options(steps=100, rate=0.01), show=lambda _: told.append(family.p.item()))
    moved = -np.diff([0.0, *told])
    steps = np.arange(100)
    fall = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * (steps - 5) / 95))
    assert moved == pytest.approx(0.01 * np.where(steps < 5, (steps + 1) / 5, fall), rel=1e-3)


def test_players_learn_in_turn_and_only_their_own():
    samples, parted = levels(1.0, 1.0)
    told = []
    fitted = fit(Duel(ONE), samples, parted, options(steps=50), show=told.append)
    assert fitted.family.one[0].item() < -0.1
    assert fitted.family.two[0].item() > 0.1
    assert set(told[0].terms) == {"one.total", "two.total"}
    # The second player saw what the first had just done.
    assert told[0].terms["two.total"] > 0 == told[0].terms["one.total"]


def test_a_family_with_nothing_to_learn_takes_no_step():
    samples, parted = levels(1.0, 1.0)
    fitted = fit(Statistic(ONE), samples, parted, options())
    assert (fitted.steps, fitted.history, fitted.family.calls) == (0, [], ["start", "finish"])


def test_a_loss_that_is_no_number_names_its_term():
    samples, parted = levels(1.0, 1.0)
    with pytest.raises(Refusal, match=r"loss term penalty became nan at step 3\..*--rate 0\.01\)"):
        fit(Broken(ONE), samples, parted, options(rate=0.05))


def test_a_validation_loss_that_is_no_number_is_refused():
    """Else the weights of no step would count as the best."""
    samples, parted = levels(1.0, 1.0)
    with pytest.raises(Refusal, match="validation loss became nan at step 50"):
        fit(BlindToCleanSamples(ONE), samples, parted, options())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(Refusal, match="cuda was asked for, but torch sees no GPU here; use --device cpu"):
        fit(vae(), SAMPLES, PARTED, FitOptions(device="cuda"))


@pytest.fixture(scope="module")
def uninterrupted():
    return fit(vae(), SAMPLES, PARTED, options(seed=7))


def test_the_same_seed_gives_the_same_weights(uninterrupted):
    torch.manual_seed(12345)  # nothing may depend on the global generator once the family is built
    family = vae()
    torch.manual_seed(54321)
    again = fit(family, SAMPLES, PARTED, options(seed=7))
    assert state(again) == state(uninterrupted)
    assert again.history == uninterrupted.history
    assert state(fit(vae(), SAMPLES, PARTED, options(seed=8))) != state(uninterrupted)


@pytest.mark.parametrize("stop", [50, 73, 149, 199])
def test_a_resumed_fit_repeats_the_uninterrupted_one(tmp_path, uninterrupted, stop):
    path = tmp_path / "checkpoint.safetensors"

    def kill(at):
        if at.step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        fit(vae(), SAMPLES, PARTED, options(seed=7), key="k", path=path, show=kill)
    (tmp_path / ".checkpoint.safetensors.0123abcd.partial").write_bytes(b"torn by a kill")
    steps = []
    resumed = fit(
        vae(), SAMPLES, PARTED, options(seed=7), key="k", path=path, resume=True, show=lambda at: steps.append(at.step)
    )
    assert steps == list(range(stop - stop % 50 + 1, 201))
    assert state(resumed) == state(uninterrupted)
    assert resumed.history == uninterrupted.history
    assert (resumed.best_step, resumed.stopped) == (uninterrupted.best_step, uninterrupted.stopped)


def test_declared_invariances_are_resumed_too(tmp_path):
    """Augmentation draws from the step's generator."""
    spec = dataclasses.replace(SERIES, invariances=("offset", "noise"))
    rows = windows(np.random.default_rng(0).normal(size=(75, 3)).astype(np.float32))
    samples, parted = InMemory(spec, rows), Split(np.arange(40), np.arange(40, 50), np.arange(50, 60), 10)
    whole = fit(vae(spec), samples, parted, options(steps=60))

    def kill(at):
        if at.step == 55:
            raise Stopped

    path = tmp_path / "c.safetensors"
    with pytest.raises(Stopped):
        fit(vae(spec), samples, parted, options(steps=60), path=path, show=kill)
    assert state(fit(vae(spec), samples, parted, options(steps=60), path=path, resume=True)) == state(whole)


def test_time_already_spent_counts_after_a_resume(tmp_path):
    path = tmp_path / "c.safetensors"

    def kill(at):
        if at.step == 60:
            raise Stopped

    with pytest.raises(Stopped):
        fit(vae(), SAMPLES, PARTED, options(), key="k", path=path, show=kill)
    fitted = fit(vae(), SAMPLES, PARTED, options(max_time=1e-6), key="k", path=path, resume=True)
    assert (fitted.steps, fitted.stopped) == (51, "time")
    assert math.isfinite(fitted.seconds)


@pytest.mark.parametrize("condition", [None, torch.arange(4)])
def test_mixed_precision_lets_what_a_loss_is_given_pass(condition):
    """A GPU is fitted on in bfloat16; Fabric then walks through the arguments and rebuilds them."""
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed", devices=1)
    taken = []

    class Listening(Level):
        def loss(self, batch, player, at):
            taken.append((batch, player, at))
            return super().loss(batch, player, at)

    model = fabric.setup_module(Listening(ONE))
    model.mark_forward_method("loss")
    at = Progress(3, 10, torch.Generator())
    loss = model.loss(Batch(torch.full((4, 1), 2.0), condition), "level", at)
    assert loss["total"].item() == pytest.approx(4.0)
    ((batch, player, same),) = taken
    assert batch.condition is None if condition is None else torch.equal(batch.condition, condition)
    assert (player, same.step, same.total, same.generator) == ("level", 3, 10, at.generator)
