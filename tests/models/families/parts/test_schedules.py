"""What follows from a noise schedule alone, against its papers' formulas and Bayes' rule."""

import math

import pytest
import torch

from vaegis.models.families.parts.schedules import SCHEDULES, Schedule, alpha_bar


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_every_schedule_falls_from_one_to_almost_nothing(schedule, steps):
    kept = alpha_bar(schedule, steps)
    assert kept[0] == 1.0
    assert len(kept) == steps + 1
    assert (kept.diff() < 0).all()
    assert 0 < kept[-1] < 0.01
    assert (kept[1:] / kept[:-1] >= 1 - 0.999 - 1e-9).all()


def test_the_linear_schedule_is_hos():
    kept = alpha_bar("linear", 1000)
    beta = 1 - kept[1:] / kept[:-1]
    assert beta[0].item() == pytest.approx(1e-4, rel=1e-6)
    assert beta[-1].item() == pytest.approx(0.02, rel=1e-6)
    assert beta[499].item() == pytest.approx(1e-4 + (0.02 - 1e-4) * 499 / 999, rel=1e-6)


def test_the_quadratic_schedule_by_hand():
    kept = alpha_bar("quadratic", 1000)
    beta = 1 - kept[1:] / kept[:-1]
    middle = (0.01 + (math.sqrt(0.02) - 0.01) * 300 / 999) ** 2
    assert [beta[0].item(), beta[300].item(), beta[-1].item()] == pytest.approx([1e-4, middle, 0.02], rel=1e-6)


def test_the_cosine_schedule_by_hand():
    kept = alpha_bar("cosine", 4)

    def f(t):
        return math.cos((t / 4 + 0.008) / 1.008 * math.pi / 2) ** 2

    assert kept[:4].tolist() == pytest.approx([1.0, f(1) / f(0), f(2) / f(0), f(3) / f(0)], rel=1e-9)
    assert kept[4].item() == pytest.approx(0.001 * f(3) / f(0), rel=1e-9)  # b_T would be 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [2, 7, 20])
def test_the_posterior_is_that_of_two_gaussians(schedule, t):
    """q(x_{t-1} | x_t, x_0) by Bayes' rule from q(x_t | x_{t-1}) and q(x_{t-1} | x_0), in precisions."""
    path, kept = Schedule(schedule, 20), alpha_bar(schedule, 20)
    step = (kept[t] / kept[t - 1]).item()
    before = kept[t - 1].item()
    x0, xt = torch.tensor([[0.7, -2.0]]), torch.tensor([[1.1, 0.4]])
    precision = step / (1 - step) + 1 / (1 - before)
    mean = (math.sqrt(step) / (1 - step) * xt + math.sqrt(before) / (1 - before) * x0) / precision
    found, spread = path.posterior(x0, xt, torch.tensor([t]))
    assert found.numpy() == pytest.approx(mean.numpy(), rel=1e-4)
    assert spread.item() == pytest.approx(precision**-0.5, rel=1e-4)


def test_the_last_step_is_the_estimate_itself():
    path = Schedule("linear", 20)
    x0 = torch.tensor([[0.7, -2.0]])
    mean, spread = path.posterior(x0, torch.randn(1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1]))
    assert mean.numpy() == pytest.approx(x0.numpy(), rel=1e-4)
    assert spread.item() == pytest.approx(0.0, abs=1e-6)
