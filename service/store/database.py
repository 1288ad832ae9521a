"""Opening the store: the engine, its migrations and its transactions.

SQLite runs with a write-ahead log, so that readers never wait for a writer, and every writing transaction takes the
write lock when it begins: two that read, then write, can otherwise not both be waited for.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from vaegis.models.errors import Damaged, Refusal

HEAD = "0003"  # the newest migration: a store that is there already is opened without Alembic
BUSY_MS = 30_000  # how long a writer waits for another
_LOCK, _WRITES = 7_243_665_301, 7_243_665_302  # PostgreSQL advisory locks: of who migrates, and of who writes
_LOCKED = text("SELECT pg_advisory_xact_lock(:lock)")


class Database:
    """An open store. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._readers = engine
        self._changes = _Changes.of(engine)
        self._writers = engine.execution_options(begin="IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads."""
        with _in_a_sentence(self._readers), Session(self._readers) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One writing transaction: committed at the end, undone by any exception; others wait for it."""
        with _in_a_sentence(self._writers), Session(self._writers, expire_on_commit=False) as session, session.begin():
            # SQLite has one writer at a time. So has this, that what is read here still holds when it is written.
            if self._writers.dialect.name == "postgresql":
                session.execute(_LOCKED, {"lock": _WRITES})
            yield session

    def stamp(self) -> int | None:
        """A number that changes when anybody writes to the store; None where it cannot be had in microseconds."""
        return None if self._changes is None else self._changes.count()

    def close(self) -> None:
        self._readers.dispose()
        if self._changes is not None:
            self._changes.close()


class _Changes:
    """SQLite's own count of changes, by a connection that writes nothing and waits for nobody."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)

    @classmethod
    def of(cls, engine: Engine) -> _Changes | None:
        """None where the store is in memory, or not SQLite."""
        path = engine.url.database
        return cls(path) if engine.dialect.name == "sqlite" and path and path != ":memory:" else None

    def count(self) -> int | None:
        """A number that each change raises; None where it cannot be had now."""
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    def close(self) -> None:
        self._connection.close()


def open_database(url: str) -> Database:
    """Opens the store, makes it if it is not there, and brings its tables up to date.

    Raises:
        Refusal: the URL names no database that can be opened, or a newer version wrote it.
        Damaged: the file is no SQLite database.
    """
    try:
        engine = _engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise Refusal(
            f"The store cannot be opened: {error}. Give VAEGIS_STORE_URL as sqlite:///FILE, or install the driver it "
            "names; for postgresql+psycopg that is pip install 'vaegis[postgresql]'."
        ) from error
    try:
        with _in_a_sentence(engine):
            if engine.dialect.name == "sqlite":
                _write_ahead(engine)
            if _revision(engine) != HEAD:
                _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def _engine(url: str) -> Engine:
    address = make_url(url)
    if address.get_backend_name() != "sqlite":
        return create_engine(address, pool_pre_ping=True)
    if address.database and address.database != ":memory:":
        folder = Path(address.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refusal(
                f"The folder {folder} cannot be made ({error.strerror}); set VAEGIS_HOME to one that can be written."
            ) from error
        engine = create_engine(address)
    else:
        from sqlalchemy.pool import StaticPool

        # One connection for all threads: each connection in memory is a database of its own.
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # The driver would begin transactions late and commit before DDL; `begin` below does it instead.
        connection.isolation_level = None
        for pragma in (f"busy_timeout={BUSY_MS}", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")

    return engine


def _write_ahead(engine: Engine) -> None:
    """Switches to the write-ahead log, which the file then keeps. SQLite does not wait for others here; we do."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        raw = engine.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except engine.dialect.loaded_dbapi.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            raw.close()


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
    """Upgrades in one transaction that holds the write lock, so that of two processes one waits and finds it done."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with engine.execution_options(begin="IMMEDIATE").begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(_LOCKED, {"lock": _LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise Refusal(
                f"The store was written by another version of vaegis ({error}). Upgrade vaegis, or give another "
                "VAEGIS_HOME."
            ) from error


@contextmanager
def _in_a_sentence(engine: Engine) -> Iterator[None]:
    """Turns the database's own failures into a sentence that shows neither password nor path."""
    try:
        yield
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        # The second kind comes from a connection being prepared, where SQLAlchemy does not wrap it.
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "not a database" in reason or "malformed" in reason:
            raise Damaged(f"The store is damaged ({reason}); restore it from a backup.") from error
        raise Unavailable(
            f"The store cannot be used: {reason}. See that what VAEGIS_HOME and VAEGIS_STORE_URL name is there and can "
            "be written."
        ) from error


class Unavailable(Refusal):
    """The store cannot be reached, is locked, or its disk is full."""

    status = 503
    title = "Store unavailable"
