"""Batches: who shares a call, in which order, what is dropped, and that nobody's verdict depends on it."""

import asyncio
import json
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from http_server import JSON, OCTETS, serving, until
from starlette.requests import ClientDisconnect

from toy_bundles import toy_bundle
from vaegis.models.blocks import plain
from vaegis.models.runtime.graph import Pace
from vaegis.models.scorer import Scorer
from vaegis.service.errors import Full
from vaegis.service.http.hot import attended
from vaegis.service.serving.admission import Admission
from vaegis.service.serving.batching import Batcher

rng = np.random.default_rng(0)


class Held(Scorer):
    """A scorer whose graph calls wait until they are let go, and are remembered."""

    def __init__(self, bundle):
        super().__init__(bundle, "cpu", 1, spin=False)
        self.free, self.calls, self.broken = threading.Event(), [], None

    def find(self, parts, maps=False, conditions=None):
        self.calls.append(parts[:, 0, 0, 0].tolist())
        assert self.free.wait(10)
        if self.broken is not None and (parts == self.broken).any():
            raise RuntimeError("this graph fails on it")
        return super().find(parts, maps, conditions)


@pytest.fixture
def held(tmp_path):
    return Held(toy_bundle(tmp_path / "toy"))


def images(*values):
    """Images, each of one value: 100 is clean, and the score of v is (v - 100)^2."""
    return plain(np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8))


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


async def called(scorer, n):
    """Until the graph was called n times."""
    for _ in range(2000):
        if len(scorer.calls) >= n:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it was not called")


def scores(results):
    return [found.values[0].tolist() for found, _ in results]


def test_what_comes_while_a_call_runs_shares_the_next(held):
    async def run():
        sizes = []
        batcher = Batcher(held, Pace(4, 0, 4), 1, sizes.append)
        first = asyncio.ensure_future(batcher.find(images(101), False))
        await called(held, 1)
        rest = [asyncio.ensure_future(batcher.find(images(102 + i), False)) for i in range(3)]
        await turns()
        held.free.set()
        assert scores([await first, *[await r for r in rest]]) == [[1.0], [4.0], [9.0], [16.0]]
        assert held.calls == [[101], [102, 103, 104]] and sizes == [1, 3]

    asyncio.run(run())


def test_requests_of_one_turn_share_their_first_call(held):
    held.free.set()

    async def run():
        batcher = Batcher(held, Pace(8, 0, 8), 1)
        await asyncio.gather(*(batcher.find(images(100 + i), False) for i in range(6)))
        assert held.calls == [[100, 101, 102, 103, 104, 105]]

    asyncio.run(run())


def test_a_large_request_takes_turns_and_bulk_comes_last(held):
    async def run():
        batcher = Batcher(held, Pace(4, 0, 4), 1)
        first = asyncio.ensure_future(batcher.find(images(1), False))
        await called(held, 1)
        bulk = asyncio.ensure_future(batcher.find(images(50, 51, 52), False, bulk=True))
        large = asyncio.ensure_future(batcher.find(images(*range(10, 20)), True))
        small = asyncio.ensure_future(batcher.find(images(30), False))
        await turns()
        held.free.set()
        found, _ = await large
        assert found.values[0].tolist() == [(v - 100.0) ** 2 for v in range(10, 20)]
        assert found.maps is not None and found.maps[:, 0, 0].tolist() == found.values[0].tolist()
        assert (await small)[0].maps is None  # it did not ask for any
        await asyncio.gather(first, bulk)
        assert held.calls == [[1], [10, 11, 12, 13], [30, 14, 15, 16], [17, 18, 19, 50], [51, 52]]

    asyncio.run(run())


def test_a_second_call_runs_beside_the_first_only_if_it_is_full(held):
    async def run():
        batcher = Batcher(held, Pace(2, 0, 2), 2)
        asked = [asyncio.ensure_future(batcher.find(images(v), False)) for v in (1, 2, 3)]
        await called(held, 1)
        await turns()
        assert held.calls == [[1, 2]]
        asked.append(asyncio.ensure_future(batcher.find(images(4), False)))
        await called(held, 2)
        assert held.calls == [[1, 2], [3, 4]]
        held.free.set()
        assert scores(await asyncio.gather(*asked)) == [[(v - 100.0) ** 2] for v in (1, 2, 3, 4)]

    asyncio.run(run())


def test_of_several_requests_no_more_are_gathered_than_are_enough(held):
    async def run():
        batcher = Batcher(held, Pace(8, 0, 2), 1)
        asked = [asyncio.ensure_future(batcher.find(images(1), False))]
        await called(held, 1)
        asked += [asyncio.ensure_future(batcher.find(images(v), False)) for v in (2, 3, 4)]
        asked.append(asyncio.ensure_future(batcher.find(images(*range(10, 20)), False)))
        await turns()
        held.free.set()
        await asyncio.gather(*asked)
        # A large one takes what room there is, up to the best size.
        assert held.calls == [[1], [2, 3], [4, *range(10, 17)], [17, 18, 19]]

    asyncio.run(run())


def test_where_all_are_at_work_a_thread_is_handed_one_whole_batch_ahead(held):
    async def run():
        batcher = Batcher(held, Pace(2, 0, 2), 1)
        asked = [asyncio.ensure_future(batcher.find(images(v), False, bulk=True)) for v in (1, 2, 3, 4, 5, 6)]
        await called(held, 1)
        await turns()
        # 3 and 4 lie with the thread: these come after them, but before 5 and 6, which still wait here.
        asked += [asyncio.ensure_future(batcher.find(images(v), False)) for v in (7, 8)]
        await turns()
        began = time.perf_counter()
        await asyncio.sleep(0.05)
        least = time.perf_counter() - began
        held.free.set()
        found = await asyncio.gather(*asked)
        assert scores(found) == [[(v - 100.0) ** 2] for v in range(1, 9)]
        assert held.calls == [[1, 2], [3, 4], [7, 8], [5, 6]]
        assert all(queued >= least for _, queued in found[2:])  # lying with the thread is waiting, too

    asyncio.run(run())


def test_who_gave_up_while_a_batch_lay_with_a_thread_is_not_run(held):
    async def run():
        sizes = []
        batcher = Batcher(held, Pace(2, 0, 2), 1, sizes.append)
        asked = [asyncio.ensure_future(batcher.find(images(v), False)) for v in (1, 2, 3, 4)]
        await called(held, 1)
        await turns()
        asked[2].cancel()
        held.free.set()
        assert scores(await asyncio.gather(asked[0], asked[1], asked[3])) == [[(v - 100.0) ** 2] for v in (1, 2, 4)]
        assert held.calls == [[1, 2], [4]] and sizes == [2, 1]
        # And one of which nobody is left.
        held.free.clear()
        asked = [asyncio.ensure_future(batcher.find(images(v), False)) for v in (1, 2, 3, 4)]
        await called(held, 3)
        await turns()
        asked[2].cancel()
        asked[3].cancel()
        held.free.set()
        await asyncio.gather(asked[0], asked[1])
        await batcher.find(images(9), False)
        assert held.calls == [[1, 2], [4], [1, 2], [9]]

    asyncio.run(run())


def test_who_gave_up_is_not_run(held):
    async def run():
        batcher = Batcher(held, Pace(4, 0, 4), 1)
        first = asyncio.ensure_future(batcher.find(images(1), False))
        await called(held, 1)
        late = asyncio.ensure_future(batcher.find(images(2), False, seconds=0.001))
        gone = asyncio.ensure_future(batcher.find(images(3), False))
        kept = asyncio.ensure_future(batcher.find(images(4), False))
        with pytest.raises(TimeoutError):
            await late
        gone.cancel()
        await turns()
        held.free.set()
        assert scores([await first, await kept]) == [[99.0**2], [96.0**2]]
        assert held.calls == [[1], [4]]

    asyncio.run(run())


def test_an_error_is_that_of_the_request_that_caused_it(held):
    held.broken = 13
    held.free.set()

    async def run():
        batcher = Batcher(held, Pace(8, 0, 8), 1)
        asked = (batcher.find(images(*v), False) for v in ((12,), (14, 13), (15,)))
        good, bad, other = await asyncio.gather(*asked, return_exceptions=True)
        assert scores([good, other]) == [[88.0**2], [85.0**2]]
        assert isinstance(bad, RuntimeError)
        assert scores([await batcher.find(images(16), False)]) == [[84.0**2]]  # and it goes on

    asyncio.run(run())


@pytest.mark.parametrize("soon", [0, 2])
def test_a_small_batch_has_the_same_result_on_the_loop_and_on_a_thread(held, soon):
    held.free.set()

    async def run():
        batcher = Batcher(held, Pace(4, soon, 4), 1)
        assert scores([await batcher.find(images(90, 110), False)]) == [[100.0, 100.0]]
        assert scores([await batcher.find(images(1, 2, 3), False)]) == [[99.0**2, 98.0**2, 97.0**2]]

    asyncio.run(run())


def test_the_queue_is_bounded_in_samples_and_bytes():
    admission = Admission(8, 1000, 1)
    places = [admission.enter() for _ in range(4)]
    for place in places:
        place.hold(100, 200)  # counts as a quarter of the queue: large ones do not shut others out
        assert admission.samples < 8 or place is places[-1]
    with pytest.raises(Full, match="VAEGIS_QUEUE_SAMPLES"):
        admission.enter()
    for place in places[1:]:
        place.leave()
    places[0].hold(1, 1000)
    with pytest.raises(Full, match="VAEGIS_QUEUE_BYTES"):
        admission.enter()
    places[0].leave()
    assert (admission.samples, admission.bytes) == (0, 0)


def test_verdicts_do_not_depend_on_the_company(client):
    """Many at once, of all sizes and forms: each gets the answer that it gets alone."""
    sent = [rng.integers(60, 141, (int(n), 4, 4, 1), dtype=np.uint8) for n in rng.integers(1, 40, 60)]

    def ask(i):
        query = ("", "?maps=array", "?priority=bulk", "?decide_by=negative_elbo&alpha=0.2")[i % 4]
        if i % 3:
            return client.score("image", sent[i].tobytes(), OCTETS, query)
        return client.score("image", {"data": sent[i][..., 0].tolist()}, JSON, query)

    alone = [ask(i) for i in range(len(sent))]
    with ThreadPoolExecutor(16) as many:
        assert list(many.map(ask, range(len(sent)))) == alone
    for (status, answer), x in zip(alone, sent, strict=True):
        assert status == 200
        want = ((x.astype(float) - 100) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose([r["score"] for r in answer["results"]], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("?deadline_ms=60000", 200, ""),
        ("?deadline_ms=1e-9", 504, "deadline_ms"),
        ("?deadline_ms=0", 422, "deadline_ms"),
        ("?deadline_ms=-5", 422, "deadline_ms"),
        ("?deadline_ms=soon", 422, "'soon'"),
        ("?priority=bulk", 200, ""),
        ("?priority=high", 422, "interactive, bulk"),
    ],
)
def test_deadlines_and_priorities(client, query, status, word):
    got, answer = client.score("image", bytes([100] * 16), OCTETS, query)
    assert got == status and word in answer.get("detail", "")


def test_a_full_queue_answers_429_and_takes_work_again(fill, tmp_path):
    settings = fill(tmp_path / "home").model_copy(update={"queue_samples": 2})
    with serving(settings) as client:
        path = "/v1/models/image/score"

        def half():
            """Half sent: it holds its place until it is whole."""
            connection = socket.create_connection(("127.0.0.1", client.port), timeout=30)
            connection.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\nContent-Type: {OCTETS}\r\n\r\n".encode()
                + b"d" * 8
            )
            return connection

        waiting = [half(), half()]

        def full():
            for i, connection in enumerate(waiting):
                if select.select([connection], [], [], 0)[0]:  # refused: the request below had the place just then
                    connection.close()
                    waiting[i] = half()
            return client.call("POST", path, bytes([100] * 16), OCTETS)[0] == 429

        until(full)
        status, headers, raw = client.call("POST", path, bytes([100] * 16), OCTETS)
        assert status == 429 and headers["Retry-After"] and "VAEGIS_QUEUE_SAMPLES" in json.loads(raw)["detail"]
        assert client.get("/healthz")[0] == 200
        waiting.pop().close()  # a client that hangs up gives its place back
        until(lambda: client.call("POST", path, bytes([100] * 16), OCTETS)[0] == 200)
        waiting[0].sendall(b"d" * 8)
        assert waiting[0].recv(4096).startswith(b"HTTP/1.1 200")
        waiting[0].close()
        assert client.metrics("vaegis_requests_rejected_total")['{reason="busy"}'] >= 2


def test_json_images_read_fast_and_slowly_are_the_same(client):
    """Numbers of 8 bits are read by a shorter way, left where the text holds true or false."""
    image = rng.integers(0, 256, (2, 4, 4)).tolist()
    _, fast = client.score("image", {"data": image})
    _, slow = client.score("image", {"data": image, "items": ["eel", "true"]})
    assert [r["score"] for r in fast["results"]] == [r["score"] for r in slow["results"]]
    for wrong in (256, -1, 1.5, None, "7", [1], True):
        body = {"data": [[[wrong, *image[0][0][1:]], *image[0][1:]]]}
        status, problem = client.score("image", body)
        if wrong is True:
            assert status == 200  # a truth among numbers counts as 1, as ever
        else:
            assert status in (400, 422), (wrong, problem)


def test_what_a_client_that_left_asked_for_is_dropped(held):
    async def run():
        batcher, left = Batcher(held, Pace(4, 0, 4), 1), asyncio.Event()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        first = asyncio.ensure_future(batcher.find(images(1), False))
        await called(held, 1)
        waiting = asyncio.ensure_future(attended(receive, batcher.find(images(2), False)))
        await asyncio.sleep(0)
        left.set()
        with pytest.raises(ClientDisconnect):
            await waiting
        held.free.set()
        await first
        found, _ = await attended(receive, batcher.find(images(3), False))  # answered before anybody looks
        assert found.values[0].tolist() == [97.0**2] and held.calls == [[1], [3]]

    asyncio.run(run())
