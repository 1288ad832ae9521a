"""What every family keeps, over every kind of input that its mathematics allows.

Each is fitted for a few steps on small data and exported once a session; the pipeline around that has tests of its own.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conforming import CASES, agree, at, batches, fresh, outputs, reaches_every_parameter, session, spread_of, through
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score

import vaegis
from toy_data import SMALL, SPECS, clean, defective
from vaegis.models.errors import Refusal
from vaegis.models.families import FAMILIES, Batch, Draw, make
from vaegis.models.families.family import keywords
from vaegis.models.inputs import InMemory
from vaegis.training.export import export, gate
from vaegis.training.fit import fit
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split
from vaegis.training.stages import fuse

REAL = [(name, kind) for name, kind in CASES if kind != "image"]  # kinds whose values are real numbers, or missing


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


STEPS = 60
MORE_STEPS = {"autoregressive": 200, "diffusion": 200, "flow": 240}  # that learn values before they learn product
FIT, HELD = 240, 40  # samples fitted on, and validated on


@dataclass(frozen=True)
class Ready:
    """A fitted family with its fused score, and its graphs by file name."""

    family: object
    graphs: dict


@functools.cache
def ready(name, kind):
    x = clean(kind, FIT + HELD)
    samples = InMemory(SPECS[kind], x)
    split = Split(np.arange(FIT), np.arange(FIT, FIT + HELD), np.empty(0, np.int64), HELD)
    family = fit(fresh(name, kind), samples, split, FitOptions(steps=MORE_STEPS.get(name, STEPS), device="cpu")).family
    fuse(family, samples, split, 0)
    return Ready(family, export(family))


@pytest.fixture
def made(case):
    return ready(*case)


@pytest.fixture
def family(made):
    return made.family


@pytest.fixture
def mixed(family):
    """Thirteen clean parts and four with a defect."""
    kind = family.spec.kind
    return np.concatenate([clean(kind, 13, seed=5), defective(kind, 4)])


def test_gradients_reach_every_parameter_of_every_player(case):
    x = clean(case[1], 32)
    family = fresh(*case)
    family.start(batches(x))
    for player, module in family.players().items():
        reaches_every_parameter(family, Batch(torch.from_numpy(x)), player, module)


def test_a_loss_follows_from_weights_and_progress_alone(case):
    x = clean(case[1], 32)
    family = fresh(*case)
    family.start(batches(x))
    for player in family.players():
        one, two = (family.loss(Batch(torch.from_numpy(x)), player, at(0.5)) for _ in range(2))
        assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in two.items()}
        assert all(v.dim() == 0 for v in one.values())


def test_evidence_repeats_bit_for_bit(family, mixed):
    one = outputs(family, mixed)
    torch.manual_seed(1)
    np.random.seed(1)
    two = outputs(family, mixed)
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_evidence_is_named_as_it_is_explained(family, mixed):
    found = outputs(family, mixed)
    assert set(found) == {"score", "map", *family.meaning}
    assert set(family.fusion.terms) <= set(family.meaning)
    assert all(len(says) > 10 for says in family.meaning.values())
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in found.values())
    assert {found[k].shape for k in found if k != "map"} == {(17,)}
    assert found["map"].shape == (17, *family.spec.map_shape)


def test_a_sample_is_judged_alike_alone_and_in_company(family, mixed):
    whole = outputs(family, mixed)
    alone = [outputs(family, mixed[i : i + 1]) for i in range(len(mixed))]
    agree({k: np.concatenate([a[k] for a in alone]) for k in whole}, whole, spread_of(whole))
    turned = outputs(family, mixed[::-1])
    agree({k: v[::-1] for k, v in turned.items()}, whole, spread_of(whole))


@pytest.mark.parametrize("size", [1, 2, 17])
def test_the_graph_says_what_torch_says(made, family, mixed, size):
    whole = outputs(family, mixed)
    graph = session(made.graphs["score.onnx"])
    found = through(graph, {"input": mixed[-size:]})
    agree(found, {k: v[-size:] for k, v in whole.items()}, spread_of(whole))
    again = through(graph, {"input": mixed[-size:]})
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in found.items()}


def test_the_latent_graphs_say_what_torch_says(made, family, mixed):
    if not family.latent_size:
        assert not {"encoder.onnx", "decoder.onnx"} & set(made.graphs)
        return
    assert ("decoder.onnx" in made.graphs) == family.decodes
    encoder = session(made.graphs["encoder.onnx"])
    decoder = session(made.graphs["decoder.onnx"]) if family.decodes else None
    for x in (mixed, mixed[:1]):
        with torch.no_grad():
            mean, log_variance = family.encode(Batch(torch.from_numpy(x)))
        found = through(encoder, {"input": x})
        assert found["mean"].shape == (len(x), family.latent_size)
        assert found["mean"] == pytest.approx(mean.numpy(), rel=1e-3, abs=1e-4)
        assert found["log_variance"] == pytest.approx(log_variance.numpy(), rel=1e-3, abs=1e-4)
        if decoder is None:
            continue
        with torch.no_grad():
            rebuilt = family.decode(Batch(mean))
        raw = through(decoder, {"latent": mean.numpy()})["reconstruction"]
        assert raw.shape == x.shape
        assert raw == pytest.approx(rebuilt.numpy(), rel=1e-3, abs=1e-3 * float(x.std()))


def test_the_export_gate_lets_it_pass(made, family):
    x = np.concatenate([clean(family.spec.kind, FIT + HELD)[FIT:], defective(family.spec.kind, 4)])
    found = gate(family, made.graphs["score.onnx"], lambda parts: x[parts], np.arange(len(x)))
    assert max(found.torch, found.batch) < 1


def test_further_graphs_say_what_torch_says(made, family):
    rng = np.random.default_rng(0)
    for name, plan in family.more_graphs().items():
        feed = {
            k: v
            if v.dtype != torch.float32 or k == "time"
            else torch.from_numpy(rng.normal(size=v.shape).astype(np.float32))
            for k, v in plan.inputs.items()
        }
        with torch.no_grad():
            expected = plan.module(*feed.values())
        expected = dict(zip(plan.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True))
        found = through(session(made.graphs[name]), {k: v.numpy() for k, v in feed.items()})
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value.numpy(), rel=1e-3, abs=1e-3 * float(value.std()))


def test_samples_follow_their_generator_or_are_refused(family):
    def drawn(seed):
        return family.sample(Draw(3, torch.Generator().manual_seed(seed)))

    try:
        one = drawn(4)
    except Refusal as refused:
        assert "cannot generate" in str(refused)
        return
    assert one.shape == (3, *family.spec.shape)
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    assert torch.equal(one, drawn(4))
    assert not torch.equal(one, drawn(5))


@pytest.mark.parametrize("name", [n for n, cls in FAMILIES.items() if "image" in cls.kinds])
def test_no_seed_breaks_on_the_digits(name):
    """The fit itself refuses a loss that is no number."""
    x = clean("image", 96)
    split = Split(np.arange(64), np.arange(64, 96), np.empty(0, np.int64), 32)
    for seed in range(5):
        torch.manual_seed(seed)
        family = make(FAMILIES, name, SPECS["image"], SMALL.get(name, {}))
        family = fit(family, InMemory(SPECS["image"], x), split, FitOptions(seed, steps=6, device="cpu")).family
        found = outputs(family, x[:8])
        assert all(np.isfinite(v).all() for v in found.values()), seed


def test_graphs_carry_no_trace_of_where_they_were_made(made):
    root = str(Path(vaegis.__file__).resolve().parents[2]).encode()
    for raw in made.graphs.values():
        assert not [word for word in (root, b"site-packages", b'.py", line', b"pkg.torch", b"namespace") if word in raw]


def test_a_fitted_family_is_rebuilt_from_arguments_and_weights(family, mixed, case):
    arguments = json.loads(json.dumps(family.arguments()))
    again = make(FAMILIES, case[0], family.spec, arguments)
    assert again.arguments() == family.arguments()
    again.load_state_dict(load(save({k: v.contiguous() for k, v in family.state_dict().items()})))
    again.eval()
    one, two = outputs(family, mixed), outputs(again, mixed)
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


def test_every_argument_is_kept_with_its_value(case):
    family = fresh(*case)
    assert set(family.arguments()) == set(keywords(type(family)))
    for name, value in SMALL.get(case[0], {}).items():
        assert family.arguments()[name] == value


def test_an_obvious_defect_scores_higher(family):
    kind = family.spec.kind
    found = outputs(family, np.concatenate([clean(kind, 60, seed=5), defective(kind, 40)]))
    label = np.repeat([0, 1], [60, 40])
    assert roc_auc_score(label, found["score"]) > 0.9
    for term in family.fusion.terms:
        assert roc_auc_score(label, found[term]) > 0.6, f"{term} points the wrong way"


def test_a_defect_shows_where_it_is(family):
    kind = family.spec.kind
    heat = outputs(family, defective(kind, 20))["map"]
    inside = {"image": np.s_[:, 3:13, 3:13], "series": np.s_[:, 8:, 1], "vector": np.s_[:, 2]}[kind]
    assert heat[inside].mean() > 1.2 * heat.mean()


def test_unknown_arguments_are_refused_with_the_right_ones(case):
    name, kind = case
    with pytest.raises(Refusal) as refused:
        make(FAMILIES, name, SPECS[kind], {"latnet": 3})
    assert "'latnet'" in str(refused.value)
    for right in keywords(FAMILIES[name]):
        assert right in str(refused.value)


def test_kinds_that_a_family_cannot_take_are_refused():
    for name, cls in FAMILIES.items():
        for kind in set(SPECS) - set(cls.kinds):
            with pytest.raises(Refusal, match=f"{name} takes .* inputs, not {kind}"):
                make(FAMILIES, name, SPECS[kind], {})


def test_missing_values_are_refused_where_every_value_is_needed():
    for name, cls in FAMILIES.items():
        if not cls.takes_missing:
            with pytest.raises(
                Refusal, match=f"Family {name} needs every value of a sample; leave --missing allow out"
            ):
                fresh(name, "vector", missing="allow")


@pytest.mark.parametrize(("name", "kind"), REAL)
def test_what_is_not_a_number_is_never_judged(name, kind):
    family = ready(name, kind).family
    x = clean(kind, 6)
    whole = outputs(family, x)
    x[2].flat[1] = np.nan
    x[4].flat[0] = np.inf
    found = outputs(family, x)
    for i in (2, 4):
        assert not all(np.isfinite(found[k][i]) for k in found if k != "map")
    for i in (0, 1, 3, 5):
        assert found["score"][i] == pytest.approx(whole["score"][i], rel=1e-3)
