"""From a search's tree to a condition of SQLAlchemy, with bound values only; what cannot be meant is refused.

Null is SQL's: a comparison with what is missing is neither true nor false, and `not` leaves it so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Float,
    Select,
    Text,
    and_,
    literal,
    not_,
    or_,
    select,
)

from registry.errors import InvalidQuery
from registry.refs import Ref, check_model_name, find_similar
from registry.resolve import explain_miss, resolve_ref
from registry.search import syntax
from registry.search.columns import Columns, column_of_names, name_exists, walk_lineage
from registry.search.fields import ARCHITECTURE, FUNCTIONS, KINDS, METRIC, TAG, VERSION_FIELDS, Kind
from registry.search.grammar import refuse
from registry.search.patterns import match_pattern
from registry.search.values import Bound, read_value
from registry.tables import UtcDateTime, models, versions

_OPERATORS: Mapping[syntax.Operator, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXTS = ("text", "digest", "names")
_DEEPEST = 1_000_000_000


@dataclass(frozen=True)
class _Resolved:
    """A field as it was written, with the kind of value it holds and its expression (None: any number of names)."""

    name: syntax.Name
    kind: Kind
    column: ColumnElement[Any] | None


class Compiler:
    """Compiles the parts of one search; `text` is what errors point into."""

    def __init__(self, connection: Connection, text: str, columns: Columns) -> None:
        self._connection = connection
        self._text = text
        self._columns = columns
        self._n_walks = 0

    def condition(self, test: syntax.Test) -> ColumnElement[bool]:
        """Compile a test. Raises InvalidQuery, or UnknownRef for what a function names."""
        match test:
            case syntax.All(tests):
                return and_(*map(self.condition, tests))
            case syntax.Any(tests):
                return or_(*map(self.condition, tests))
            case syntax.Not(inner):
                return not_(self.condition(inner).self_group())
            case syntax.Call():
                return self._call(test)
            case _:
                return self._test_field(test)

    def order(self, order: syntax.Order) -> ColumnElement[Any]:
        """Return what to order by."""
        field = self._resolve(order.field)
        if field.column is None or field.kind == "list":
            raise self._refuse(order.field, f"{order.field} is {KINDS[field.kind]}, which has no order.")
        return self._columns.in_order(field.column, field.kind)

    def value(self, name: syntax.Name) -> ColumnElement[Any]:
        """Return what to show of a field."""
        field = self._resolve(name)
        if field.column is None or field.kind == "list":
            raise self._refuse(name, f"{name} is {KINDS[field.kind]}, and cannot be shown by itself.")
        return field.column

    def _test_field(self, test: Any) -> ColumnElement[bool]:
        field = self._resolve(test.field)
        if field.column is None:
            return self._test_names(field, test)
        match test:
            case syntax.IsNull():
                return field.column.is_(None)
            case syntax.Truth():
                if field.kind != "boolean":
                    hint = f"Compare it with something, or write `{test.field} is not null`."
                    raise self._refuse(test.field, f"{test.field} is {KINDS[field.kind]}, and no test.", hint=hint)
                return field.column
        if field.kind == "list":
            raise self._refuse(test.field, f"{test.field} is a list: only `is null` and `is not null` can be asked.")
        if field.kind == "boolean":
            return self._test_boolean(field, field.column, test)
        return self._test_column(field, field.column, test)

    def _test_column(self, field: _Resolved, column: ColumnElement[Any], test: Any) -> ColumnElement[bool]:
        match test:
            case syntax.Comparison(_, sign, value):
                compared = column if sign in ("=", "!=") else self._columns.in_order(column, field.kind)
                found: ColumnElement[bool] = _OPERATORS[sign](compared, self._bind(field, value))
                return found
            case syntax.Membership(_, values):
                return column.in_([self._bind(field, value) for value in values])
            case syntax.Between(_, low, high):
                ordered = self._columns.in_order(column, field.kind)
                return and_(ordered >= self._bind(field, low), ordered <= self._bind(field, high))
            case _:
                return self._match(field, column, test)

    def _test_boolean(self, field: _Resolved, column: ColumnElement[Any], test: Any) -> ColumnElement[bool]:
        if not isinstance(test, syntax.Comparison) or test.operator not in ("=", "!="):
            hint = f"Write `{test.field}` or `not {test.field}`."
            raise self._refuse(test.field, f"{test.field} is true or false.", hint=hint)
        wanted = read_value(self._text, test.field, "boolean", test.value) is (test.operator == "=")
        return column if wanted else not_(column)

    def _test_names(self, field: _Resolved, test: Any) -> ColumnElement[bool]:
        """Test whether any of a version's names is such; `!=` says that none is."""
        name = str(field.name)
        column = column_of_names(name)
        match test:
            case syntax.IsNull():
                return not_(name_exists(name, None))
            case syntax.Comparison(_, "=" | "!=", value):
                found = name_exists(name, column == self._bind(field, value))
                return found if test.operator == "=" else not_(found)
            case syntax.Membership(_, values):
                return name_exists(name, column.in_([self._bind(field, value) for value in values]))
            case syntax.Like():
                return name_exists(name, self._match(field, column, test))
            case _:
                raise self._refuse(
                    test.field,
                    f"{test.field} is any number of names.",
                    hint="Ask with `=`, `!=`, `in`, `like` and `is null`.",
                )

    def _match(self, field: _Resolved, column: ColumnElement[Any], test: syntax.Like) -> ColumnElement[bool]:
        if field.kind not in _TEXTS:
            raise self._refuse(test.field, f"{test.field} is {KINDS[field.kind]}, and `like` compares text.")
        pattern = str(read_value(self._text, test.field, field.kind, test.pattern))
        return match_pattern(self._text, column, test.pattern, pattern, is_sqlite=self._columns.is_sqlite)

    def _bind(self, field: _Resolved, value: syntax.Value) -> ColumnElement[Any]:
        return bind(read_value(self._text, field.name, field.kind, value))

    def _call(self, test: syntax.Call) -> ColumnElement[bool]:
        name = str(test.function)
        if name not in FUNCTIONS:
            raise self._refuse_unknown(test.function, "function", FUNCTIONS)
        if not isinstance(test.argument.value, str):
            raise refuse(self._text, test.argument.start, f"{name} wants a ref in quotes: {name}('pirate@v2').")
        self._n_walks += 1
        start = _select_ids(self._connection, test.argument.value)
        walk = walk_lineage(start, f"walk_{self._n_walks}", upwards=name == "ancestor_of")
        return versions.c.id.in_(select(walk.c.id))

    def _resolve(self, name: syntax.Name) -> _Resolved:
        first, *rest = name.parts
        if first == "tag" and rest:
            return _Resolved(name, TAG.kind, self._columns.of_tag(".".join(rest)))
        if first == "metric" and rest:
            if len(rest) > 2:
                hint = f'Write metric.NAME or metric.SUITE.NAME; a name with dots in quotes: metric."{".".join(rest)}"'
                raise self._refuse(name, f"{name} has too many parts.", hint=hint)
            return _Resolved(name, METRIC.kind, self._columns.of_metric(rest[0] if rest[1:] else None, rest[-1]))
        if not rest and first in VERSION_FIELDS:
            field = VERSION_FIELDS[first]
            return _Resolved(name, field.kind, None if field.kind == "names" else self._columns.of_version(first))
        if not rest and first in ARCHITECTURE:
            return _Resolved(name, ARCHITECTURE[first].kind, self._columns.of_architecture(first))
        raise self._refuse_unknown(name, "field", [*VERSION_FIELDS, *ARCHITECTURE, "tag.KEY", "metric.NAME"])

    def _refuse(self, name: syntax.Name, message: str, *, hint: str | None = None) -> InvalidQuery:
        return refuse(self._text, name.start, message, hint=hint)

    def _refuse_unknown(self, name: syntax.Name, what: str, known: Any) -> InvalidQuery:
        similar = find_similar(str(name), known)
        hint = f"Did you mean {similar[0]}?" if similar else "See what there is: lensreg search --fields"
        return refuse(self._text, name.start, f"There is no {what} {name}.", candidates=similar, hint=hint)


def bind(value: Bound) -> ColumnElement[Any]:
    """Bind a value with its own type: with the column's, Postgres would round 1.5 to be compared with a step."""
    if isinstance(value, datetime):
        return literal(value, UtcDateTime)
    if isinstance(value, str):
        return literal(value, Text)
    if isinstance(value, bool):
        return literal(value, Boolean)
    return literal(value, BigInteger) if isinstance(value, int) else literal(value, Float)


def iterate_tests(test: syntax.Test | None) -> Iterator[Any]:
    """Give the tests that are not made of others."""
    match test:
        case None:
            return
        case syntax.All(tests) | syntax.Any(tests):
            for one in tests:
                yield from iterate_tests(one)
        case syntax.Not(inner):
            yield from iterate_tests(inner)
        case _:
            yield test


def limit_depth(test: syntax.Test | None) -> int | None:
    """Return how deep must be walked to tell on which side of every depth that the search names a version lies.

    None is all the way.
    """
    limit = 0
    for one in iterate_tests(test):
        if isinstance(one, syntax.Call) or str(one.field) != "depth":
            continue
        match one:
            case syntax.Comparison(_, _, value):
                values = [value]
            case syntax.Membership(_, found):
                values = list(found)
            case syntax.Between(_, low, high):
                values = [low, high]
            case _:
                values = []
        if any(value.unit for value in values):
            return None
        numbers = [value.value for value in values if isinstance(value.value, (int, float))]
        limit = max([limit, *(int(min(number, _DEEPEST)) + 1 for number in numbers)])
    return limit


def _select_ids(connection: Connection, ref: str) -> Select[Any]:
    """Select the id of the version that `ref` means, or, of `NAME@*`, those of all versions of the model."""
    model, _, selector = ref.partition("@")
    if selector != "*":
        return select(versions.c.id).where(versions.c.id == resolve_ref(connection, ref).id)
    of_model = select(versions.c.id).join_from(versions, models).where(models.c.name == check_model_name(model))
    if connection.execute(of_model.limit(1)).first() is None:
        raise explain_miss(connection, model, Ref("newest", model=model))
    return of_model
