"""Denoising diffusion model (Ho, Jain and Abbeel 2020, arXiv:2006.11239; cosine schedule: Nichol and Dhariwal 2021,
arXiv:2102.09672; DDIM: Song, Meng and Ermon 2021, arXiv:2010.02502). What follows from the schedule alone, and the
notation A_t, x_t, S_t, stands in `vaegis.models.families.parts.schedules`.

y = x_0 is the normalised sample of D values and e(x_t, t) what the network says is noise in x_t.

    loss                  = E_{t, noise} |noise - e(x_t, t)|^2 / D            the simple loss; t even over 1..T
    e(x_t, t)             = sqrt(1 - A_t) x_t + sqrt(A_t) v(x_t, t)            v the network's output

The first part is already the best answer for N(0, I), which normalised data are like at first sight; the network says
what they are beyond that (the v of Salimans and Ho 2022, arXiv:2202.00512). The loss stays that of the noise. The
weights that score and generate are the running average of the learning ones (`ema`).

Score function: the density p_t of noisy clean samples has grad log p_t(x_t) = -E[noise | x_t] / sqrt(1 - A_t), so
e = -sqrt(1 - A_t) grad log p_t. To denoise is to climb towards what clean samples are; DDIM's steps are Euler steps of
the ordinary differential equation whose flow carries p_T to p_0 (Song et al. 2021, arXiv:2011.13456).

Scoring noises a sample part-way, to t = `level` T, by stored noise, and denoises it in `steps_back` steps of DDIM
(AnoDDPM, Wyatt et al. 2022; without its random draws). What of a defect drowns does not come back.

    reconstruction_error  = 1/D |y - y'|^2, y' what came back
    negative_elbo         = KL(q(x_T | y) || N(0, I)) + sum_{t=2..T} L_t + L_1                                      nats
                L_t       = (S_{t-1} - S_t) / 2 |y - y_t|^2,  y_t the network's estimate of x_0 from x_t: the KL of Ho
                            et al.'s equation 5 with the posterior's variance (Kingma et al. 2021, arXiv:2107.00630)
                L_1       = -log N(y; x_1 / sqrt(A_1), 1 / S_1) on average: D/2 (1 + log(2 pi / S_1)), for all alike
    map                   = (y - y')^2 / s^2, s^2 the clean residual variance
    map_peak              = max of the smoothed map
    residual_distance     = Mahalanobis distance of y - y' from the clean residuals

Because S_t |y - y_t|^2 = |noise - e(x_t, t)|^2 changes slowly with log S_t, the sum is taken as the integral of half
of it over log S, from S_1 to S_T, by three values with a stored noise each: at T/50, at `level` and half-way between it
and T, each standing for what is nearest to it. It is an estimate of the bound that is the same at every call, and not
itself a bound.

Where conditions are declared a small classifier of noisy samples learns beside the denoiser, and the noise is taken to
be e - guidance sqrt(1 - A_t) grad log p(condition | x_t) (Dhariwal and Nichol 2021, arXiv:2105.05233): samples are
drawn towards their condition, and in scoring towards the declared one. Its gradient is written down
(`denoiser.Classifier`), so `step.onnx` is guided as `sample` is.

Missing values enter as 0, the clean mean, with a flag beside them; the loss and every evidence leave them out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.bundle import STEP
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Plan, Progress, Recipe, in_range
from vaegis.models.families.fusion import Form, terms_for
from vaegis.models.families.parts.defaults import MAP_PEAK_MEANING, WIDTHS, sizes_in_range
from vaegis.models.families.parts.denoiser import Classifier, denoiser_for
from vaegis.models.families.parts.layers import from_channels, smooth
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.relations import RESIDUAL_MEANING, Relations, relatable, related
from vaegis.models.families.parts.residuals import MeanSquares
from vaegis.models.families.parts.schedules import SCHEDULES, Schedule
from vaegis.models.spec import ImageSpec, InputSpec, SeriesSpec

SAMPLERS = ("ddim", "ancestral")
DDIM_STEPS = 50  # of `sample`: more change little (Song et al. 2021, table 1)
NOISE_SEED = 20200619
START_MOST = 6.0  # clean spreads: an estimate of x_0 beyond is cut off while sampling, as Ho et al. cut at the range

MEANING = {
    "reconstruction_error": "mean squared error per value of what comes back after noise was added and taken away",
    "negative_elbo": "estimated negative evidence lower bound, nats: how improbable the sample is under the model",
    "map_peak": MAP_PEAK_MEANING,
}
DISTANCE_MEANING = {"residual_distance": RESIDUAL_MEANING}
# As for the VAE, chosen by synthetic defects (docs/benchmarks.md).
FUSED: dict[str, dict[str, Form]] = {
    "image": {"map_peak": "log", "residual_distance": "log"},
    "series": {"map_peak": "log", "residual_distance": "log"},
    "vector": {"negative_elbo": "linear", "residual_distance": "log"},
    "varied": {"reconstruction_error": "log", "residual_distance": "log"},
    "missing": {"reconstruction_error": "log", "negative_elbo": "linear", "map_peak": "log"},
}


class Diffusion(Family):
    """See the module's mathematics."""

    conditional = True
    noise: Tensor  # (3, *inner shape): stored for each of `times`
    weight: Tensor  # (3,) of |noise - e|^2 in the bound
    residual: Tensor  # clean residual variance per value, inner shape

    def __init__(
        self,
        spec: InputSpec,
        *,
        width: int = 0,
        schedule: str = "linear",
        steps: int = 1000,
        level: float = 0.25,
        steps_back: int = 3,
        sampler: str = "ddim",
        guidance: float = 1.0,
        ema: float = 0.995,
        resolution: int = 64,
    ) -> None:
        """Builds the networks.

        Args:
            width: channels at half the resolution, or units of a dense layer; 0 chooses by the input.
            schedule: linear, quadratic or cosine.
            steps: T, 10 to 10000; of ancestral sampling too.
            level: share of T up to which a sample is noised in scoring, in (0, 1].
            steps_back: DDIM steps that denoise it, 1 to 50; a network's run each.
            sampler: of generated samples: ddim (50 steps, or T) or ancestral (T steps).
            guidance: weight of the classifier's gradient where conditions are declared, >= 0.
            ema: share of the running average of the weights that a step keeps, in [0, 1).
            resolution: pixels of an image's longer side that the networks see, at most; 0 averages none.

        Raises:
            Refusal: an argument out of its range.
        """
        whole = relatable(spec)
        super().__init__(spec, MEANING | (DISTANCE_MEANING if whole else {}), terms_for(FUSED, spec, whole))
        sizes_in_range(width=width, resolution=resolution)
        in_range("steps", steps, 10, 10_000)
        in_range("level", level, 1e-3, 1)
        in_range("steps_back", steps_back, 1, 50)
        in_range("guidance", guidance, 0, 1000)
        in_range("ema", ema, 0, 0.99999)
        if schedule not in SCHEDULES:
            raise Refusal(f"Argument schedule is {schedule!r}; choose {', '.join(SCHEDULES)}.")
        if sampler not in SAMPLERS:
            raise Refusal(f"Argument sampler is {sampler!r}; choose {', '.join(SAMPLERS)}.")
        from_step = round(level * steps)
        if from_step < steps_back:
            raise Refusal(
                f"Argument steps_back is {steps_back}, but level {level:g} of {steps} steps leaves {from_step} to go "
                "back; take fewer or a higher level."
            )
        self.width = width or WIDTHS[spec.kind]
        self.schedule, self.steps, self.level, self.steps_back = schedule, steps, level, steps_back
        self.sampler, self.guidance, self.ema, self.resolution = sampler, guidance, ema, resolution
        self.normaliser = Normaliser(spec, resolution)
        self.inner = self.normaliser.inner
        shape = self.normaliser.shape
        self.path = Schedule(schedule, steps)
        self.denoiser = denoiser_for(self.inner, self.width, shape[0] if spec.missing == "allow" else 0)
        classes = len(spec.conditions)
        self.classifier = Classifier(math.prod(shape), classes, 128) if classes else None
        # From the level back to the sample, and the terms that the bound is judged by; the level's serves both.
        self.back = torch.linspace(from_step, 0, steps_back + 1).round().int().tolist()
        self.times = (min(max(2, steps // 50), from_step), from_step, (from_step + steps) // 2)
        generator = torch.Generator().manual_seed(NOISE_SEED)
        self.register_buffer("noise", torch.randn(3, *shape, generator=generator))
        self.register_buffer("weight", self._weights())
        self.kept_at_last, self.ratio_at_first = float(self.path.signal[-1]) ** 2, float(self.path.ratio[1])
        self.register_buffer("residual", torch.ones(shape))
        self.residuals = Relations(self.inner) if whole else None

    @property
    def recipe(self) -> Recipe:
        match self.inner:
            case ImageSpec():
                big = self.inner.height * self.inner.width > 64 * 64
                return Recipe(steps=1500, batch=32 if big else 64, rate=2e-3, average=self.ema)
            case SeriesSpec():
                return Recipe(steps=2500, batch=64, rate=2e-3, average=self.ema)
            case _:
                return Recipe(steps=4000, batch=128, rate=2e-3, average=self.ema)

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def start(self, batches: Batches) -> None:
        self.normaliser.fit(batches)

    def players(self) -> dict[str, nn.Module]:
        players: dict[str, nn.Module] = {"denoiser": self.denoiser}
        if self.classifier is not None:
            players["classifier"] = self.classifier
        return players

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        y, mask = self.normaliser.observe(batch.x)
        device = at.generator.device
        # Even over 1..T within the batch, from a random beginning: the loss of a step varies less.
        even = (
            torch.rand((), generator=at.generator, device=device) + torch.arange(len(y), device=device) / len(y)
        ) % 1
        t = (even * self.steps).long().clamp_max(self.steps - 1).to(y.device) + 1
        noise = at.normal(y)
        noisy = self.path.diffuse(y, t, noise)
        if player == "classifier":
            assert self.classifier is not None
            assert batch.condition is not None
            # Gaps read as the mean, as they do where samples are scored.
            logits = self.classifier(noisy * mask, t / self.steps)
            return {"total": functional.cross_entropy(logits, batch.condition)}
        error = (self._noise(noisy, t, mask, None) - noise) * mask
        return {"total": error.square().sum() / mask.sum().clamp_min(1)}

    def validation_loss(self, batch: Batch, at: Progress) -> Tensor:
        """The denoiser's: a classifier that learned the fit samples by heart must not stop it."""
        return self.loss(batch, "denoiser", at)["total"]

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Clean residuals of what comes back."""
        squares = MeanSquares(self.residual)
        for x, condition in batches():
            y, mask = self.normaliser.observe(x)
            residual = (y - self._denoise(y, mask, condition)[0]) * mask
            squares.add(residual.square(), mask)
            if self.residuals is not None:
                self.residuals.add(related(residual, self.inner))
        if self.residuals is not None:
            self.residuals.settle()
        self.residual.copy_(squares.shrunk())

    def evidence(self, batch: Batch) -> Evidence:
        y, mask = self.normaliser.observe(batch.x)
        denoised, at_level = self._denoise(y, mask, batch.condition)
        residual = (y - denoised) * mask
        error = residual.square()
        heat = error / self.residual
        if isinstance(self.inner, ImageSpec):
            heat = smooth(heat.mean(1), self.inner)
        count = mask.flatten(1).sum(1).clamp_min(1.0)
        terms = {
            "reconstruction_error": error.flatten(1).sum(1) / count,
            "negative_elbo": self._bound(y, mask, at_level, batch.condition),
            "map_peak": heat.flatten(1).amax(1),
        }
        if self.residuals is not None:
            terms["residual_distance"] = self.residuals.away(related(residual, self.inner))
        return Evidence(terms, self.normaliser.full_size(heat))

    def log_jacobian(self) -> float | None:
        return self.normaliser.log_jacobian()

    @torch.no_grad()
    def sample(self, draw: Draw) -> Tensor:
        device = self.residual.device
        y = draw.normal(*self.normaliser.shape).to(device)
        if self.sampler == "ancestral":
            for t in range(self.steps, 0, -1):
                noise = draw.normal(*self.normaliser.shape).to(device)
                y = self.step(y, torch.full((draw.n,), t, device=device), noise, draw.condition)
        else:
            times = torch.linspace(self.steps, 0, min(DDIM_STEPS, self.steps) + 1).round().int().tolist()
            for t, s in zip(times[:-1], times[1:], strict=True):
                y = self._jump(y, t, s, torch.ones_like(y), draw.condition, START_MOST)
        return self.normaliser.denormalise(y)

    def step(self, y: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """One ancestral step from normalised (B, C, ...) x_t at times (B,) to x_{t-1}."""
        start = self.path.start(y, t, self._noise(y, t, torch.ones_like(y), condition))
        mean, spread = self.path.posterior(start.clamp(-START_MOST, START_MOST), y, t)
        return mean + spread * noise

    def more_graphs(self) -> dict[str, Plan]:
        like = torch.zeros(3, *self.spec.shape)
        inputs = {"sample": like, "time": torch.ones(3, dtype=torch.int64), "noise": torch.zeros_like(like)}
        if self.spec.conditions:
            inputs["condition"] = torch.zeros(3, dtype=torch.int64)
        return {STEP: Plan(Ancestral(self), inputs, ("next",))}

    def _noise(self, x: Tensor, t: Tensor, mask: Tensor, condition: Tensor | None) -> Tensor:
        """What the network says is noise in (B, C, ...) x_t at times (B,), guided where there is a condition."""
        gaps = self.spec.missing == "allow"
        share = t / self.steps
        signal, sigma = (table[t].view(-1, *(1,) * (x.dim() - 1)) for table in (self.path.signal, self.path.sigma))
        noise: Tensor = sigma * x + signal * self.denoiser(torch.cat([x * mask, mask], dim=1) if gaps else x, share)
        if self.classifier is None or condition is None:
            return noise
        return noise - self.guidance * sigma * self.classifier.slope(x * mask, share, condition)

    def _jump(
        self, x: Tensor, t: int, s: int, mask: Tensor, condition: Tensor | None, most: float = math.inf
    ) -> Tensor:
        """DDIM's step from x_t to x_s; an estimate of x_0 beyond +-`most` is cut off."""
        at, to = (torch.full((x.shape[0],), time, dtype=torch.int64, device=x.device) for time in (t, s))
        noise = self._noise(x, at, mask, condition)
        if math.isfinite(most):
            start = self.path.start(x, at, noise).clamp(-most, most)
            noise = (x - self.path.signal[t] * start) / self.path.sigma[t]
        return self.path.jump(x, noise, at, to)

    def _estimate(self, y: Tensor, mask: Tensor, k: int, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """y with the stored noise of the k-th of `times`, and the network's estimate of that noise."""
        t = torch.full((y.shape[0],), self.times[k], dtype=torch.int64, device=y.device)
        x = self.path.diffuse(y, t, self.noise[k].expand_as(y))
        return x, self._noise(x, t, mask, condition)

    def _denoise(self, y: Tensor, mask: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """y', and the estimate of the noise at the level that it began with."""
        x, noise = self._estimate(y, mask, 1, condition)
        at, to = (torch.full((y.shape[0],), t, dtype=torch.int64, device=y.device) for t in self.back[:2])
        x = self.path.jump(x, noise, at, to)
        for t, s in zip(self.back[1:-1], self.back[2:], strict=True):
            x = self._jump(x, t, s, mask, condition)
        return x, noise

    def _bound(self, y: Tensor, mask: Tensor, at_level: Tensor, condition: Tensor | None) -> Tensor:
        """Estimate of the negative bound, nats, (B,)."""
        estimates = (self._estimate(y, mask, 0, condition)[1], at_level, self._estimate(y, mask, 2, condition)[1])
        values = float(math.prod(y.shape[1:]))
        # A partly observed sample's nats are scaled up to a full one's, so that both can be held against one threshold.
        share = mask.flatten(1).sum(1).clamp_min(1.0) / values
        nats = torch.zeros_like(share)
        for k, noise in enumerate(estimates):
            nats = nats + self.weight[k] * ((self.noise[k] - noise) * mask).square().flatten(1).sum(1)
        signal_share = self.kept_at_last
        prior = 0.5 * (mask * (signal_share * y.square() - signal_share - math.log(1 - signal_share))).flatten(1).sum(1)
        return (nats + prior) / share + 0.5 * values * (1 + math.log(2 * math.pi / self.ratio_at_first))

    def _weights(self) -> Tensor:
        """Of |noise - e|^2 at each of `times` in the bound: half the part of log S that lies nearest to it."""
        log_ratio = self.path.ratio.double().log()
        at = log_ratio[list(self.times)]
        edges = torch.stack([log_ratio[1], (at[0] + at[1]) / 2, (at[1] + at[2]) / 2, log_ratio[-1]])
        return (-edges.diff() / 2).float()


class Ancestral(nn.Module):
    """`sample`, `time`, `noise` (and `condition`) -> `next`, from time T down to 1.

    All have the sample's layout. Before the last step they are in normalised units, so that at time T it is standard
    normal noise; after it, in raw units. Where large images are averaged down each square of pixels holds one value.
    """

    def __init__(self, family: Diffusion) -> None:
        super().__init__()
        self.family = family

    def forward(self, sample: Tensor, time: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        family = self.family
        normaliser = family.normaliser
        side = normaliser.factor
        at = time.view(-1, *(1,) * (sample.dim() - 1))
        # The mean of a square of independent noise has a side-th of its spread.
        y = normaliser.arrange(torch.where(at == family.steps, sample * side, sample))
        y = family.step(y, time, normaliser.arrange(noise * side), condition)
        raw = normaliser.denormalise(y)
        if side > 1:
            y = functional.interpolate(y, scale_factor=float(side), mode="nearest")
            y = y[:, :, : sample.shape[1], : sample.shape[2]]
        return torch.where(at == 1, raw, from_channels(y, family.spec))
