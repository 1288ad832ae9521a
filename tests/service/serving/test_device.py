"""Where graphs run. What a GPU is fed through runs on the CPU as well, and must give what a plain session gives."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from toy_bundles import IMAGE, SERIES, graph
from vaegis.models.errors import Refusal
from vaegis.models.runtime import fixed_buffers as bounds
from vaegis.models.runtime import sessions
from vaegis.models.runtime.fixed_buffers import FixedBuffers, open_graph
from vaegis.models.runtime.sessions import Cuda, GraphFailure, device_in_use, has_gpu, open_session

NAMES = ["score", "reconstruction_error", "map"]


@pytest.fixture
def session():
    return open_session(graph(IMAGE, 100.0), "cpu", 1)[0]


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def test_fixed_buffers_give_what_a_plain_session_gives(session):
    buffers = FixedBuffers(session, "cpu")
    for n in (1, 2, 3, 5, 8, 7, 1, 33):  # padded, full, and again after larger ones
        feed = {"input": images(n, n)}
        for names in (NAMES, NAMES[:1]):
            ours, plain = buffers.run(names, feed), session.run(names, feed)
            assert [a.shape for a in ours] == [a.shape for a in plain]
            for a, b in zip(ours, plain, strict=True):
                assert np.array_equal(a, b)


def test_what_was_given_stays_when_the_buffers_are_used_again(session):
    buffers = FixedBuffers(session, "cpu")
    first = buffers.run(["score"], {"input": images(4, 1)})[0]
    kept = first.copy()
    second = buffers.run(["score"], {"input": images(4, 2)})[0]
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_fixed_buffers_are_safe_between_threads(session):
    buffers, wrong = FixedBuffers(session, "cpu"), []

    def ask(seed):
        for i in range(50):
            feed = {"input": images(1 + i % 4, seed * 100 + i)}
            if not np.array_equal(buffers.run(["score"], feed)[0], session.run(["score"], feed)[0]):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_a_recording_that_does_not_follow_its_input_is_found_out(session):
    buffers = FixedBuffers(session, "cpu")
    assert buffers.follows(IMAGE.shape)

    class Stuck(FixedBuffers):
        def run(self, names, feed):
            return [np.zeros(1, np.float32)]

    assert not Stuck(session, "cpu").follows(IMAGE.shape)
    series = open_session(graph(SERIES, 0.0), "cpu", 1)[0]
    assert FixedBuffers(series, "cpu").follows(SERIES.shape)


def test_a_graph_that_allows_no_recording_is_run_without(monkeypatch, caplog):
    """As a machine with a GPU would see it: sessions are real ones of the CPU that say they are elsewhere."""

    def opening(raw, device, threads, spin, cuda):
        if cuda.graphs:
            raise GraphFailure("This session cannot use the graph capture feature.")
        return open_session(raw, "cpu", threads, spin)[0], "cuda"

    monkeypatch.setattr(bounds, "open_session", opening)
    monkeypatch.setattr(FixedBuffers, "_slot", slot_on_cpu(FixedBuffers._slot))
    with caplog.at_level(logging.INFO, "vaegis.scorer"):
        session, device, calls = open_graph(graph(IMAGE, 100.0), "auto", 1, False, Cuda(graphs=True), IMAGE.shape)
    assert device == "cuda" and "graph capture" in caplog.text
    x = {"input": images(3)}
    assert np.array_equal(calls.run(["score"], x)[0], session.run(["score"], x)[0])


def slot_on_cpu(slot):
    def made(self, size, names):
        self._device = "cpu"
        return slot(self, size, names)

    return made


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_auto_says_once_why_it_runs_on_the_cpu_and_cuda_refuses(caplog):
    sessions._fallback.cache_clear()
    with caplog.at_level(logging.INFO, "vaegis.scorer"):
        where = device_in_use("auto")
        open_session(graph(IMAGE, 0.0), "auto", 1)
    assert (where.device, where.fallback) == ("cpu", "no GPU is visible")
    assert caplog.text.count("scoring on the CPU") == 1
    assert device_in_use("cpu").fallback is None
    with pytest.raises(Refusal, match="Device cuda was asked for"):
        device_in_use("cuda")


def test_the_providers_asked_for(tmp_path):
    ((name, plain),) = sessions._providers(Cuda())
    assert name == "CUDAExecutionProvider" and (plain["enable_cuda_graph"], plain["use_tf32"]) == ("0", "0")
    (engine, options), (cuda, _) = sessions._providers(Cuda(graphs=True, tensorrt=tmp_path / "engines"))
    assert (engine, cuda) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert Path(options["trt_engine_cache_path"]).is_dir() and options["trt_cuda_graph_enable"] == "1"
