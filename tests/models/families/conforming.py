"""What the conformance tests share: fresh families, and their outputs by torch and by graph."""

import dataclasses

import numpy as np
import onnxruntime as ort
import torch

from toy_data import SMALL, SPECS
from vaegis.models.families import FAMILIES, Batch, Progress, make
from vaegis.training.export import TOLERANCE

CASES = [(name, kind) for name, cls in FAMILIES.items() for kind in cls.kinds]


def fresh(name, kind, **changed):
    torch.manual_seed(0)
    return make(FAMILIES, name, dataclasses.replace(SPECS[kind], **changed), SMALL.get(name, {}))


def batches(x, conditions=None, size=64):
    """Passes over raw samples, (n,) conditions beside them."""
    raw = torch.from_numpy(np.ascontiguousarray(x)).split(size)
    of_each = [None] * len(raw) if conditions is None else torch.as_tensor(conditions).split(size)
    return lambda: map(Batch, raw, of_each)


def at(share=1.0):
    return Progress(int(100 * share), 100, torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(family, x):
    """Every output of the score graph by name, as torch gives it."""
    score, found = family.score(Batch(torch.from_numpy(np.ascontiguousarray(x))))
    return {"score": score.numpy(), **{k: v.numpy() for k, v in found.terms.items()}, "map": found.map.numpy()}


def session(raw):
    return ort.InferenceSession(raw, providers=["CPUExecutionProvider"])


def through(graph, feed):
    return dict(zip([o.name for o in graph.get_outputs()], graph.run(None, feed), strict=True))


def agree(one, other, spread):
    """As the export gate asks, with `spread` from a larger run."""
    assert one.keys() == other.keys()
    for name in one:
        allowed = TOLERANCE * np.maximum(np.abs(other[name]), spread[name])
        assert (np.abs(one[name] - other[name]) <= allowed).all(), name


def spread_of(found):
    return {k: np.subtract(*np.percentile(v, [75, 25])) for k, v in found.items()}


def reaches_every_parameter(family, batch, player, module):
    family.zero_grad()
    family.train()
    family.loss(batch, player, at())["total"].backward()
    named = dict(module.named_parameters())
    assert named
    idle = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
