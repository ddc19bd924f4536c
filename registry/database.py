"""Transactions: SQLite or Postgres, one code path.

Every write transaction is exclusive from its first statement (`BEGIN IMMEDIATE` behind a file lock on SQLite, an
advisory lock on Postgres), so that "read the newest, then insert" cannot race.

When the answer to a COMMIT is lost, the transaction's newest event tells whether it took effect: its digest is like no
other's. So every change that appends an event is done once, or not at all, and whoever asked is told which.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, select

from registry import engines
from registry.driver_errors import type_driver_errors
from registry.engines import find_frozen, make_engine, parse_url, sign_frozen
from registry.environment import observe_git
from registry.errors import (
    ConnectionLost,
    DatabaseReadOnly,
    DatabaseUnavailable,
    OutcomeUnknown,
    RegistryBusy,
    UnsafeFileSystem,
)
from registry.file_systems import find_mount
from registry.forks import keep_from_forking
from registry.permissions import make_file, make_folder
from registry.tables import events
from registry.writers_queue import wait_for_turn

# any fixed number of our own; all writers of one Postgres database queue behind it
WRITER_LOCK = 0x1E45_0001
# a plain BEGIN takes the write lock too late: two that have read cannot both go on to write
BEGIN_WRITING = "BEGIN IMMEDIATE"
MAX_LOSSES = 3
_PAUSE_SECONDS = 0.2
_NEWEST_EVENT = "lensreg.newest_event"
_T = TypeVar("_T")
_ONE_MOMENT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


class Database:
    """One database: `read()`, `ask()` and `write()` give a connection for that; `change(work)` writes and repeats."""

    def __init__(self, url: str, *, on_network: bool = False) -> None:
        self.url = parse_url(url)
        self.file = Path(str(self.url.database)) if self.is_sqlite else None
        """The SQLite file; None for Postgres."""
        self.on_network = on_network
        self._frozen = find_frozen(self.url)
        self._engine = make_engine(self.url, self._frozen)
        self._reader = self._asker = self._engine
        self._bounds = None if self.is_sqlite else engines.read_bounds(self.url)
        if not self.is_sqlite:
            self._reader = self._engine.execution_options(**_ONE_MOMENT)
            self._asker = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        _databases.add(self)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite (else it is Postgres)."""
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        return self.url.difference_update_query(engines.PASSWORDS).render_as_string(hide_password=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection whose reads are of one moment."""
        with self._look(self._reader.begin) as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN")
            yield connection

    def ask(self) -> AbstractContextManager[Connection]:
        """Give a connection for one SELECT, which is of one moment without a transaction, and twice as fast."""
        return self._look(self._asker.connect)

    @contextlib.contextmanager
    def _look(self, connect: Callable[[], AbstractContextManager[Connection]]) -> Iterator[Connection]:
        before = sign_frozen(self._frozen)
        with self.typed_errors(), self._keep_from_forking(), connect() as connection:
            yield connection
        if before and sign_frozen(self._frozen) != before:
            raise RegistryBusy(f"{self} was written to while it was being read.", hint="Try again.")

    @contextlib.contextmanager
    def read_alone(self) -> Iterator[Any]:
        """Give a connection of the driver's own, to read with and to throw away: nobody gets it after this."""
        with self._keep_from_forking():
            with self.typed_errors():
                if self.file is not None:
                    connection: Any = engines.connect_to_read(self.file)
                else:
                    pooled = self._engine.raw_connection()
                    connection = pooled.driver_connection
                    pooled.detach()
            with contextlib.closing(connection):
                yield connection

    def change(self, work: Callable[[Connection], _T]) -> _T:
        """Do `work` in a transaction that alone may write, and again if the connection was lost before it took effect.

        It may be called several times, so it must change nothing but the database.
        """
        n_losses, until = 0, 0.0
        while True:
            try:
                with self.write() as connection:
                    return work(connection)
            except DatabaseUnavailable as error:
                if isinstance(error, ConnectionLost):
                    n_losses += 1
                    until = until or self._now_and_patience()
                if not 0 < n_losses <= MAX_LOSSES or time.monotonic() + _PAUSE_SECONDS > until:
                    raise
            time.sleep(_PAUSE_SECONDS)  # a server that was killed is back in seconds

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection that alone may write until the block ends; an exception undoes all of it.

        Raises ConnectionLost if nothing was written, so that it can be tried again (`change` does), and OutcomeUnknown.
        """
        observe_git()  # for the event, while nobody waits
        newest, is_ending = None, False
        with self.typed_errors(), self.queue_for_writing():
            try:
                with self._engine.begin() as connection:
                    self._begin_alone(connection)
                    connection.info.pop(_NEWEST_EVENT, None)
                    yield connection
                    newest, is_ending = connection.info.pop(_NEWEST_EVENT, None), True
            except sqlalchemy.exc.DBAPIError as error:
                if not is_ending or not self._may_have_ended(error):
                    raise
                self._settle(newest, error)

    def _begin_alone(self, connection: Connection) -> None:
        if self._bounds is None:
            connection.exec_driver_sql(BEGIN_WRITING)
            return
        # whoever has the turn and is cut off holds up all others
        idle = f"set_config('idle_in_transaction_session_timeout', '{self._bounds.idle * 1000:.0f}', true)"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK}), {idle}")

    def _may_have_ended(self, error: sqlalchemy.exc.DBAPIError) -> bool:
        """Say whether a COMMIT that gave this error can have taken effect: not if the database itself refused."""
        return "disk I/O error" in str(error.orig) if self.is_sqlite else error.connection_invalidated

    def _settle(self, newest: str | None, error: sqlalchemy.exc.DBAPIError) -> None:
        """Return if the transaction took effect although its COMMIT failed; else raise what that means."""
        until = self._now_and_patience()
        while newest is not None:
            try:
                was_done = self._holds_event(newest, until)
            except sqlalchemy.exc.DBAPIError:
                if time.monotonic() + _PAUSE_SECONDS > until:
                    break
                time.sleep(_PAUSE_SECONDS)
                continue
            if was_done:
                return
            raise error
        raise OutcomeUnknown(
            f"The answer of {self} to the COMMIT was lost, and it cannot be asked whether it took effect.",
            hint="It was done wholly or not at all. Once it answers again, see lensreg audit log, or do it again: what "
            "is there already is not registered twice.",
        ) from error

    def _holds_event(self, digest: str, until: float) -> bool:
        """Look for an event once the transaction that wrote it is over: it had the writers' turn until then."""
        query = select(events.c.sequence).where(events.c.digest == digest)
        with self._engine.begin() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql(BEGIN_WRITING)
                # pages of a COMMIT that failed lie behind the end of the -wal file; written over, they cannot come back
                version = connection.exec_driver_sql("PRAGMA user_version").scalar()
                connection.exec_driver_sql(f"PRAGMA user_version = {version}")
            else:
                wait = max(1, int((until - time.monotonic()) * 1000))
                connection.exec_driver_sql(f"SELECT set_config('lock_timeout', '{wait}', true)")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
            return connection.execute(query).scalar() is not None

    def _now_and_patience(self) -> float:
        """Return until when a connection that was lost is tried to be had again."""
        return time.monotonic() + (self._bounds.connect if self._bounds else 0)

    @contextlib.contextmanager
    def queue_for_writing(self) -> Iterator[None]:
        """Wait for one's turn on SQLite, where waiting on the database's own lock is unfair; nothing on Postgres."""
        if self.file is None:
            yield
            return
        lock = f"{self.file}.lock"
        with contextlib.ExitStack() as turn:
            try:
                turn.enter_context(wait_for_turn(lock, engines.BUSY_SECONDS))
            except TimeoutError:
                raise RegistryBusy(
                    f"Another process has been writing to {self} for more than {engines.BUSY_SECONDS} s.",
                    hint=f"Try again; if no other process is at work, see who holds the file: fuser -v {lock}",
                ) from None
            except OSError as error:
                raise DatabaseReadOnly(
                    f"{self} cannot be written to: {error.strerror or error}.",
                    hint="Check the permissions of its folder, or point --registry at another database.",
                ) from error
            with keep_from_forking():
                yield

    def _keep_from_forking(self) -> AbstractContextManager[None]:
        return keep_from_forking() if self.is_sqlite else contextlib.nullcontext()

    @property
    def engine(self) -> Engine:
        """The engine, for migrations, which need a connection of their own."""
        return self._engine

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def make_file(self) -> None:
        """Make the SQLite file and its folder if they are missing; SQLite would let everybody read the file.

        Raises UnsafeFileSystem where SQLite loses rows.
        """
        if self.file is None:
            return
        if not self.on_network:
            self._refuse_network(self.file)
        try:
            make_folder(self.file.parent)
            make_file(self.file)
        except OSError as error:
            raise DatabaseUnavailable(
                f"{self} cannot be made: {error.strerror}.",
                hint="Point --registry or $LENSREG_HOME at a folder you may write to.",
            ) from error

    def _refuse_network(self, path: Path) -> None:
        mount = find_mount(path)
        if mount is None or not mount.is_network or sign_frozen(self._frozen):  # what nobody writes to can be read
            return
        raise UnsafeFileSystem(
            f"{self} is on {mount.point}, a file system of the kind {mount.kind}: its locks and its shared memory "
            "cannot be relied on, and SQLite loses rows without them.",
            kind=mount.kind,
            hint="Put the database on a disk of this machine (--registry), or use Postgres; the store may stay where "
            "it is. If only this machine ever opens it: LENSREG_SQLITE_ON_NETWORK=1.",
        )

    def leave_to_parent(self) -> None:
        """Forget, in a forked child, what is the parent's: two processes on one connection read each other's rows."""
        self._engine.dispose(close=False)

    def typed_errors(self) -> AbstractContextManager[None]:
        """Turn the driver's errors, and those of damaged rows, into ours."""
        return type_driver_errors(self, self.file)


def note_event(connection: Connection, digest: str) -> None:
    """Remember the newest event of a write transaction, which tells whether it took effect if nobody says so."""
    connection.info[_NEWEST_EVENT] = digest


def _leave_all_to_parent() -> None:
    for database in _databases:
        database.leave_to_parent()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
