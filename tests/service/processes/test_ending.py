"""SIGTERM ends the service, whatever a graph does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from http_server import Client, until

import hostile_bundles as hostile
from vaegis.service.settings import Settings
from vaegis.service.store.registry import Registry

VAEGIS = Path(sys.executable).parent / "vaegis"


def test_a_graph_without_end_does_not_outlive_the_service(tmp_path):
    home = tmp_path / "home"
    with Registry.open(Settings(home=home)) as registry:
        registry.add("endless", hostile.hostile_bundle(tmp_path / "endless", hostile.without_end()).path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [VAEGIS, "serve", "--port", str(port)],
        env={**os.environ, "VAEGIS_HOME": str(home), "VAEGIS_SHUTDOWN_SECONDS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        client = Client(port)

        def alive():
            try:
                return client.get("/healthz")[0] == 200
            except OSError:
                return False

        until(alive)
        time.sleep(1)  # the graph runs by now
        assert client.get("/readyz")[0] == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
