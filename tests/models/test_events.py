import numpy as np
import pytest

from vaegis.models.events import Debounce, Event


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
    assert found == Event(start=1, end=3, peak_score=9.0, peak=2, channels=("flow", "speed"))


def test_without_maps_nobody_is_guilty():
    (found,) = events("xxx")
    assert found.channels == ()


def test_the_first_of_equal_peaks_counts():
    (found,) = events("xxx", scores=[2, 3, 3])
    assert found.peak == 1
