"""Judging without HTTP: what another wire gets from the one path, and who is told of its verdicts."""

import asyncio
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from live_models import live_models

from toy_bundles import SERIES
from vaegis.models import inputs
from vaegis.models.blocks import plain
from vaegis.models.errors import NotFound, Refusal, TooLarge
from vaegis.models.inputs.options import Limits
from vaegis.service.errors import Full, Late
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.controls import Controls, choice, finite, time_left
from vaegis.service.serving.judging import INLINE_BYTES, Judging, MapForm, Question, Reader, check_maps, decision_for
from vaegis.service.store.registry import Registry


class Wire:
    """One request as bytes in memory: float32 vectors in, how many of them are anomalous out."""

    def __init__(self, address, rows, *, controls=Controls(), arrived=None, key="", maps=None, events=False):
        self.address, self.key, self.controls = address, key, controls
        self.arrived = time.monotonic() if arrived is None else arrived
        self.raw, self.maps, self.events = np.asarray(rows, np.float32).tobytes(), maps, events
        self.counts = []

    def reader(self, served):
        return Reader(lambda raw: self.read(served, raw), self.controls.deadline(self.arrived))

    def read(self, served, raw):
        self.thread = threading.get_ident()
        block = inputs.from_raw(served.scorer.spec, raw, limits=Limits())
        decision = decision_for(served, self.controls)
        return Question(self.controls, decision, block, self.maps, self.events, lambda v: int(v.anomalous.sum()))

    async def body(self):
        return self.raw

    def count(self, samples):
        self.counts.append(samples)

    async def attend(self, work):
        return await work


class Notes:
    """An observer that remembers what it was told."""

    def __init__(self, log):
        self.log = log

    def verdicts_given(self, served, verdicts, timing):
        self.log.append((self, served.resolved.name, len(verdicts), timing))


@pytest.fixture
def registry(fill, tmp_path):
    with Registry.open(fill(tmp_path / "home")) as registry:
        yield registry


def judging(registry, observers=(), read=lambda served, seconds: None, samples=100, answer_bytes=10**6):
    return Judging(live_models(registry), Admission(samples, 10**9, 1), observers, read, answer_bytes)


def rows(*scores):
    """Vectors whose score, their mean square, is as given; clean ones have 1 ... 199."""
    return [[s**0.5] * 3 for s in scores]


def test_a_wire_that_is_no_http_is_answered_and_every_observer_told_in_order(registry):
    log, reads = [], []
    first, second = Notes(log), Notes(log)
    path = judging(registry, (first, second), lambda served, seconds: reads.append((served.resolved.place, seconds)))
    wire = Wire("vector", rows(10, 191.5, 300))
    assert asyncio.run(path.answer(wire)) == 2 and wire.counts == [3]
    assert [(observer, name, n) for observer, name, n, _ in log] == [(first, "vector", 3), (second, "vector", 3)]
    timing = log[0][3]
    assert timing is log[1][3] and timing.queue >= 0 and timing.inference > 0
    ((place, seconds),) = reads
    assert place.startswith("vector@1/") and seconds > 0
    # At a rate of its own, and by a threshold.
    assert asyncio.run(path.answer(Wire("vector", rows(10, 191.5, 300), controls=Controls(alpha=0.5)))) == 2
    assert asyncio.run(path.answer(Wire("vector", rows(10, 191.5, 300), controls=Controls(threshold=5.0)))) == 3


def test_a_large_body_is_read_on_a_thread_and_answered_alike(registry):
    path = judging(registry, samples=10**6)
    many = rows(*([10, 300] * (INLINE_BYTES // 24 + 1)))
    wire = Wire("vector", many)
    assert len(wire.raw) > INLINE_BYTES
    assert asyncio.run(path.answer(wire)) == len(many) // 2
    small = Wire("vector", rows(10, 300))
    assert asyncio.run(path.answer(small)) == 1
    assert small.thread == threading.get_ident() != wire.thread


def test_refusals_leave_nothing_behind_and_tell_no_observer(registry):
    log = []
    path = judging(registry, (Notes(log),), samples=4)
    past = time.monotonic() - 1
    for wire, kind, words in (
        (Wire("nope", rows(1)), NotFound, "nope"),
        (Wire("vector", rows(1), controls=Controls(alpha=1e-9)), Refusal, "alpha|rate"),
        (Wire("vector", rows(1), controls=Controls(seconds=0.5), arrived=past), Late, "deadline"),
        (Wire("vector", rows(1), maps=MapForm(lambda values: values * 10**6, "")), TooLarge, "about 3000000 bytes"),
    ):
        with pytest.raises(kind, match=words):
            asyncio.run(path.answer(wire))
    assert log == []
    with pytest.raises(Refusal, match="No sample could be judged, of 0 sent. The first: The request holds none."):
        asyncio.run(path.answer(EmptyWire("vector", [])))
    with pytest.raises(Refusal, match="No sample could be judged, of 1 sent. The first: "):
        asyncio.run(path.answer(Wire("vector", [[1e30] * 3])))
    log.clear()
    # All of their places were left again: the next ones still come in, until the queue is full.
    assert asyncio.run(path.answer(Wire("vector", rows(1, 2, 3)))) == 0
    full = judging(registry, samples=0)
    with pytest.raises(Full):
        asyncio.run(full.answer(Wire("vector", rows(1))))


class EmptyWire(Wire):
    def read(self, served, raw):
        block = plain(np.empty((0, 3), np.float32))
        return Question(self.controls, decision_for(served, self.controls), block, None, False, len)


def test_the_size_of_maps_is_of_what_the_maps_hold():
    """Windows sent one by one have a map of window x columns each, rows of a series one value per column."""
    form = MapForm(lambda values: values, ", or leave maps out")
    width, window = len(SERIES.columns), SERIES.window
    windows = plain(np.zeros((5, window, width), np.float32))
    check_maps(SERIES, windows, form, 5 * window * width)
    with pytest.raises(TooLarge, match=f"of about {5 * window * width} bytes.*Send fewer samples.*or leave maps out."):
        check_maps(SERIES, windows, form, 5 * window * width - 1)
    of_rows = inputs.from_json(SERIES, {"data": np.zeros((20, width)).tolist()}, limits=Limits(), truths=False)
    check_maps(SERIES, of_rows, form, 20 * width)
    with pytest.raises(TooLarge, match=f"of about {20 * width} bytes"):
        check_maps(SERIES, of_rows, form, 20 * width - 1)


def test_controls_are_checked_once_for_every_wire():
    assert finite("parameter alpha", 0.5, "0.5") == 0.5 and choice("word", "a", ("a", "b")) == "a"
    assert time_left(None, "") is None and time_left(0.1, "") == 0.1
    word, letters = "x" * 100, ("a", "b")
    for act, sentence in (
        (lambda: finite("field a", None, word), f"The field a cannot be '{'x' * 70}'; give a number."),
        (lambda: finite("a", float("inf"), "1e999", " such as 1"), "The a cannot be '1e999'; give a number such as 1."),
        (lambda: choice("word", "c", letters, ", or 1"), "The word cannot be 'c'; it is one of a, b, or 1."),
        (lambda: choice("word", ["a"], letters), "The word cannot be \"['a']\"; it is one of a, b."),
        (lambda: time_left(0, "None left."), "None left."),
    ):
        with pytest.raises(Refusal) as refusal:
            act()
        assert str(refusal.value) == sentence
    assert Controls(seconds=2.0).deadline(5.0) == 7.0 and Controls().deadline(5.0) is None


def test_judging_needs_no_web_framework():
    """Whoever brings another wire has the whole of serving, decoding and the store without one."""
    script = """
import importlib, pkgutil, sys
class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('fastapi', 'starlette', 'uvicorn'):
            raise ImportError(name + ' must not be imported here')
sys.meta_path.insert(0, Never())
for room in ('serving', 'decoding', 'store'):
    package = importlib.import_module('vaegis.service.' + room)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
        importlib.import_module(module.name)
for module in ('errors', 'metrics', 'tracing'):
    importlib.import_module('vaegis.service.' + module)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
