"""Connections to Postgres: every wait on one is bounded, and one that broke is replaced before it is used.

The server bounds statements, locks and idle transactions; but where the network swallows everything, no server's word
gets through, and the kernel is content as long as somebody in between says that it got the bytes. So each wait for an
answer is bounded here too.
"""

from __future__ import annotations

import contextlib
import re
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psycopg
import sqlalchemy
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL

from registry.errors import DatabaseUnavailable

STATEMENT_SECONDS = 90
WRITER_IDLE_SECONDS = 30
PING_AFTER_SECONDS = 30
_SLACK_SECONDS = 0.5
_LIBPQ = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "fallback_application_name": "lensreg",
}
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Bounds:
    """How long what may take, in seconds; 0 is for ever.

    `connect` is for one host to be reached, and for a connection that was lost to be had again; `statement` for the
    server to answer; `lock` for a writer's turn; `idle` for a writer that has its turn to do nothing.
    """

    connect: float
    statement: float
    lock: float
    idle: float


def read_bounds(url: URL, *, connect: float, lock: float) -> Bounds:
    """Read the bounds: what the URL's query gives by Postgres's own names, else the defaults."""
    query = _flatten(url)
    return Bounds(
        connect=_read_seconds(query, "connect_timeout", connect, unit="s"),
        statement=_read_seconds(query, "statement_timeout", STATEMENT_SECONDS),
        lock=_read_seconds(query, "lock_timeout", lock),
        idle=_read_seconds(query, "idle_in_transaction_session_timeout", WRITER_IDLE_SECONDS),
    )


def make_postgres_engine(url: URL, bounds: Bounds) -> Engine:
    """Make an engine whose connections keep to the bounds; what else the URL's query says is libpq's, as it stands."""
    engine = sqlalchemy.create_engine(_complete(url, bounds))
    answer = bounds.statement + _SLACK_SECONDS if bounds.statement else None
    event.listen(engine, "do_connect", partial(_connect, answer))
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_refuse_broken, bounds.connect))
    return engine


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when an answer takes longer than `answer_seconds`; None is for ever."""

    answer_seconds: float | None = None

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        """Wait as psycopg does, but not for ever."""
        seconds = self.answer_seconds if timeout is None else timeout
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()  # an answer that came now would be taken for that to the next question
            raise psycopg.OperationalError(f"the server did not answer within {seconds:g} s") from None

    def check(self, seconds: float) -> None:
        """Have the server answer within so many seconds, or raise psycopg's error."""
        kept, self.answer_seconds = self.answer_seconds, seconds
        self.execute("")
        self.rollback()
        self.answer_seconds = kept


def _flatten(url: URL) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}


def _read_seconds(query: Mapping[str, str], name: str, default: float, unit: str = "ms") -> float:
    if name not in query:
        return default
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?) *(us|ms|s|min|h|d)?", query[name].strip())
    if match is None:
        raise DatabaseUnavailable(
            f"{name}={query[name]} in the database's URL is no time.",
            hint=f"Write it as Postgres does: {name}=30s" if unit == "ms" else f"Write whole seconds: {name}=10",
        )
    return float(match[1]) * _UNITS[match[2] or unit]


def _complete(url: URL, bounds: Bounds) -> URL:
    """Add what the query leaves out, and hand the server's own settings to the server as libpq wants them."""
    query = _flatten(url)
    settings = {
        "statement_timeout": f"{bounds.statement * 1000:.0f}",
        "lock_timeout": f"{bounds.lock * 1000:.0f}",
        "search_path": query.get("search_path"),
    }
    if "idle_in_transaction_session_timeout" in query:
        settings["idle_in_transaction_session_timeout"] = f"{bounds.idle * 1000:.0f}"
    written = [f"-c {name}={_escape(value)}" for name, value in settings.items() if value is not None]
    options = " ".join([*written, *([query["options"]] if "options" in query else [])])
    ours = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "search_path")
    given = {name: value for name, value in url.query.items() if name not in ours}
    return url.set(query={**_LIBPQ, "connect_timeout": f"{bounds.connect:.0f}", **given, "options": options})


def _escape(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)


def _connect(answer: float | None, dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    connection = BoundedConnection.connect(*arguments, **options)
    connection.answer_seconds = answer
    return connection


def _note_use(connection: BoundedConnection | None, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _refuse_broken(seconds: float, connection: BoundedConnection, record: Any, proxy: Any) -> None:
    """Have a pooled connection replaced if the server has ended it, or does not answer after a long rest.

    Whatever can be read from a connection that nobody asked anything is the server's goodbye. To look costs nothing;
    to ask, as `pool_pre_ping` does, takes half as long again as resolving a ref.
    """
    used_at = record.info.get("used_at")
    if used_at is None:  # it is new
        return
    if _has_news(connection):
        raise sqlalchemy.exc.DisconnectionError("the server ended the connection")
    if time.monotonic() - used_at > PING_AFTER_SECONDS:
        try:
            connection.check(seconds)
        except psycopg.Error as error:
            raise sqlalchemy.exc.DisconnectionError(str(error)) from error


def _has_news(connection: BoundedConnection) -> bool:
    with contextlib.suppress(psycopg.Error, OSError):  # it is closed
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return True
