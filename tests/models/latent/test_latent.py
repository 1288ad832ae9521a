"""Latent spaces on graphs whose answers are known."""

import numpy as np
import pytest

from toy_latents import IMAGE, RECIPES, SERIES, VECTOR, axes, bundle_of, coder_graphs, sampler, stepper
from vaegis.models.errors import Refusal
from vaegis.models.latent import Coder, combine, impute, interpolate, linear_probe, parse_arith, plane_of, traverse
from vaegis.models.latent.coder import condition_for_all


@pytest.fixture
def coder(tmp_path):
    def make(spec, graphs=None, **changed):
        graphs = coder_graphs(spec) if graphs is None else graphs
        return Coder(bundle_of(tmp_path / "bundle", spec, graphs, **changed), "cpu")

    return make


def on_plane(spec, n, seed=0):
    """Samples that the decoder can make, and their latents."""
    z = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    return (z @ axes(spec).T).reshape(n, *spec.shape), z


@pytest.mark.parametrize("spec", [VECTOR, SERIES], ids=lambda spec: spec.kind)
def test_what_was_decoded_encodes_to_its_latent(coder, spec):
    x, z = on_plane(spec, 2000)
    opened = coder(spec)
    mean, log_variance = opened.encode(x)
    assert mean == pytest.approx(z, abs=1e-5)
    assert (log_variance == -1).all()
    assert opened.decode(z) == pytest.approx(x, abs=1e-5)
    assert opened.size == 2


def test_conditions_reach_the_decoder(coder):
    opened = coder(RECIPES)
    z = np.zeros((3, 2), np.float32)
    assert opened.decode(z, np.array([0, 1, 1]))[:, 0].tolist() == [0, 10, 10]
    assert opened.generate(5, 0, 1).mean() == pytest.approx(10, abs=1.5)


def test_generated_samples_follow_the_prior(coder):
    opened = coder(VECTOR)
    drawn = opened.generate(4000, seed=1)
    w = axes(VECTOR).astype(float)
    assert np.cov(drawn.T) == pytest.approx(w @ w.T, abs=0.08)
    assert (opened.generate(7, 3) == opened.generate(7, 3)).all()
    assert (opened.generate(7, 3) != opened.generate(7, 4)).any()


def test_a_sampler_where_there_is_no_decoder(coder):
    drawn = coder(VECTOR, {"sampler.onnx": sampler(VECTOR, 4)}).generate(3000, seed=0)
    assert drawn.shape == (3000, 4)
    assert drawn.mean() == pytest.approx(1, abs=0.1) and drawn.std() == pytest.approx(3, abs=0.1)


def test_steps_count_down_from_the_fitted_number(coder):
    opened = coder(VECTOR, {"step.onnx": stepper(VECTOR)}, arguments={"steps": 10})
    start = np.random.default_rng(5).standard_normal((3, 4), np.float32)
    assert opened.generate(3, seed=5) == pytest.approx(start + 55, rel=1e-5)
    assert opened.generate(3, seed=5, steps=2) == pytest.approx(start + 3, rel=1e-5)


def test_steps_of_unknown_number_are_one_for_each_place(coder):
    start = np.random.default_rng(5).standard_normal((3, 4), np.float32)
    found = coder(VECTOR, {"step.onnx": stepper(VECTOR)}).generate(3, seed=5)
    assert found == pytest.approx(start + 10, rel=1e-5)


def test_a_number_of_steps_that_is_none_is_asked_for(coder):
    with pytest.raises(Refusal, match="--steps"):
        coder(VECTOR, {"step.onnx": stepper(VECTOR)}, arguments={"steps": 0}).generate(3, 0)


def test_what_a_family_lacks_is_said(coder):
    opened = coder(VECTOR, {})
    for ask in (lambda: opened.encode(np.zeros((1, 4), np.float32)), lambda: opened.size):
        with pytest.raises(Refusal, match="family toy has no encoder"):
            ask()
    with pytest.raises(Refusal, match="no decoder"):
        opened.decode(np.zeros((1, 2)))
    with pytest.raises(Refusal, match="neither decoder nor sampler"):
        opened.generate(1, 0)


def test_one_condition_for_all():
    assert condition_for_all(VECTOR, None, 3) is None
    assert condition_for_all(RECIPES, "B", 3).tolist() == [1, 1, 1]
    for spec, condition, words in ((RECIPES, None, "A, B"), (RECIPES, "C", "'C'"), (VECTOR, "A", "without conditions")):
        with pytest.raises(Refusal, match=words):
            condition_for_all(spec, condition, 1)


def test_imputed_values_are_those_of_the_plane(coder):
    """The fixed point of x_missing <- (W W' x)_missing, for samples on the plane, is the sample itself: two observed
    values determine two latents."""
    x, _ = on_plane(VECTOR, 30)
    gaps = x.copy()
    gaps[:, 3] = np.nan
    gaps[5, 0] = np.nan
    done = impute(coder(VECTOR), gaps, np.isnan(gaps))
    assert done.settled.all() and 1 < done.rounds < 200
    assert done.values == pytest.approx(x, abs=0.005)
    assert (done.values[~np.isnan(gaps)] == gaps[~np.isnan(gaps)]).all()


def test_nothing_missing_changes_nothing(coder):
    x, _ = on_plane(VECTOR, 4)
    x += 5.0
    done = impute(coder(VECTOR), x, np.isnan(x))
    assert (done.values == x).all() and done.rounds == 0 and done.settled.all()


def test_what_does_not_settle_is_named(coder, monkeypatch):
    monkeypatch.setattr("vaegis.models.latent.gaps.ROUNDS", 1)
    x, _ = on_plane(VECTOR, 3)
    x[0, 3] = np.nan
    done = impute(coder(VECTOR), x, np.isnan(x))
    assert done.settled.tolist() == [False, True, True]


def test_pixels_are_imputed_as_pixels(coder):
    w = axes(IMAGE)
    z = np.array([[900.0, 300.0], [-500.0, 2000.0]], np.float32)
    whole = np.clip(np.rint(z @ w.T), 0, 255).astype(np.uint8).reshape(2, 16, 16, 1)
    hole = np.zeros((1, 16, 16, 1), bool)
    hole[0, 4:8, 4:8] = True
    done = impute(coder(IMAGE), whole, hole)
    assert done.values.dtype == np.uint8
    assert (done.values[~np.broadcast_to(hole, whole.shape)] == whole[~np.broadcast_to(hole, whole.shape)]).all()


def test_lines_sums_and_single_units():
    a, b = np.array([0.0, 1.0]), np.array([4.0, -1.0])
    assert interpolate(a, b, 5).tolist() == [[0, 1], [1, 0.5], [2, 0], [3, -0.5], [4, -1]]
    assert traverse(a, 1, 2.0, 3, 1.5).tolist() == [[0, -2], [0, 1], [0, 4]]
    z = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert combine(z, parse_arith("A-B+C", 3)).tolist() == [91, 182]
    assert combine(z, parse_arith("-A + 0.5*B", 3)).tolist() == [4, 8]
    assert combine(z, parse_arith("A+A", 1)).tolist() == [2, 4]


@pytest.mark.parametrize("text", ["", "A-", "A--B", "A*2", "a+b", "A+D", "A B", "2", "A/B", "A+(B-C)"])
def test_what_is_no_sum_is_refused(text):
    with pytest.raises(Refusal, match="--arith"):
        parse_arith(text, 3)


def test_the_plane_is_that_of_largest_variance():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    z = (rng.normal(size=(4000, 5)) * [3, 2, 0.1, 0.1, 0.1]) @ turn.T + 7
    plane = plane_of(z.astype(np.float32))
    assert np.abs(plane.axes.T @ turn[:, :2]) == pytest.approx(np.eye(2), abs=0.03)
    assert plane.shares == pytest.approx((9 / 13.03, 4 / 13.03), abs=0.02)
    assert plane.place(plane.back(np.array([[1.0, -2.0]]))) == pytest.approx(np.array([[1.0, -2.0]]), abs=1e-4)
    assert plane_of(z[:, :1].astype(np.float32)).place(z[:3, :1])[:, 1].tolist() == [0, 0, 0]


def test_a_linear_probe_reads_what_a_straight_cut_can():
    z = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    side = ["left" if x < 0 else "right" for x in z[:, 1]]
    found = linear_probe(z, [*side[:-10], *[None] * 10])
    assert found.accuracy > 0.95 and found.samples == 390 and found.labels == 2
    assert found.chance == pytest.approx(max(side[:390].count(s) for s in set(side)) / 390)
    # No straight cut parts a ring's inside from its outside, nor labels that mean nothing.
    ring = ["in" if r < 1.5 else "out" for r in np.linalg.norm(z, axis=1)]
    assert linear_probe(z, ring).accuracy < linear_probe(z, ring).chance + 0.05
    guess = linear_probe(z, [str(i % 4) for i in range(400)])
    assert guess.accuracy == pytest.approx(0.25, abs=0.08)
    assert linear_probe(z, ["a"] * 400) is None and linear_probe(z, ["a"] * 397 + ["b"] * 3) is None
