"""What a search says once it is read: a tree of tests, each knowing where in the text it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Name:
    """A field as it was written, in its parts: `metric.parity.raw` has three. `start` is its offset in the text."""

    parts: tuple[str, ...]
    start: int

    def __str__(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True)
class Value:
    """A literal: text, a number with its unit, if any, true, false or null; `written` is how it stands in the text."""

    value: str | int | float | bool | None
    written: str
    start: int
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """`field < value`."""

    field: Name
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Membership:
    """`field in (value, …)`."""

    field: Name
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Like:
    """`field like 'pattern'`."""

    field: Name
    pattern: Value


@dataclass(frozen=True)
class Between:
    """`field between low and high`, both included."""

    field: Name
    low: Value
    high: Value


@dataclass(frozen=True)
class IsNull:
    """`field is null`."""

    field: Name


@dataclass(frozen=True)
class Truth:
    """A field that is true or false, by itself: `verified`."""

    field: Name


@dataclass(frozen=True)
class Call:
    """`descends_from('ref')`."""

    function: Name
    argument: Value


@dataclass(frozen=True)
class Not:
    """`not test`."""

    test: Test


@dataclass(frozen=True)
class All:
    """`test and test and …`."""

    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Any:
    """`test or test or …`."""

    tests: tuple[Test, ...]


Test = Comparison | Membership | Like | Between | IsNull | Truth | Call | Not | All | Any


@dataclass(frozen=True)
class Order:
    """One term of an order: `-metric.loss` is descending."""

    field: Name
    descending: bool
