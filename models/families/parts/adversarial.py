"""What two networks that learn against each other share: the discriminator, the objectives, and when the game is lost.

D is the discriminator's output, a logit or a critic's value; y real, g generated, both normalised.

    objective     discriminator minimises                                       generator minimises
    minimax       E softplus(-D(y)) + E softplus(D(g))                          E softplus(-D(g))       not saturating
    hinge         E max(0, 1 - D(y)) + E max(0, 1 + D(g))                       -E D(g)
    wasserstein   E D(g) - E D(y) + 10 E (|grad D(m)| - 1)^2                    -E D(g)

m lies at random between a real and a generated sample. minimax: Goodfellow et al. 2014 (arXiv:1406.2661); where the two
agree D = 0 is the best answer and costs log 4. hinge: Lim and Ye 2017 (arXiv:1705.02894); there it costs 2.
wasserstein: Gulrajani et al. 2017 (arXiv:1704.00028).

Batch normalisation must not tell the discriminator what it is asked. Real and generated samples never share a batch, so
no statistic of one enters the other (in one batch of both, each sample would show what share of it is real). While the
networks learn, a batch is normalised by its own statistics; the ones that are kept for scoring are gathered from real
batches alone, so a sample and its reconstruction are later seen on one and the same scale. A critic with a gradient
penalty has no batch normalisation at all: its gradient is taken for each sample alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegis.models.families.parts.layers import inner_shape, levels, padding
from vaegis.models.spec import InputSpec

OBJECTIVES = ("minimax", "wasserstein", "hinge")
PENALTY = 10.0  # of the critic's gradient, as its authors chose
AGREED = {"minimax": 1.3862943611198906, "hinge": 2.0}  # the discriminator's loss where it cannot tell
LOST = 0.05  # of that: a discriminator below it gives the generator next to no gradient
LOST_EPOCHS = 5  # in a row
RISE = 1.1  # of the generator's loss over them: less is how a game swings that both still learn from


class Discriminator(nn.Module):
    """(B, C, ...) -> (B,): strided convolutions with leaky ReLU and no pooling (Radford, Metz and Chintala 2015,
    arXiv:1511.06434), over time for windows; dense layers for vectors."""

    def __init__(self, spec: InputSpec, width: int, batch_norm: bool) -> None:
        super().__init__()
        channels, *size = inner_shape(spec)
        layers: list[nn.Module] = []
        self.pads: tuple[int, ...] = ()
        if size:
            depth = levels(tuple(size))
            self.pads = padding(tuple(size), depth)
            conv, norm = (nn.Conv2d, nn.BatchNorm2d) if len(size) == 2 else (nn.Conv1d, nn.BatchNorm1d)
            sides = 1
            for axis, side in enumerate(reversed(size)):
                sides *= (side + self.pads[2 * axis] + self.pads[2 * axis + 1]) // 2**depth
            for level in range(depth):
                wider = width * min(2**level, 8)
                # None at the input, whose level is itself what tells real from generated (Radford et al.).
                layers.append(conv(channels, wider, 4, 2, 1, bias=level == 0 or not batch_norm))
                if level and batch_norm:
                    layers.append(norm(wider))
                elif level:
                    layers.append(nn.GroupNorm(1, wider))
                layers.append(nn.LeakyReLU(0.2))
                channels = wider
            self.features_size = channels * sides
        else:
            for _ in range(2):
                layers += [nn.Linear(channels, width), nn.LeakyReLU(0.2)]
                channels = width
            self.features_size = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.features_size, 1)

    def features(self, y: Tensor) -> Tensor:
        """What the last layer judges by, (B, F)."""
        y = functional.pad(y, self.pads, mode="replicate") if any(self.pads) else y
        out: Tensor = self.body(y)
        return out.flatten(1)

    def forward(self, y: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(y))
        return out[:, 0]


@contextmanager
def untracked(*modules: nn.Module) -> Iterator[None]:
    """Batches that pass while this lasts are normalised by their own statistics and leave no trace in the kept ones."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def discriminator_loss(objective: str, real: Tensor, fake: Tensor) -> Tensor:
    """From what the discriminator says of (B,) real and generated samples; without a critic's penalty."""
    match objective:
        case "minimax":
            return functional.softplus(-real).mean() + functional.softplus(fake).mean()
        case "hinge":
            return (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
        case _:
            return fake.mean() - real.mean()


def generator_loss(objective: str, fake: Tensor) -> Tensor:
    """From what the discriminator says of (B,) generated samples."""
    return functional.softplus(-fake).mean() if objective == "minimax" else -fake.mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of (|grad D| - 1)^2 at random points between (B, ...) real and generated samples; its graph is kept."""
    share = torch.rand(len(real), generator=generator, device=generator.device).to(real)
    share = share.view(-1, *(1,) * (real.dim() - 1))
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The root's own slope has no bound at 0; a critic that is flat there still learns.
    return ((slope.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def lost(objective: str, history: Sequence[Mapping[str, float]], remedy: str) -> str | None:
    """Whether the discriminator has won: over the last `LOST_EPOCHS` epochs its loss lay below `LOST` of what it is
    where it cannot tell, while the generator's rose by a tenth or more. A critic's value is a distance and has no such
    end.

    Args:
        history: rows with `discriminator.adversarial` and `generator.adversarial`.
        remedy: what to do, ending the sentence.
    """
    rows = history[-LOST_EPOCHS:]
    if objective not in AGREED or len(rows) < LOST_EPOCHS:
        return None
    floor = LOST * AGREED[objective]
    first, last = rows[0]["generator.adversarial"], rows[-1]["generator.adversarial"]
    if max(row["discriminator.adversarial"] for row in rows) >= floor or last < RISE * first:
        return None
    return (
        f"The discriminator wins: its loss lay below {floor:.2g} (it is {AGREED[objective]:.3g} where it cannot tell) "
        f"for {LOST_EPOCHS} epochs up to step {rows[-1]['step']:g}, while the generator's rose from {first:.3g} to "
        f"{last:.3g}: the generator learns nothing any more. {remedy}"
    )
