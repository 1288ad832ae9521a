"""What every family keeps where samples have gaps or are declared as something: missing values, conditions."""

import numpy as np
import pytest
import torch
from conforming import CASES, agree, at, batches, fresh, outputs, reaches_every_parameter, session, spread_of, through

from toy_data import clean
from vaegis.models.errors import Refusal
from vaegis.models.families import FAMILIES, Batch
from vaegis.training.export import export

GAPPY = [(name, kind) for name, kind in CASES if kind != "image" and FAMILIES[name].takes_missing]


@pytest.fixture(scope="module")
def gappy():
    """`gappy(family, kind)`: started and finished on data with gaps, and its graphs."""
    kept = {}

    def get(name, kind):
        if (name, kind) not in kept:
            x = clean(kind, 64).copy()
            x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
            family = fresh(name, kind, missing="allow")
            family.start(batches(x))
            family.eval()
            family.finish(batches(x))
            kept[name, kind] = family, x, export(family)
        return kept[name, kind]

    return get


@pytest.mark.parametrize(("name", "kind"), GAPPY)
def test_values_may_be_missing(name, kind, gappy):
    family, x, graphs = gappy(name, kind)
    found = outputs(family, x)
    assert all(np.isfinite(v).all() for v in found.values())
    for player, module in family.players().items():
        reaches_every_parameter(family, Batch(torch.from_numpy(x)), player, module)
    family.eval()
    seen = ~np.isnan(x)
    got = through(session(graphs["score.onnx"]), {"input": np.nan_to_num(x), "mask": seen.astype(np.float32)})
    agree(got, found, spread_of(found))


@pytest.mark.parametrize(("name", "kind"), GAPPY)
def test_what_is_missing_leaves_no_trace(name, kind, gappy):
    """Whatever number stands where the mask says missing, nothing changes by a bit."""
    family, x, graphs = gappy(name, kind)
    seen = (~np.isnan(x)).astype(np.float32)
    for graph in ("score.onnx", *(["encoder.onnx"] if family.latent_size else [])):
        opened = session(graphs[graph])
        told = [through(opened, {"input": np.where(seen > 0, x, v), "mask": seen}) for v in (0.0, 1e6, -3.5)]
        for other in told[1:]:
            assert {k: v.tobytes() for k, v in other.items()} == {k: v.tobytes() for k, v in told[0].items()}


@pytest.mark.parametrize(("name", "kind"), GAPPY)
def test_a_sample_of_which_nothing_is_known_does_not_fail(name, kind, gappy):
    family, x, _ = gappy(name, kind)
    found = outputs(family, np.full_like(x[:2], np.nan))
    assert all(np.isfinite(v).all() for v in found.values())


TOLD = [(name, kind) for name, kind in CASES if FAMILIES[name].conditional]


@pytest.mark.parametrize(("name", "kind"), TOLD)
def test_conditions_reach_the_networks_and_the_graphs(name, kind):
    """A family each, of samples declared as they are: the condition is heard everywhere, alike by torch and graphs."""
    x = clean(kind, 64)
    told = torch.arange(64) % 3
    family = fresh(name, kind, conditions=("A", "B", "C"))
    whole = batches(x, told)
    family.start(whole)
    for player, module in family.players().items():
        family.train().zero_grad()
        family.loss(Batch(torch.from_numpy(x), told), player, at())["total"].backward()
        named = dict(module.named_parameters())
        assert [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    family.eval()
    family.finish(whole)
    graphs = export(family)
    opened = session(graphs["score.onnx"])
    with torch.no_grad():
        score, found = family.score(Batch(torch.from_numpy(x), told))
        other, _ = family.score(Batch(torch.from_numpy(x), (told + 1) % 3))
    assert (score != other).any(), "the condition is not heard"
    expected = {"score": score.numpy(), **{k: v.numpy() for k, v in found.terms.items()}, "map": found.map.numpy()}
    got = through(opened, {"input": x, "condition": told.numpy()})
    agree(got, expected, spread_of(expected))
    one = through(opened, {"input": x[5:6], "condition": told.numpy()[5:6]})
    agree(one, {k: v[5:6] for k, v in expected.items()}, spread_of(expected))
    for graph in (g for g in ("encoder.onnx", "decoder.onnx") if g in graphs):
        assert "condition" in {i.name for i in session(graphs[graph]).get_inputs()}


def test_families_that_take_no_conditions_say_so():
    for name, kind in CASES:
        if not FAMILIES[name].conditional:
            with pytest.raises(Refusal, match=f"{name} takes no conditions"):
                fresh(name, kind, conditions=("A", "B"))
