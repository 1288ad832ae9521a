"""A certificate renewed under a running service: SIGHUP, by one process and by several."""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from http_server import until

from vaegis.models.errors import Refusal
from vaegis.service.processes.tls import Certificate, context_of
from vaegis.service.settings import Settings

VAEGIS = Path(sys.executable).parent / "vaegis"


def digest(path):
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()


def ask(port, path, name="localhost"):
    """Digest of the certificate that a new connection is shown, and its answer; `name` None: it names no server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as wire,
        context.wrap_socket(wire, server_hostname=name) as secret,
    ):
        raw = secret.getpeercert(binary_form=True)
        secret.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: secret.recv(65536), b""))
    return hashlib.sha256(raw).hexdigest(), answer.decode()


def shown(port, name="localhost"):
    certificate, answer = ask(port, "/healthz", name)
    assert answer.startswith("HTTP/1.1 200"), answer
    return certificate


def give(pairs, folder, cert, key):
    """What a renewal does: the files are replaced where they lie."""
    for name, suffix in ((cert, "pem"), (key, "key")):
        shutil.copy(pairs / f"{name}.{suffix}", folder / f"new.{suffix}")
        os.replace(folder / f"new.{suffix}", folder / f"used.{suffix}")


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_shows_new_connections_the_new_certificate_and_never_a_half(fill, pairs, tmp_path, workers):
    home = fill(tmp_path / "home").home
    give(pairs, tmp_path, "a", "a")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ, "VAEGIS_HOME": str(home), "VAEGIS_TLS_CERT": str(tmp_path / "used.pem"),
        "VAEGIS_TLS_KEY": str(tmp_path / "used.key"), "TMPDIR": str(tmp_path),
    }  # fmt: skip
    log = tmp_path / "log"
    with open(log, "w") as out:
        command = [VAEGIS, "serve", "--port", str(port), "--workers", str(workers), "--log-format", "json"]
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    a, b = digest(pairs / "a.pem"), digest(pairs / "b.pem")

    def ready():
        """Every process has begun to serve: a worker counts once its metrics are there."""
        assert process.poll() is None, log.read_text()
        try:
            certificate, page = ask(port, "/metrics")
        except OSError:
            return False
        return certificate == a and page.count("\nvaegis_process_resident_memory_bytes") == workers

    def lines(event):
        return log.read_text().count(event)

    try:
        until(ready, 30)
        # A pair that does not belong together: every process says so, and goes on with the one before.
        give(pairs, tmp_path, "b", "a")
        process.send_signal(signal.SIGHUP)
        until(lambda: lines("the certificate before stays in use") == workers, 30)
        assert lines("does not belong to the first certificate") == workers
        assert {shown(port) for _ in range(10)} == {a}
        give(pairs, tmp_path, "b", "b")
        process.send_signal(signal.SIGHUP)
        until(lambda: lines("new connections are shown the certificate that was read now") == workers, 30)
        assert {shown(port) for _ in range(10)} == {b} == {shown(port, None)}
        # Gone altogether: the same.
        (tmp_path / "used.key").unlink()
        process.send_signal(signal.SIGHUP)
        until(lambda: lines("the certificate before stays in use") == 2 * workers, 30)
        assert {shown(port) for _ in range(10)} == {b}
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in log.read_text()


def test_a_certificate_is_replaced_whole_or_not_at_all(pairs, tmp_path):
    settings = Settings(home=tmp_path, tls_cert=str(tmp_path / "used.pem"), tls_key=str(tmp_path / "used.key"))
    give(pairs, tmp_path, "a", "a")
    certificate = Certificate(settings, context_of(settings))
    listening = certificate.listening
    assert handshake(listening) == digest(pairs / "a.pem")
    give(pairs, tmp_path, "b", "a")
    with pytest.raises(Refusal, match="does not belong"):
        certificate.renew()
    assert handshake(listening) == digest(pairs / "a.pem")
    give(pairs, tmp_path, "b", "b")
    certificate.renew()
    assert handshake(listening) == digest(pairs / "b.pem")


def handshake(listening):
    """Digest of the certificate that a client is shown, both ends in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there), listening.wrap_bio(there, back, server_side=True)]
    for _ in range(5):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return hashlib.sha256(ends[0].getpeercert(binary_form=True)).hexdigest()
