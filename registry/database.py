"""Engines and transactions: SQLite or Postgres, one code path.

Every write transaction is exclusive from its first statement (`BEGIN IMMEDIATE` behind a file lock on SQLite, an
advisory lock on Postgres), so that "read the newest, then insert" cannot race. Python's own transaction handling is
switched off on SQLite: it begins too late, and commits DDL halfway through a migration.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import URL, make_url

from registry.errors import (
    DatabaseError,
    DatabaseReadOnly,
    DatabaseUnavailable,
    RegistryBusy,
)

BUSY_SECONDS = 60
CONNECT_SECONDS = 10
# any fixed number of our own; all writers of one Postgres database queue behind it
WRITER_LOCK = 0x1E45_0001
_WRITES = "lensreg_writes"


class Database:
    """One database: `read()` and `write()` give a connection in a transaction of that kind."""

    def __init__(self, url: str) -> None:
        self.url = _parse_url(url)
        self._engine = _make_engine(self.url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        self._lock = filelock.FileLock(f"{self.url.database}.lock", timeout=BUSY_SECONDS) if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite (else it is Postgres)."""
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection whose reads are of one moment."""
        with self.typed_errors(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection that alone may write until the block ends; an exception undoes all of it."""
        with self.typed_errors(), self.queue_for_writing(), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITER_LOCK})
            yield connection

    @contextlib.contextmanager
    def queue_for_writing(self) -> Iterator[None]:
        """Wait for one's turn on SQLite, where waiting on the database's own lock is unfair; nothing on Postgres."""
        if self._lock is None:
            yield
            return
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise RegistryBusy(
                f"Another process has been writing to {self} for more than {BUSY_SECONDS} s.",
                hint="Try again; if no other process is at work, see who holds the file: fuser -v "
                f"{self.url.database}.lock",
            ) from None
        except OSError as error:
            raise DatabaseReadOnly(
                f"{self} cannot be written to: {error.strerror}.",
                hint="Check the permissions of its folder, or point --registry at another database.",
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    @property
    def writer(self) -> Engine:
        """The engine whose transactions write; for migrations, which need a connection of their own."""
        return self._writer

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def make_folder(self) -> None:
        """Make the folder that a SQLite file goes into."""
        if not self.is_sqlite:
            return
        folder = Path(str(self.url.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(
                f"The folder of {self} cannot be made: {error.strerror}.",
                hint="Point --registry or $LENSREG_HOME at a folder you may write to.",
            ) from error

    @contextlib.contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Turn the driver's errors into ours; IntegrityError passes, for those who can tell what it means."""
        try:
            yield
        except sqlalchemy.exc.IntegrityError:
            raise
        except sqlalchemy.exc.DBAPIError as error:
            raise _type_error(self, error) from error


def _parse_url(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except sqlalchemy.exc.ArgumentError:
        raise DatabaseUnavailable(
            f"{text_url!r} is no database URL.",
            hint="Write the path of a SQLite file, or postgresql://user@host/database.",
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DatabaseUnavailable("A registry in memory would be lost.", hint="Write the path of a SQLite file.")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseUnavailable(
            f"{url.get_backend_name()} is not supported.",
            hint="Use SQLite or Postgres: postgresql://user@host/database.",
        )
    return url


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return sqlalchemy.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        with contextlib.suppress(sqlite3.OperationalError):  # a read-only file keeps the journal it has
            connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _type_error(database: Database, error: sqlalchemy.exc.DBAPIError) -> DatabaseError:
    """Tell busy from read-only from unreachable, for both databases."""
    said = " ".join(str(error.orig).split())
    state = getattr(error.orig, "sqlstate", None)
    if "database is locked" in said or state == "55P03":
        return RegistryBusy(f"{database} is busy: {said}.", hint="Try again.")
    if "readonly" in said or "read-only" in said or state in ("25006", "42501"):
        return DatabaseReadOnly(
            f"{database} cannot be written to: {said}.",
            hint="Check your permissions on it, or point --registry at another database.",
        )
    return DatabaseUnavailable(
        f"{database} cannot be used: {said}.",
        hint="Check that the path or the URL is right and, for Postgres, that the server answers.",
    )
