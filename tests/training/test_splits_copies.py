"""Copies count once; rows of codes are draws; lots count as lots."""

import numpy as np
import pytest

from toy_data import IMAGES, SERIES, VECTORS, WINDOW, digits, pump, vectors, windows
from vaegis.models.derived.copies import copies_of
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory
from vaegis.models.spec import SeriesSpec, VectorSpec
from vaegis.training.splits import split
from vaegis.training.stages import partition_samples

CODES = VectorSpec(columns=("mode", "door"))


def codes(counts):
    """Rows of states (i, i % 2), state i as often as counts[i], shuffled."""
    states = np.repeat(np.arange(len(counts)), counts)
    rows = np.stack([states, states % 2], 1).astype(np.float32)
    return InMemory(CODES, np.random.default_rng(5).permutation(rows))


def test_thirty_images_saved_ten_times_are_thirty():
    thirty = digits(most=30)[..., None]
    partition = partition_samples(InMemory(IMAGES, np.tile(thirty, (10, 1, 1, 1))), 0)
    assert partition.split.counts() == {"fit": 12, "validate": 6, "calibrate": 12}
    assert partition.split.effective == 12
    chosen = np.concatenate([partition.split.fit, partition.split.validate, partition.split.calibrate])
    assert sorted(chosen.tolist()) == list(range(30))
    (note,) = partition.notes
    assert note.startswith("Of 300 clean samples 270 are copies of others: 30 are distinct.")


@pytest.mark.parametrize("times", [2, 7])
def test_the_split_of_a_table_written_several_times_is_that_of_the_table(times):
    rows = vectors(200, 1)
    alone, again = (split(InMemory(VECTORS, np.tile(rows, (t, 1))), 0) for t in (1, times))
    assert again.effective == alone.effective == 80
    assert (again.calibrate == alone.calibrate).all()
    assert (again.fit == alone.fit).all()


def test_a_frozen_row_of_measurements_counts_once():
    rows = np.round(vectors(400, 1), 2)
    rows[100:350] = rows[100]
    partition = partition_samples(InMemory(VECTORS, rows), 0)
    assert sum(partition.split.counts().values()) == 151
    assert "Of 400 clean rows 249 are copies of others: 151 are distinct." in partition.notes[0]


def test_too_few_distinct_samples_are_counted():
    with pytest.raises(Refusal, match="The 150 clean samples form 15 distinct samples, the others are copies"):
        split(InMemory(VECTORS, np.repeat(vectors(15, 1), 10, axis=0)), 0)


def test_clean_data_in_which_nothing_varies_are_refused():
    row = np.arange(200)
    series = InMemory(SERIES, np.full((200, WINDOW, 3), 5, np.float32), row=row)
    for samples in (series, InMemory(VECTORS, np.ones((100, 6), np.float32))):
        with pytest.raises(Refusal, match=f"Nothing varies in the clean data: all {len(samples)} samples are equal"):
            partition_samples(samples, 0)


def test_windows_given_as_such_count_once():
    some = windows(pump(16 * 50, 1), stride=16)
    parted = split(InMemory(SERIES, np.repeat(some, 3, axis=0)), 0)
    assert (sum(parted.counts().values()), parted.effective) == (50, 20)


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_codes_are_draws_parted_within_each_state(seed):
    counts = [1304, 529, 521, 207, 192, 91, 87, 35, 23, 11]
    samples = codes(counts)
    partition = partition_samples(samples, seed)
    parted = partition.split
    assert sum(parted.counts().values()) == 3000
    assert abs(len(parted.calibrate) - 600) <= 1
    assert abs(len(parted.validate) - 360) <= 1
    assert parted.effective == len(parted.calibrate)
    state = samples.parts[:, 0].astype(int)
    for side, share in ((parted.calibrate, 0.2), (parted.validate, 0.12)):
        assert (np.abs(np.bincount(state[side], minlength=10) - share * np.array(counts)) < 2).all()
    assert "3000 rows are taken as draws of 10 states" in partition.notes[0]


def test_each_draw_of_a_state_is_as_likely_to_be_calibrated():
    samples = codes([60, 27, 13])
    hits = sum(np.bincount(split(samples, seed).calibrate, minlength=100) for seed in range(200))
    # 40 of 100 rows each time: 80 hits of 200, standard deviation 6.9.
    assert hits.min() > 80 - 4 * 7 and hits.max() < 80 + 4 * 7


def test_states_with_too_few_rows_are_named():
    counts = [500, 300, 150, 60, 2, 1]
    notes = partition_samples(codes(counts), 0).notes
    assert "mode 4, door 0 (rows: 2); mode 5, door 1 (rows: 1)" in notes[1]


def test_a_table_of_codes_written_twice_counts_once():
    counts = [200, 151, 130, 75, 60, 33, 21, 12, 11, 7]
    copies = copies_of(codes([2 * c for c in counts]))
    assert (copies.draws, copies.writings, len(copies.counted), copies.distinct) == (True, 2, 700, 10)
    samples = codes([2 * c for c in counts])
    assert np.bincount(samples.parts[copies.counted, 0].astype(int)).tolist() == counts


def test_lots_of_codes_stay_whole_and_count():
    samples = codes([300, 200, 100])
    samples.groups = tuple(f"lot-{i // 20}" for i in range(600))
    partition = partition_samples(samples, 0)
    lots = {samples.groups[i] for i in partition.split.calibrate}
    assert partition.split.effective == len(lots) == len(partition.split.calibrate) // 20
    assert not lots & {samples.groups[i] for i in partition.split.fit}
    assert f"samples of {len(lots)} lots (--group-by)" in partition.notes[-1]


def test_lots_of_measurements_count_as_lots():
    groups = tuple(f"lot-{i // 25}" for i in range(500))
    parted = split(InMemory(VECTORS, vectors(500, 1), groups=groups), 0)
    assert parted.effective == len({groups[i] for i in parted.calibrate}) == 4


def test_a_series_recorded_twice_lies_where_the_first_does_and_counts_once():
    once = windows(pump(3000, 1))
    starts = np.arange(len(once))
    names = ("a.csv",) * len(once) + ("b.csv",) * len(once)
    twice = InMemory(SERIES, np.concatenate([once, once[::-1]]), names, np.tile(starts, 2))
    parted, alone = split(twice, 0), split(InMemory(SERIES, once, row=starts), 0)
    assert parted.effective == alone.effective
    assert (parted.calibrate[: len(alone.calibrate)] == alone.calibrate).all()
    mirrored = 2 * len(once) - 1 - parted.calibrate[len(alone.calibrate) :]
    assert set(mirrored.tolist()) == set(alone.calibrate.tolist())


def test_windows_of_a_signal_that_repeats_itself_count_once_each():
    spec = SeriesSpec(("valve",), WINDOW)
    parts = windows(np.tile(np.arange(40, dtype=np.float32), 50)[:, None])
    partition = partition_samples(InMemory(spec, parts, row=np.arange(len(parts))), 0)
    assert min(partition.split.counts().values()) > 0
    assert 1 <= partition.split.effective <= 40 // WINDOW + 1
    assert f"Of {len(parts)} windows {len(parts) - 40} are copies of earlier ones." in partition.notes[0]
