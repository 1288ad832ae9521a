import logging

import numpy as np
import pytest
from onnx import TensorProto, helper

import toy_bundles
from toy_bundles import toy_manifest
from toy_data import constant, mean_graph, onnx_bytes
from vaegis.models.blocks import Block, plain, sample_maps, strongest
from vaegis.models.bundle import write_bundle
from vaegis.models.calibration import calibrate, decide, to_bytes
from vaegis.models.errors import Refusal
from vaegis.models.runtime.graph import Graph
from vaegis.models.scorer import Scorer
from vaegis.models.spec import ImageSpec, SeriesSpec, VectorSpec

TILES = ImageSpec(height=2, width=2, channels=1, tile=True, overlap=1)
SERIES = SeriesSpec(("speed", "flow"), window=3)
VECTOR = VectorSpec(("a", "b"))


def scorer(folder, spec, graph=None, groups=None, device="cpu"):
    """A bundle whose score is the mean of the input, calibrated on 0, 1, ..., 99."""
    scores = np.arange(100.0)
    bundle = write_bundle(
        folder / "bundle",
        {
            "score.onnx": graph or mean_graph(spec),
            "calibration.npz": to_bytes(calibrate({"score": scores, "twice": 2 * scores}, groups, None, (0.0, 9.0))),
        },
        toy_manifest(spec),
    )
    return Scorer(bundle, device)


def rows(*values):
    """Vectors of two equal columns."""
    return np.array([[v, v] for v in values], np.float32)


def test_verdicts_by_hand(tmp_path):
    toy = scorer(tmp_path, VECTOR)
    found = toy.verdicts(plain(rows(-1, 50, 95, 96, 1000)), decide(toy.calibration, 0.05))
    # Of 101 the five smallest p-values are allowed: the fifth largest of 0..99 is 95, and s must exceed it.
    assert found.status == ["ok", "ok", "ok", "anomalous", "anomalous"]
    assert found.p_values["score"].tolist() == pytest.approx([1, 51 / 101, 6 / 101, 5 / 101, 1 / 101])
    assert found.evidence["twice"].tolist() == [-2, 100, 190, 192, 2000]
    assert found.p_values["twice"].tolist() == found.p_values["score"].tolist()
    assert found.anomalous.tolist() == [False, False, False, True, True]
    assert found.errors == {}
    assert found.maps is None
    assert list(found.evidence) == ["score", "twice"]


def test_another_term_can_decide(tmp_path):
    toy = scorer(tmp_path, VECTOR)
    found = toy.verdicts(plain(rows(40, 60)), decide(toy.calibration, threshold=100.0, decide_by="twice"))
    assert found.status == ["ok", "anomalous"]
    assert found.p_tail.tolist() == pytest.approx(
        toy.calibration.group(None).terms["twice"].p_tail(np.array([80.0, 120.0])).tolist()
    )


def tiled():
    """One 3x3 image of four overlapping tiles, one unreadable image, one 2x3 image of two tiles."""
    big, small = np.arange(9).reshape(3, 3), np.array([[0, 0, 90], [0, 0, 90]])
    place = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1)]
    pictures = [big] * 4 + [small] * 2
    parts = np.stack([p[y : y + 2, x : x + 2] for p, (y, x) in zip(pictures, place, strict=True)])[..., None]
    return Block(
        items=["a.png", "b.png", "c.png"],
        index=np.arange(3),
        parts=parts.astype(np.uint8),
        first=np.array([0, 4, 4]),
        count=np.array([4, 0, 2]),
        errors={1: "It is no image."},
        place=np.array(place),
        extents=[(3, 3), (0, 0), (2, 3)],
    )


def test_an_image_is_as_strange_as_its_strangest_tile(tmp_path):
    toy = scorer(tmp_path, TILES)
    found = toy.verdicts(tiled(), decide(toy.calibration, 0.05), maps=True)
    assert found.evidence["score"][[0, 2]].tolist() == [(4 + 5 + 7 + 8) / 4, 45.0]
    assert np.isnan(found.evidence["score"][1])
    assert found.status == ["ok", "unjudged", "ok"]
    assert found.errors == {1: "It is no image."}
    assert not found.anomalous[1]


def test_stitched_maps_by_hand(tmp_path):
    # Overlapping tiles of one picture agree, so that the mean gives the picture back ...
    found = scorer(tmp_path, TILES).evidence(tiled(), maps=True).maps
    assert found[0].tolist() == np.arange(9.0).reshape(3, 3).tolist()
    assert found[1] is None
    assert found[2].tolist() == [[0, 0, 90], [0, 0, 90]]
    # ... and where they do not, every tile counts the same.
    maps = np.stack([np.full((2, 2), v, np.float32) for v in (1, 2, 3, 6, 10, 20)])
    assert sample_maps(tiled(), maps)[0].tolist() == [[1, 1.5, 2], [2, 3, 4], [3, 4.5, 6]]
    assert sample_maps(tiled(), maps)[2].tolist() == [[10, 15, 20], [10, 15, 20]]


def series_block():
    """Rows 2..5 of a series in windows of three rows that start at rows 0, 1, 2 and 3."""
    table = np.arange(16.0).reshape(8, 2)
    starts = [0, 1, 2, 3]
    return Block(
        items=["run.csv"] * 4,
        index=np.arange(2, 6),
        parts=np.stack([table[s : s + 3] for s in starts]).astype(np.float32),
        first=np.arange(4),
        count=np.ones(4, np.int64),
        place=np.array([[s - 2] for s in starts]),
    )


def test_a_rows_map_is_the_mean_over_its_windows():
    maps = np.stack([np.full((3, 2), v, np.float32) for v in (1, 10, 100, 1000)])
    maps[1, 2] = [40, 70]  # the third row of the window from row 1 is row 3
    found = sample_maps(series_block(), maps)
    assert [m.tolist() for m in found] == [
        [37.0, 37.0],  # row 2: windows 0, 1 and 2
        pytest.approx([1140 / 3, 1170 / 3]),  # row 3: windows 1, 2 and 3
        [550.0, 550.0],  # row 4: windows 2 and 3
        [1000.0, 1000.0],  # row 5: window 3
    ]


def test_a_row_without_a_window_has_no_map():
    block = series_block()
    block.count[1] = 0
    maps = sample_maps(block, np.ones((4, 3, 2), np.float32))
    assert [m is None for m in maps] == [False, True, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_evidence_that_is_not_finite_is_never_clean(tmp_path, bad):
    toy = scorer(tmp_path, VECTOR)
    found = toy.verdicts(plain(rows(1, bad, 99)), decide(toy.calibration, 0.05), maps=True)
    assert found.status == ["ok", "unjudged", "anomalous"]
    assert "score is not a finite number" in found.errors[1]
    assert not found.anomalous[1]
    for column in (*found.evidence.values(), *found.p_values.values(), found.p_tail):
        assert np.isnan(column[1])
        assert np.isfinite(column[[0, 2]]).all()


def test_one_term_that_is_not_finite_is_enough(tmp_path):
    # twice = 2 x overflows float32 where score does not.
    toy = scorer(tmp_path, VectorSpec(("a",)))
    found = toy.verdicts(plain(np.array([[2e38]], np.float32)), decide(toy.calibration, 0.05))
    assert found.status == ["unjudged"]
    assert "twice is not a finite number" in found.errors[0]


def test_each_group_has_its_own_threshold(tmp_path):
    toy = scorer(tmp_path, VECTOR, groups=["left"] * 50 + ["right"] * 50)
    block = plain(rows(48, 48, 98, 98, 48, 48), groups=["left", "right", "left", "right", None, "up"])
    found = toy.verdicts(block, decide(toy.calibration, 0.05))
    # The second largest (5 % of 51 is 2.55) is 48 of the left ones and 98 of the right ones; 95 of all.
    assert found.status == ["ok", "ok", "anomalous", "ok", "ok", "unjudged"]
    p = found.p_values["score"][:5]
    assert p.tolist() == pytest.approx([3 / 51, 1.0, 1 / 51, 3 / 51, 53 / 101])
    assert "no calibration for group 'up'" in found.errors[5]
    together = toy.verdicts(block, decide(toy.calibration, 0.05, group="left"))
    assert together.status == ["ok", "ok", "anomalous", "anomalous", "ok", "ok"]
    given = toy.verdicts(block, decide(toy.calibration, threshold=50.0))
    assert given.status == ["ok", "ok", "anomalous", "anomalous", "ok", "unjudged"]


def test_batches_of_any_size_agree_bit_for_bit():
    graph = Graph(mean_graph(VECTOR), VECTOR, "cpu")
    x = np.random.default_rng(0).normal(size=(257, 2)).astype(np.float32)
    whole = graph.run(x, maps=True)
    for size in (1, 7, 64, 256, 1000):
        again = graph.run(x, maps=True, batch=size)
        assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in whole.items()}
    assert whole["map"].tolist() == x.tolist()


def test_more_parts_than_one_call_takes():
    spec = ImageSpec(height=128, width=128, channels=1)  # 16 to a call
    x = np.random.default_rng(0).integers(0, 255, (50, 128, 128, 1)).astype(np.uint8)
    found = Graph(mean_graph(spec), spec, "cpu").run(x)["score"]
    assert found == pytest.approx(x.mean(axis=(1, 2, 3)), rel=1e-6)


def test_a_warmed_graph_says_the_same_in_calls_that_suit_the_machine():
    graph, x = Graph(mean_graph(VECTOR), VECTOR, "cpu"), np.random.default_rng(0).normal(size=(3000, 2)).astype("f4")
    before = graph.run(x)["score"]
    pace = graph.warm()
    sizes = [2**n for n in range(11)]
    assert pace.enough in sizes and pace.best in sizes and pace.enough <= pace.best
    assert np.array_equal(graph.run(x)["score"], before)


def test_nothing_to_score():
    out = Graph(mean_graph(SERIES), SERIES, "cpu").run(np.empty((0, 3, 2), np.float32), maps=True)
    assert {k: v.shape for k, v in out.items()} == {"score": (0,), "twice": (0,), "map": (0, 3, 2)}


def test_missing_values_travel_as_a_mask():
    # score = sum of x where it is observed; times = how many are.
    spec = VectorSpec(("a", "b"), missing="allow")
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("ReduceSum", ["input", "axes"], ["score"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axes"], ["seen"], keepdims=0),
        helper.make_node("Identity", ["mask"], ["map"]),
    ]
    outputs = {"score": ["batch"], "seen": ["batch"], "map": ["batch", 2]}
    raw = onnx_bytes(nodes, outputs, [constant("axes", [1], np.int64)], spec, [mask])
    x = np.array([[1, 2], [np.nan, 2], [np.nan, np.nan]], np.float32)
    out = Graph(raw, spec, "cpu").run(x, maps=True)
    assert out["score"].tolist() == [3, 2, 0]
    assert out["seen"].tolist() == [2, 1, 0]
    assert np.isnan(x[1, 0])


def test_the_strongest_part_by_hand():
    values = np.array([5.0, 1.0, 9.0, np.nan, 2.0])
    found = strongest(values, np.array([0, 1, 2, 4]), np.array([1, 2, 2, 1]))
    assert found[[0, 1, 3]].tolist() == [5.0, 9.0, 2.0]
    assert np.isnan(found[2])
    assert strongest(values, np.array([], int), np.array([], int)).tolist() == []


def without_gpu():
    from vaegis.models.runtime.sessions import has_gpu

    return not has_gpu()


@pytest.mark.skipif(not without_gpu(), reason="there is a GPU here")
def test_cuda_is_strict_and_auto_is_not(tmp_path, caplog):
    with pytest.raises(Refusal, match=r"Device cuda was asked for.*ask for device cpu\."):
        scorer(tmp_path / "strict", VECTOR, device="cuda")
    with caplog.at_level(logging.WARNING, "vaegis"):
        assert scorer(tmp_path / "auto", VECTOR, device="auto").device == "cpu"
    assert not caplog.records


def test_samples_in_memory_are_scored_at_the_bundles_rate_or_another(tmp_path):
    scorer = Scorer(toy_bundles.toy_bundle(tmp_path / "bundle", toy_bundles.VECTOR), "cpu")
    rows = np.array([[1.0, 2.0, 3.0], [12.0, 15.0, 18.0], [13.5, 13.5, 13.5]])  # mean squares 4.67, 231, 182.25
    verdicts = scorer.score(rows)
    assert verdicts.decision.alpha == 0.05
    assert verdicts.evidence["score"] == pytest.approx([14 / 3, 231.0, 182.25])
    assert verdicts.p_values["score"] == pytest.approx([196 / 200, 1 / 200, 18 / 200])  # 1 to 199 are clean
    assert verdicts.status == ["ok", "anomalous", "ok"]
    assert scorer.score(rows, alpha=0.1).status == ["ok", "anomalous", "anomalous"]
    assert verdicts.maps is None
    assert scorer.score(rows.tolist(), maps=True).maps[1].tolist() == [144.0, 225.0, 324.0]
    with pytest.raises(Refusal, match="columns|values"):
        scorer.score(np.zeros((2, 4)))
