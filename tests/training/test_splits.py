import dataclasses

import numpy as np
import pytest

from toy_data import IMAGES, SERIES, VECTORS, WINDOW, digits, pump, vectors, windows
from vaegis.models import inputs
from vaegis.models.blocks import parts_of
from vaegis.models.errors import Refusal
from vaegis.models.inputs import InMemory, InputOptions
from vaegis.models.sources import SourceOptions, open_source
from vaegis.models.spec import SeriesSpec
from vaegis.training.splits import split


def rows(n, **more):
    return InMemory(VECTORS, vectors(n, 1), **more)


def sides(n, parted):
    """Which side each sample is on; every sample is on one."""
    found = np.full(n, "", object)
    for name in ("fit", "validate", "calibrate"):
        chosen = getattr(parted, name)
        assert (np.diff(chosen) > 0).all()
        assert (found[chosen] == "").all()
        found[chosen] = name
    return found


@pytest.mark.parametrize(
    ("n", "validate", "calibrate"),
    [
        (20, 4, 8),  # calibrate is capped at 40 %, validate at 20 %
        (100, 20, 40),
        (240, 40, 96),
        (248, 40, 99),  # 99 samples
        (495, 60, 99),
        (500, 60, 100),  # 20 %
        (1000, 120, 200),
        (2001, 241, 401),
    ],
)
def test_sizes(n, validate, calibrate):
    parted = split(rows(n), 0)
    assert parted.counts() == {"fit": n - validate - calibrate, "validate": validate, "calibrate": calibrate}
    assert parted.effective == calibrate
    assert (sides(n, parted) != "").all()


def test_the_seed_decides_and_nothing_else():
    one, again, other = split(rows(300), 0), split(rows(300), 0), split(rows(300), 1)
    assert (one.calibrate == again.calibrate).all()
    assert (one.fit == again.fit).all()
    # Chance overlap of 99 of 300 with another 99 is a third.
    assert 15 <= len(set(one.calibrate) & set(other.calibrate)) <= 55


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_any_seed_is_taken(seed):
    assert len(split(rows(300), seed).calibrate) == 99


def test_names_and_order_decide_nothing():
    parts = vectors(300, 1)
    one = split(InMemory(VECTORS, parts, items=tuple(f"a{i}.csv" for i in range(300))), 0)
    turn = np.random.default_rng(0).permutation(300)
    other = split(InMemory(VECTORS, parts[turn], items=tuple(f"z/{i}" for i in range(300))), 0)
    for side in ("fit", "validate", "calibrate"):
        assert set(turn[getattr(other, side)]) == set(getattr(one, side))


def test_no_copy_lies_on_two_sides():
    rng = np.random.default_rng(0)
    parts = vectors(120, 1)[rng.integers(0, 120, 600)]
    found = sides(600, split(InMemory(VECTORS, parts), 3))
    for value in np.unique(parts[:, 0]):
        equal = found[parts[:, 0] == value]
        assert (equal != "").tolist() == [True] + [False] * (len(equal) - 1)  # the first, and no other


def test_groups_stay_whole():
    groups = tuple(f"batch-{g}" for g in np.random.default_rng(0).integers(0, 25, 500))
    parted = split(rows(500, groups=groups), 0)
    found = sides(500, parted)
    for group in set(groups):
        assert len({s for s, g in zip(found, groups, strict=True) if g == group}) == 1
    assert abs(len(parted.calibrate) - 100) <= 20


def test_groups_that_share_a_copy_are_one():
    parts = vectors(200, 1)
    groups = [str(i // 10) for i in range(200)]
    parts[15] = parts[3]  # groups 0 and 1
    parts[27] = parts[11]  # groups 1 and 2
    found = sides(200, split(InMemory(VECTORS, parts, groups=tuple(groups)), 0))
    assert len(set(found[:30]) - {""}) == 1
    assert np.flatnonzero(found == "").tolist() == [15, 27]


def test_tiles_of_an_image_go_together():
    samples = InMemory(IMAGES, digits(most=240)[..., None], each=3)
    parted = split(samples, 0)
    assert sum(parted.counts().values()) == 80
    assert parts_of(samples, np.array([0, 2, 5])).tolist() == [0, 1, 2, 6, 7, 8, 15, 16, 17]
    assert parts_of(rows(9), np.array([1, 4])).tolist() == [1, 4]
    assert parts_of(samples, np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_samples_are_counted(n):
    with pytest.raises(Refusal, match=f"^{n} clean samples were given; fitting needs at least 20"):
        split(rows(n), 0)


def test_too_few_groups_or_distinct_samples_are_counted():
    with pytest.raises(Refusal, match="form 2 groups that must stay whole"):
        split(rows(100, groups=("a", "b") * 50), 0)
    with pytest.raises(Refusal, match="form 1 distinct samples"):
        split(InMemory(VECTORS, np.ones((100, 6), np.float32)), 0)


def series(n, stride=1, window=WINDOW, items=None):
    """Every window of series of n rows each, no two alike."""
    spec = SeriesSpec(SERIES.columns, window, stride)
    starts = np.arange(0, n - window + 1, stride)
    names = items or ("run.csv",)
    parts = np.zeros((len(starts) * len(names), *spec.shape), np.float32)
    parts[:, 0, 0] = np.arange(len(parts))
    return InMemory(
        spec,
        parts,
        items=tuple(np.repeat(names, len(starts))),
        row=np.tile(starts, len(names)),
    )


@pytest.mark.parametrize("n", [400, 1200, 5000, 20_000])
def test_no_row_is_seen_on_two_sides_of_a_series(n):
    samples = series(n)
    parted = split(samples, 0)
    seen = {side: set() for side in ("fit", "validate", "calibrate")}
    for side, covered in seen.items():
        for start in samples.row[getattr(parted, side)]:
            covered.update(range(start, start + WINDOW))
    assert not seen["fit"] & seen["validate"]
    assert not seen["fit"] & seen["calibrate"]
    assert not seen["validate"] & seen["calibrate"]
    shares = np.array([len(v) for v in seen.values()]) / n
    assert shares == pytest.approx([0.5, 0.15, 0.25], abs=0.17)


@pytest.mark.parametrize("n", [1200, 20_000])
def test_a_window_of_rows_lies_between_the_sides_of_a_series(n):
    samples = series(n)
    parted = split(samples, 0)
    marked = sorted(
        (row, side) for side in ("fit", "validate", "calibrate") for row in samples.row[getattr(parted, side)]
    )
    for (row, side), (after, other) in zip(marked, marked[1:], strict=False):
        if side != other:
            assert after - (row + WINDOW) >= WINDOW


def test_both_halves_of_a_long_series_are_learned_and_calibrated():
    """Slow drift must not make the calibration set another process than the fit set."""
    samples = series(20_000)
    parted = split(samples, 0)
    for side in ("fit", "calibrate"):
        rows = samples.row[getattr(parted, side)]
        assert rows.min() < 10_000 < rows.max()


def test_independent_windows_are_counted():
    samples = series(2000)
    parted = split(samples, 0)
    free, count = -1, 0
    for row in samples.row[parted.calibrate]:
        if row >= free:
            free, count = row + WINDOW, count + 1
    assert parted.effective == count
    assert count < len(parted.calibrate) / 10


def test_windows_that_do_not_overlap_all_count():
    parted = split(series(4000, stride=WINDOW), 0)
    assert parted.effective == len(parted.calibrate)


def test_every_item_of_a_series_is_cut():
    samples = series(700, items=("a.csv", "b.csv", "c.csv"))
    parted = split(samples, 0)
    for side in ("fit", "validate", "calibrate"):
        assert set(np.asarray(samples.items)[getattr(parted, side)]) == {"a.csv", "b.csv", "c.csv"}
    one = split(series(700), 0)
    assert parted.effective == 3 * one.effective


def test_rows_are_counted_from_where_an_item_begins():
    """--rows 5000:6200 gives windows whose first row is 5000."""
    samples = series(1200)
    later = dataclasses.replace(samples, row=samples.row + 5000)
    one, other = split(samples, 0), split(later, 0)
    assert one.counts() == other.counts()
    assert (one.calibrate == other.calibrate).all()


def test_a_series_too_short_is_counted():
    with pytest.raises(Refusal, match="hold 40 rows, too few .* windows of 16 rows. .*shorter --window"):
        split(series(40), 0)


def test_many_short_items_are_split_whole():
    """Machine cycles little longer than a window cannot be cut into blocks; each is a unit instead."""
    samples = series(20, items=tuple(f"cycle-{i}.csv" for i in range(60)))
    samples.parts[:, 0, 0] %= 290  # the last two cycles are copies of the first two
    parted = split(samples, 0)
    found = sides(len(samples), parted)
    items = np.asarray(samples.items)
    for item in set(items):
        assert len(set(found[items == item])) == 1
    assert (found[-10:] == found[:10]).all()
    calibrated = set(items[parted.calibrate])
    assert parted.effective == len(calibrated - {"cycle-58.csv", "cycle-59.csv"})
    assert len(calibrated) in (19, 20, 21)


def test_windows_given_as_such_are_samples_of_their_own(tmp_path):
    np.save(tmp_path / "w.npy", windows(pump(16 * 300, 1), stride=16))
    source = open_source(tmp_path / "w.npy", SourceOptions())
    spec, _ = inputs.infer_spec(source, InputOptions())
    parted = split(inputs.load(source, spec, tmp_path / "spool"), 0)
    assert parted.counts() == {"fit": 161, "validate": 40, "calibrate": 99}
    assert parted.effective == 99


def test_only_a_series_in_blocks_settles_on_its_latest_rows_too():
    parted = split(series(1500), 0)
    assert parted.last_look.tolist() == sorted([*parted.fit.tolist(), *parted.validate.tolist()])
    assert not set(parted.last_look.tolist()) & set(parted.calibrate.tolist())
    plain = split(rows(120), 0)
    assert plain.last_look.tolist() == plain.fit.tolist()
