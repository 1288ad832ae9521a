"""Reports: their numbers against known answers, and their pages as a person's browser would take them."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vaegis.models.calibration import ALL, calibrate, decide
from vaegis.models.families import FAMILIES, make
from vaegis.models.inputs import InMemory
from vaegis.models.manifest import Training
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec
from vaegis.training.export import export
from vaegis.training.fit import fit
from vaegis.training.report import Facts, build
from vaegis.training.report.contents import plain
from vaegis.training.report.judgement import warnings
from vaegis.training.report.measurements import Shown, measure
from vaegis.training.report.numbers import numbers, settled
from vaegis.training.report.panels import Display
from vaegis.training.request import FitOptions
from vaegis.training.splits import Split, split

VECTOR = VectorSpec(columns=("a", "b", "c"))


def constant(name, value, kind=np.float32):
    return numpy_helper.from_array(np.asarray(value, kind), name)


def graph(nodes, outputs, constants, spec, inputs=()):
    kind = TensorProto.UINT8 if spec.kind == "image" and spec.depth == 8 else TensorProto.FLOAT
    given = inputs or [helper.make_tensor_value_info("input", kind, ["batch", *spec.shape])]
    named = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    made = helper.make_graph(nodes, "toy", given, named, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def toy_score(spec):
    """score = a = mean x^2, b = -mean x^2; map = x^2."""
    nodes = [
        helper.make_node("Mul", ["input", "input"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["score"], keepdims=0),
        helper.make_node("Identity", ["score"], ["a"]),
        helper.make_node("Neg", ["score"], ["b"]),
    ]
    outputs = {"score": ["batch"], "a": ["batch"], "b": ["batch"], "map": ["batch", *spec.map_shape]}
    return graph(nodes, outputs, [constant("axes", range(1, 1 + len(spec.shape)), np.int64)], spec)


def toy_encoder(spec, weights):
    """mean = x * weights, log_variance = 0."""
    nodes = [
        helper.make_node("Mul", ["input", "weights"], ["mean"]),
        helper.make_node("Mul", ["input", "zero"], ["log_variance"]),
    ]
    shape = ["batch", len(weights)]
    return graph(
        nodes, {"mean": shape, "log_variance": shape}, [constant("weights", weights), constant("zero", 0.0)], spec
    )


def toy_decoder(share):
    """reconstruction = share * latent."""
    nodes = [helper.make_node("Mul", ["latent", "share"], ["reconstruction"])]
    given = [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", 3])]
    return graph(nodes, {"reconstruction": ["batch", 3]}, [constant("share", share)], VECTOR, given)


def toy_facts(parts, graphs, spec=VECTOR, **changed):
    """Facts with a third of the samples on each side; `score` = mean x^2 of each."""
    n = len(parts)
    sides = [np.arange(n)[i::3] for i in range(3)]
    scores = (parts[sides[2]].astype(np.float64) ** 2).mean(axis=tuple(range(1, parts.ndim)))
    calibration = calibrate({"score": scores, "a": scores, "b": -scores}, None, None, (0.0, 4.0))
    facts = Facts(
        name="line-7",
        family="toy",
        arguments={"latent": 3},
        spec=spec,
        meaning={"score": "mean square", "a": "the same", "b": "its negative"},
        samples=InMemory(spec, parts, tuple(f"part-{i}.png" for i in range(n))),
        split=Split(*sides, len(sides[2])),
        history=[],
        graphs={"score.onnx": toy_score(spec), **graphs},
        calibration=calibration,
        decision=decide(calibration, 0.05),
        training=Training(stopped="steps", seconds=1.0),
        notes=("Windows of 64 rows are taken.",),
    )
    return replace(facts, **changed)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).standard_normal((600, 3)).astype(np.float32)


def report_of(facts):
    files = build(facts).files
    read = json.loads(files["report/report.json"], parse_constant=lambda c: pytest.fail(f"{c} in report.json"))
    return read, files["report/report.html"].decode()


def is_self_contained(html):
    assert not re.findall(r"""(?:src|href)\s*=\s*(?!"data:)""", html)
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert 5_000 < len(html) < 1_500_000


def test_active_units_and_kl_of_a_known_encoder(vectors):
    # Variances of the posterior means: 4, 0.0025 and 0; only the first passes 0.01.
    weights = [2.0, 0.05, 0.0]
    read, html = report_of(toy_facts(vectors, {"encoder.onnx": toy_encoder(VECTOR, weights)}))
    latent = read["latent"]
    assert (latent["active"], latent["size"], latent["collapsed"]) == (1, 3, False)
    means = vectors * np.array(weights, np.float32)
    assert [u["variance"] for u in latent["units"]] == pytest.approx(means.var(axis=0).tolist(), rel=1e-4)
    assert [u["kl"] for u in latent["units"]] == pytest.approx((means**2 / 2).mean(axis=0).tolist(), rel=1e-4)
    assert latent["explained"][0] == pytest.approx(4 / 4.0025, rel=1e-2)
    assert "1 of 3 units are active" in html


def test_a_collapsed_posterior_is_an_alarm(vectors):
    read, html = report_of(toy_facts(vectors, {"encoder.onnx": toy_encoder(VECTOR, [0.01, 0.0, 0.0])}))
    assert read["latent"]["collapsed"]
    assert read["warnings"][0]["code"] == "posterior_collapse"
    assert read["warnings"][0]["level"] == "alarm"
    assert "Do not use this model yet" in html


def test_reconstructions_that_repeat_half_of_each_value_explain_three_quarters(vectors):
    graphs = {"encoder.onnx": toy_encoder(VECTOR, [1.0, 1.0, 1.0]), "decoder.onnx": toy_decoder(0.5)}
    read, _ = report_of(toy_facts(vectors, graphs))
    # (x - x/2)^2 leaves a quarter of the variance; five components of three columns have all of it.
    assert read["reconstruction"]["explained"] == pytest.approx(0.75, abs=0.01)
    assert read["reconstruction"]["linear"] == pytest.approx(1.0)
    assert "not_learned" not in [w["code"] for w in read["warnings"]]


def test_of_an_invertible_model_reconstructions_are_not_praised(vectors):
    graphs = {"encoder.onnx": toy_encoder(VECTOR, [1.0, 1.0, 1.0]), "decoder.onnx": toy_decoder(1.0)}
    read, html = report_of(toy_facts(vectors, graphs))
    assert read["reconstruction"]["exact"] and read["reconstruction"]["explained"] == pytest.approx(1.0)
    assert "a reconstruction repeats any, clean or not" in html and "good reconstruction" not in html
    assert not {"latent_full", "latent_sparse"} & {w["code"] for w in read["warnings"]}


def test_one_reconstruction_for_all_is_an_alarm(vectors):
    graphs = {"encoder.onnx": toy_encoder(VECTOR, [1.0, 1.0, 1.0]), "decoder.onnx": toy_decoder(0.0)}
    read, html = report_of(toy_facts(vectors, graphs))
    assert read["reconstruction"]["explained"] < 0.02
    assert [w["code"] for w in read["warnings"]][0] == "not_learned"
    assert "Do not use this model yet" in html


def test_strangest_samples_come_first_with_their_rank_as_p_value(vectors):
    parts = vectors.copy()
    parts[5], parts[302], parts[8] = 30.0, 20.0, 10.0  # all three on the calibrate side: 5, 302 and 8 are 2 modulo 3
    read, html = report_of(toy_facts(parts, {}))
    first = read["strangest"][:3]
    assert [s["index"] for s in first] == [5, 302, 8]
    assert [s["item"] for s in first] == ["part-5.png", "part-302.png", "part-8.png"]
    assert [s["score"] for s in first] == pytest.approx([900, 400, 100])
    assert [s["p_value"] for s in first] == pytest.approx([1 / 200, 2 / 200, 3 / 200])
    # `b` is as far out as `a`, on its low side, and as far in its spread; the first of equals is named.
    assert {(s["worst_term"], s["worst_side"]) for s in first} == {("a", "high")}
    scores = [s["score"] for s in read["strangest"]]
    assert scores == sorted(scores, reverse=True)
    assert not {s["index"] for s in read["typical"]} & {s["index"] for s in read["strangest"]}
    assert html.index("part-5.png") < html.index("part-302.png") < html.index("part-8.png")
    # The threshold at 5 % of 200 is the tenth largest clean score.
    tenth = np.sort((parts[2::3].astype(float) ** 2).mean(axis=1))[-10]
    assert read["decision"]["threshold"] == pytest.approx(tenth)
    assert f"exceeds {tenth:.4g}" in html
    assert "about one in 20" in html


def test_evidence_that_is_unusually_low_is_named_so(vectors):
    facts = toy_facts(vectors, {})
    ranks = np.arange(200.0)
    # The strangest sample has the lowest `b` of all and a middling `a`.
    evidence = {"score": ranks, "a": np.roll(ranks, 100), "b": -ranks}
    calibration = calibrate(evidence, None, None, (0.0, 4.0))
    read, html = report_of(
        replace(facts, evidence=evidence, calibration=calibration, decision=decide(calibration, 0.05))
    )
    assert (read["strangest"][0]["worst_term"], read["strangest"][0]["worst_side"]) == ("b", "low")
    assert "<td>b (low)</td>" in html


def test_evidence_at_hand_is_used_as_it_is(vectors):
    facts = toy_facts(vectors, {})
    scores = np.arange(200.0)
    seen = measure(replace(facts, evidence={"score": scores, "a": scores, "b": -scores}))
    assert [s.sample for s in seen.strangest] == (facts.split.calibrate[-6:][::-1]).tolist()


def test_validate_and_calibrate_that_differ_are_a_warning(vectors):
    drifted = vectors.copy()
    drifted[1::3] *= 1.6
    codes = [w["code"] for w in report_of(toy_facts(drifted, {}))[0]["warnings"]]
    assert "drift" in codes
    read, _ = report_of(toy_facts(vectors, {}))
    assert "drift" not in [w["code"] for w in read["warnings"]]
    assert read["agreement"]["p_value"] > 0.01


def test_a_loss_that_still_falls_is_a_warning(vectors):
    falling = [{"step": float(i), "total": 10.0 - i, "validate": 10.0 - i} for i in range(9)]
    level = [{"step": float(i), "total": 1.0, "validate": 2.0 ** -float(min(i, 5))} for i in range(9)]
    facts = toy_facts(vectors, {}, history=falling)
    # Of a fall of 8 the best of the first six epochs leaves 3.
    assert settled(facts) == pytest.approx(3 / 8)
    assert settled(replace(facts, history=level)) == 0.0
    report = numbers(facts, measure(facts), ())
    assert "still_falling" in [w.code for w in warnings(report, 3 / 8)]
    assert "still_falling" not in [w.code for w in warnings(report, 0.0)]


def test_the_report_that_is_returned_is_the_one_in_the_file(vectors):
    graphs = {"encoder.onnx": toy_encoder(VECTOR, [1.0, 1.0, 1.0]), "decoder.onnx": toy_decoder(0.5)}
    rendering = build(toy_facts(vectors, graphs))
    read, report = json.loads(rendering.files["report/report.json"]), rendering.report
    assert read == {"format": 1, **plain(report)}
    assert read["decision"]["interval"] == list(report.decision.interval)
    assert read["reconstruction"]["explained"] == report.reconstruction.explained == pytest.approx(0.75, abs=0.01)
    assert [t["found"] for t in read["trials"]] == [t.found for t in report.trials]
    assert [w["code"] for w in read["warnings"]] == [w.code for w in report.warnings]
    assert read["terms"]["a"]["validate"]["median"] == report.terms["a"].validate.median


def test_names_are_escaped(vectors):
    facts = toy_facts(vectors, {}, notes=("a < b & <script>",), spec=VectorSpec(columns=("$x$", "<i>", "c")))
    read, html = report_of(facts)
    is_self_contained(html)
    assert "a &lt; b &amp; &lt;script&gt;" in html
    assert "&lt;i&gt;" in html
    assert read["notes"] == ["a < b & <script>"]


def test_sixteen_bit_pictures_share_one_scale():
    spec = ImageSpec(height=2, width=500, channels=1, depth=16)
    raw = np.arange(1000, dtype=np.uint16).reshape(2, 500, 1)
    shown = Shown(0, 0.0, 1.0, "a", "high", raw, None, np.zeros((2, 500), np.float32))
    display = Display.of(spec, [shown])
    assert (display.low, display.high) == pytest.approx((0.999, 998.001))
    grey = display.pixels(raw)
    assert (grey[0, 0].tolist(), grey[-1, -1].tolist()) == ([0, 0, 0], [255, 255, 255])
    assert grey[1, 0].tolist() == [128, 128, 128]


def test_channels_as_colours():
    display = Display(0.0, 255.0, 1.0)
    pixel = np.array([[[10, 20, 30, 40]]], np.uint8)
    assert display.pixels(pixel[..., :3])[0, 0].tolist() == [10, 20, 30]
    assert display.pixels(pixel[..., :2])[0, 0].tolist() == [10, 10, 10]
    assert display.pixels(pixel)[0, 0].tolist() == [10, 10, 10]


def test_a_tiled_image_shows_its_strangest_tile():
    parts = np.random.default_rng(0).standard_normal((360, 3)).astype(np.float32)
    parts[2 * 8 + 1] = 9.0  # the second tile of image 8
    facts = toy_facts(parts[:180], {"encoder.onnx": toy_encoder(VECTOR, [1.0, 1.0, 1.0])})
    doubled = InMemory(VECTOR, parts, facts.samples.items, each=2)
    seen = measure(replace(facts, samples=doubled))
    assert seen.strangest[0].sample == 8
    assert seen.strangest[0].raw.tolist() == [9.0, 9.0, 9.0]
    assert len(seen.latents.mean) == 180


def trained(spec, parts, items, row=None, **arguments):
    samples = InMemory(spec, parts, items, row=row)
    parted = split(samples, 0)
    family = make(FAMILIES, "vae", spec, arguments)
    fitted = fit(family, samples, parted, FitOptions(seed=0, steps=40, batch=32))
    graphs = export(family)
    facts = Facts(
        name="press",
        family="vae",
        arguments=family.arguments(),
        spec=spec,
        meaning={"score": "the fused statistic", **family.meaning},
        samples=samples,
        split=parted,
        history=fitted.history,
        graphs=graphs,
        calibration=calibrate({"score": np.arange(3.0)}, None, None, (0.5, 3.0)),
        decision=None,
        training=Training(stopped=fitted.stopped, best_step=fitted.best_step, steps=40, seconds=np.float64(1.0)),
        notes=(),
        log_jacobian=float(np.log(family.scale.numpy()).sum() * np.prod(spec.shape) / family.scale.numel()),
    )
    values = measure(replace(facts, calibration=calibrate(_zeros(facts), None, None, (0.5, 3.0)))).splits["calibrate"]
    calibration = calibrate(values.values, None, parted.effective, (0.5, 3.0))
    return replace(facts, calibration=calibration, decision=decide(calibration, 0.1))


def _zeros(facts):
    return {t: np.zeros(9) for t in facts.meaning}


def checked(facts):
    read, html = report_of(facts)
    is_self_contained(html)
    assert read["decision"]["threshold"] == facts.decision.threshold
    assert f"exceeds {facts.decision.threshold:.4g}" in html
    assert read["samples"]["calibrate"] == len(facts.split.calibrate)
    assert 0 <= read["latent"]["active"] <= read["latent"]["size"]
    calibrate_nats = read["terms"]["negative_elbo"]["calibrate"]["mean"]
    dimensions = int(np.prod(facts.spec.shape))
    assert read["likelihood"]["calibrate"]["bits_per_dimension"] == pytest.approx(
        (calibrate_nats + facts.log_jacobian) / (dimensions * math.log(2))
    )
    assert read["strangest"][0]["score"] == pytest.approx(facts.calibration.groups[ALL].terms["score"].values[-1])
    return read, html


def test_a_fitted_model_of_images():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    disc = np.hypot(y - 7.5, x - 7.5)[None] < rng.uniform(4, 7, (160, 1, 1))
    parts = (disc * 150 + rng.integers(0, 40, disc.shape)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    spec = ImageSpec(height=16, width=16, channels=3)
    read, html = checked(trained(spec, parts, tuple(f"{i:03}.png" for i in range(160)), width=4, latent=4))
    assert read["likelihood"]["kind"] == "discrete"
    assert 0 < read["likelihood"]["calibrate"]["bits_per_dimension"] < 10
    assert html.count("<span>reconstruction</span>") == 14
    assert "walk along latent units" in html or read["latent"]["active"] == 0


def test_a_fitted_model_of_series():
    t = np.arange(700)
    rng = np.random.default_rng(0)
    table = np.stack([np.sin(t / 9), np.cos(t / 9)], axis=1) + 0.05 * rng.standard_normal((700, 2))
    row = np.arange(700 - 16 + 1)
    parts = np.stack([table[i : i + 16] for i in row]).astype(np.float32)
    spec = SeriesSpec(columns=("speed", "flow"), window=16)
    facts = trained(spec, parts, ("run.csv",) * len(row), row=row, width=4)
    read, html = checked(facts)
    assert read["likelihood"]["kind"] == "differential"
    assert [s["row"] for s in read["strangest"]] == [row[s["index"]] for s in read["strangest"]]
    starts = sorted(s["row"] for s in read["strangest"])
    assert min(b - a for a, b in zip(starts, starts[1:], strict=False)) >= 16
    assert read["samples"]["independent"] == facts.split.effective < read["samples"]["calibrate"]
    assert f"worth {facts.split.effective} that do not overlap" in html


def test_a_fitted_model_of_vectors_with_missing_values():
    rng = np.random.default_rng(0)
    parts = (rng.standard_normal((300, 1)) + 0.3 * rng.standard_normal((300, 5))).astype(np.float32)
    parts[rng.random(parts.shape) < 0.05] = np.nan
    spec = VectorSpec(columns=tuple("abcde"), missing="allow")
    facts = trained(spec, parts, ("table.csv",) * 300, width=16)
    worst = int(facts.split.calibrate[0])
    facts.samples.parts[worst] = [np.nan, 40.0, -40.0, 40.0, -40.0]
    seen = measure(facts)
    assert seen.strangest[0].sample == worst
    assert not np.isnan(seen.strangest[0].rebuilt).any()
    _, html = report_of(facts)
    is_self_contained(html)
