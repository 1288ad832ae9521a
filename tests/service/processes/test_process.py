"""The `vaegis` command as its own process."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from http_server import OCTETS, Client

VAEGIS = Path(sys.executable).parent / "vaegis"
X = bytes([100] * 16)
# Any import of these fails as if they were not installed.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "sklearn", "scipy", "matplotlib", "lightning_fabric", "training"}:
            raise ImportError(f"{name} must not be imported by the service")
sys.meta_path.insert(0, Blocked())
from vaegis.service.cli import main
sys.argv = ["vaegis", *sys.argv[1:]]
main()
"""


def vaegis(*args, home, **env):
    return subprocess.run(
        [VAEGIS, *map(str, args)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "VAEGIS_HOME": str(home), "COLUMNS": "200", **env},
    )  # fmt: skip


@pytest.fixture
def start(fill, tmp_path):
    """Starts `serve` on a free port; ends it afterwards."""
    running = []
    settings = fill(tmp_path / "home")

    def begin(*command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = open(tmp_path / "log", "w")  # noqa: SIM115 - open as long as the process
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port), "--log-format", "json"],
            env={**os.environ, "VAEGIS_HOME": str(settings.home)}, stdout=log, stderr=log,
        )  # fmt: skip
        running.append((process, log))
        return process, Client(port).ready()

    yield begin
    for process, log in running:
        process.kill()
        process.wait()
        log.close()


def test_it_serves_and_scores_where_torch_cannot_be_imported(start):
    _, client = start(sys.executable, "-c", BLOCKED)
    for model, body in (("vector", {"data": [[1, 1, 1]]}), ("series", {"data": [[1, 1]] * 9})):
        status, answer = client.score(model, body)
        assert status == 200 and answer["results"][0]["score"] == 1.0
    assert client.score("image", X, OCTETS, "?maps=png")[1]["results"][0]["score"] == 0.0


def test_sigterm_answers_the_request_under_way(start, tmp_path):
    """The request is half sent when the signal comes: it is received to its end and answered."""
    process, client = start(VAEGIS)
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.putrequest("POST", "/v1/models/image/score")
    connection.putheader("Content-Type", OCTETS)
    connection.putheader("Content-Length", "16")
    connection.endheaders(X[:8])
    # A later request that is answered shows that the first one was accepted.
    assert client.get("/healthz")[0] == 200
    process.send_signal(signal.SIGTERM)
    for _ in range(300):
        try:
            client.get("/healthz")
        except OSError:  # no new ones are taken any more
            break
    connection.send(X[8:])
    answer = connection.getresponse()
    assert answer.status == 200 and json.loads(answer.read())["results"][0]["score"] == 0.0
    connection.close()
    assert process.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (access,) = [e for e in lines if e["event"] == "request" and e["route"].endswith("score")]
    assert (access["method"], access["status"], access["samples"], access["model"]) == ("POST", 200, 1, "image")
    assert access["ms"] > 0 and access["request_id"]


def test_serve_refuses_with_a_sentence(fill, tmp_path):
    home = fill(tmp_path / "home").home
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = vaegis("serve", "--port", port, home=home)
        assert done.returncode == 1 and str(port) in done.stderr and "Traceback" not in done.stderr
    done = vaegis("serve", "--host", "0.0.0.0", home=home)
    assert done.returncode == 1 and "vaegis keys create" in done.stderr
    done = vaegis("serve", "--device", "tpu", home=home)
    assert done.returncode == 1 and "tpu" in done.stderr
    done = vaegis("serve", home=home, VAEGIS_MAX_SAMPLES="many")
    assert done.returncode == 1 and "VAEGIS_MAX_SAMPLES" in done.stderr
    assert vaegis("serve", "--prot", 1, home=home).returncode == 2


def test_models_and_keys_by_the_command_line(toys, tmp_path):
    home = tmp_path / "home"
    assert "vaegis fit" in vaegis("models", "list", home=home).stdout
    done = vaegis("models", "import", toys / "image", "--name", "line-3", home=home)
    assert done.returncode == 0 and "line-3 version 1, now its champion." in done.stdout
    vaegis("models", "import", toys / "image2", "--name", "line-3", home=home)
    done = vaegis("models", "promote", "line-3@2", home=home)
    assert done.returncode == 0 and "line-3@champion is version 2 now (before: 1)." in done.stdout
    (listed,) = json.loads(vaegis("models", "list", "--json", home=home).stdout)
    assert (listed["name"], listed["aliases"], len(listed["versions"])) == ("line-3", {"champion": 2}, 2)
    assert vaegis("models", "rollback", "line-3", home=home).returncode == 0
    shown = vaegis("models", "show", "line-3", home=home).stdout
    assert "rollback" in shown and "champion" in shown
    for args, words in (
        (("models", "rollback", "line-3"), ("version 1",)),
        (("models", "promote", "line-3"), ("line-3@2",)),
        (("models", "promote", "line-3@9"), ("'9'", "2, 1")),
        (("models", "show", "nope"), ("nope", "line-3")),
        (("models", "import", toys / "image", "--name", "Bad Name!"), ("name",)),
        (("models", "import", tmp_path / "nowhere", "--name", "x"), ("nowhere",)),
        (("keys", "create", "x", "--scope", "everything"), ("everything", "admin")),
    ):
        done = vaegis(*args, home=home)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert all(w in done.stderr for w in words), done.stderr
    done = vaegis("keys", "create", "line", "--scope", "score", "--scope", "audit", home=home)
    key = done.stdout.strip()
    assert key.startswith("vg_") and done.returncode == 0
    (held,) = json.loads(vaegis("keys", "list", "--json", home=home).stdout)
    assert held["scopes"] == ["audit", "score"] and held["id"] == key.split("_")[1]
    assert key not in (home / "vaegis.sqlite").read_bytes().decode("latin-1")
    assert vaegis("keys", "revoke", held["id"], home=home).returncode == 0
    assert vaegis("keys", "revoke", held["id"], home=home).returncode == 1
    assert vaegis("--version", home=home).stdout.startswith("vaegis 0.")
    assert vaegis("nonsense", home=home).returncode == 2


def test_an_unexpected_failure_is_a_sentence_unless_asked_for(tmp_path):
    (tmp_path / "file").write_text("")
    code = "import vaegis.service.cli as c; c.build = lambda: 1 / 0; c.main()"
    for debug, shown in (("", False), ("1", True)):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "VAEGIS_DEBUG": debug}
        )
        assert done.returncode == 1 and ("Traceback" in done.stderr) is shown
        assert shown or "VAEGIS_DEBUG=1" in done.stderr
