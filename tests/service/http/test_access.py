"""Who may ask, how much, and how they are kept apart: keys, scopes, rates, TLS, and no other origin."""

import contextlib
import http.client
import json
import math
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from http_server import JSON, OCTETS, bearer, serving, until

from vaegis.models.errors import Refusal
from vaegis.service.errors import TooMany
from vaegis.service.http.rates import Rates, SharedBuckets
from vaegis.service.processes.tls import context_of
from vaegis.service.settings import Settings
from vaegis.service.store.keys import SCOPES, Keys
from vaegis.service.store.registry import Registry

X = bytes([100] * 16)
VAEGIS = Path(sys.executable).parent / "vaegis"


@pytest.fixture
def settings(fill, tmp_path):
    return fill(tmp_path / "home")


@pytest.fixture
def keys(settings):
    with Registry.open(settings) as registry:
        yield Keys(registry.database)


def test_revocation_is_seen_by_the_next_request(settings, keys):
    """By another process's hand, and not a second later. So is a new key, and the last one's end."""
    with serving(settings) as client:
        for _ in range(5):
            key, other = keys.create("line", ["score"]), keys.create("stays", ["score"])
            time.sleep(0.02)  # requests within a hundredth of a second share a look at the store
            assert client.get("/v1/models", **bearer(key))[0] == 200
            command = [VAEGIS, "keys", "revoke", key.split("_")[1]]
            if _ == 0:
                subprocess.run(command, check=True, env={**os.environ, "VAEGIS_HOME": str(settings.home)})
            else:
                keys.revoke(key.split("_")[1])
                time.sleep(0.02)
            assert client.get("/v1/models", **bearer(key))[0] == 401
            assert client.get("/v1/models", **bearer(other))[0] == 200
            assert client.get("/v1/models")[0] == 401


@pytest.mark.parametrize("scope", list(SCOPES))
def test_each_scope_opens_its_own_doors(settings, keys, scope):
    own = keys.create("x", [scope])
    with serving(settings) as client:
        promote = client.call("POST", "/v1/models/image/promote", b'{"version": 2}', JSON, bearer(own))
        assert promote[0] == (200 if scope == "admin" else 403)
        scored = client.score("image", X, OCTETS, headers=bearer(own))
        assert scored[0] == (200 if scope in ("score", "admin") else 403)
        for path in ("/v1/models", "/v1/models/image", "/metrics"):
            assert client.call("GET", path, headers=bearer(own))[0] == 200
        if scope == "audit":
            assert scored[1]["title"] == "Not allowed" and "needs score" in scored[1]["detail"]


def test_a_bucket_refills_at_its_rate():
    """Ten a second: ten at once, then one for each tenth of a second; a large request is paid for afterwards."""
    now = [0.0]
    rates = Rates(0.0, clock=lambda: now[0])
    for _ in range(10):
        rates.admit("a", 10.0)
    with pytest.raises(TooMany, match="10 samples a second") as refusal:
        rates.admit("a", 10.0)
    assert refusal.value.retry_after == 1
    rates.admit("b", 10.0)  # each has its own
    now[0] = 0.1
    rates.admit("a", 10.0)
    with pytest.raises(TooMany):
        rates.admit("a", 10.0)
    now[0] = 100.0  # no more than a second's worth is saved up
    rates.admit("a", 10.0)
    rates.charge("a", 10.0, 60)  # 10 - 60 = -50
    with pytest.raises(TooMany) as refusal:
        rates.admit("a", 10.0)
    assert refusal.value.retry_after == 6
    now[0] = 104.9
    with pytest.raises(TooMany):
        rates.admit("a", 10.0)
    now[0] = 105.2
    rates.admit("a", 10.0)
    for _ in range(100):
        rates.admit("free", 0.0)
        rates.admit("free", None)  # the default is none here
    with pytest.raises(TooMany):
        slow = Rates(0.5, clock=lambda: now[0])
        slow.admit("", None)
        slow.admit("", None)


def test_several_processes_share_a_bucket(tmp_path):
    """Whichever worker a request reaches: of twenty in a moment, ten are admitted between the two."""
    one, two = (Rates(0.0, SharedBuckets(tmp_path / "rates"), lambda: 7.0) for _ in range(2))
    admitted = 0
    for rates in (one, two) * 10:
        with contextlib.suppress(TooMany):
            rates.admit("0123456789ab", 10.0)
            admitted += 1
    assert admitted == 10
    for i in range(SharedBuckets.SLOTS + 100):  # more keys than there are slots: one may be forgotten, none is refused
        one.admit(f"key-{i}", 10.0)
    code = (
        "import sys; from pathlib import Path; from vaegis.service.http.rates import *;"
        "Rates(0.0, SharedBuckets(Path(sys.argv[1])), lambda: 7.0).charge('other', 10.0, 31)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "rates"], check=True)
    with pytest.raises(TooMany) as refusal:
        two.admit("other", 10.0)
    assert refusal.value.retry_after == 3  # 10 - 30 = -20, and 1 is asked for


def test_a_key_gets_no_more_than_its_rate(settings, keys):
    slow, fast = keys.create("slow", ["score"], rate=0.01), keys.create("fast", ["score"], rate=0)
    default = keys.create("default", ["score"])
    with serving(settings.model_copy(update={"rate": 100.0})) as client:
        assert client.score("image", X, OCTETS, headers=bearer(slow))[0] == 200
        status, headers, raw = client.call("POST", "/v1/models/image/score", X, OCTETS, bearer(slow))
        problem = json.loads(raw)
        assert (status, problem["title"]) == (429, "Too many requests")
        assert 90 <= int(headers["Retry-After"]) <= 100 and "0.01 samples a second" in problem["detail"]
        assert client.call("GET", "/v1/models", headers=bearer(slow))[0] == 429  # whatever is asked
        assert client.call("GET", "/healthz")[0] == 200  # but what needs no key
        for _ in range(5):
            assert client.score("image", X * 1000, OCTETS, headers=bearer(fast))[0] == 200
        assert client.score("image", X * 5000, OCTETS, headers=bearer(default))[0] == 200
        status, headers, _ = client.call("GET", "/v1/models", headers=bearer(default))
        assert status == 429 and 40 <= int(headers["Retry-After"]) <= 50  # 100 - 5000, at 100 a second
        assert client.metrics("vaegis_requests_rejected_total", bearer(fast))['{reason="too_many_requests"}'] == 3


def test_callers_without_a_key_share_the_default(settings):
    with serving(settings.model_copy(update={"rate": 0.01})) as client:
        assert client.get("/v1/models")[0] == 200
        assert client.get("/v1/models")[0] == 429


def test_rates_by_the_command_line(settings, keys):
    run = lambda *args: subprocess.run(  # noqa: E731
        [VAEGIS, "keys", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "VAEGIS_HOME": str(settings.home), "COLUMNS": "200"},
    )
    keys.create("a", ["score"])
    keys.create("b", ["score"], 0)
    assert run("create", "c", "--rate", "50").returncode == 0
    assert [k.rate for k in keys.list()] == [None, 0.0, 50.0]
    assert [k["rate"] for k in json.loads(run("list", "--json").stdout)] == [None, 0.0, 50.0]
    done = run("create", "d", "--rate=-1")
    assert done.returncode == 1 and "rate cannot be -1" in done.stderr and "Traceback" not in done.stderr


def test_rates_that_are_none(keys):
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(Refusal, match="samples a second"):
            keys.create("d", ["score"], wrong)


def test_no_other_origin_is_let_in(client):
    """No page from elsewhere can read an answer: nothing ever says that it may."""
    origin = {"Origin": "https://elsewhere.example"}
    for method, path, body in (
        ("GET", "/v1/models", None), ("GET", "/healthz", None), ("GET", "/nowhere", None),
        ("POST", "/v1/models/image/score", X), ("GET", "/docs", None), ("GET", "/metrics", None),
    ):  # fmt: skip
        _, headers, _ = client.call(method, path, body, OCTETS, origin)
        assert not [name for name in headers if name.lower().startswith("access-control-")]
    asks = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for path in ("/v1/models/image/score", "/v1/models/image/promote", "/v1/models"):
        status, headers, _ = client.call("OPTIONS", path, headers=asks)
        assert status == 405
        assert not [name for name in headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("a.pem", "", ("VAEGIS_TLS_KEY",)),
        ("", "a.key", ("VAEGIS_TLS_CERT",)),
        ("nowhere.pem", "a.key", ("VAEGIS_TLS_CERT", "nowhere.pem", "No such file")),
        ("a.pem", "nowhere.key", ("VAEGIS_TLS_KEY", "nowhere.key")),
        (".", "a.key", ("VAEGIS_TLS_CERT", "cannot be read")),
        ("none.pem", "a.key", ("VAEGIS_TLS_CERT", "no PEM certificate")),
        ("a.pem", "none.pem", ("VAEGIS_TLS_KEY", "no PEM private key")),
        ("a.key", "a.pem", ("VAEGIS_TLS_CERT", "no PEM certificate")),
        ("torn.pem", "a.key", ("torn.pem", "cannot be used")),
        ("a.pem", "b.key", ("b.key", "does not belong")),
        ("b.pem", "locked.key", ("VAEGIS_TLS_KEY", "password")),
    ],
)
def test_certificates_that_cannot_be_used(pairs, cert, key, words):
    given = {"tls_cert": str(pairs / cert) if cert else "", "tls_key": str(pairs / key) if key else ""}
    with pytest.raises(Refusal) as refusal:
        context_of(Settings(home=pairs, **given))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_https(settings, pairs, tmp_path):
    assert context_of(settings) is None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ, "VAEGIS_HOME": str(settings.home), "VAEGIS_TLS_CERT": str(pairs / "a.pem"),
        "VAEGIS_TLS_KEY": str(pairs / "a.key"), "VAEGIS_HEADER_SECONDS": "0.5",
    }  # fmt: skip
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([VAEGIS, "serve", "--port", str(port)], env=env, stdout=log, stderr=log)
        try:
            context = ssl.create_default_context(cafile=pairs / "a.pem")

            def ask(method, path, body=None):
                connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=context)
                with contextlib.closing(connection):
                    connection.request(method, path, body, {"Content-Type": OCTETS})
                    answer = connection.getresponse()
                    return answer.status, answer.read()

            def ready():
                try:
                    return ask("GET", "/readyz")[0] == 200
                except OSError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    return False

            until(ready, 30)
            assert ask("POST", "/v1/models/image/score", X)[0] == 200
            other = ssl.create_default_context(cafile=pairs / "b.pem")
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as wire,
                pytest.raises(ssl.SSLError),
                other.wrap_socket(wire, server_hostname="localhost"),
            ):
                pass
            with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:  # http on https
                wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" not in wire.recv(1000)
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as wire,
                context.wrap_socket(wire, server_hostname="localhost") as secret,
            ):  # slow within TLS
                secret.sendall(b"GET / HT")
                assert b" 408 " in secret.recv(1000)
            assert ask("GET", "/healthz")[0] == 200
        finally:
            process.terminate()
            process.wait(30)
    log = (tmp_path / "log").read_text()
    assert f"https://127.0.0.1:{port}" in log and "Traceback" not in log


def test_serve_refuses_a_certificate_with_a_sentence(settings, pairs):
    env = {**os.environ, "VAEGIS_HOME": str(settings.home), "VAEGIS_TLS_CERT": str(pairs / "a.pem")}
    done = subprocess.run([VAEGIS, "serve", "--port", "0"], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 1 and "VAEGIS_TLS_KEY" in done.stderr and "Traceback" not in done.stderr
