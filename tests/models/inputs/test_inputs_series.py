"""Series and vectors: windows against a brute-force version, missing values, timestamps, groups, spools."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import RNG, csv, opened, stamp

from vaegis.models.errors import Refusal
from vaegis.models.inputs import InputOptions, blocks, infer_spec, load
from vaegis.models.inputs.infer import default_window
from vaegis.models.inputs.rows import Rows, match_columns
from vaegis.models.inputs.windows import series_blocks, window_starts
from vaegis.models.spec import SeriesSpec, VectorSpec


def brute(values: np.ndarray, window: int, stride: int):
    """Per row: the first row of the window whose verdict it takes (-1: none), and whether it is warm-up."""
    n = len(values)
    starts = [s for s in range(0, n, stride) if s + window <= n]
    if starts and starts[-1] + window < n:
        starts.append(n - window)
    chosen, warm = [], []
    for t in range(n):
        ends = [s for s in starts if s + window - 1 >= t]
        s = min(ends) if ends else -1
        bad = s < 0 or not np.isfinite(values[s : s + window]).all()
        chosen.append(-1 if bad else s)
        warm.append(t < window - 1)
    return starts, chosen, warm


@pytest.mark.parametrize("n", [5, 8, 9, 40, 97, 300])
@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 3), (8, 8), (2, 1), (7, 5)])
@pytest.mark.parametrize("chunk", [1, 13, 1000])
def test_rows_take_the_verdicts_of_a_brute_force_version(n, window, stride, chunk):
    values = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
    if n > 50:
        values[[20, 21, 60], [0, 1, 0]] = np.nan, np.inf, np.nan
    spec = SeriesSpec(("a", "b"), window, stride)
    chunks = [
        Rows("run", 7 + i, values[i : i + chunk], [str(t) for t in range(i, min(n, i + chunk))])
        for i in range(0, n, chunk)
    ]
    starts, chosen, warm = brute(values, window, stride)
    at = 0
    found = list(series_blocks(chunks, spec, most=1))  # the least that is allowed: four windows
    if n == 300:
        assert len(found) > 5
    for block in found:
        assert block.warmup.tolist() == warm[at : at + len(block)]
        assert block.index.tolist() == list(range(7 + at, 7 + at + len(block)))
        assert list(block.timestamps) == [str(t) for t in range(at, at + len(block))]
        for i in range(len(block)):
            if chosen[at + i] < 0:
                assert block.count[i] == 0
                assert block.errors[i]
                continue
            assert block.count[i] == 1
            assert i not in block.errors
            np.testing.assert_array_equal(block.parts[block.first[i]], values[chosen[at + i] :][:window])
        covering = [
            s for s in starts if s < at + len(block) and s + window > at and np.isfinite(values[s : s + window]).all()
        ]
        assert (block.place[:, 0] + at).tolist() == covering
        at += len(block)
    assert at == n


def test_the_window_that_forbids_a_row_is_explained():
    values = np.zeros((40, 2), np.float32)
    values[30, 1] = np.nan
    (block,) = series_blocks([Rows("run.csv", 100, values)], SeriesSpec(("a", "b"), 8))
    assert sorted(block.errors) == list(range(30, 38))
    assert "'b' of row 130 of run.csv is NaN" in block.errors[33]
    assert "--missing allow" in block.errors[33]


def test_missing_values_stay_where_they_are_allowed():
    values = np.zeros((60, 2), np.float32)
    values[30, 1] = np.nan
    values[40:50] = np.nan
    values[55, 0] = np.inf
    (block,) = series_blocks([Rows("run.csv", 0, values)], SeriesSpec(("a", "b"), 8, missing="allow"))
    assert sorted(block.errors) == [47, 48, 49, *range(55, 60)]  # wholly unobserved, and infinite
    assert "No value" in block.errors[48]
    assert "infinite" in block.errors[57]
    assert np.isnan(block.parts[block.first[30], -1, 1])


def test_a_series_shorter_than_a_window_is_unjudged():
    (block,) = series_blocks([Rows("short.csv", 0, np.zeros((5, 1), np.float32))], SeriesSpec(("a",), 8))
    assert block.count.tolist() == [0] * 5
    assert "short.csv has 5 rows, and one window takes 8" in block.errors[4]


@pytest.mark.parametrize(
    ("rows", "window", "stride", "starts"),
    [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 1, [0]), (3, 4, 1, []), (6, 4, 4, [0, 2])],
)
def test_window_starts(rows, window, stride, starts):
    assert window_starts(rows, window, stride).tolist() == starts


@pytest.mark.parametrize(
    ("lengths", "window"),
    [([20_000], 64), ([6400], 64), ([4000], 40), ([400], 4), ([50], 4), ([2000] * 10, 64), ([100] * 50, 20)],
)
def test_default_windows(lengths, window):
    assert default_window(lengths) == window


def test_csv_parquet_and_array_give_the_same_blocks_and_digest(tmp_path):
    values = RNG.normal(size=(350, 2)).astype(np.float32)
    stamps = [stamp(i) for i in range(350)]
    csv(tmp_path / "a.csv", values, stamps=stamps, sep=";")
    pq.write_table(pa.table({"flow": values[:, 1], "speed": values[:, 0]}), tmp_path / "b.parquet", row_group_size=100)
    np.save(tmp_path / "c.npy", values)
    spec, notes = infer_spec(opened(tmp_path / "a.csv"), InputOptions(window=32))
    assert spec == SeriesSpec(("speed", "flow"), 32, timestamp="timestamp", step=1)
    assert "'timestamp'" in notes[0]
    digests = set()
    for name, given in (("a.csv", stamps), ("b.parquet", None), ("c.npy", None)):
        (block,) = blocks(opened(tmp_path / name), spec)
        assert block.timestamps == given
        np.testing.assert_array_equal(block.parts[block.first[-1]], values[-32:])
        samples = load(opened(tmp_path / name), spec, tmp_path / "spool")
        assert len(samples) == 350 - 31
        assert samples.row.tolist() == list(range(319))
        np.testing.assert_array_equal(samples.take(np.array([5, 0])), [values[5:37], values[:32]])
        digests.add(samples.digest)
    assert len(digests) == 1


def test_rows_slice_each_item_and_keep_their_numbers(tmp_path):
    values = RNG.normal(size=(100, 2)).astype(np.float32)
    source = opened(csv(tmp_path / "a.csv", values), rows=(40, 90))
    spec, _ = infer_spec(source, InputOptions(window=10))
    (block,) = blocks(source, spec)
    assert block.index.tolist() == list(range(40, 90))
    np.testing.assert_array_equal(block.parts[block.first[0]], values[40:50])
    samples = load(source, spec, tmp_path / "spool")
    assert samples.row[0] == 40
    assert len(samples) == 41


def test_windows_never_cross_items_and_broken_items_keep_a_row(tmp_path):
    folder = tmp_path / "runs"
    long, short = RNG.normal(size=(40, 2)), RNG.normal(size=(12, 2))
    csv(folder / "run2.csv", long)
    csv(folder / "run10.csv", short)
    (folder / "run3.csv").write_bytes(b"\x00\x01\x02")
    (folder / "run4.csv").write_text("speed\n1\n")
    spec, _ = infer_spec(opened(folder, columns=("speed", "flow")), InputOptions(window=8))
    found = list(blocks(opened(folder), spec))
    assert [block.items[0] for block in found] == ["run2.csv", "run3.csv", "run4.csv", "run10.csv"]
    assert [len(block) for block in found] == [40, 1, 1, 12]
    assert "neither csv text nor Parquet" in found[1].errors[0]
    assert "lacks column flow" in found[2].errors[0]
    (folder / "run4.csv").unlink()
    samples = load(opened(folder), spec, tmp_path / "spool")
    assert [item for item, _ in samples.skipped] == ["run3.csv"]
    assert list(samples.items) == ["run2.csv"] * 33 + ["run10.csv"] * 5
    np.testing.assert_array_equal(samples.take(np.array([33]))[0], short[:8].astype(np.float32))


def test_a_table_that_breaks_off_ends_in_an_unjudged_sample(tmp_path):
    rows = "\n".join(f"{i},{i}.5" for i in range(200_000))
    (tmp_path / "a.csv").write_text(f"speed,flow\n{rows}\noops,1,2\n")
    found = list(blocks(opened(tmp_path / "a.csv"), SeriesSpec(("speed", "flow"), 8)))
    assert found[-1].count.tolist() == [0]
    assert "oops" in found[-1].errors[0]
    assert str(tmp_path) not in found[-1].errors[0]
    assert found[-1].index[0] == sum(map(len, found[:-1])) > 0
    with pytest.raises(Refusal, match="oops"):
        load(opened(tmp_path / "a.csv"), SeriesSpec(("speed", "flow"), 8), tmp_path / "spool")


def test_integers_may_become_fractions_in_a_later_block(tmp_path):
    rows = [str(i) for i in range(200_000)] + ["0.5"]
    (tmp_path / "a.csv").write_text("a\n" + "\n".join(rows) + "\n")
    found = list(blocks(opened(tmp_path / "a.csv", kind="vector"), VectorSpec(("a",))))
    assert found[-1].parts[-1, 0] == 0.5


@pytest.mark.parametrize(
    ("stamps", "words"),
    [
        (["2026-01-01T00:00:01", "2026-01-01T00:00:00"], "row 1.*00:00:00.*after.*00:00:01.*Sort"),
        (["2026-01-01 00:00:00", "2026-01-01 00:00:00"], "Rows 0 and 1.*same timestamp.*drop duplicates"),
        (["5", "4"], "row 1 has 4 after 5"),
        (["1700000000000000000", "1700000000000000000"], "same timestamp 1700000000000000000"),
        (["2026-01-01", ""], "Row 1"),
    ],
)
def test_timestamps_must_ascend(tmp_path, stamps, words):
    source = opened(csv(tmp_path / "a.csv", np.zeros((2, 2)), stamps=stamps))
    spec = SeriesSpec(("speed", "flow"), 2, timestamp="timestamp")
    for use in (lambda: list(blocks(source, spec)), lambda: load(source, spec, tmp_path / "spool")):
        with pytest.raises(Refusal, match=words) as refusal:
            use()
        assert "a.csv" in str(refusal.value)


def test_order_is_watched_from_block_to_block(tmp_path):
    n = 60_000
    stamps = [stamp(i) if i < n - 1 else stamp(0) for i in range(n)]
    source = opened(csv(tmp_path / "a.csv", np.zeros((n, 2)), stamps=stamps))
    with pytest.raises(Refusal, match=f"row {n - 1} "):
        list(blocks(source, SeriesSpec(("speed", "flow"), 8)))


@pytest.mark.parametrize(
    ("column", "given"),
    [
        (pa.array([1, 2], pa.int64()), [1, 2]),
        (pa.array([0, 1_000_000_000], pa.timestamp("ns")), ["1970-01-01T00:00:00", "1970-01-01T00:00:01"]),
        (pa.array([0, 1500], pa.timestamp("ms")), ["1970-01-01T00:00:00", "1970-01-01T00:00:01.500"]),
        (pa.array(["2026-01-01", "2026-01-02"]), ["2026-01-01", "2026-01-02"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    ],
)
def test_timestamps_are_handed_back_as_given(tmp_path, column, given):
    pq.write_table(pa.table({"time": column, "a": [1.0, 2.0]}), tmp_path / "a.parquet")
    (block,) = blocks(opened(tmp_path / "a.parquet"), SeriesSpec(("a",), 2))
    assert block.timestamps == given


def test_arrays_of_windows_are_samples_themselves(tmp_path):
    x = RNG.normal(size=(12, 9, 2)).astype(np.float32)
    x[4, 3, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    spec, _ = infer_spec(opened(tmp_path / "a.npz"), InputOptions())
    assert (spec.window, spec.columns) == (9, ("0", "1"))
    (block,) = blocks(opened(tmp_path / "a.npz"), spec)
    assert len(block) == 12
    assert sorted(block.errors) == [4]
    assert block.place is None
    np.testing.assert_array_equal(block.parts, np.delete(x, 4, axis=0))
    with pytest.raises(Refusal, match="windows of 9 rows, and the model takes 8"):
        list(blocks(opened(tmp_path / "a.npz"), SeriesSpec(("0", "1"), 8)))
    np.savez(tmp_path / "c.npz", x=np.delete(x, 4, axis=0), lot=np.array(list("aabbccddeef")))
    source = opened(tmp_path / "c.npz", group_by="lot")
    samples = load(source, spec, tmp_path / "spool")
    assert "".join(samples.groups) == "aabbccddeef"
    np.testing.assert_array_equal(samples.take(np.array([10])), x[11:])


def test_groups_of_a_table(tmp_path):
    lines = [f"{i},{'a' if i < 20 else 'b'},{i // 10}" for i in range(40)]
    (tmp_path / "a.csv").write_text("speed,lot,shift\n" + "\n".join(lines) + "\n")
    source = opened(tmp_path / "a.csv", group_by="lot", calibrate_by="shift")
    spec, _ = infer_spec(source, InputOptions(window=8))
    assert (spec.columns, spec.calibrate_by) == (("speed",), "shift")
    samples = load(source, spec, tmp_path / "spool")
    # No window lies across rows 19 and 20, where the lot changes.
    assert samples.row.tolist() == [*range(13), *range(20, 33)]
    assert list(samples.groups) == ["a"] * 13 + ["b"] * 13
    assert list(samples.calibration_groups) == [str((row + 7) // 10) for row in samples.row]
    (block,) = blocks(source, spec)
    assert list(block.groups) == [str(i // 10) for i in range(40)]
    (tmp_path / "b.csv").write_text("speed\n" + "1\n" * 20)
    (plain,) = blocks(opened(tmp_path / "b.csv"), spec)
    assert plain.groups is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 50}, "as long as one window of 50 rows.*40"),
        ({"window": 1}, "--window 1"),
        ({"window": 8, "stride": 9}, "--stride 9"),
        ({"stride": 0}, "--stride 0"),
        ({"tile": 16}, "--tile does not apply to series"),
        ({"invariances": ("rotation",)}, "offset, scale, noise"),
    ],
)
def test_series_options_that_cannot_be_met_are_refused(tmp_path, options, words):
    source = opened(csv(tmp_path / "a.csv", np.zeros((40, 2))))
    with pytest.raises(Refusal, match=words):
        infer_spec(source, InputOptions(**options))


def test_columns_go_by_name(tmp_path):
    values = RNG.normal(size=(30, 2)).astype(np.float32)
    csv(tmp_path / "a.csv", np.c_[values[:, 1], np.zeros(30), values[:, 0]], columns=("flow", "extra", "speed"))
    (block,) = blocks(opened(tmp_path / "a.csv"), SeriesSpec(("speed", "flow"), 30))
    np.testing.assert_array_equal(block.parts[0], values)
    with pytest.raises(Refusal, match=r"a\.csv lacks columns level, ph; it has flow, extra, speed"):
        list(blocks(opened(tmp_path / "a.csv"), SeriesSpec(("level", "speed", "ph"), 30)))
    assert match_columns(("b", "a"), ("a", "x", "b"), "it") == [2, 0]
    assert match_columns(("0", "1"), ("p", "q"), "it") == [0, 1]
    with pytest.raises(Refusal):
        match_columns(("0", "1"), ("p", "q", "r"), "it")
    with pytest.raises(Refusal, match="it has 3 columns without names, and the model takes 2; give those alone"):
        match_columns(("0", "1"), ("0", "1", "2"), "it")


def test_array_columns_go_by_number_or_place(tmp_path):
    x = RNG.normal(size=(20, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    spec, _ = infer_spec(opened(tmp_path / "a.npy", columns=("2", "0")), InputOptions())
    assert spec.columns == ("2", "0")
    (block,) = blocks(opened(tmp_path / "a.npy"), spec)
    np.testing.assert_array_equal(block.parts, x[:, [2, 0]])
    (named,) = blocks(opened(tmp_path / "a.npy", exclude=("1",)), VectorSpec(("speed", "flow")))
    np.testing.assert_array_equal(named.parts, x[:, [0, 2]])
    with pytest.raises(Refusal, match="3 columns, but the model takes 2"):
        list(blocks(opened(tmp_path / "a.npy"), VectorSpec(("speed", "flow"))))
    with pytest.raises(Refusal, match="0 to 2"):
        infer_spec(opened(tmp_path / "a.npy", columns=("7",)), InputOptions())


def test_text_where_the_model_takes_numbers_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("speed\nfast\n")
    with pytest.raises(Refusal, match="'speed'.*'fast'"):
        list(blocks(opened(tmp_path / "a.csv"), VectorSpec(("speed",))))


def test_a_header_alone_is_empty(tmp_path):
    (tmp_path / "a.csv").write_text("speed,flow\n")
    with pytest.raises(Refusal, match="a.csv has no rows"):
        infer_spec(opened(tmp_path / "a.csv"), InputOptions())
    with pytest.raises(Refusal, match="give more clean data"):
        load(opened(tmp_path / "a.csv"), SeriesSpec(("speed", "flow"), 8), tmp_path / "spool")


def test_memory_does_not_grow_with_an_array_of_rows(tmp_path):
    spec = SeriesSpec(tuple(map(str, range(64))), 16)

    def peak(rows: int) -> int:
        np.savez_compressed(tmp_path / f"{rows}.npz", x=np.zeros((rows, 64)))
        source = opened(tmp_path / f"{rows}.npz", kind="series")
        tracemalloc.start()
        assert sum(len(block) for block in blocks(source, spec)) == rows
        assert len(load(source, spec, tmp_path / "spool")) == rows - 15
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # Bookkeeping of a few bytes per row may grow; the rows themselves, 512 bytes each, may not.
    assert peak(120_000) < peak(30_000) + 90_000 * 32 + (8 << 20)


def test_a_csv_is_never_held_whole(tmp_path):
    rows, line = 2_400_000, "0.12345678901234,0.98765432109876\n"
    (tmp_path / "a.csv").write_text("a,b\n" + line * rows)
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for block in blocks(opened(tmp_path / "a.csv", kind="vector"), VectorSpec(("a", "b"))):
        most = max(most, pa.total_allocated_bytes() - before)
        seen += len(block)
    assert seen == rows
    # pyarrow reads ahead a fixed number of blocks: about 35 MiB, whatever the file's size.
    assert most < 48 << 20, f"{most >> 20} MiB of a file of {len(line) * rows >> 20} MiB"
