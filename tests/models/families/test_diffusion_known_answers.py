"""Diffusion's formulas against closed forms, above all for Gaussian data, whose best denoiser is known."""

import math

import numpy as np
import pytest
import torch
from conforming import batches

from toy_data import SPECS, clean
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Draw, Progress, make
from vaegis.models.families.diffusion import Diffusion
from vaegis.models.families.parts.denoiser import Classifier
from vaegis.models.families.parts.relations import TABLE_RIDGE
from vaegis.models.families.parts.schedules import SCHEDULES, Schedule
from vaegis.models.inputs import InMemory
from vaegis.models.spec import ImageSpec, VectorSpec
from vaegis.training.fit import fit
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split

TABLE = {"diffusion": Diffusion}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def at(share=1.0):
    return Progress(int(100 * share), 100, seeded())


def small(spec, **arguments):
    torch.manual_seed(0)
    return make(TABLE, "diffusion", spec, {"width": 8, "steps": 50} | arguments)


def times(n, t):
    return torch.full((n,), t, dtype=torch.int64)


class Exact(torch.nn.Module):
    """The best denoiser of N(m, s^2), put where the network is: v of e = -sigma grad log p_t."""

    def __init__(self, path, mean, spread):
        super().__init__()
        self.path, self.mean, self.spread = path, mean, spread

    def noise(self, x, t):
        signal, sigma = self.path.signal[t][:, None], self.path.sigma[t][:, None]
        return sigma * (x - signal * self.mean) / (signal**2 * self.spread**2 + sigma**2)

    def forward(self, x, share):
        t = (share * self.path.steps).round().long()
        return (self.noise(x, t) - self.path.sigma[t][:, None] * x) / self.path.signal[t][:, None]


def exact(steps=200, mean=0.8, spread=0.5, **arguments):
    """A family of two columns whose network is the best possible for N(mean, spread^2)."""
    family = small(VectorSpec(("a", "b")), steps=steps, **arguments)
    family.denoiser = Exact(family.path, mean, spread)
    return family.eval()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [1, 5, 40, 199])
def test_the_best_denoisers_reverse_step_keeps_the_datas_mean_and_variance(schedule, t):
    """x_t of Gaussian data, one ancestral step: the law of total variance gives x_{t-1}'s marginal, in closed form.

    The step's own mean and variance are a Gaussian's with gain G and noise v: its mean is exact, and its variance lacks
    only the posterior variance of x_0, weighted by the posterior mean's share of it, as the choice v leaves out.
    """
    family = exact(schedule=schedule)
    path, m, s2 = family.path, 0.8, 0.25
    signal, sigma = path.signal[t].item(), path.sigma[t].item()
    n = 400_000
    x = m * signal + math.sqrt(signal**2 * s2 + sigma**2) * torch.randn(n, 2, generator=seeded(1))
    with torch.no_grad():
        y = family.step(x, times(n, t), torch.randn(n, 2, generator=seeded(2)))
    left = s2 * sigma**2 / (signal**2 * s2 + sigma**2)  # variance of x_0 given x_t
    marginal = path.signal[t - 1].item() ** 2 * s2 + path.sigma[t - 1].item() ** 2
    expected = marginal - path.from_start[t].item() ** 2 * left
    assert y.mean().item() == pytest.approx(m * path.signal[t - 1].item(), abs=0.004)
    assert y.var().item() == pytest.approx(expected, rel=0.01)


def test_ancestral_sampling_with_the_best_denoiser_repeats_the_data():
    family = exact(sampler="ancestral", steps=400)
    made = family.sample(Draw(20_000, seeded())).numpy()
    assert made.mean(0) == pytest.approx([0.8, 0.8], abs=0.03)
    assert made.std(0) == pytest.approx([0.5, 0.5], rel=0.03)
    assert abs(np.corrcoef(made.T)[0, 1]) < 0.03


def test_ddim_with_the_exact_score_carries_noise_to_data_without_a_draw():
    """The flow from N(0, 1) to N(m, s^2) is the line m + s x: in the limit of many steps each noise has its place."""
    family = exact(steps=1000)
    x = torch.linspace(-2, 2, 9)[:, None].repeat(1, 2)
    ones = torch.ones_like(x)
    end = []
    for steps in (50, 1000):
        y = x
        grid = torch.linspace(1000, 0, steps + 1).round().int().tolist()
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            y = family._jump(y, t, s, ones, None)
        end.append(y)
    # At T the data's own mean and variance still count for a little.
    start = math.sqrt(family.path.signal[-1].item() ** 2 * 0.25 + family.path.sigma[-1].item() ** 2)
    line = 0.8 + 0.5 * (x - 0.8 * family.path.signal[-1].item()) / start
    assert end[1].numpy() == pytest.approx(line.numpy(), abs=0.01)
    assert end[0].numpy() == pytest.approx(line.numpy(), abs=0.1)


def test_ddim_in_one_jump_to_the_sample_is_the_estimate():
    path = Schedule("cosine", 50)
    x, noise = torch.randn(2, 3, 4, generator=seeded())
    t = times(3, 30)
    start = (x - path.sigma[30] * noise) / path.signal[30]
    assert path.jump(x, noise, t, times(3, 0)).numpy() == pytest.approx(start.numpy(), rel=1e-5)
    # And to where it is, nothing moves.
    assert path.jump(x, noise, t, t).numpy() == pytest.approx(x.numpy(), rel=1e-4, abs=1e-5)


def test_noise_with_known_noise_is_undone():
    path = Schedule("linear", 100)
    x, noise = torch.randn(2, 5, 1, 4, 4, generator=seeded())
    t = torch.tensor([1, 20, 50, 80, 99])
    assert path.start(path.diffuse(x, t, noise), t, noise).numpy() == pytest.approx(x.numpy(), abs=1e-4)


def test_the_noise_is_minus_sigma_times_the_score():
    """Of Gaussian data, against autograd's gradient of the log-density of x_t."""
    family = exact()
    t = 60
    x = torch.randn(5, 2, generator=seeded(), requires_grad=True)
    signal, sigma = family.path.signal[t], family.path.sigma[t]
    law = torch.distributions.Normal(0.8 * signal, (signal**2 * 0.25 + sigma**2).sqrt())
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    found = family._noise(x, times(5, t), torch.ones_like(x), None)
    assert found.detach().numpy() == pytest.approx((-sigma * score).numpy(), rel=1e-4, abs=1e-5)


def test_an_untrained_network_begins_at_the_best_answer_for_standard_normal_data():
    family = small(SPECS["image"])
    with torch.no_grad():
        for p in family.denoiser.head.parameters():
            p.zero_()
    x = torch.randn(3, 1, 16, 16, generator=seeded())
    t = torch.tensor([1, 25, 50])
    expected = family.path.sigma[t].view(3, 1, 1, 1) * x
    assert torch.equal(family._noise(x, t, torch.ones_like(x), None), expected)


def test_the_bounds_weights_share_the_whole_range_of_noise():
    """Were |noise - e|^2 alike at all times, the three terms would give half of it times log S_1 / S_T."""
    family = small(SPECS["vector"], steps=1000)
    ratio = family.path.ratio.double()
    assert family.weight.double().sum().item() == pytest.approx(((ratio[1] / ratio[-1]).log() / 2).item(), rel=1e-6)
    assert (family.weight > 0).all()


def test_a_bounds_term_is_the_kl_between_posterior_and_reverse_step():
    """(S_{t-1} - S_t) / 2 |y - y_t|^2 is KL(q(x_{t-1} | x_t, y) || q(x_{t-1} | x_t, y_t)), by torch.distributions."""
    path = Schedule("linear", 100)
    y, other, x = torch.randn(3, 1, 6, generator=seeded())
    for t in (2, 30, 100):
        one, spread = path.posterior(y, x, times(1, t))
        two, _ = path.posterior(other, x, times(1, t))
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(one.double(), spread), normal(two.double(), spread)).sum()
        ratio = path.ratio.double()
        weighted = (ratio[t - 1] - ratio[t]) / 2 * (y - other).square().sum()
        assert kl.item() == pytest.approx(weighted.item(), rel=1e-3)


def test_the_bound_of_gaussian_data_is_near_its_entropy():
    """With the best denoiser the bound is -log p on average, up to what three terms and T steps leave out."""
    m, s = 0.8, 0.5
    family = exact(steps=1000, mean=m, spread=s)
    y = m + s * torch.randn(500, 2, generator=seeded(3))
    far = torch.tensor([[m + 5 * s, m], [m, m]])
    found, apart = [], []
    with torch.no_grad():
        for seed in range(200):  # what is stored is one draw; here their average is judged
            family.noise.copy_(torch.randn(family.noise.shape, generator=seeded(seed)))
            found.append(family.evidence(Batch(y)).terms["negative_elbo"].mean().item())
            nats = family.evidence(Batch(far)).terms["negative_elbo"]
            apart.append((nats[0] - nats[1]).item())
    entropy = 2 * 0.5 * math.log(2 * math.pi * math.e * s * s)
    assert np.mean(found) == pytest.approx(entropy, abs=2.0)
    # And a sample five spreads away is as many nats less probable as it is: 5^2 / 2.
    assert np.mean(apart) == pytest.approx(12.5, rel=0.2)


def test_the_loss_is_the_simple_one():
    """With the network silent, |noise - sigma x_t|^2 by the same draws."""
    family = small(SPECS["vector"])
    x = clean("vector", 64)
    family.start(batches(x))
    with torch.no_grad():
        for p in family.denoiser.head.parameters():
            p.zero_()
        found = family.loss(Batch(torch.from_numpy(x)), "denoiser", at())["total"].item()
    generator, y = seeded(), family.normaliser(torch.from_numpy(x))
    even = (torch.rand((), generator=generator) + torch.arange(64) / 64) % 1
    t = (even * 50).long() + 1
    assert sorted(set(t.tolist())) == list(range(1, 51))  # every time is met in a batch of as many
    noise = torch.randn(y.shape, generator=generator)
    noisy = family.path.diffuse(y, t, noise)
    expected = (noise - family.path.sigma[t][:, None] * noisy).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_classifiers_slope_is_autograds():
    torch.manual_seed(0)
    classifier = Classifier(6, 3, 8)
    x = torch.randn(5, 2, 3, generator=seeded(), requires_grad=True)
    share, wanted = torch.rand(5, generator=seeded()), torch.tensor([0, 1, 2, 1, 0])
    told = classifier(x, share).log_softmax(1)[torch.arange(5), wanted]
    (slope,) = torch.autograd.grad(told.sum(), x)
    assert classifier.slope(x, share, wanted).detach().numpy() == pytest.approx(slope.numpy(), rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def guided():
    """Fitted on two clouds, a to the left and b to the right."""
    spec = VectorSpec(("x", "y"), conditions=("a", "b"))
    rng = np.random.default_rng(0)
    which = np.arange(600) % 2
    x = (rng.normal(0, 0.3, (600, 2)) + np.stack([4 * which - 2, 0 * which], 1)).astype(np.float32)
    samples = InMemory(spec, x, conditions=which.astype(np.int64))
    parted = Split(np.arange(400), np.arange(400, 500), np.arange(500, 600), 100)
    family = small(spec, width=32, steps=100, guidance=2.0)
    fit(family, samples, parted, FitOptions(steps=400, batch=64, device="cpu"))
    return family


def test_samples_are_guided_to_their_condition(guided):
    with torch.no_grad():
        for number, side in ((0, -1), (1, 1)):
            made = guided.sample(Draw(200, seeded(), times(200, number))).numpy()
            assert (np.sign(made[:, 0]) == side).mean() > 0.97
        free = guided.sample(Draw(400, seeded())).numpy()
    assert 0.3 < (free[:, 0] > 0).mean() < 0.7


def test_a_sample_under_the_wrong_condition_is_stranger(guided):
    x = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    with torch.no_grad():
        right = guided.evidence(Batch(x, torch.tensor([0, 1]))).terms["reconstruction_error"]
        wrong = guided.evidence(Batch(x, torch.tensor([1, 0]))).terms["reconstruction_error"]
    assert (wrong > right).all()


def test_what_is_held_out_is_the_denoisers(guided):
    x, told = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        alone = guided.loss(Batch(x, told), "denoiser", at())["total"]
        assert guided.validation_loss(Batch(x, told), at()).item() == alone.item()


def test_the_step_graph_walks_from_noise_to_raw_units():
    """By its module: from time T to 1 as `step` does, and then raw units in the sample's layout."""
    family = small(ImageSpec(height=40, width=24, channels=2), steps=10, steps_back=2, resolution=20)
    x = np.random.default_rng(0).integers(0, 256, (32, 40, 24, 2)).astype(np.uint8)
    family.start(batches(x))
    family.eval()
    plan = family.more_graphs()["step.onnx"]
    assert family.normaliser.factor == 2
    noises = torch.randn(11, 3, 40, 24, 2, generator=seeded())
    sample, y = noises[0], family.normaliser.arrange(noises[0] * 2)
    assert y.std().item() == pytest.approx(1.0, rel=0.1)
    with torch.no_grad():
        for t in range(10, 0, -1):
            sample = plan.module(sample, times(3, t), noises[t])
            y = family.step(y, times(3, t), family.normaliser.arrange(noises[t] * 2))
    assert sample.shape == (3, 40, 24, 2)
    assert sample.numpy() == pytest.approx(family.normaliser.denormalise(y).numpy(), rel=1e-3, abs=0.1)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_sampling_depends_on_the_generator_alone(sampler):
    family = small(SPECS["series"], sampler=sampler)
    family.start(batches(clean("series", 40)))
    family.eval()
    one, two, other = (family.sample(Draw(3, seeded(s))) for s in (0, 0, 1))
    assert one.shape == (3, 16, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_what_comes_back_is_ddims_walk_from_the_level():
    family = small(SPECS["vector"], steps=100, level=0.3, steps_back=3)
    assert family.back == [30, 20, 10, 0]
    x = clean("vector", 20)
    family.start(batches(x))
    family.eval()
    raw = torch.from_numpy(x)
    with torch.no_grad():
        y, ones = family.normaliser(raw), torch.ones(20, 6)
        walk = family.path.diffuse(y, times(20, 30), family.noise[1].expand_as(y))
        for t, s in ((30, 20), (20, 10), (10, 0)):
            walk = family._jump(walk, t, s, ones, None)
        found = family.evidence(Batch(raw)).terms["reconstruction_error"]
    assert found.numpy() == pytest.approx((y - walk).square().mean(1).numpy(), rel=1e-4)


@torch.no_grad()
def test_what_does_not_come_back_is_held_against_clean_residuals():
    family = small(SPECS["vector"], steps=100, level=0.3, steps_back=3)
    x = torch.from_numpy(clean("vector", 150))
    family.start(batches(x.numpy()))
    family.finish(batches(x.numpy()))
    family.eval()
    y = family.normaliser(x)
    left = (y - family._denoise(y, torch.ones_like(y), None)[0]).double().numpy()
    inverse = np.linalg.inv(np.cov(left, rowvar=False, bias=True) + TABLE_RIDGE * np.eye(6))
    away = left - left.mean(0)
    found = family.evidence(Batch(x)).terms["residual_distance"].numpy()
    assert found == pytest.approx(np.sqrt(np.einsum("bi,ij,bj->b", away, inverse, away)), rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"schedule": "sigmoid"}, "schedule is 'sigmoid'; choose linear, quadratic, cosine"),
        ({"schedule": ""}, "schedule is ''; choose"),
        ({"sampler": "euler"}, "sampler is 'euler'; choose ddim, ancestral"),
        ({"steps": 0}, "steps is 0; it must lie between 10 and 10000"),
        ({"steps": 20000}, "steps is 20000"),
        ({"steps": "many"}, "steps of family diffusion is 'many'; it must be a whole number"),
        ({"level": 0}, "level is 0"),
        ({"level": 1.2}, "level is 1.2"),
        ({"level": "nan"}, "level is nan"),
        ({"steps_back": 0}, "steps_back is 0"),
        ({"steps_back": 51}, "steps_back is 51"),
        ({"steps_back": 20, "level": 0.1, "steps": 100}, "steps_back is 20, but level 0.1 of 100 steps leaves 10"),
        ({"guidance": -1}, "guidance is -1"),
        ({"guidance": "inf"}, "guidance is inf"),
        ({"ema": 1.0}, "ema is 1"),
        ({"ema": -0.1}, "ema is -0.1"),
        ({"width": 5000}, "width is 5000"),
        ({"resolution": -1}, "resolution is -1"),
        ({"latent": 4}, "no argument 'latent'; its arguments are width, schedule, steps"),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    with pytest.raises(Refusal, match=says):
        make(TABLE, "diffusion", SPECS["vector"], arguments)


@pytest.mark.parametrize("steps", [10, 12, 1000])
@pytest.mark.parametrize("level", [0.1, 0.25, 1.0])
def test_the_bounds_times_are_in_order_wherever_the_level_is(steps, level):
    family = small(SPECS["vector"], steps=steps, level=level, steps_back=1)
    low, middle, high = family.times
    assert 1 <= low <= steps
    assert middle == round(level * steps)
    assert middle <= high <= steps
    assert (family.weight >= 0).all()
