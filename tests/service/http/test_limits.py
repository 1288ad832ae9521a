"""Slow, broken and hostile clients on the wire: each is told off or cut off, and the others do not notice."""

import contextlib
import gzip
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from http_server import JSON, NPY, OCTETS, multipart, serving, until

X = bytes([100] * 16)
PATH = "/v1/models/image/score"


@pytest.fixture
def settings(fill, tmp_path):
    return fill(tmp_path / "home")


@contextlib.contextmanager
def connected(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as wire:
        yield wire


def head(length=16, kind=OCTETS, *more):
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answers(wire):
    """All that comes until the other end closes: (status, headers, problem or result) of each answer."""
    raw = b""
    with contextlib.suppress(ConnectionResetError):
        while more := wire.recv(65536):
            raw += more
    found = []
    while raw:
        top, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        size = int(headers["content-length"])
        found.append((int(first.split()[1]), headers, json.loads(rest[:size]) if size else None))
        raw = rest[size:]
    return found


def refused(wire, status, word):
    """The one answer is a problem with this status and a sentence that holds `word`; then the connection is closed."""
    ((got, headers, problem),) = answers(wire)
    assert (got, problem["status"]) == (status, status), problem
    assert headers["content-type"] == "application/problem+json" and headers["connection"] == "close"
    assert word in problem["detail"] and "Traceback" not in problem["detail"]
    return headers


def drip(wire, data, seconds=0.05):
    """Sends byte by byte until all is sent or the other end has had enough; whether it had."""
    for byte in data:
        try:
            wire.sendall(bytes([byte]))
        except OSError:
            return True
        if not silent(wire, seconds):
            return True
    return False


def judged(client):
    status, answer = client.score("image", X, OCTETS)
    return status == 200 and answer["results"][0]["score"] == 0.0


def test_slow_heads_are_cut_off(settings):
    settings = settings.model_copy(update={"header_seconds": 0.4})
    with serving(settings) as client:
        with connected(client) as wire:  # byte by byte
            assert drip(wire, head() + X)
            refused(wire, 408, "after 0.4 s")
        with connected(client) as wire:  # begun and left
            wire.sendall(b"POST /v1/mod")
            refused(wire, 408, "head")
        with connected(client) as wire:  # nothing at all
            assert answers(wire) == []
        with connected(client) as wire:  # nothing but empty lines
            drip(wire, b"\r\n" * 100)
            assert answers(wire) == []
        with connected(client) as wire:  # the second request of a connection
            wire.sendall(head() + X + b"GET /heal")
            first, second = answers(wire)
            assert first[0] == 200 and first[2]["results"][0]["score"] == 0.0
            assert second[0] == 408
        assert client.metrics("vaegis_requests_rejected_total")['{reason="slow_head"}'] == 3
        assert judged(client)


def test_a_connection_stays_open_between_requests(settings):
    """Longer than a head may take: a silent connection that has asked is no slow one."""
    settings = settings.model_copy(update={"header_seconds": 0.2})
    with serving(settings) as client, connected(client) as wire:
        for _ in range(2):
            wire.sendall(head() + X)
            assert b" 200 " in wire.recv(65536)
            assert silent(wire, 0.6)


def silent(wire, seconds):
    """Whether nothing comes for so long, not even the end."""
    wire.settimeout(seconds)
    try:
        wire.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        wire.settimeout(30)
    return False


def test_slow_bodies_are_cut_off(settings):
    settings = settings.model_copy(update={"body_seconds": 0.4})
    with serving(settings) as client:
        with connected(client) as wire:
            wire.sendall(head() + X[:8])
            refused(wire, 408, "body was not whole after 0.4 s")
        with connected(client) as wire:  # in chunks, which never end
            wire.sendall(head().replace(b"Content-Length: 16", b"Transfer-Encoding: chunked"))
            assert drip(wire, b"1\r\na\r\n" * 100)
            refused(wire, 408, "body")
        requests = client.metrics("vaegis_request_seconds_count")
        assert requests['{method="POST",route="/v1/models/{model}/score",status="408"}'] == 2
        assert client.metrics("vaegis_requests_rejected_total")['{reason="slow_body"}'] == 2
        assert judged(client)


def test_bodies_below_the_least_rate_are_cut_off(settings, monkeypatch):
    monkeypatch.setattr("vaegis.service.http.connection.GRACE_SECONDS", 0.3)
    settings = settings.model_copy(update={"body_bytes_per_second": 100_000.0})
    with serving(settings) as client:
        with connected(client) as wire:
            wire.sendall(head(1 << 20))
            assert drip(wire, bytes(300))
            refused(wire, 408, "fewer than 100000 bytes a second")
        assert judged(client)


def test_a_body_after_its_answer_has_little_time(settings, monkeypatch):
    """The answer came before the body was read: the rest is not waited for."""
    monkeypatch.setattr("vaegis.service.http.connection.GRACE_SECONDS", 0.3)
    with serving(settings) as client:
        with connected(client) as wire:
            wire.sendall(head(16, "text/plain") + X[:2])
            ((status, _, problem),) = answers(wire)
            assert status == 415 and "text/plain" in problem["detail"]
        assert judged(client)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_answers_that_nobody_reads_are_dropped(settings, monkeypatch):
    monkeypatch.setattr("vaegis.service.http.connection.GRACE_SECONDS", 0.3)
    with serving(settings) as client:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.settimeout(30)
        with wire:
            wire.connect(("127.0.0.1", client.port))
            body = X * 20_000  # its answer has some MB, more than the system holds for the client
            wire.sendall(head(len(body)).replace(b"/score", b"/score?maps=array") + body)
            until(lambda: client.metrics("vaegis_samples_scored_total").get(OK) == 20_000)
            assert held(client, wire)
            until(lambda: not held(client, wire))
        until(lambda: judged(client))


OK = '{model="image",status="ok",version="1"}'


def held(client, wire):
    """Whether the service still holds its end of a connection, by the system's own table."""
    port = wire.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, ours, theirs, *_, inode = line.split()[:10]
        if (int(ours[-4:], 16), int(theirs[-4:], 16)) == (client.port, port):
            return inode != "0"
    return False


def test_heads_beyond_all_measure_are_refused(settings):
    with serving(settings) as client:
        for sent in (
            head(16, OCTETS, "X-Long: " + "a" * 200_000),
            head(16, OCTETS, *[f"X-{i}: {'b' * 90}" for i in range(1000)]),
            b"GET /" + b"c" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX-Never-Ending: " + b"d" * 1_000_000,
        ):
            with connected(client) as wire:
                with contextlib.suppress(OSError):
                    wire.sendall(sent)
                refused(wire, 431, "65536")
        with connected(client) as wire:  # trailers of a chunked body
            wire.sendall(head().replace(b"Content-Length: 16", b"Transfer-Encoding: chunked"))
            with contextlib.suppress(OSError):
                wire.sendall(b"0\r\n" + b"X-Trailer: e\r\n" * 100_000)
            assert [status for status, *_ in answers(wire)][:1] in ([431], [400])
        with connected(client) as wire:
            wire.sendall(head(16, OCTETS, "X-Long: " + "a" * 30_000, "Connection: close") + X)
            ((status, *_),) = answers(wire)
            assert status == 200
        assert judged(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nContent-Length: 16\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: \x00\r\n\r\n",
        b"GET /%zz\x80 HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(client, sent):
    with connected(client) as wire:
        wire.sendall(sent)
        refused(wire, 400, "")
    assert judged(client)


def test_a_broken_chunk_is_malformed(client):
    with connected(client) as wire:
        wire.sendall(head().replace(b"Content-Length: 16", b"Transfer-Encoding: chunked") + b"zz\r\nabc\r\n")
        refused(wire, 400, "HTTP")
    assert judged(client)


def test_connections_beyond_the_most_are_told_to_come_back(settings):
    settings = settings.model_copy(update={"connections": 3})
    with serving(settings) as client, contextlib.ExitStack() as held:
        until(lambda: client.get("/healthz")[0] == 200)
        for _ in range(3):
            held.enter_context(connected(client)).sendall(b"GET /he")
        with connected(client) as wire:
            headers = refused(wire, 503, "3 connections")
            assert int(headers["retry-after"]) >= 1
        held.close()
        until(lambda: client.call("GET", "/healthz")[0] == 200)


def no_room(client, size):
    """Whether a request that announces a body of a size, and sends none, is refused."""
    with connected(client) as wire:
        wire.sendall(head(size))
        wire.settimeout(0.3)
        try:
            return b" 429 " in wire.recv(64)
        except TimeoutError:
            return False


def test_bodies_of_all_requests_are_bounded_together(settings):
    """Two clients send most of what they announced; a third finds no room, until they are gone."""
    settings = settings.model_copy(update={"queue_bytes": 100_000})
    with serving(settings) as client:
        with connected(client) as a, connected(client) as b:
            for wire in (a, b):
                wire.sendall(head(49_600) + bytes(45_000))
            body = X * 1000
            # Asked by a head alone: a body would take the room that the second client is still to find.
            until(lambda: no_room(client, len(body)))
            status, headers, raw = client.call("POST", PATH, body, OCTETS)
            assert status == 429 and int(headers["Retry-After"]) >= 1
            assert b"100000 bytes" in raw or b"VAEGIS_QUEUE_BYTES" in raw
        until(lambda: client.score("image", body, OCTETS)[0] == 200)


def test_a_client_that_hangs_up_leaves_nothing_behind(settings):
    with serving(settings) as client:
        for sent in (
            head(1 << 20) + bytes(1000),
            head(),
            head()[:30],
            head(1 << 20, FORM),
        ):
            with connected(client) as wire:
                wire.sendall(sent)
        with connected(client) as wire:  # gone before it is answered
            wire.sendall(head(16 * 5000) + X * 5000)
        until(lambda: judged(client))
        gone = '{method="POST",route="/v1/models/{model}/score",status="499"}'
        until(lambda: client.metrics("vaegis_request_seconds_count").get(gone, 0) >= 3)


def npy(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


PART = b'--vg\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
FORM = "multipart/form-data; boundary=vg"


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status", "word"),
    [
        (b'{"data": [[[NaN]]]}', JSON, {}, 400, "NaN"),
        (b'{"data": [[[1e999]]]}', JSON, {}, 400, ""),
        (b"[" * 100_000, JSON, {}, 400, "JSON"),
        (b'{"data": ' + b"[" * 500 + b"]" * 500 + b"}", JSON, {}, 400, ""),
        (gzip.compress(bytes(10_000_000), mtime=0), OCTETS, {"Content-Encoding": "gzip"}, 415, "gzip"),
        (gzip.compress(b"{}", mtime=0), JSON, {"Content-Encoding": "deflate, gzip"}, 415, "gzip"),
        (gzip.compress(bytes(1000), mtime=0), OCTETS, {}, 400, "16 bytes"),
        (npy(np.array([{}], dtype=object)), NPY, {}, 422, ""),
        (npy(np.zeros((2, 4, 4), np.uint8))[:-3], NPY, {}, 400, "whole"),
        (b"", FORM, {}, 400, "file"),
        (PART + b"x", FORM, {}, 400, "closing boundary"),
        (PART + b"x\r\n--vg--", "multipart/form-data", {}, 400, "boundary"),
        (PART + b"x\r\n--vg--", 'multipart/form-data; boundary=""', {}, 400, "boundary"),
        (PART + b"x\r\n--vg--", "multipart/form-data; boundary=" + "v" * 5000, {}, 400, ""),
        (b"no parts at all", FORM, {}, 400, ""),
        (PART.replace(b"filename", b"X" * 70_000) + b"x\r\n--vg--\r\n", FORM, {}, 400, "header size"),
        (b"--vg\r\n" + b"X-H: y\r\n" * 100_000 + b"\r\nx\r\n--vg--\r\n", FORM, {}, 400, ""),
        (b"--vg\r\n" + b"X" * 1_000_000, FORM, {}, 400, ""),
        (b"--vg\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n--vg--\r\n", FORM, {}, 400, "other"),
        (
            b'--vg\r\nContent-Disposition: form-data; name="file"\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n'
            b"--in\r\n\r\nx\r\n--in--\r\n--vg--\r\n", FORM, {}, 422, "not a readable image",
        ),
        (multipart([(f"{i}.png", b"x") for i in range(3000)])[0], FORM, {}, 422, "3000"),
        (multipart([("../../etc/passwd", b"x")])[0], FORM, {}, 422, "passwd: not a readable image"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(client, body, kind, headers, status, word):
    got, answer = client.score("image", body, kind, headers=headers)
    assert (got, answer["status"]) == (status, status), answer
    assert word in answer["detail"] and "Traceback" not in answer["detail"] and "/" not in answer["detail"][:20]
    assert judged(client)


def test_maps_beyond_the_largest_answer_are_refused(settings):
    settings = settings.model_copy(update={"max_answer_bytes": 10_000})
    with serving(settings) as client:
        assert client.score("image", X * 100, OCTETS, "?maps=array")[0] == 200
        status, problem = client.score("image", X * 200, OCTETS, "?maps=array")
        assert status == 413 and "VAEGIS_MAX_ANSWER_BYTES" in problem["detail"]
        assert client.score("image", X * 200, OCTETS)[0] == 200


def test_many_slow_clients_do_not_keep_others_waiting(settings):
    """A hundred that never finish, and one that asks: it is answered, every time."""
    with serving(settings) as client, contextlib.ExitStack() as held:
        for i in range(100):
            held.enter_context(connected(client)).sendall(head()[: 20 + i] if i % 2 else head() + X[:3])
        assert all(judged(client) for _ in range(20))
