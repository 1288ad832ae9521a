"""Gaps and rates of series: windows stay within a run, and an item at another rate is not judged."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from source_files import csv, opened

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, from_files, infer_spec, load
from vaegis.models.inputs.timeline import Clock, runs
from vaegis.models.spec import SeriesSpec, from_json, to_json

START = datetime(2026, 1, 1)
SPEC = SeriesSpec(("speed", "flow"), 4, timestamp="timestamp", step=60.0)


def stamps(*minutes: float) -> list[str]:
    return [(START + timedelta(minutes=m)).isoformat() for m in minutes]


def table(path: Path, minutes: list[float], form=lambda s: s) -> Path:
    values = np.arange(2.0 * len(minutes)).reshape(-1, 2)
    return csv(path, values, stamps=[form(s) for s in stamps(*minutes)])


def with_gaps(*lengths: int, step: float = 1.0) -> list[float]:
    minutes: list[float] = []
    for length in lengths:
        begin = minutes[-1] + 30 if minutes else 0
        minutes += [begin + step * i for i in range(length)]
    return minutes


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda s: s.replace("T", " "),
        lambda s: s + "Z",
        lambda s: datetime.fromisoformat(s).strftime("%d.%m.%Y %H:%M:%S"),
        lambda s: datetime.fromisoformat(s).strftime("%Y/%m/%d %H:%M:%S"),
    ],
)
def test_the_step_and_the_gaps_of_clean_data_are_seen(tmp_path, form):
    path = table(tmp_path / "t.csv", with_gaps(300, 200, 100), form)
    spec, notes = infer_spec(opened(path), InputOptions())
    assert isinstance(spec, SeriesSpec)
    assert spec.step == 60
    assert any("2 gaps of more than 2 steps of 60s" in note for note in notes)


def test_irregular_clean_data_have_no_step_and_a_note_says_so(tmp_path):
    minutes = np.cumsum(np.random.default_rng(0).exponential(1, 300)).round(3).tolist()
    spec, notes = infer_spec(opened(table(tmp_path / "t.csv", minutes)), InputOptions())
    assert isinstance(spec, SeriesSpec)
    assert spec.step is None
    assert any("not at one step" in note for note in notes)


def test_a_spec_without_a_step_is_written_as_it_was_before():
    assert "step" not in to_json(SeriesSpec(("a",), 4))
    assert from_json(to_json(SPEC)) == SPEC


def test_windows_of_a_fit_stay_within_a_run(tmp_path):
    minutes = with_gaps(10, 3, 7)
    samples = load(opened(table(tmp_path / "t.csv", minutes)), SPEC, tmp_path / "spool")
    assert samples.row is not None
    assert samples.row.tolist() == [*range(7), *range(13, 17)]


@pytest.mark.parametrize("most", [4096, 1])
def test_windows_of_a_score_are_those_of_the_fit_and_each_run_warms_up(tmp_path, most):
    source = opened(table(tmp_path / "t.csv", with_gaps(30, 3, 17)))
    rows, windows, errors, warm = 0, set(), [], []
    for block in blocks(source, SPEC, rows=most):
        assert block.index.tolist() == list(range(rows, rows + len(block)))
        rows += len(block)
        windows |= {int(part[0, 0]) // 2 for part in np.asarray(block.parts)}
        errors += list(block.errors.values())
        warm += np.asarray(block.warmup).tolist()
    assert rows == 50
    assert windows == {*range(27), *range(33, 47)}
    assert len(errors) == 3
    assert "3 rows between two gaps in time, and one window takes 4" in errors[0]
    assert [i for i, w in enumerate(warm) if w] == [0, 1, 2, 30, 31, 32, 33, 34, 35]


def test_a_model_without_a_step_judges_as_before(tmp_path):
    source = opened(table(tmp_path / "t.csv", with_gaps(10, 10)))
    (block,) = blocks(source, SeriesSpec(("speed", "flow"), 4))
    assert len(block.parts) == 17


@pytest.mark.parametrize(
    ("step", "match"),
    [(2.0, r"every 120s.*every 60s; record.*or fit.*120s"), (0.5, r"every 30s.*average it to a row every 60s")],
)
def test_an_item_at_another_rate_is_unjudged_with_the_remedy(tmp_path, step, match):
    path = table(tmp_path / "t.csv", with_gaps(40, step=step))
    (block,) = blocks(opened(path), SPEC)
    (error,) = block.errors.values()
    assert len(block.parts) == 0
    with pytest.raises(AssertionError, match=match):
        raise AssertionError(error)
    sent = from_files(SPEC, [("t.csv", path.read_bytes())])
    assert list(sent.errors.values()) == [error]


def test_small_differences_of_the_step_are_none(tmp_path):
    minutes = [i + 0.03 * (i % 2) for i in range(40)]
    (block,) = blocks(opened(table(tmp_path / "t.csv", minutes)), SPEC)
    assert len(block.parts) == 37


def test_a_clock_carries_over_chunks():
    clock = Clock()
    np.testing.assert_array_equal(clock.steps(stamps(0, 1)), [np.nan, 60])
    np.testing.assert_array_equal(clock.steps(stamps(5, 6)), [240, 60])
    assert Clock().steps(["noon", "later"]) is None


def test_runs_without_a_step_are_one():
    assert len(list(runs([], None))) == 1


def test_a_clock_put_back_is_named_with_a_remedy_that_keeps_every_row(tmp_path):
    path = table(tmp_path / "t.csv", [*range(180), *range(120, 300)])
    with pytest.raises(Refusal, match=r"local clock.*UTC or with their offset.*--exclude.*keeps every row"):
        infer_spec(opened(path), InputOptions())


def test_equal_timestamps_are_not_told_to_be_dropped_as_if_they_were_copies(tmp_path):
    path = table(tmp_path / "t.csv", [m for i in range(50) for m in (i, i)])
    with pytest.raises(Refusal, match=r"several machines.*each into its own"):
        infer_spec(opened(path), InputOptions())
