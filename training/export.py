"""A fitted family -> ONNX graphs, and the gate that proves they say what torch says.

What is exported is the score, not the network: raw input in, every evidence term and the map out. The graphs carry no
source paths or exporter metadata, so that the same fit gives the same bytes anywhere.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaegis.models.bundle import DECODER, ENCODER, SAMPLER, SCORE, STEP
from vaegis.models.errors import Refusal
from vaegis.models.families import Batch, Family
from vaegis.models.runtime.sessions import open_session
from vaegis.models.spec import ImageSpec

OPSET = 20
TOLERANCE = 1e-4  # of max(|value|, the term's interquartile range over the calibration set)
GATE_BATCH = 64


class ScoreGraph(nn.Module):
    """`input` (and `mask`, `condition`) -> `score`, every term, `map`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family
        self.names = ["score", *family.meaning, "map"]
        self.wide = any(p.dtype == torch.float64 for p in family.parameters())

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        if mask is not None:
            x = torch.where(mask > 0.5, x, torch.full_like(x, torch.nan))
        score, evidence = self.family.score(Batch(x.double() if self.wide else x, condition))
        outputs = (score, *(evidence.terms[t] for t in self.family.meaning), evidence.map)
        return tuple(o.float() for o in outputs) if self.wide else outputs


class EncoderGraph(nn.Module):
    """`input` (and `mask`, `condition`) -> `mean`, `log_variance`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if mask is not None:
            x = torch.where(mask > 0.5, x, torch.full_like(x, torch.nan))
        return self.family.encode(Batch(x, condition))


class DecoderGraph(nn.Module):
    """`latent` (and `condition`) -> `reconstruction`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.family.decode(Batch(z, condition))


def doubled(family: Family) -> Family | None:
    """A copy that computes in double precision; None where it already does, or onnxruntime cannot (convolutions)."""
    if family.spec.kind != "vector" or all(p.dtype == torch.float64 for p in family.parameters()):
        return None
    return copy.deepcopy(family).double()


def export_score(family: Family) -> bytes:
    """The score graph of a fitted family."""
    score = ScoreGraph(family.eval())
    mask, numbers = _beside(family)
    return _graph(score, {"input": _example(family)}, score.names, mask | numbers)


def export(family: Family) -> dict[str, bytes]:
    """The graphs of a fitted family, by file name."""
    graphs = {SCORE: export_score(family)}
    x = _example(family)
    mask, numbers = _beside(family)
    if family.latent_size:
        graphs[ENCODER] = _graph(EncoderGraph(family), {"input": x}, ["mean", "log_variance"], mask | numbers)
    if family.decodes:
        z = torch.zeros(3, family.latent_size)
        graphs[DECODER] = _graph(DecoderGraph(family), {"latent": z}, ["reconstruction"], numbers)
    for name, plan in family.more_graphs().items():
        assert name in (SAMPLER, STEP), f"no bundle holds a graph {name}"
        graphs[name] = _graph(plan.module, plan.inputs, list(plan.outputs))
    return graphs


def _beside(family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Examples of what a graph takes beside its input: which values were observed, and conditions."""
    mask = {"mask": torch.ones(3, *family.spec.shape)} if family.spec.missing == "allow" else {}
    numbers = {"condition": torch.arange(3) % len(family.spec.conditions)} if family.spec.conditions else {}
    return mask, numbers


def _example(family: Family) -> Tensor:
    spec = family.spec
    rng = np.random.default_rng(0)
    top = 2**spec.depth if isinstance(spec, ImageSpec) else 2
    return torch.from_numpy(rng.integers(0, top, (3, *spec.shape)).astype(spec.dtype))


def _graph(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], more: Mapping[str, Tensor] | None = None
) -> bytes:
    """The graph of a module.

    Args:
        inputs: name -> example of the positional arguments.
        more: the same of optional arguments, which go by name.
    """
    batch = torch.export.Dim("batch", min=1, max=2**20)
    more = dict(more or {})
    arguments = [*inspect.signature(module.forward).parameters][: len(inputs)]
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            kwargs=more,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[*inputs, *more],
            output_names=outputs,
            dynamic_shapes=dict.fromkeys([*arguments, *more], {0: batch}),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter says of itself: stack traces with source paths, and one line per node on its origin."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "vaegis", ""
    graph = model.graph
    graph.doc_string = ""
    graph.name = "vaegis"
    del graph.metadata_props[:]
    for node in [*graph.node, *(n for f in model.functions for n in f.node)]:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.doc_string = ""
        del value.metadata_props[:]
    del graph.value_info[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates its steps on stdout and warns of its own deprecations; a person fitting a model can act
    on neither. Errors still surface as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Gate:
    """What the gate measured: the largest difference of each kind, as a share of what is allowed."""

    torch: float  # torch against onnxruntime
    batch: float  # batch 1 against batch 64
    samples: int


def gate(
    family: Family,
    graph: bytes,
    take: Callable[[NDArray[np.int64]], NDArray[np.generic]],
    parts: NDArray[np.int64],
    conditions: NDArray[np.int64] | None = None,
) -> Gate:
    """Proves over the whole calibration set that the graph repeats the fitted family.

    Args:
        take: part numbers -> raw parts.
        parts: the calibration set.
        conditions: of these parts, (m,), where the family is told them.

    Raises:
        Refusal: naming the worst sample and term; no bundle may be written.
    """
    session, _ = open_session(graph, "cpu")
    terms = ["score", *family.meaning]
    masked = family.spec.missing == "allow"

    def run(x: NDArray[np.generic], numbers: NDArray[np.int64] | None) -> NDArray[np.float64]:
        feed = {"input": np.nan_to_num(x), "mask": (~np.isnan(x)).astype(np.float32)} if masked else {"input": x}
        if numbers is not None:
            feed["condition"] = numbers
        return np.stack(session.run(terms, feed), axis=1).astype(np.float64)

    ours, full, single = [], [], []
    score = ScoreGraph(family.eval())
    for i in range(0, len(parts), GATE_BATCH):
        x = take(parts[i : i + GATE_BATCH])
        numbers = conditions[i : i + GATE_BATCH] if conditions is not None else None
        with torch.no_grad():
            condition = torch.from_numpy(numbers) if numbers is not None else None
            outputs = score(torch.from_numpy(x), condition=condition)
        ours.append(torch.stack(outputs[:-1], dim=1).double().numpy())
        full.append(run(x, numbers))
        if not np.array_equal(full[-1], run(x, numbers), equal_nan=True):
            raise Refusal("The exported graph gave two answers to one batch; no bundle was written.")
        single += [run(x[j : j + 1], numbers[j : j + 1] if numbers is not None else None) for j in range(len(x))]
    expected, got, alone = np.concatenate(ours), np.concatenate(full), np.concatenate(single)
    unsound = np.argwhere(~np.isfinite([expected, got, alone]).all(axis=0))
    if len(unsound):
        raise Refusal(_differs(terms, int(unsound[0, 0]), int(unsound[0, 1]), got, "torch", expected))
    spread = np.subtract(*np.percentile(got, [75, 25], axis=0))
    # A decision can differ only for a sample that lies nearer the threshold than this.
    allowed = TOLERANCE * np.maximum(np.maximum(np.abs(expected), spread), 1e-30)
    shares = []
    for what, other in (("torch", expected), ("a batch of one", alone)):
        share = np.abs(got - other) / allowed
        worst, column = np.unravel_index(int(np.argmax(share)), share.shape)
        if share[worst, column] > 1:
            raise Refusal(_differs(terms, int(worst), int(column), got, what, other))
        shares.append(float(share[worst, column]))
    return Gate(torch=shares[0], batch=shares[1], samples=len(parts))


def _differs(
    terms: list[str], sample: int, term: int, got: NDArray[np.float64], what: str, other: NDArray[np.float64]
) -> str:
    return (
        f"The export gate failed: on calibration sample {sample} the graph gives {terms[term]} "
        f"{got[sample, term]:.6g} where {what} gives {other[sample, term]:.6g}. No bundle was written."
    )
