"""Run one SELECT of somebody's own: it can read and nothing else, within a time and a number of rows.

SQLite: a read-only connection of its own, whose authoriser allows reading and nothing besides, so that neither ATTACH
nor PRAGMA nor an extension gets past it. Postgres: a cursor declared for the statement in a READ ONLY transaction of a
connection that is thrown away: DECLARE takes one query and no command.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from registry.database import Database
from registry.errors import InvalidInput, InvalidSql, QueryTimeout
from registry.refs import find_similar
from registry.results import make_frame
from registry.views import VIEWS

if TYPE_CHECKING:
    import pandas

MAX_CHARACTERS = 100_000
MAX_SECONDS = 3600
_MAX_VALUE_BYTES = 50_000_000
_STEPS_BETWEEN_LOOKS = 10_000
_SLACK_SECONDS = 1
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}


@dataclass(frozen=True)
class SqlResult:
    """What a SELECT gave: its columns, its rows as plain values, and whether there were more than the limit."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    is_cut: bool

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dicts; a name that comes again is numbered: `ref`, `ref_2`."""
        names = self.names
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a DataFrame. Raises PackageMissing without pandas."""
        return make_frame(self.names, [list(row) for row in self.rows])

    @property
    def names(self) -> list[str]:
        """The columns' names, each once."""
        names: list[str] = []
        for column in self.columns:
            again = 1
            name = column
            while name in names:
                again += 1
                name = f"{column}_{again}"
            names.append(name)
        return names


def run_sql(database: Database, statement: str, *, timeout: float, limit: int | None) -> SqlResult:
    """Run a SELECT; see `Registry.sql`. Raises InvalidSql and QueryTimeout."""
    if not 0 < timeout <= MAX_SECONDS:
        raise InvalidInput(f"A timeout of {timeout} s is none.", hint=f"Give seconds, up to {MAX_SECONDS}.")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidInput(f"limit is {limit!r}.", hint="Give a whole number above 0, or None for all.")
    if len(statement) > MAX_CHARACTERS or any(one == "\x00" or "\ud800" <= one <= "\udfff" for one in statement):
        raise InvalidSql(
            "The statement cannot be sent.",
            hint=f"It must be text without NUL or lone surrogates, of at most {MAX_CHARACTERS:,} characters.",
        )
    run = _run_sqlite if database.is_sqlite else _run_postgres
    columns, rows = run(database, statement.strip().rstrip(";"), timeout, limit)
    plain = tuple(tuple(map(_make_plain, row)) for row in rows[:limit])
    return SqlResult(tuple(columns), plain, limit is not None and len(rows) > limit)


_Answer = tuple[list[str], Sequence[Sequence[Any]]]


def _run_sqlite(database: Database, statement: str, timeout: float, limit: int | None) -> _Answer:
    deadline = time.monotonic() + timeout
    with database.read_alone() as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        connection.set_authorizer(_authorise)
        try:
            cursor = connection.execute(statement)
            if cursor.description is None:
                raise InvalidSql("This is no query.", hint=_HINT)
            rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _explain(str(error), timeout, timed_out="interrupted" in str(error)) from None
        return [column[0] for column in cursor.description], rows


def _authorise(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


def _run_postgres(database: Database, statement: str, timeout: float, limit: int | None) -> _Answer:
    import psycopg

    with database.read_alone() as connection, connection.transaction():
        connection.answer_seconds = timeout + _SLACK_SECONDS
        connection.execute("SET TRANSACTION READ ONLY")
        connection.execute(f"SET LOCAL statement_timeout = {max(1, int(timeout * 1000))}")
        connection.execute("SET LOCAL lock_timeout = 5000")
        deadline = time.monotonic() + timeout
        try:
            with connection.cursor(name="lensreg_sql") as cursor:
                cursor.execute(statement)
                rows: list[Any] = []
                while limit is None or len(rows) <= limit:
                    if time.monotonic() > deadline:
                        raise _explain("", timeout, timed_out=True)
                    some = cursor.fetchmany(1000 if limit is None else min(1000, limit + 1 - len(rows)))
                    if not some:
                        break
                    rows += some
                columns = [column.name for column in cursor.description or ()]
        except psycopg.errors.QueryCanceled as error:
            raise _explain(str(error), timeout, timed_out=True) from None
        except psycopg.Error as error:
            raise _explain(str(error), timeout, timed_out=False) from None
        return columns, rows


_MORE_THAN_READING = (
    "not authorized",
    "one statement at a time",
    "multiple commands",
    "read-only transaction",
    "data-modifying",
)
_HINT = f"Write one SELECT over the views {', '.join(VIEWS)}; their columns: docs/search.md."


def _explain(said: str, timeout: float, *, timed_out: bool) -> InvalidSql | QueryTimeout:
    if timed_out:
        return QueryTimeout(
            f"The query took more than {timeout:g} s.",
            seconds=timeout,
            hint="Ask for less, or give it longer: --timeout SECONDS",
        )
    said = " ".join(said.split()).removesuffix(".")
    if any(sign in said for sign in _MORE_THAN_READING):
        return InvalidSql(f"It would do more than read, or is more than one query: {said}.", hint=_HINT)
    missing = said.rpartition("no such table: ")[2] if "no such table: " in said else None
    similar = find_similar(missing, VIEWS) if missing else []
    return InvalidSql(f"The database refused it: {said}.", hint=f"Did you mean {similar[0]}?" if similar else _HINT)


def _make_plain(value: Any) -> Any:
    """Turn what the drivers give into what JSON and CSV know; instants stay, in UTC."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    if isinstance(value, float) and value != value:
        return None
    if value is None or isinstance(value, (str, int, float, bool, dict, list)):
        return value
    return value.isoformat() if isinstance(value, date) else str(value)
