"""Calibration through a graph whose score is the mean of a part, so that every number is known."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from toy_data import mean_graph
from vaegis.models.derived.calibrating import (
    calibrate_graph,
    every,
    evidence_of,
    independent,
    independent_by_group,
    usable_alpha,
)
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory
from vaegis.models.runtime.graph import Graph
from vaegis.models.spec import SeriesSpec, VectorSpec

VECTOR = VectorSpec(columns=("a", "b"))
SERIES = SeriesSpec(columns=("speed", "flow"), window=4)


def rows(n):
    """(n, 2): row i holds i twice, so its score is i."""
    return np.repeat(np.arange(n), 2).reshape(n, 2).astype(np.float32)


@dataclass(eq=False, repr=False)
class Counted(InMemory):
    """Samples that note how many parts were taken at once."""

    sizes: list = field(default_factory=list)

    def take(self, parts):
        self.sizes.append(len(parts))
        return super().take(parts)


def test_a_chosen_split_is_calibrated_with_its_own_number_of_independent_samples():
    samples, graph = InMemory(VECTOR, rows(100)), Graph(mean_graph(VECTOR), VECTOR, "cpu")
    chosen = np.arange(10, 60)
    calibration, evidence = calibrate_graph(graph, samples, chosen, effective=7)
    assert evidence["score"].tolist() == list(range(10, 60)) and evidence["twice"].tolist() == list(range(20, 120, 2))
    assert calibration.groups[""].terms["score"].values.tolist() == list(range(10, 60))
    assert calibration.groups[""].effective == 7
    assert calibration.map_range == tuple(np.quantile(np.repeat(np.arange(10, 60), 2), [0.5, 0.999]))
    assert calibrate_graph(graph, samples)[0].groups[""].effective == 100


def test_a_sample_is_as_strange_as_its_strangest_part():
    # Sample i has the parts 3 i, 3 i + 1 and 3 i + 2.
    samples = InMemory(VECTOR, rows(90), each=3)
    evidence = evidence_of(Graph(mean_graph(VECTOR), VECTOR, "cpu"), samples, np.array([4, 29]))
    assert evidence["score"].tolist() == [14, 89]


def test_parts_are_in_memory_a_few_at_a_time_with_the_same_numbers():
    parts = np.random.default_rng(0).normal(size=(2400, 2)).astype(np.float32)
    samples, graph = Counted(VECTOR, parts, each=8), Graph(mean_graph(VECTOR), VECTOR, "cpu")
    assert graph.batch == 1024
    whole = evidence_of(graph, samples, every(samples))
    few = evidence_of(graph, samples, every(samples), values=1)
    assert samples.sizes == [2400, 1024, 1024, 352]
    assert all(np.array_equal(whole[t], few[t]) for t in whole)


def test_evidence_that_is_no_number_names_its_sample():
    x = rows(60)
    x[33] = 3e38  # whose sum is beyond single precision
    samples = InMemory(VECTOR, x, tuple(f"part_{i}.csv" for i in range(60)))
    with pytest.raises(Refusal, match=r"score of clean sample 33 \(part_33\.csv\) is inf.*leave it out"):
        calibrate_graph(Graph(mean_graph(VECTOR), VECTOR, "cpu"), samples, np.arange(20, 60))


def test_groups_of_windows_share_what_is_independent_in_proportion():
    windows = np.arange(40, dtype=np.float32)[:, None, None] * np.ones((1, 4, 2), np.float32)
    groups = ("day",) * 10 + ("night",) * 30
    samples = InMemory(SERIES, windows, row=np.arange(40), calibration_groups=groups)
    calibration, _ = calibrate_graph(Graph(mean_graph(SERIES), SERIES, "cpu"), samples)
    assert {g: c.effective for g, c in calibration.groups.items()} == {"": 10, "day": 2, "night": 7}
    assert calibration.groups["night"].terms["score"].values.tolist() == list(range(10, 40))


@pytest.mark.parametrize(
    ("groups", "n", "effective", "known"),
    [
        (None, 40, 10, 10),
        (["a"] * 40, 40, 40, 40),
        (["a"] * 39 + ["b"], 40, 10, {"": 10, "a": 9, "b": 1}),  # a group has one independent sample at least
    ],
)
def test_independent_samples_by_group(groups, n, effective, known):
    assert independent_by_group(groups, n, effective) == known


def test_windows_are_counted_among_the_chosen_alone():
    parts = np.arange(48, dtype=np.float32).reshape(6, 4, 2)
    samples = InMemory(SERIES, parts, ("a",) * 4 + ("b",) * 2, np.array([0, 1, 4, 6, 0, 3]))
    assert independent(samples) == 3
    assert independent(samples, np.array([1, 2, 3, 5])) == 3  # rows 1, 6 of a and 3 of b
    assert independent(InMemory(SERIES, parts, row=np.zeros(6, np.int64))) == 6  # given as windows


def test_the_rate_that_samples_support_is_rounded_up():
    calibration, _ = calibrate_graph(Graph(mean_graph(VECTOR), VECTOR, "cpu"), InMemory(VECTOR, rows(25)))
    assert (usable_alpha(calibration, 0.01), usable_alpha(calibration, 0.2)) == (0.039, 0.2)  # 1 / 26 = 0.0385
