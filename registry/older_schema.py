"""Reading a database whose schema is a little older than this code's; writing to it is refused until it is upgraded.

Each connection gets temporary views in front of the tables that lack something: a column that is not there yet is NULL,
and a table that is not there yet is empty. That is what upgrading would make of them, for the revisions in READABLE
and no others; nothing in the database is changed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Connection, Engine, Table, event, inspect, select

from registry.database import Database
from registry.errors import RegistryError, SchemaOutdated
from registry.tables import metadata

# Schemas from which upgrading only adds columns that are NULL in what is there, and tables that are empty. A migration
# that does more than that (rewrites rows, or means something else by a column) has to empty this.
READABLE = ("0009",)
_log = logging.getLogger(__name__)


class OlderDatabase(Database):
    """A database of a schema in READABLE: it can be read, and whatever writes raises `refusal`."""

    def __init__(self, url: str, statements: list[str], refusal: SchemaOutdated, *, on_network: bool = False) -> None:
        super().__init__(url, on_network=on_network)
        self._refusal = refusal
        event.listen(self.engine, "connect", partial(_lay_views_over, statements))

    def refuse_writing(self) -> None:
        """Raise what says that it has to be upgraded first."""
        error = self._refusal
        raise SchemaOutdated(f"{error.message} It can be read until then.", hint=error.hint, **error.fields)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Raise SchemaOutdated."""
        self.refuse_writing()
        yield  # type: ignore[misc]


def open_older(database: Database, refusal: SchemaOutdated) -> OlderDatabase:
    """Open a database that was refused as outdated so that it can be read; raise `refusal` if it cannot be."""
    if refusal.fields.get("found") not in READABLE:
        raise refusal
    with database.read() as connection:
        statements = _plan_views(connection)
    if statements is None:
        raise refusal
    url = database.url.render_as_string(hide_password=False)
    older = OlderDatabase(url, statements, refusal, on_network=database.on_network)
    try:
        with older.read() as connection:
            for table in metadata.sorted_tables:  # SQLite looks into a view only when it is asked
                connection.execute(select(table).limit(1)).first()
    except (RegistryError, sqlalchemy.exc.DBAPIError, _driver_error(older.engine)) as error:
        # a standby, say, or a role that may not make temporary views
        older.close()
        raise refusal from error
    _log.warning("%s It can be read, and not written to, until lensreg db upgrade has run.", refusal.message)
    return older


def _driver_error(engine: Engine) -> type[Exception]:
    found: type[Exception] = engine.dialect.import_dbapi().Error
    return found


def _plan_views(connection: Connection) -> list[str] | None:
    """Return the statements that make what is missing, or None if something cannot be made up."""
    found = inspect(connection)
    there = set(found.get_table_names())
    statements = []
    for table in metadata.sorted_tables:
        names = {one["name"] for one in found.get_columns(table.name)} if table.name in there else set()
        missing = [column for column in table.columns if column.name not in names]
        if not missing:
            continue
        if names and any(not column.nullable for column in missing):
            return None
        statements.append(_write_view(connection, table, missing, is_there=bool(names)))
    return statements


def _write_view(connection: Connection, table: Table, missing: list[Column[Any]], *, is_there: bool) -> str:
    quote = connection.dialect.identifier_preparer.quote
    made_up = ", ".join(f"{_write_null(connection, one)} AS {quote(one.name)}" for one in missing)
    name = quote(table.name)
    if not is_there:
        return f"CREATE TEMPORARY VIEW {name} AS SELECT {made_up} WHERE 1 = 0"
    # what is temporary comes first where a name is looked up; before it is there, the name is the table's
    place = f"main.{name}" if connection.dialect.name == "sqlite" else name
    return f"CREATE TEMPORARY VIEW {name} AS SELECT t.*, {made_up} FROM {place} t"


def _write_null(connection: Connection, column: Column[Any]) -> str:
    kind, _, collation = column.type.compile(connection.dialect).partition(" COLLATE ")
    return f"CAST(NULL AS {kind})" + (f" COLLATE {collation}" if collation else "")


def _lay_views_over(statements: list[str], connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    try:
        for statement in statements:
            cursor.execute(statement)
    finally:
        cursor.close()
    connection.commit()
