"""Autoregressive models: the exact likelihood of a sample as a product over its values, each given those before it.

x is a sample of D values in a fixed order (images by rows, windows by time, tables by column), y the same normalised:

    -log p(x)               = -sum_d log p(x_d | x_1 .. x_{d-1})
    negative_log_likelihood = -log p(x)                                                   nats; higher = stranger
    typicality              = |-log p(x) - clean mean| / clean standard deviation
    map                     = (h - m) / s, h the nats of a pixel, step or column and m, s its clean mean and standard
                              deviation: an edge is always less certain than a background, which is no defect
    map_peak                = max of the smoothed map

Each factor is a mixture of logistics (`logistics.py`) whose numbers a network gives that sees the values before alone
(`masked.py`), all factors in one pass. The values of an image are whole numbers and have probabilities, so that its
likelihood is in bits of the stored values as they are. Windows and rows of tables have densities of normalised values,
which are trained with normal noise of `noise` clean standard deviations: without it the density of values that repeat,
such as a sensor at rest, grows without bound.

Sampling takes a network pass for every place, one after the other; `step.onnx` is one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaegis.models.bundle import STEP
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Batches, Draw, Evidence, Family, Plan, Progress, Recipe, in_range
from vaegis.models.families.parts.defaults import sizes_in_range
from vaegis.models.families.parts.layers import from_channels, smooth
from vaegis.models.families.parts.logistics import Logistics
from vaegis.models.families.parts.masked import MADE, PixelCNN, Recurrent, RowLSTM, WaveNet
from vaegis.models.families.parts.normaliser import Normaliser
from vaegis.models.families.parts.typicality import LIKELIHOOD_MEANING, Standing, Typicality, fused_likelihood
from vaegis.models.spec import ImageSpec, InputSpec

Network = Callable[[tuple[int, ...], int, int, int], nn.Module]  # shape, outputs, width, layers

# By kind of input, the first taken where none is asked for: the network, its width and its layers.
NETWORKS: dict[str, dict[str, tuple[Network, int, int]]] = {
    "image": {"pixelcnn": (PixelCNN, 16, 6), "rowlstm": (RowLSTM, 24, 1)},
    "series": {"wavenet": (WaveNet, 32, 6), "lstm": (Recurrent, 64, 1)},
    "vector": {"made": (MADE, 128, 2)},
}
MEANING = {
    **LIKELIHOOD_MEANING,
    "map_peak": "largest value of the map: the strangest place, in clean standard deviations above its clean mean",
}


class Autoregressive(Family):
    """See the module's mathematics."""

    takes_missing = False

    def __init__(
        self,
        spec: InputSpec,
        *,
        network: str = "auto",
        layers: int = 0,
        width: int = 0,
        mixture: int = 5,
        noise: float = 0.03,
        resolution: int = 64,
    ) -> None:
        """Builds the network.

        Args:
            network: pixelcnn or rowlstm for images, wavenet or lstm for windows, made for vectors; auto takes the
                first.
            layers: of the network; 0 chooses by the network.
            width: channels, or units, of its layers; 0 chooses by the network.
            mixture: logistics for each value, 1 to 32.
            noise: standard deviation of the normal noise added in training to real values, in units of clean
                variation, >= 0; images are whole numbers and need none.
            resolution: pixels of an image's longer side that the network sees, at most; larger images are averaged
                down inside the graph by a whole factor. 0 averages none.

        Raises:
            Refusal: an argument out of its range, or a network for another kind of input.
        """
        super().__init__(spec, MEANING, fused_likelihood(spec, "linear"))
        sizes_in_range(layers=layers, width=width, resolution=resolution)
        in_range("mixture", mixture, 1, 32)
        in_range("noise", noise, 0, 1)
        able = NETWORKS[spec.kind]
        self.network = next(iter(able)) if network == "auto" else network
        if self.network not in tuple(able):
            raise Refusal(
                f"Argument network is {network!r}; for {spec.kind} inputs choose auto or {' or '.join(able)}."
            )
        build, usual_width, usual_layers = able[self.network]
        self.layers, self.width = layers or usual_layers, width or usual_width
        self.mixture, self.noise, self.resolution = mixture, noise, resolution
        self.normaliser = Normaliser(spec, resolution)
        shape = self.normaliser.shape
        top = 2.0**spec.depth - 1 if isinstance(spec, ImageSpec) else 0.0
        self.values = Logistics(1 if spec.kind == "vector" else shape[0], mixture, top)
        self.predict = build(shape, self.values.outputs, self.width, self.layers)
        self.typicality = Typicality()
        self.standing = Standing(shape[1:] if top else shape)

    @property
    def recipe(self) -> Recipe:
        match self.normaliser.inner:
            case ImageSpec(height=height, width=width):
                return Recipe(steps=800, batch=16 if height * width > 32 * 32 else 32, rate=3e-3)
            case _:
                return Recipe(steps=1500, batch=128, rate=2e-3)

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def log_jacobian(self) -> float | None:
        nats = self.normaliser.log_jacobian()
        # Probabilities of whole numbers are those of the raw values already.
        return 0.0 if nats is not None and self.values.top else nats

    def start(self, batches: Batches) -> None:
        """Mean and spread of each channel or column."""
        self.normaliser.fit(batches)

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        raw = self.normaliser.arrange(batch.x)
        y = self.normaliser.normalise(raw)
        if self.noise and not self.values.top:
            y = y + self.noise * at.normal(y)
        return {"total": self._nats_of(y, raw).flatten(1).sum(1).mean() / math.prod(self.normaliser.shape)}

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """What clean likelihoods are like, whole and place by place."""
        clean = []
        for batch in batches():
            nats = self._nats(batch.x)
            clean.append(nats.flatten(1).sum(1))
            self.standing.add(self._over_channels(nats))
        self.typicality.fit(torch.cat(clean))
        self.standing.settle()

    def evidence(self, batch: Batch) -> Evidence:
        shares = self._nats(batch.x)
        nats = shares.flatten(1).sum(1)
        heat = self.standing(self._over_channels(shares))
        if isinstance(self.normaliser.inner, ImageSpec):
            heat = smooth(heat, self.normaliser.inner)
        terms = {
            "negative_log_likelihood": nats,
            "typicality": self.typicality(nats),
            "map_peak": heat.flatten(1).amax(1),
        }
        return Evidence(terms, self.normaliser.full_size(heat))

    @torch.no_grad()
    def sample(self, draw: Draw) -> Tensor:
        y = torch.zeros(draw.n, *self.normaliser.shape, device=self.normaliser.scale.device)
        for position in range(self.positions):
            uniform = draw.uniform(self.values.channels, 2)
            y = self.step(y, position, uniform.to(y.device).clamp(1e-6, 1 - 1e-6))
        return self.normaliser.denormalise(y)

    @property
    def positions(self) -> int:
        """Of one sample, in the order in which they are drawn."""
        return math.prod(self.normaliser.shape) // self.values.channels

    def step(self, y: Tensor, position: int, uniform: Tensor) -> Tensor:
        """Normalised (n, C, ...) with the numbered position drawn, given those before it; uniform (n, C, 2)."""
        flat = channelled(y).flatten(2)
        numbers = self.predict(y).flatten(2)[:, :, position]
        values = self.values.draw(numbers, uniform, self.normaliser.centre, self.normaliser.scale)
        flat = torch.cat([flat[:, :, :position], values[:, :, None], flat[:, :, position + 1 :]], dim=2)
        return flat.reshape(y.shape)

    def more_graphs(self) -> dict[str, Plan]:
        # Averages of pixels are no sample: what was averaged away cannot be drawn.
        if self.normaliser.factor > 1:
            return {}
        # The exporter cannot decompose a step of the networks that run in a loop over rows or time.
        if self.network in ("rowlstm", "lstm"):
            return {}
        # Two tensors: the exporter takes one object for one input.
        sample = torch.zeros(3, *self.spec.shape)
        inputs = {"sample": sample, "time": torch.ones(3, dtype=torch.int64), "noise": torch.zeros_like(sample)}
        return {STEP: Plan(Next(self), inputs, ("next",))}

    def _nats(self, x: Tensor) -> Tensor:
        """Negative log-probabilities of raw (B, *shape), value by value, (B, C, ...)."""
        raw = self.normaliser.arrange(x)
        return self._nats_of(self.normaliser.normalise(raw), raw)

    def _nats_of(self, y: Tensor, raw: Tensor) -> Tensor:
        """The same of (B, C, ...), normalised and raw."""
        numbers = self.predict(y)
        logs = self.values.log_prob(numbers, channelled(y), channelled(raw), self.normaliser.scale)
        return -logs.reshape(y.shape)

    def _over_channels(self, nats: Tensor) -> Tensor:
        """Of an image's channels together, (B, H, W); the rest as it is."""
        return nats.sum(1) if self.values.top else nats


class Next(nn.Module):
    """One position more of raw samples (B, *shape) whose undrawn positions hold normal noise.

    `time` (B,) counts the positions that are still to be drawn, this one included. Each value takes two uniform
    numbers: one chooses the logistic, from `noise` at its position, the other the value, from the noise that stood
    there before.
    """

    def __init__(self, family: Autoregressive) -> None:
        super().__init__()
        self.family = family

    def forward(self, sample: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        family, values = self.family, self.family.values
        normaliser = family.normaliser
        raw = normaliser.arrange(sample)
        position = (family.positions - time)[:, None, None]
        numbers = family.predict(normaliser.normalise(raw)).flatten(2)
        flat, more = (channelled(v).flatten(2) for v in (raw, normaliser.arrange(noise)))
        here = position.expand(-1, values.channels, 1)
        chance = torch.cat([more.gather(2, here), flat.gather(2, here)], dim=2)
        uniform = (0.5 + 0.5 * torch.erf(chance / math.sqrt(2))).clamp(1e-6, 1 - 1e-6)
        value = values.draw(
            numbers.gather(2, position.expand(-1, values.outputs, 1))[:, :, 0],
            uniform,
            normaliser.centre,
            normaliser.scale,
        )
        scale, centre = (v.reshape(1, -1) for v in (normaliser.scale, normaliser.centre))
        if family.spec.kind == "vector":
            scale, centre = scale[0][position[:, 0]], centre[0][position[:, 0]]
        now = (value * scale + centre)[:, :, None]
        now = now.round() if values.top else now
        out = torch.where(torch.arange(family.positions, device=raw.device) == position, now, flat)
        return from_channels(out.reshape(raw.shape), family.spec)


def channelled(y: Tensor) -> Tensor:
    """(B, D) -> (B, 1, D): the columns of a table are positions of one channel each; the rest as it is."""
    return y[:, None] if y.dim() == 2 else y
