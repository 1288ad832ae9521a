"""A PostgreSQL server of the tests' own, where its programs and a driver are installed."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import create_engine


def programs():
    """The folder of `initdb`, the newest where there are several; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


def missing():
    """What a server cannot run without, or None."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed"
    if programs() is None:
        return "PostgreSQL is not installed"
    if os.getuid() == 0 and _account() is None:
        return "PostgreSQL does not run as root, and there is no account postgres"
    return None


def _account():
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class Server:
    """A server in a folder of its own."""

    def __init__(self, folder):
        self._folder, self._prefix, self._running = folder, [], False
        if os.getuid() == 0:
            os.chown(folder, _account().pw_uid, _account().pw_gid)
            self._prefix = ["runuser", "-u", "postgres", "--"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"postgresql+psycopg://vaegis@127.0.0.1:{self._port}/"
        self._call("initdb", "-U", "vaegis", "--auth=trust", "--no-sync")

    def start(self):
        settings = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-o", settings, "-l", self._folder / "log", "-w", "start")
        self._running = True

    def stop(self):
        if self._running:
            self._call("pg_ctl", "-m", "immediate", "stop")
            self._running = False

    def store(self):
        """The URL of a new, empty database."""
        name = f"store_{uuid.uuid4().hex}"
        engine = create_engine(self.url + "postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url + name

    def _call(self, program, *arguments):
        command = [*self._prefix, programs() / program, "-D", self._folder / "data", *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def postgresql():
    """A server that runs."""
    # Not in pytest's folders: another account runs it, which they are closed to.
    with tempfile.TemporaryDirectory(prefix="vaegis-postgresql-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
