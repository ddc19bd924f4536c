"""From a URL to an engine: which databases are supported, and how a connection to each is set up.

Python's own transaction handling is switched off on SQLite: it begins too late, and commits DDL halfway through a
migration. Nor do we listen for SQLAlchemy's "begin": while anybody listens, every statement takes twice the time. A
SQLite file where nothing can be written ("frozen") is read without SQLite's locks.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from registry.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from registry.postgres import Bounds

BUSY_SECONDS = 60
CONNECT_SECONDS = 10
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
PASSWORDS = ("password", "sslpassword")
"""Where libpq takes secrets in the query of a URL."""


def parse_url(text: str) -> URL:
    """Return the URL of a SQLite file or of a Postgres database, or raise DatabaseUnavailable."""
    try:
        url = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise DatabaseUnavailable(
            f"{re.sub('//.*@', '//***@', text)!r} is no database URL.",
            hint="Write the path of a SQLite file, or postgresql://user@host/database.",
        ) from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise DatabaseUnavailable(
            f"{url.drivername} is not supported.",
            hint="Use SQLite or Postgres: postgresql://user@host/database.",
        )
    if driver != "sqlite":
        return url.set(drivername=driver)
    path = url.database or ""
    if path in ("", ":memory:"):
        raise DatabaseUnavailable("A registry in memory would be lost.", hint="Write the path of a SQLite file.")
    if url.host or path.startswith("file:") or "\x00" in path:
        raise DatabaseUnavailable(f"{text!r} is no path of a file.", hint="Write it as sqlite:////folder/registry.db.")
    return url.set(drivername=driver, database=str(Path(path).absolute()))


def make_engine(url: URL, frozen: Path | None) -> Engine:
    """Make the engine; whoever begins a transaction on SQLite says BEGIN himself."""
    if url.get_backend_name() != "sqlite":
        from registry.postgres import make_postgres_engine

        engine = make_postgres_engine(url, read_bounds(url))
    else:
        # without a bound: an interrupt within SQLAlchemy's own steps can lose a place in a pool for good
        options: dict[str, Any] = {"max_overflow": -1}
        if frozen:
            options = {"creator": partial(_connect_frozen, frozen), "poolclass": NullPool}
        engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **options)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "invalidate", _undo)
    return engine


def read_bounds(url: URL) -> Bounds:
    """Read how long what may take on Postgres."""
    from registry import postgres  # imports psycopg, which SQLite does without

    return postgres.read_bounds(url, connect=CONNECT_SECONDS, lock=BUSY_SECONDS)


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        # a read-only file keeps the journal it has; if it is no database, the first statement will say so
        with contextlib.suppress(sqlite3.DatabaseError):
            connection.execute(f"PRAGMA {pragma}")


def _undo(connection: sqlite3.Connection, record: Any, error: BaseException | None) -> None:
    """End the transaction of a connection that is thrown away, as after a KeyboardInterrupt inside a statement.

    SQLite closes it only when the last cursor is gone, which the exception's traceback may keep for as long as a
    notebook runs; and so long the transaction would lock everybody out.
    """
    with contextlib.suppress(sqlite3.Error):
        connection.rollback()


def find_frozen(url: URL) -> Path | None:
    """Return a SQLite file that lies where we can write nothing: SQLite cannot make the -wal file that it reads by."""
    path = Path(str(url.database))
    is_frozen = url.get_backend_name() == "sqlite" and path.is_file() and not os.access(path.parent, os.W_OK)
    return path if is_frozen else None


def _connect_frozen(path: Path) -> sqlite3.Connection:
    """Open a frozen file: by the -wal of a writer elsewhere if there is one, else as the whole that it then is."""
    mode = "mode=ro" if _has_wal(path) else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=BUSY_SECONDS, check_same_thread=False)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a SQLite file on a connection of its own that cannot write."""
    if not os.access(path.parent, os.W_OK):
        return _connect_frozen(path)
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def sign_frozen(path: Path | None) -> tuple[int, int] | None:
    """Return what a writer elsewhere would change of a file that is read without locks; None if there are locks."""
    if path is None or _has_wal(path):
        return None
    with contextlib.suppress(OSError):  # it is gone: opening it will say so
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    return None


def _has_wal(path: Path) -> bool:
    return Path(f"{path}-wal").exists()
