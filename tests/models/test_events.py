import pickle
from dataclasses import replace

import numpy as np
import pytest

from vaegis.models.blocks import plain
from vaegis.models.calibration import Decision
from vaegis.models.events import Debounce, Event, EventTracker
from vaegis.models.events import events as events_of
from vaegis.models.scorer import Verdicts


def events(marks, k=3, n=5, scores=None, channels=None):
    """Events of rows given as text: `x` anomalous, `.` not."""
    debounce = Debounce(("speed", "flow"), k, n)
    found = []
    for row, mark in enumerate(marks):
        score = float(scores[row]) if scores is not None else 1.0
        ended = debounce.add(row, mark == "x", score, channels[row] if channels is not None else None)
        if ended is not None:
            found.append(ended)
    last = debounce.close()
    return found + ([last] if last is not None else [])


@pytest.mark.parametrize(
    ("marks", "spans"),
    [
        ("..........", []),
        ("x.........", []),
        ("xx...xx...xx", []),  # never three of five
        ("..xxx.....", [(2, 4)]),
        ("..x.x.x...", [(2, 6)]),  # three of five, from the first of them
        ("..x..x.x..", []),  # three of six
        ("xxx", [(0, 2)]),  # ended by the end of the item
        (".......xxx", [(7, 9)]),
        ("xxx..x..x..", [(0, 5)]),  # row 5 still sees rows 1 and 2; row 8 sees only 5
        ("xxx......xxx", [(0, 2), (9, 11)]),
        ("x....xxx....", [(5, 7)]),  # the lone row before has left the window
        ("xxxxxxxxxx", [(0, 9)]),
    ],
)
def test_three_of_five_by_hand(marks, spans):
    assert [(e.start, e.end) for e in events(marks)] == spans


@pytest.mark.parametrize(("k", "n", "spans"), [(1, 1, [(1, 1), (3, 4)]), (2, 2, [(3, 4)]), (3, 4, [(1, 4)])])
def test_other_debounces(k, n, spans):
    assert [(e.start, e.end) for e in events(".x.xx...", k, n)] == spans


def test_an_event_ends_when_fewer_than_k_remain():
    debounce = Debounce((), 3, 5)
    told = [debounce.add(row, row in (2, 3, 4), 1.0, None) for row in range(8)]
    # At row 7 the last five rows are 3 to 7, of which two are anomalous.
    assert [t is not None for t in told] == [False] * 7 + [True]
    assert debounce.close() is None


def test_peak_and_guilty_channels():
    scores = [0, 5, 9, 7, 99, 0, 0, 0]
    maps = np.array([[0, 0], [1, 4], [1, 4], [9, 4], [1000, 0], [0, 0], [0, 0], [0, 0]], np.float32)
    # Row 4 is not anomalous: neither its score nor its map counts.
    (found,) = events(".xxx....", scores=scores, channels=maps)
    assert found == Event(start=1, end=3, peak=2, peak_score=9.0, channels=("flow", "speed"))


def test_without_maps_nobody_is_guilty():
    (found,) = events("xxx")
    assert found.channels == ()


def test_the_first_of_equal_peaks_counts():
    (found,) = events("xxx", scores=[2, 3, 3])
    assert found.peak == 1


def verdicts(marks, item="a.csv", start=0, maps=True, stamps=True):
    """Verdicts on rows given as text: `?` is unjudged. Row i scores i; its flow is as strange as i, its speed as 50."""
    rows = np.arange(start, start + len(marks))
    block = replace(
        plain(np.zeros((len(rows), 2), np.float32), [item] * len(rows), rows),
        timestamps=[f"t{r}" for r in rows] if stamps else None,
        warmup=np.zeros(len(rows), bool),
        place=rows[:, None],
    )
    status = [{"x": "anomalous", ".": "ok", "?": "unjudged"}[m] for m in marks]
    scores = np.array([np.nan if m == "?" else float(r) for r, m in zip(rows, marks, strict=True)])
    return Verdicts(
        block=block,
        decision=Decision(decide_by="score", alpha=0.05, threshold=1.0, extrapolated=False, group=None),
        status=status,
        evidence={"score": scores},
        p_values={"score": np.zeros(len(rows))},
        p_tail=np.zeros(len(rows)),
        anomalous=np.array([s == "anomalous" for s in status]),
        maps=[None if m == "?" else np.array([50, r], np.float32) for r, m in zip(rows, marks, strict=True)]
        if maps
        else None,
    )


def tracked(*blocks):
    tracker = EventTracker(("speed", "flow"))
    return [e for block in blocks for e in tracker.add(block)] + tracker.close()


def test_an_event_says_where_when_and_by_what():
    (event,) = events_of(verdicts("..xxx...x...." + "." * 40), ("speed", "flow"))
    assert event == Event(
        item="a.csv",
        start=2,
        end=4,
        start_timestamp="t2",
        end_timestamp="t4",
        peak=4,
        peak_score=4.0,
        channels=("speed", "flow"),
    )
    (late,) = events_of(verdicts("." * 60 + "xxx"), ("speed", "flow"))
    assert (late.start, late.end, late.channels) == (60, 62, ("flow", "speed"))
    (bare,) = events_of(verdicts("xxx", item=None, maps=False, stamps=False), ("speed", "flow"))
    assert (bare.item, bare.start_timestamp, bare.end_timestamp, bare.channels) == (None, None, None, ())


@pytest.mark.parametrize(
    "marks", ["..xxx..xx.x....xxx", "xx..x?xx.?xxx", "x.x.x.x.x.x.x", "?????", "xxxxxxxxxxxx", "xx"]
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_blocks_of_any_size_make_the_same_events(marks, size):
    cut = [verdicts(marks[i : i + size], start=i) for i in range(0, len(marks), size)]
    assert tracked(*cut) == events_of(verdicts(marks), ("speed", "flow"))


def test_an_event_over_the_border_of_two_blocks_is_one():
    events = tracked(verdicts("....xx"), verdicts("xx....", start=6))
    assert [(e.start, e.end, e.peak) for e in events] == [(4, 7, 7)]
    assert (events[0].start_timestamp, events[0].end_timestamp) == ("t4", "t7")


def test_events_never_run_from_item_to_item_nor_over_a_gap():
    spans = [(e.item, e.start, e.end) for e in tracked(verdicts("..xxx"), verdicts("xxx..", item="b.csv", start=5))]
    assert spans == [("a.csv", 2, 4), ("b.csv", 5, 7)]
    assert tracked(verdicts("...xx"), verdicts("x....", start=6)) == []  # row 5 was not sent


def test_windows_given_one_by_one_make_no_events():
    rows = verdicts("xxxxx")
    assert len(events_of(rows, ("speed", "flow"))) == 1
    assert events_of(replace(rows, block=replace(rows.block, place=None)), ("speed", "flow")) == []


def test_unjudged_rows_are_in_no_event_and_end_none_by_themselves():
    (event,) = events_of(verdicts("xx?x...."), ("speed", "flow"))
    assert (event.start, event.end, event.peak) == (0, 3, 3)
    assert events_of(verdicts("x?????xx"), ("speed", "flow")) == []


def test_a_long_event_takes_no_more_memory_than_a_short_one():
    tracker = EventTracker(("speed", "flow"))
    sizes = []
    for i in range(6):
        assert tracker.add(verdicts("x" * 500, start=500 * i)) == []
        sizes.append(len(pickle.dumps(tracker)))
    assert max(sizes[1:]) - min(sizes[1:]) < 100
    (event,) = tracker.close()
    assert (event.start, event.end, event.peak_score) == (0, 2999, 2999.0)
