"""What every database stores alike: each row is held to it before it is sent, so that none says what another does not.

SQLite would keep a NUL, a text beyond its column's length and NaN in JSON, and NaN in a number as NULL. Postgres
refuses all of these but the last, each with an error of its own, and keeps NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Integer, String, Table
from sqlalchemy.types import TypeEngine

from registry.errors import InvalidInput
from registry.refs import check_text

MAX_TEXT = 1_000_000


def check_row(table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `row` if every database stores it alike, or raise InvalidInput."""
    for name, value in row.items():
        if value is not None:
            _check_value(table.c[name].type, value, f"{name.replace('_', ' ')} of {table.name.replace('_', ' ')}")
    return row


def _check_value(kind: TypeEngine[Any], value: Any, what: str) -> None:
    if isinstance(kind, String):
        check_text(value, what, kind.length or MAX_TEXT)
    elif isinstance(kind, JSON):
        check_json(value, what)
    elif isinstance(kind, Float):
        if not math.isfinite(value):
            raise InvalidInput(
                f"The {what} is {value}, which is no number.", hint="Leave out what could not be measured."
            )
    elif isinstance(kind, Integer):
        bits = 63 if isinstance(kind, BigInteger) else 31
        if not -(2**bits) <= value < 2**bits:
            raise InvalidInput(f"The {what} is {value}, which is too large.", hint=f"It must fit {bits + 1} bits.")


def check_json(value: Any, what: str) -> Any:
    """Return `value` if it is JSON as every database keeps it: no NaN or infinity, no NUL, no lone surrogates."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"The {what} cannot be stored as JSON: {error}.", hint="NaN and Infinity are none."
        ) from None
    # written so, NUL is always \u0000, and an escaped backslash before u0000 is two of them
    if "\\u0000" in text.replace("\\\\", "") or any("\ud800" <= one <= "\udfff" for one in text):
        raise InvalidInput(
            f"The {what} cannot be stored.", hint="It must be text without NUL or lone surrogates throughout."
        )
    return value
