"""The objectives and penalty of adversarial training against hand-worked cases, and when a game is lost."""

import math

import numpy as np
import pytest
import torch
from conforming import batches
from torch import nn

from toy_data import SPECS, clean, vectors
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress, make
from vaegis.models.families.gan import GAN
from vaegis.models.families.parts.adversarial import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    lost,
    untracked,
)
from vaegis.models.inputs import InMemory
from vaegis.training.fit import fit
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split

TABLE = {"gan": GAN}
REAL, FAKE = torch.tensor([0.0, 2.0]), torch.tensor([-3.0, 0.5])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def at(share=1.0):
    return Progress(int(100 * share), 100, seeded())


def small(kind, **arguments):
    torch.manual_seed(0)
    return make(TABLE, "gan", SPECS[kind], {"width": 8, "latent": 3} | arguments)


def soft(value):
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("objective", "discriminator", "generator"),
    [
        ("minimax", (soft(-0.0) + soft(-2.0)) / 2 + (soft(-3.0) + soft(0.5)) / 2, (soft(3.0) + soft(-0.5)) / 2),
        # Only real 0 lies inside the margin; of the fakes only 0.5 lies above -1.
        ("hinge", (1.0 + 0.0) / 2 + (0.0 + 1.5) / 2, 1.25),
        ("wasserstein", -1.25 - 1.0, 1.25),
    ],
)
def test_objectives_on_given_outputs(objective, discriminator, generator):
    assert discriminator_loss(objective, REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-6)
    assert generator_loss(objective, FAKE).item() == pytest.approx(generator, rel=1e-6)


def test_minimax_is_cross_entropy_with_the_labels_real_and_fake():
    binary = nn.functional.binary_cross_entropy_with_logits
    expected = binary(REAL, torch.ones(2)) + binary(FAKE, torch.zeros(2))
    assert discriminator_loss("minimax", REAL, FAKE).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("objective", "cost"), [("minimax", math.log(4)), ("hinge", 2.0)])
def test_where_real_and_generated_agree_the_best_discriminator_cannot_tell(objective, cost):
    """Its output is then the same for both; no value of it costs less than 0 does."""
    x = torch.linspace(-4, 4, 161)[:, None]
    costs = torch.stack([discriminator_loss(objective, v, v) for v in x])
    assert costs.min().item() == pytest.approx(cost, rel=1e-6)
    assert discriminator_loss(objective, x[80], x[80]).item() == pytest.approx(cost, rel=1e-6)


def test_the_best_discriminator_is_the_log_ratio_of_the_densities():
    """For N(0,1) against N(m,1) it is m^2/2 - m x, at twice the Jensen-Shannon divergence below log 4."""
    m, n = 1.5, 200_000
    real, fake = torch.randn(n, generator=seeded(1)), torch.randn(n, generator=seeded(2)) + m

    def cost(offset, slope):
        return discriminator_loss("minimax", offset - slope * real, offset - slope * fake).item()

    best = cost(m * m / 2, m)
    assert best < math.log(4)
    for offset, slope in ((0.0, 0.0), (m * m / 2, 0.8 * m), (m * m / 2, 1.2 * m), (m, m), (0.0, m)):
        assert best < cost(offset, slope)


def test_the_penalty_of_a_linear_critic_and_its_gradient_by_hand():
    """D(x) = w x + b has the same slope everywhere: the penalty is (|w| - 1)^2, its gradient 2 (|w| - 1) w / |w|."""
    critic = nn.Linear(3, 1)
    w = torch.tensor([[3.0, 0.0, 4.0]])
    with torch.no_grad():
        critic.weight.copy_(w)
    real, fake = torch.randn(2, 8, 3, generator=seeded())
    penalty = gradient_penalty(critic, real, fake, seeded(1))
    assert penalty.item() == pytest.approx((5.0 - 1.0) ** 2, rel=1e-6)
    penalty.backward()
    assert critic.weight.grad.numpy() == pytest.approx((2 * 4.0 * w / 5.0).numpy(), rel=1e-5)
    assert critic.bias.grad is None or critic.bias.grad.item() == 0.0


def test_the_penalty_is_taken_between_real_and_generated():
    """D(x) = x^2 / 2 has slope x: between 2 and 4 the penalty is (x - 1)^2 there, in [1, 9], 13/3 on average."""
    square = lambda x: 0.5 * x.square().sum(1)  # noqa: E731
    n = 20_000
    found = gradient_penalty(square, torch.full((n, 1), 4.0), torch.full((n, 1), 2.0), seeded())
    assert found.item() == pytest.approx(13 / 3, rel=0.02)


def test_a_flat_critic_is_still_taught():
    critic = nn.Linear(2, 1)
    with torch.no_grad():
        critic.weight.zero_()
    gradient_penalty(critic, torch.ones(4, 2), torch.zeros(4, 2), seeded()).backward()
    assert torch.isfinite(critic.weight.grad).all()


def test_the_penalty_leaves_nothing_on_the_generator():
    critic, generator = nn.Linear(2, 1), nn.Linear(2, 2)
    fake = generator(torch.randn(4, 2, generator=seeded()))
    gradient_penalty(critic, torch.zeros(4, 2), fake, seeded()).backward()
    assert generator.weight.grad is None


@pytest.mark.parametrize("batch_norm", [True, False])
def test_networks_are_dcgans(batch_norm):
    discriminator = Discriminator(SPECS["image"], 8, batch_norm)
    kinds = [type(m) for m in discriminator.body]
    convolutions = [m for m in discriminator.body if isinstance(m, nn.Conv2d)]
    assert {c.stride for c in convolutions} == {(2, 2)}
    assert not [k for k in kinds if "Pool" in k.__name__]
    assert kinds.count(nn.BatchNorm2d) == (len(convolutions) - 1 if batch_norm else 0)
    assert kinds[1] is nn.LeakyReLU  # nothing normalised at the input
    assert discriminator(torch.zeros(5, 1, 16, 16)).shape == (5,)
    assert discriminator.features(torch.zeros(5, 1, 16, 16)).shape == (5, discriminator.features_size)


def test_a_critic_judges_each_sample_alone():
    critic = Discriminator(SPECS["image"], 8, False)
    x = torch.randn(6, 1, 16, 16, generator=seeded())
    assert critic(x)[:1].detach().numpy() == pytest.approx(critic(x[:1]).detach().numpy(), rel=1e-4, abs=1e-6)


def statistics(module):
    return [m.running_mean.clone() for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def test_generated_samples_leave_no_trace_in_the_discriminators_statistics():
    x = torch.from_numpy(clean("image", 32))
    family = small("image")
    family.start(batches(x.numpy()))
    family.train()
    before = statistics(family.discriminator)
    family.loss(Batch(x), "generator", at())
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(family.discriminator), strict=True))
    made = statistics(family.generator)
    family.loss(Batch(x), "discriminator", at())
    assert all(torch.equal(a, b) for a, b in zip(made, statistics(family.generator), strict=True))
    # The kept ones are those of the real batch, whatever was generated beside it.
    first = statistics(family.discriminator)
    other = small("image")
    other.start(batches(x.numpy()))
    other.train()
    with torch.no_grad():
        for p in other.generator.parameters():
            p.mul_(3.0)
    other.loss(Batch(x), "discriminator", at())
    assert all(torch.equal(a, b) for a, b in zip(first, statistics(other.discriminator), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, first, strict=True))


def test_statistics_are_gathered_again_afterwards():
    norm = nn.BatchNorm1d(2)
    with pytest.raises(ZeroDivisionError), untracked(norm):
        raise ZeroDivisionError
    norm(torch.ones(4, 2) * torch.arange(4.0)[:, None])
    assert norm.running_mean.abs().sum() > 0


def history(discriminator, generator):
    return [
        {"step": 50.0 * (i + 1), "discriminator.adversarial": d, "generator.adversarial": g}
        for i, (d, g) in enumerate(zip(discriminator, generator, strict=True))
    ]


@pytest.mark.parametrize("objective", ["minimax", "hinge"])
def test_a_lost_game_is_told(objective):
    told = lost(objective, history([0.5, 0.01, 0.02, 0.01, 0.01, 0.02], [1, 4, 5, 5, 6, 7.5]), "Do this.")
    assert told.startswith("The discriminator wins: its loss lay below")
    assert told.endswith("up to step 300, while the generator's rose from 4 to 7.5: the generator learns nothing any "
                         "more. Do this.")  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "discriminator", "generator"),
    [
        ("minimax", [0.01] * 4, [4, 5, 6, 7]),  # too soon to tell
        ("minimax", [0.01, 0.01, 0.01, 0.01, 0.3], [4, 5, 6, 7, 8]),  # it recovered
        ("minimax", [0.01] * 5, [8, 7, 7, 6, 5]),  # the generator gains
        ("minimax", [0.01] * 5, [3.17, 3.3, 3.1, 3.2, 3.22]),  # it holds its ground
        ("minimax", [1.38] * 9, [0.7] * 9),  # the best outcome
        ("wasserstein", [-50.0] * 9, list(range(9))),  # a distance, which may be large
    ],
)
def test_no_other_game_is_called_lost(objective, discriminator, generator):
    assert lost(objective, history(discriminator, generator), "Do this.") is None


class Rigged(nn.Module):
    """A discriminator that knows the clean rows by heart, and is the surer the longer the fit lasts."""

    def __init__(self, width):
        super().__init__()
        self.surer = nn.Parameter(torch.tensor(5.0))
        self.features_size = 6

    def features(self, y):
        return y

    def forward(self, y):
        away = (y.square().sum(1) - 6).abs() - 1e3  # placed beside real samples below
        return self.surer * torch.where(away > 0, -1.0, 1.0) + 0 * y.sum(1)


def test_a_fit_whose_discriminator_wins_stops_with_that_sentence():
    samples = InMemory(SPECS["vector"], vectors(120, 1))
    parted = Split(np.arange(80), np.arange(80, 100), np.arange(100, 120), 20)
    family = small("vector", noise=0.0)
    family.discriminator = Rigged(8)
    inner = family.generator

    class Far(nn.Module):
        """Whatever the generator makes lies where the rigged discriminator says no."""

        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, z):
            return self.inner(z) + 1e3

    family.generator = Far()
    with pytest.raises(Refusal, match=r"^The discriminator wins: .* 5 epochs up to step \d+, .*objective=wasserstein"):
        fit(family, samples, parted, FitOptions(steps=600, batch=20, rate=0.01, device="cpu"))


def test_what_is_held_out_is_the_error_of_the_encoders_path():
    x = clean("vector", 50)
    family = small("vector")
    family.start(batches(x))
    family.eval()
    raw = torch.from_numpy(x)
    with torch.no_grad():
        mean, _ = family.encode(Batch(raw))
        y = (raw - family.normaliser.centre) / family.normaliser.scale
        rebuilt = (family.decode(Batch(mean)) - family.normaliser.centre) / family.normaliser.scale
        assert family.validation_loss(Batch(raw), at()).item() == pytest.approx(
            (y - rebuilt).square().mean().item(), rel=1e-4
        )


@pytest.mark.parametrize("kind", ["image", "series", "vector"])
def test_evidence_by_hand(kind):
    x = clean(kind, 60)
    family = small(kind)
    family.start(batches(x))
    family.eval()
    family.finish(batches(x))
    raw = torch.from_numpy(x)
    with torch.no_grad():
        found = family.evidence(Batch(raw)).terms
        y = family.normaliser(raw)
        back = family.generator(family.encode(Batch(raw))[0])
        gap = family.discriminator.features(y) - family.discriminator.features(back)
    error = (y - back).square().flatten(1).mean(1)
    assert found["reconstruction_error"].numpy() == pytest.approx(error.numpy(), rel=1e-4)
    clean_gap = gap.square().mean(0)
    scale = 0.9 * clean_gap + 0.1 * clean_gap.mean()
    expected = (gap.square() / scale).mean(1).sqrt()
    assert found["feature_distance"].numpy() == pytest.approx(expected.numpy(), rel=1e-3)
    # Clean-standardised: on the samples it was learned from the mean square is 1, less what the shrinking took.
    assert 0.5 < found["feature_distance"].square().mean().item() < 1.01


@pytest.mark.parametrize("objective", ["minimax", "wasserstein", "hinge"])
def test_it_generates_what_looks_like_the_data(objective):
    """Two columns, one twice the other: so are they in what a short fit generates, and they vary."""
    rng = np.random.default_rng(0)
    one = rng.normal(3, 1, 400)
    x = np.repeat(np.stack([one, 2 * one], 1), 3, axis=1).astype(np.float32) + rng.normal(0, 0.05, (400, 6))
    samples = InMemory(SPECS["vector"], x.astype(np.float32))
    parted = Split(np.arange(300), np.arange(300, 350), np.arange(350, 400), 50)
    family = small("vector", objective=objective, width=32)
    fit(family, samples, parted, FitOptions(steps=200, batch=32, device="cpu"))
    with torch.no_grad():
        made = family.sample(Draw(500, seeded())).numpy()
        again = family.sample(Draw(500, seeded())).numpy()
    assert made.shape == (500, 6)
    assert made.tobytes() == again.tobytes()
    assert made.mean(0) == pytest.approx(x.mean(0), abs=1.0)
    assert (made.std(0) > 0.3 * x.std(0)).all()
    assert np.corrcoef(made[:, 0], made[:, 3])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objective": "vanilla"}, r"objective is 'vanilla'; choose minimax, wasserstein, hinge"),
        ({"objective": ""}, "objective is ''; choose"),
        ({"objective": "Minimax"}, "objective is 'Minimax'; choose"),
        ({"discriminator_steps": -1}, "discriminator_steps is -1; it must lie between 0 and 100"),
        ({"discriminator_steps": 1000}, "discriminator_steps is 1000; it must lie between"),
        ({"discriminator_steps": 1.5}, "discriminator_steps of family gan is 1.5; it must be a whole number"),
        ({"fidelity": 0}, "fidelity is 0.* between"),
        ({"fidelity": "much"}, "fidelity of family gan is 'much'; it must be a number"),
        ({"fidelity": "nan"}, "fidelity is nan"),
        ({"matching": -0.1}, "matching is -0.1"),
        ({"matching": "inf"}, "matching is inf"),
        ({"noise": -1}, "noise is -1"),
        ({"noise": 11}, "noise is 11"),
        ({"latent": -3}, "latent is -3"),
        ({"latent": 5000}, "latent is 5000"),
        ({"width": -8}, "width is -8"),
        ({"resolution": 1024}, "resolution is 1024"),
        ({"turns": 3}, "no argument 'turns'; its arguments are latent, width, objective, discriminator_steps"),
        ({"objective.a": "hinge"}, "objective"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    with pytest.raises(Refusal, match=says):
        make(TABLE, "gan", SPECS["vector"], arguments)


def test_a_wasserstein_critic_takes_three_turns_unless_told():
    assert small("vector").turns("discriminator") == 1
    assert small("vector", objective="wasserstein").turns("discriminator") == 3
    assert small("vector", objective="wasserstein", discriminator_steps=5).turns("discriminator") == 5
    assert small("vector", objective="wasserstein").turns("generator") == 1
