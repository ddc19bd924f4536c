"""What every database stores alike: each row is held to it before it is sent, so that none says what another does not.

What is sent is made once for each table: to make a statement takes longer than to run it.

SQLite would keep a NUL, a text beyond its column's length and NaN in JSON, and NaN in a number as NULL. Postgres
refuses all of these but the last, each with an error of its own, and keeps NaN.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    Insert,
    Integer,
    String,
    Table,
    bindparam,
    exists,
    select,
)

from registry.errors import InvalidInput
from registry.refs import check_text

MAX_TEXT = 1_000_000
_SURROGATE = re.compile("[\ud800-\udfff]")


def insert_row(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Insert a row whose id the database chooses, and return it."""
    inserted = connection.execute(_make_insert(table), check_row(table, row)).inserted_primary_key
    return int(inserted[0]) if inserted else 0


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all say something of the same columns."""
    if rows:
        connection.execute(_make_insert(table), [check_row(table, row) for row in rows])


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Insert the rows whose primary key is new, where the same key always means the same content; False if none was."""
    if not rows:
        return False
    statement = _make_insert_missing(table, tuple(rows[0]))
    return connection.execute(statement, [check_row(table, row) for row in rows]).rowcount > 0


@cache
def _make_insert(table: Table) -> Insert:
    return table.insert()


@cache
def _make_insert_missing(table: Table, columns: tuple[str, ...]) -> Insert:
    there = exists().where(*(column == bindparam(column.name) for column in table.primary_key))
    row = select(*(bindparam(name, type_=table.c[name].type) for name in columns)).where(~there)
    # without the option it is the driver's cursor that is asked, and psycopg's is closed by then
    return table.insert().from_select(columns, row).execution_options(preserve_rowcount=True)


def check_row(table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `row` if every database stores it alike, or raise InvalidInput."""
    for name, value in row.items():
        if value is not None:
            _check_value(table.c[name], value)
    return row


def _check_value(column: Column[Any], value: Any) -> None:
    kind = column.type
    if isinstance(kind, String):
        check_text(value, _name(column), kind.length or MAX_TEXT)
    elif isinstance(kind, JSON):
        check_json(value, _name(column))
    elif isinstance(kind, Float):
        if not math.isfinite(value):
            raise InvalidInput(
                f"The {_name(column)} is {value}, which is no number.", hint="Leave out what could not be measured."
            )
    elif isinstance(kind, Integer):
        bits = 63 if isinstance(kind, BigInteger) else 31
        if not -(2**bits) <= value < 2**bits:
            raise InvalidInput(
                f"The {_name(column)} is {value}, which is too large.", hint=f"It must fit {bits + 1} bits."
            )


@cache
def _name(column: Column[Any]) -> str:
    return f"{column.name} of {column.table.name}".replace("_", " ")


def check_json(value: Any, what: str) -> Any:
    """Return `value` if it is JSON as every database keeps it: no NaN or infinity, no NUL, no lone surrogates."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"The {what} cannot be stored as JSON: {error}.", hint="NaN and Infinity are none."
        ) from None
    # written so, NUL is always \u0000, and an escaped backslash before u0000 is two of them
    if "\\u0000" in text.replace("\\\\", "") or _SURROGATE.search(text):
        raise InvalidInput(
            f"The {what} cannot be stored.", hint="It must be text without NUL or lone surrogates throughout."
        )
    return value
