"""A real service on a free loopback port, in a thread, and a client for it."""

import contextlib
import http.client
import json
import socket
import threading
import time

from vaegis.service.app import create_app
from vaegis.service.processes.web import server_of
from vaegis.service.settings import Settings

OCTETS, JSON, NPY = "application/octet-stream", "application/json", "application/x-npy"


class Client:
    def __init__(self, port):
        self.port = port

    def call(self, method, path, body=None, kind=None, headers=None):
        """Status, headers and the whole body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {**({"Content-Type": kind} if kind else {}), **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, path, **headers):
        status, _, raw = self.call("GET", path, headers=headers)
        return status, json.loads(raw)

    def score(self, model, body, kind=JSON, query="", headers=None):
        if kind == JSON and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        status, _, raw = self.call("POST", f"/v1/models/{model}/score{query}", body, kind, headers)
        return status, json.loads(raw)

    def metrics(self, name, headers=None):
        """Label text -> value of a metric's samples."""
        lines = self.call("GET", "/metrics", headers=headers)[2].decode().splitlines()
        found = [line.rsplit(" ", 1) for line in lines if line.startswith((name + "{", name + " "))]
        return {labels.removeprefix(name): float(value) for labels, value in found}

    def ready(self, seconds=30.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.call("GET", "/readyz")[0] == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError("not ready")


def until(check, seconds=10.0):
    """Waits for what another thread or process does."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(settings: Settings):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = server_of(create_app(settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Client(listening.getsockname()[1]).ready()
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def bearer(key):
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def multipart(files, field="file"):
    """Body and content type of a form with files, as (name, bytes)."""
    parts = b"".join(
        f'--vg\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + raw
        + b"\r\n"
        for name, raw in files
    )
    return parts + b"--vg--\r\n", "multipart/form-data; boundary=vg"
