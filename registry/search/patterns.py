"""The patterns of `like`, with one meaning on both databases: `%` any text, `_` one character, case counts.

SQLite's own LIKE ignores the case of ASCII letters and Postgres's does not, so on SQLite a pattern becomes one of GLOB.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, literal

from registry.errors import InvalidQuery
from registry.search.grammar import refuse
from registry.search.syntax import Value

MAX_PATTERN = 1_000
_ANY, _ONE = "%", "_"


def match_pattern(
    text: str, column: ColumnElement[Any], value: Value, pattern: str, *, is_sqlite: bool
) -> ColumnElement[bool]:
    """Say that `column` matches the pattern. Raises InvalidQuery."""
    if len(pattern) > MAX_PATTERN:
        raise refuse(text, value.start, f"A pattern has at most {MAX_PATTERN:,} characters.")
    parts = _split(text, value, pattern)
    if is_sqlite:
        return column.bool_op("GLOB")(literal("".join(map(_write_glob, parts)), Text))
    return column.like(literal("".join(map(_write_like, parts)), Text), escape="\\")


def _split(text: str, value: Value, pattern: str) -> list[tuple[str, bool]]:
    """Split a pattern into characters, each with whether it is a wildcard; a backslash takes the next one literally."""
    parts = []
    characters = iter(pattern)
    for one in characters:
        if one == "\\":
            following = next(characters, None)
            if following is None:
                raise _refuse_backslash(text, value)
            parts.append((following, False))
        else:
            parts.append((one, one in (_ANY, _ONE)))
    return parts


def _refuse_backslash(text: str, value: Value) -> InvalidQuery:
    return refuse(
        text,
        value.start,
        "The pattern ends in a backslash, which takes the next character literally.",
        hint=r"Write \\ for a backslash, \% for a percent sign and \_ for an underscore.",
    )


def _write_glob(part: tuple[str, bool]) -> str:
    character, is_wildcard = part
    if is_wildcard:
        return "*" if character == _ANY else "?"
    return f"[{character}]" if character in "*?[" else character


def _write_like(part: tuple[str, bool]) -> str:
    character, is_wildcard = part
    return character if is_wildcard or character not in (_ANY, _ONE, "\\") else f"\\{character}"
