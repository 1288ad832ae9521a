"""What every family keeps, over every kind of input that its mathematics allows."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load
from sklearn.metrics import roc_auc_score
from toy_data import SMALL, SPECS, clean, defective

import models
from models.errors import Refusal
from models.families import FAMILIES, Progress, make
from models.families.family import keywords
from training.export import TOLERANCE, export

CASES = [(name, kind) for name, cls in FAMILIES.items() for kind in cls.kinds]
GAPPY = [(name, kind) for name, kind in CASES if kind != "image"]  # kinds whose values can be missing


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def made(case, fitted):
    """What the pipeline made of the kind's clean source."""
    return fitted(*case)


@pytest.fixture
def family(made):
    return made.fitted.family


@pytest.fixture
def mixed(family):
    """Thirteen clean parts and four with a defect."""
    kind = family.spec.kind
    return np.concatenate([clean(kind, 13, seed=5), defective(kind, 4)])


def fresh(name, kind, **changed):
    torch.manual_seed(0)
    return make(FAMILIES, name, dataclasses.replace(SPECS[kind], **changed), SMALL.get(name, {}))


def batches(x, size=32):
    return lambda: iter(torch.from_numpy(x).split(size))


def at(share=1.0):
    return Progress(int(100 * share), 100, torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(family, x):
    """Every output of the score graph by name, as torch gives it."""
    score, found = family.scored(torch.from_numpy(np.ascontiguousarray(x)))
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


def reaches_every_parameter(family, x, player, module):
    family.zero_grad()
    family.train()
    family.loss(x, player, at())["total"].backward()
    named = dict(module.named_parameters())
    assert named
    idle = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_gradients_reach_every_parameter_of_every_player(case):
    x = clean(case[1], 32)
    family = fresh(*case)
    family.start(batches(x))
    for player, module in family.players().items():
        reaches_every_parameter(family, torch.from_numpy(x), player, module)


def test_a_loss_follows_from_weights_and_progress_alone(case):
    x = clean(case[1], 32)
    family = fresh(*case)
    family.start(batches(x))
    for player in family.players():
        one, two = (family.loss(torch.from_numpy(x), player, at(0.5)) for _ in range(2))
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
    graph = session(made.bundle.read("score.onnx"))
    found = through(graph, {"input": mixed[-size:]})
    agree(found, {k: v[-size:] for k, v in whole.items()}, spread_of(whole))
    again = through(graph, {"input": mixed[-size:]})
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in found.items()}


def test_the_latent_graphs_say_what_torch_says(made, family, mixed):
    if not family.latent_size:
        assert not {"encoder.onnx", "decoder.onnx"} & set(made.bundle.manifest.files)
        return
    encoder, decoder = session(made.bundle.read("encoder.onnx")), session(made.bundle.read("decoder.onnx"))
    for x in (mixed, mixed[:1]):
        with torch.no_grad():
            mean, log_variance = family.encode(torch.from_numpy(x))
            rebuilt = family.decode(mean)
        found = through(encoder, {"input": x})
        assert found["mean"].shape == (len(x), family.latent_size)
        assert found["mean"] == pytest.approx(mean.numpy(), rel=1e-3, abs=1e-4)
        assert found["log_variance"] == pytest.approx(log_variance.numpy(), rel=1e-3, abs=1e-4)
        raw = through(decoder, {"latent": mean.numpy()})["reconstruction"]
        assert raw.shape == x.shape
        assert raw == pytest.approx(rebuilt.numpy(), rel=1e-3, abs=1e-3 * float(x.std()))


def test_graphs_carry_no_trace_of_where_they_were_made(made):
    root = str(Path(models.__file__).parents[1]).encode()
    for name in (n for n in made.bundle.manifest.files if n.endswith(".onnx")):
        raw = made.bundle.read(name)
        assert not [word for word in (root, b"site-packages", b'.py", line', b"pkg.torch", b"namespace") if word in raw]


def test_a_fitted_family_is_rebuilt_from_its_bundle(made, family, mixed, case):
    arguments = json.loads(json.dumps(made.bundle.manifest.arguments))
    again = make(FAMILIES, case[0], made.bundle.spec, arguments)
    assert again.arguments() == family.arguments()
    again.load_state_dict(load(made.bundle.read("weights.safetensors")))
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


@pytest.mark.parametrize(("name", "kind"), GAPPY)
def test_what_is_not_a_number_is_never_judged(name, kind, fitted):
    family = fitted(name, kind).fitted.family
    x = clean(kind, 6)
    whole = outputs(family, x)
    x[2].flat[1] = np.nan
    x[4].flat[0] = np.inf
    found = outputs(family, x)
    for i in (2, 4):
        assert not all(np.isfinite(found[k][i]) for k in found if k != "map")
    for i in (0, 1, 3, 5):
        assert found["score"][i] == pytest.approx(whole["score"][i], rel=1e-3)


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
        reaches_every_parameter(family, torch.from_numpy(x), player, module)
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
