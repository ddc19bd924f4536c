"""From a literal, as it was written, to the value that a field of some kind is compared with; or to what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

from registry.errors import InvalidInput, InvalidQuery
from registry.refs import check_text, find_similar
from registry.search import syntax
from registry.search.fields import KINDS, Kind
from registry.search.grammar import refuse

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SIZES = {
    "B": 1,
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("kMGTP")},
    "KB": 1000,
    **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGTP")},
}
_UNITS: Mapping[Kind, Mapping[str, int]] = {"integer": _COUNTS, "size": _SIZES, "number": _COUNTS}

Bound = str | int | float | bool | datetime


def read_value(text: str, field: syntax.Name, kind: Kind, value: syntax.Value) -> Bound:
    """Return what `field`, of the kind `kind`, is compared with. Raises InvalidQuery."""
    if value.value is None:
        raise refuse(
            text, value.start, "Nothing is equal to null.", hint=f"Write `{field} is null`, or `{field} is not null`."
        )
    if kind in ("text", "digest", "names") and isinstance(value.value, str):
        return _read_text(text, kind, value, value.value)
    if kind == "boolean" and isinstance(value.value, bool):
        return value.value
    if kind == "instant" and isinstance(value.value, str):
        return _read_instant(text, value, value.value)
    if kind in _UNITS and isinstance(value.value, (int, float)) and not isinstance(value.value, bool):
        return _read_number(text, kind, value, value.value)
    raise _refuse_kind(text, field, kind, value)


def _refuse_kind(text: str, field: syntax.Name, kind: Kind, value: syntax.Value) -> InvalidQuery:
    what = {str: "text", bool: "true or false", int: "a number", float: "a number"}[type(value.value)]
    hint = None
    if kind in ("text", "digest", "names"):
        hint = f"Write it in quotes: '{value.written}'."
    elif kind == "instant":
        hint = "Write it in quotes: '2026-01-31' or '2026-01-31T12:00Z'."
    elif what == "text" and kind != "boolean":
        hint = "Write it without quotes."
    return refuse(text, value.start, f"{field} is {KINDS[kind]}, and {value.written} is {what}.", hint=hint)


def _read_text(text: str, kind: Kind, value: syntax.Value, said: str) -> str:
    try:
        check_text(said, "text")
    except InvalidInput as error:
        raise refuse(text, value.start, "No field can hold this text.", hint=error.hint) from None
    return said.removeprefix("sha256:") if kind == "digest" else said


def _read_instant(text: str, value: syntax.Value, said: str) -> datetime:
    """Read an ISO 8601 instant; a date is its first moment, and what says no time zone is UTC."""
    try:
        instant = datetime.fromisoformat(said)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise refuse(
            text,
            value.start,
            f"{value.written} is no instant.",
            hint="Write it as '2026-01-31', '2026-01-31T12:00' (UTC) or '2026-01-31T12:00+01:00'.",
        ) from None


def _read_number(text: str, kind: Kind, value: syntax.Value, number: int | float) -> int | float:
    """Multiply with the unit; what counts things is a whole number of 64 bits wherever it can be."""
    exact = Decimal(repr(number))  # 2.3GB is 2,300,000,000 bytes, which floating point misses
    if value.unit:
        units = _UNITS[kind]
        if value.unit not in units:
            similar = find_similar(value.unit, units)
            raise refuse(
                text,
                value.start,
                f"{value.unit} is no unit of {KINDS[kind]}.",
                candidates=similar,
                hint=f"Did you mean {similar[0]}?" if similar else f"The units are {', '.join(units)}.",
            )
        exact *= units[value.unit]
    if kind == "number" and math.isfinite(float(exact)):
        return float(exact)
    if kind != "number" and _SMALLEST <= exact <= _LARGEST:
        return int(exact) if exact == int(exact) else float(exact)
    raise refuse(text, value.start, f"{value.written} is beyond the 64 bits that {KINDS[kind]} can have.")
