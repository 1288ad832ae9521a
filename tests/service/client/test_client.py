"""The Python client against a real service."""

import asyncio
import http.client
import io
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from http_server import OCTETS, serving
from PIL import Image

from toy_bundles import calibration_scores
from vaegis.service.client import AsyncClient, Client, Problem, Retries, ServiceError, Unreachable
from vaegis.service.client.calls import attempts, models
from vaegis.service.store.keys import Keys
from vaegis.service.store.registry import Registry

DOCS = Path(__file__).parents[3] / "docs"
rng = np.random.default_rng(0)
IMAGES = rng.integers(80, 121, (5, 4, 4), dtype=np.uint8)
MAPS = (IMAGES.astype(float) - 100) ** 2
SCORES = MAPS.mean(axis=(1, 2))
P_VALUES = (1 + (calibration_scores()[None, :] >= SCORES[:, None]).sum(axis=1)) / 200


def url(client):
    return f"http://127.0.0.1:{client.port}"


@pytest.fixture
def ours(client):
    with Client(url(client), retries=0) as found:
        yield found


def test_verdicts_on_images(ours):
    found = ours.score("image", IMAGES, maps=True, alpha=0.05)
    assert (found.model, found.version, found.kind, found.decide_by) == ("image", 1, "image", "score")
    assert (found.alpha, found.threshold, found.extrapolated, len(found)) == (0.05, 190.0, False, 5)
    np.testing.assert_allclose(found.score, SCORES, rtol=1e-6)
    np.testing.assert_array_equal(found.p_value, P_VALUES)
    np.testing.assert_array_equal(found.anomalous, SCORES > 190)
    np.testing.assert_allclose(found.evidence["negative_elbo"], 2 * SCORES + 1, rtol=1e-6)
    np.testing.assert_array_equal(found.p_values["negative_elbo"], P_VALUES)
    np.testing.assert_allclose(found.maps, MAPS)
    assert found.index.tolist() == list(range(5)) and found.events == () and not found.errors
    one = found[1]
    assert (one.score, one.status) == (found.score[1], found.status[1]) and one.error is None
    assert [v.index for v in found] == [0, 1, 2, 3, 4]
    assert ours.score("image@2", IMAGES).threshold == 180.0
    assert ours.score("image", IMAGES, threshold=-1.0, bulk=True, deadline=20.0).alpha is None
    by = ours.score("image", IMAGES, decide_by="negative_elbo", alpha=0.5)
    assert by.threshold == 201 and by.anomalous.tolist() == (SCORES > 100).tolist()


def test_the_async_client_answers_the_same(client, ours):
    async def many():
        async with AsyncClient(url(client)) as found:
            described, listed = await asyncio.gather(found.describe("image"), found.models())
            return described, listed, await asyncio.gather(*(found.score("image", IMAGES[i : i + 1]) for i in range(5)))

    described, listed, found = asyncio.run(many())
    np.testing.assert_allclose([float(v.score[0]) for v in found], SCORES, rtol=1e-6)
    assert described == ours.describe("image") and listed == ours.models()


def test_files_and_what_cannot_be_read(ours, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "ä.png")
    found = ours.score_files("image", [tmp_path / "ä.png", ("torn.png", b"\x89PNG")])
    assert found.items == ("ä.png", "torn.png") and found.status[1] == "unjudged"
    assert found.score[0] == pytest.approx(SCORES[0]) and np.isnan(found.score[1]) and np.isnan(found.p_value[1])
    assert found.anomalous[1]  # nothing unjudged may pass as clean
    assert "torn.png" in found.errors[1] and found[-1].error == found.errors[1] and found[0].error is None
    with pytest.raises(FileNotFoundError):
        ours.score_files("image", [tmp_path / "nowhere.png"])


def test_series_by_name_with_timestamps(ours):
    x = np.ones((40, 2))
    x[20:24, 1] = 40.0
    stamps = [f"2026-01-01T00:00:{i:02d}" for i in range(40)]
    found = ours.score("series", x[:, ::-1], columns=["flow", "speed"], timestamps=stamps)
    plain = ours.score("series", x)
    np.testing.assert_array_equal(found.score, plain.score)
    assert list(found.timestamps) == stamps and found.warmup.sum() == 3
    (event,) = found.events
    assert (event.start, event.end, event.peak, event.channels) == (20, 26, 23, ("flow", "speed"))
    assert (event.start_timestamp, plain.events[0].start_timestamp) == (stamps[20], None)


def test_one_sample_that_is_unjudged_among_others(ours):
    found = ours.score("vector", [[1e30, 0, 0], [1, 1, 1]], items=["a", "b"])
    assert found.status == ("unjudged", "ok") and found.anomalous.tolist() == [True, False]
    assert np.isnan(found.evidence["negative_elbo"][0]) and found.evidence["negative_elbo"][1] == 3.0
    assert found.items == ("a", "b")


def test_what_a_model_is(ours):
    assert [(m.name, m.kind, m.champion, m.versions) for m in ours.models()] == [
        ("image", "image", 1, 2), ("series", "series", 1, 1), ("vector", "vector", 1, 1),
    ]  # fmt: skip
    found = ours.describe("image@2")
    assert (found.version, found.versions, found.aliases) == (2, (1, 2), {"champion": 1})
    assert found.thresholds[0.1] == 180.0 and found.input["height"] == 4 and "negative_elbo" in found.evidence


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (lambda c: c.score("nope", IMAGES), 404, "'nope'"),
        (lambda c: c.score("image@9", IMAGES), 404, "'9'"),
        (lambda c: c.score("a/../b?x=1#y", IMAGES), 404, "There is n"),
        (lambda c: c.score("image", IMAGES[:, :2]), 422, "4x4"),
        (lambda c: c.score("image", IMAGES / 2), 422, "whole"),
        (lambda c: c.score("image", IMAGES, alpha=7), 422, "alpha"),
        (lambda c: c.score("image", IMAGES, alpha=float("nan")), 422, "alpha"),
        (lambda c: c.score("image", IMAGES, alpha=0.1, threshold=1), 422, "Both"),
        (lambda c: c.score("image", IMAGES[:0]), 400, "empty"),
        (lambda c: c.score("vector", [[np.nan, 1, 1]]), 422, "NaN"),
        (lambda c: c.score("vector", [[1, 1, 1]], columns=["a", "b", "x"]), 422, "lacks column"),
        (lambda c: c.score("vector", [[1, 1, 1]], condition=["A"]), 422, "without conditions"),
        (lambda c: c.score("image", IMAGES, deadline=1e-6), 504, "deadline"),
        (lambda c: c.score_files("image", [("a.png", b"x")]), 422, "a.png"),
        (lambda c: c.promote("image", 9), 404, "'9'"),
        (lambda c: c.rollback("series"), 409, "version 1"),
        (lambda c: c.load("nope"), 404, "'nope'"),
    ],
)
def test_refusals_are_exceptions_with_the_sentence(ours, call, status, words):
    with pytest.raises(Problem) as caught:
        call(ours)
    error = caught.value
    assert (error.status, str(error)) == (status, error.detail) and words in error.detail
    assert error.title and error.request_id


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda c: c.score("image", IMAGES, apha=0.1), TypeError, "alpha"),
        (lambda c: c.score("image", [[1, 2], [3]]), ValueError, "shape"),
        (lambda c: c.score("image", [["a"]]), ValueError, "numbers"),
        (lambda c: c.score_files("image", "a.png"), TypeError, "brackets"),
        (lambda c: c.score_files("image", [], condition=["A"]), ValueError, "one condition"),
        (lambda c: c.score_files("image", [], columns=["a"]), TypeError, "columns"),
    ],
)
def test_wrong_calls_send_nothing(ours, call, kind, words):
    with pytest.raises(kind, match=words):
        call(ours)


def test_keys_and_what_changes_models(fill, tmp_path):
    settings = fill(tmp_path)
    with Registry.open(settings) as registry:
        admin, score = (Keys(registry.database).create(scope, [scope]) for scope in ("admin", "score"))
    with serving(settings) as served:
        with Client(url(served), admin) as ours:
            moved = ours.promote("image", 2)
            assert (moved.alias, moved.version, moved.previous) == ("champion", 2, 1)
            assert ours.rollback("image").version == 1
            ours.unload("image")
            with pytest.raises(Problem, match="unloaded"):
                ours.score("image", IMAGES)
            ours.load("image")
            assert ours.score("image", IMAGES).version == 1
        with Client(url(served), score) as ours, pytest.raises(Problem, match="admin") as caught:
            ours.rollback("image")
        assert caught.value.status == 403
        with Client(url(served)) as ours, pytest.raises(Problem) as caught:
            ours.models()
        assert caught.value.status == 401


class Full:
    """A service whose queue of one sample is full until `empty`, which a client can call where it would sleep."""

    def __init__(self, served):
        self.held = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
        self.held.putrequest("POST", "/v1/models/image/score")
        self.held.putheader("Content-Type", OCTETS)
        self.held.putheader("Content-Length", "16")
        self.held.endheaders(b"x" * 8)
        self.waits = []

    def refused(self):
        """Whether it was answered before it sent all: no place was left for it."""
        return bool(select.select([self.held.sock], [], [], 0)[0])

    def empty(self, seconds=0.0):
        self.waits.append(seconds)
        if self.held is not None:
            self.held.send(b"x" * 8)
            assert self.held.getresponse().read()
            self.held.close()
            self.held = None

    async def aempty(self, seconds):
        await asyncio.to_thread(self.empty, seconds)


def occupied(served):
    """Full, once the service says so."""
    full = Full(served)
    for _ in range(2000):
        if served.score("image", bytes(16), OCTETS)[0] == 429:
            return full
        if full.refused():  # the question whether it is full came first, and took the only place
            full = Full(served)
    raise AssertionError("never full")


@pytest.fixture
def small(fill, tmp_path):
    with serving(fill(tmp_path).model_copy(update={"queue_samples": 1})) as served:
        yield served


def test_a_busy_service_is_asked_again_after_the_time_it_names(small):
    full = occupied(small)
    with Client(url(small), sleep=full.empty) as ours:
        np.testing.assert_allclose(ours.score("image", IMAGES).score, SCORES, rtol=1e-6)
    assert len(full.waits) == 1 and 1.0 <= full.waits[0] <= 1.25

    full = occupied(small)

    async def work():
        async with AsyncClient(url(small), sleep=full.aempty) as ours:
            return await ours.score("image", IMAGES)

    np.testing.assert_allclose(asyncio.run(work()).score, SCORES, rtol=1e-6)
    assert len(full.waits) == 1 and 1.0 <= full.waits[0] <= 1.25


def test_patience_ends(small):
    full, waits = occupied(small), []
    with Client(url(small), retries=2, sleep=waits.append) as ours, pytest.raises(Problem) as caught:
        ours.score("image", IMAGES)
    assert caught.value.status == 429 and len(waits) == 2
    hasty = Retries(patience=0.5)
    with Client(url(small), retries=hasty, sleep=waits.append) as ours, pytest.raises(Problem):
        ours.score("image", IMAGES)
    assert len(waits) == 2  # the second that it asks for is more than there is
    full.empty()


def test_nobody_there(client):
    waits = []
    with Client("http://127.0.0.1:9", sleep=waits.append) as ours, pytest.raises(Unreachable, match="service runs"):
        ours.models()
    assert len(waits) == 3 and waits == sorted(waits) and waits[0] >= 0.1
    assert issubclass(Unreachable, ServiceError) and issubclass(Problem, ServiceError)
    with Client(url(client), "vg_wrong", verify=False) as ours:
        assert ours.models()  # while there are no keys, any is as good as none


def test_what_is_not_safe_is_not_sent_twice():
    """A connection that breaks after the request was sent: nobody knows whether it was done."""
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        seen = []

        def hang_up():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(65536).split(b" ")[1].decode())

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}", sleep=lambda s: None) as ours:
            for call in (lambda: ours.rollback("m"), lambda: ours.promote("m", 1), lambda: ours.models()):
                with pytest.raises(Unreachable):
                    call()
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert seen == ["/v1/models/m/rollback", "/v1/models/m/promote", *["/v1/models"] * 4]


def test_when_to_come_back_may_be_a_date():
    import httpx

    plan = attempts(models(), Retries(patience=1e9))
    assert next(plan) == 0.0
    later = {"Retry-After": "Fri, 01 Jan 2999 00:00:00 GMT"}
    with pytest.raises(Problem, match="no error of this service"):
        plan.send(httpx.Response(503, headers=later, text="<html>"))
    plan = attempts(models(), Retries())
    next(plan)
    assert plan.send(httpx.Response(503, headers={"Retry-After": "Fri, 01 Jan 1999 00:00:00 GMT"})) == 0.0
    assert 0.1 <= plan.send(httpx.Response(503, headers={"Retry-After": "soon"})) <= 0.5


def test_it_needs_nothing_that_runs_models():
    barred = "{'torch', 'onnxruntime', 'models', 'fastapi', 'pyarrow', 'sqlalchemy'}"
    code = f"import sys, vaegis.service.client; sys.exit(sorted({barred} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_examples_of_the_guide_run(client, tmp_path, monkeypatch, capsys):
    """As written, but for the address; the guide's models are toys of the same shape here."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(IMAGES[0]).save(name)
    np.save("images.npy", IMAGES)
    np.save("rows.npy", np.ones((40, 2)))
    examples = re.findall(r"```python\n(.*?)```", (DOCS / "client.md").read_text(), re.S)
    assert len(examples) >= 4
    for example in examples:
        exec(compile(example.replace("http://127.0.0.1:8000", url(client)), "client.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("image 1 198.0\n") and "404 Not found Model image has no version '9'" in out


def test_a_large_array_goes_whole(ours):
    x = rng.integers(0, 255, (3000, 4, 4), dtype=np.uint8)
    np.testing.assert_allclose(ours.score("image", x).score, ((x.astype(float) - 100) ** 2).mean((1, 2)), rtol=1e-5)
    file = io.BytesIO()
    np.save(file, x)
    assert len(file.getvalue()) > 40_000
