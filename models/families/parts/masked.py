"""Networks in which what is said of a place depends on the places before it alone.

All read normalised values, channels first, and give `outputs` numbers for each place: (B, C, H, W) in raster order,
(B, C, T) in time, (B, D) by column. The channels of one place are seen together, by later places only.

    PixelCNN  gated, with a vertical stack (rows above) and a horizontal one (left of it in its row), so that no pixel
              before it is blind (van den Oord et al. 2016, arXiv:1606.05328)
    RowLSTM   a row's state follows from the row above by a convolution over three states (PixelRNN, van den Oord et
              al. 2016, arXiv:1601.06759)
    WaveNet   gated causal convolutions (van den Oord et al. 2016, arXiv:1609.03499)
    Recurrent an LSTM over time
    MADE      a masked dense network (Germain et al. 2015, arXiv:1502.03509)

Convolutions are causal by padding and shifting, which is the same as masking their weights and costs nothing for those
that would be 0. Dilations 1, 2, 4, 1, 2, 4, ... widen what a place can see. A channel of ones beside the values tells
the border from a value at the mean; images, which are aligned, also have their rows and columns as channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from zuko.nn import MaskedMLP

DILATIONS = (1, 2, 4)


class PixelCNN(nn.Module):
    """(B, C, H, W) -> (B, outputs, H, W)."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.beside = Beside(shape, coordinates=True)
        channels = shape[0] + self.beside.count
        self.above = nn.Conv2d(channels, width, (2, 3))
        self.left = nn.Conv2d(channels, width, (1, 2))
        self.layers = nn.ModuleList(Gated(width, DILATIONS[i % len(DILATIONS)]) for i in range(layers))
        self.last = _head(nn.Conv2d, width, outputs)

    def forward(self, y: Tensor) -> Tensor:
        x = self.beside(y)
        # One further row above and column to the left, and the last ones dropped: nothing sees itself.
        above = self.above(functional.pad(x, (1, 1, 2, 0))[:, :, :-1])
        left = self.left(functional.pad(x, (2, 0))[:, :, :, :-1])
        for layer in self.layers:
            above, left = layer(above, left)
        out: Tensor = self.last(left)
        return out


class Gated(nn.Module):
    """A layer of both stacks; the horizontal one also reads the vertical one and has a residual connection."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.vertical = nn.Conv2d(width, 2 * width, (2, 3), dilation=dilation)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, 2), dilation=dilation)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, above: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        d = self.dilation
        vertical = self.vertical(functional.pad(above, (d, d, d, 0)))
        both = self.horizontal(functional.pad(left, (d, 0))) + self.link(vertical)
        return _gate(vertical), left + self.out(_gate(both))


class RowLSTM(nn.Module):
    """(B, C, H, W) -> (B, outputs, H, W), a row at a time; the graph unrolls over the rows."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.beside = Beside(shape, coordinates=True)
        self.left = nn.Conv2d(shape[0] + self.beside.count, width, (1, 3))
        self.layers = nn.ModuleList(RowLayer(width) for _ in range(layers))
        self.last = _head(nn.Conv2d, width, outputs)

    def forward(self, y: Tensor) -> Tensor:
        x = self.left(functional.pad(self.beside(y), (3, 0))[:, :, :, :-1])
        for layer in self.layers:
            x = x + layer(x)
        out: Tensor = self.last(x)
        return out


class RowLayer(nn.Module):
    """One layer: gates from the row so far and from the states of the row above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.inputs = nn.Conv2d(width, 4 * width, (1, 3))
        self.states = nn.Conv1d(width, 4 * width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.inputs(functional.pad(x, (2, 0)))
        state = memory = torch.zeros_like(x[:, :, 0])
        rows = []
        for row in inputs.unbind(2):
            gates, new = (row + self.states(state)).split([3 * self.width, self.width], dim=1)
            forget, take, show = gates.sigmoid().chunk(3, dim=1)
            memory = forget * memory + take * new.tanh()
            state = show * memory.tanh()
            rows.append(state)
        return torch.stack(rows, dim=2)


class WaveNet(nn.Module):
    """(B, C, T) -> (B, outputs, T)."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.beside = Beside(shape, coordinates=False)
        self.first = nn.Conv1d(shape[0] + self.beside.count, width, 2)
        self.dilations = [2 ** (i % 8) for i in range(layers)]
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in self.dilations)
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in self.dilations)
        self.last = _head(nn.Conv1d, width, outputs)

    def forward(self, y: Tensor) -> Tensor:
        x = self.first(functional.pad(self.beside(y), (2, 0))[:, :, :-1])
        for dilation, filters, out in zip(self.dilations, self.filters, self.outs, strict=True):
            x = x + out(_gate(filters(functional.pad(x, (dilation, 0)))))
        numbers: Tensor = self.last(x)
        return numbers


class Recurrent(nn.Module):
    """(B, C, T) -> (B, outputs, T)."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.beside = Beside(shape, coordinates=False)
        self.lstm = nn.LSTM(shape[0] + self.beside.count, width, layers, batch_first=True)
        self.last = _head(nn.Conv1d, width, outputs)

    def forward(self, y: Tensor) -> Tensor:
        before = functional.pad(self.beside(y), (1, 0))[:, :, :-1]
        states, _ = self.lstm(before.permute(0, 2, 1))
        out: Tensor = self.last(states.permute(0, 2, 1))
        return out


class MADE(nn.Module):
    """(B, D) -> (B, outputs, D)."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, layers: int) -> None:
        super().__init__()
        (size,) = shape
        self.outputs = outputs
        self.first = nn.Parameter(0.5 * torch.randn(outputs))  # what is said of the first column, which sees nothing
        before = torch.arange(1, size)[:, None] > torch.arange(size)
        adjacency = before.repeat_interleave(outputs, dim=0)
        self.network = MaskedMLP(adjacency, [width] * layers) if size > 1 else None

    def forward(self, y: Tensor) -> Tensor:
        first = self.first[None, :, None].expand(y.shape[0], -1, 1)
        if self.network is None:
            return first
        rest = self.network(y).reshape(y.shape[0], -1, self.outputs).permute(0, 2, 1)
        return torch.cat([first, rest], dim=2)


class Beside(nn.Module):
    """Puts channels beside the values that are the same for every sample."""

    constants: Tensor  # (1, count, *size)

    def __init__(self, shape: tuple[int, ...], coordinates: bool) -> None:
        super().__init__()
        size = shape[1:]
        channels = [torch.ones(size)]
        if coordinates:
            channels += torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
        self.count = len(channels)
        self.register_buffer("constants", torch.stack(channels)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.constants.to(x).expand(x.shape[0], *self.constants.shape[1:])], dim=1)


def _gate(x: Tensor) -> Tensor:
    signal, gate = x.chunk(2, dim=1)
    return signal.tanh() * gate.sigmoid()


def _head(conv: type[nn.Conv1d] | type[nn.Conv2d], width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), conv(width, width, 1), nn.ReLU(), conv(width, outputs, 1))
