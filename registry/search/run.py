"""Run a search: from its text to the versions it finds, in a stable order, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, false, or_, select

from registry.errors import InvalidInput
from registry.query import summarise_ids
from registry.refs import find_similar
from registry.resolve import resolve_ref
from registry.results import FoundVersion, SearchResult
from registry.search import syntax
from registry.search.columns import Columns
from registry.search.compile import Compiler, bind, iterate_tests, limit_depth
from registry.search.grammar import parse_order, parse_search
from registry.tables import models, tags, validations, versions

_Term = tuple[ColumnElement[Any], bool]


@dataclass(frozen=True)
class Search:
    """What is asked for, as `Registry.search` describes it."""

    text: str = ""
    order_by: str | Sequence[str] = ()
    limit: int | None = None
    after: str | None = None
    show: Sequence[str] = ()


def search_versions(connection: Connection, search: Search) -> SearchResult:
    """Find the versions for which the search's text holds, with what is recorded of them."""
    test, query, names = _build(connection, search, versions.c.id)
    page, has_more = _run(connection, query, search.limit)
    summaries = summarise_ids(connection, [row[0] for row in page])
    found = [FoundVersion(**vars(summaries[row[0]]), values=dict(zip(names, row[1:], strict=True))) for row in page]
    return SearchResult(
        found,
        after=found[-1].ref if has_more else None,
        notes=() if found else _explain_nothing(connection, test),
    )


def search_refs(connection: Connection, search: Search) -> list[str]:
    """Find the refs of the versions for which the search's text holds, and nothing else about them."""
    _, query, _ = _build(connection, search, models.c.name, versions.c.number)
    page, _ = _run(connection, query, search.limit)
    return [f"{row[0]}@v{row[1]}" for row in page]


def _build(
    connection: Connection, search: Search, *wanted: ColumnElement[Any]
) -> tuple[syntax.Test | None, Select[Any], list[str]]:
    """Make the query for `wanted` and the fields to show, whose names are returned."""
    if search.limit is not None and (type(search.limit) is not int or search.limit < 1):
        raise InvalidInput(f"limit is {search.limit!r}.", hint="Give a whole number above 0, or None for all.")
    test = parse_search(search.text)
    order_text, show_text = _join(search.order_by), _join(search.show)
    orders, shown = parse_order(order_text), parse_order(show_text)
    named = [order.field for order in (*orders, *shown)]
    columns = Columns(
        {name.parts[0] for name in (*named, *_names_of(test))},
        None if any(str(name) == "depth" for name in named) else limit_depth(test),
        is_sqlite=connection.dialect.name == "sqlite",
    )
    ordering, showing = Compiler(connection, order_text, columns), Compiler(connection, show_text, columns)
    terms = [(ordering.order(order), order.descending) for order in orders] + [(versions.c.id, True)]
    values = {str(order.field): ordering.value(order.field) for order in orders}
    values |= {str(order.field): showing.value(order.field) for order in shown}
    condition = _compile(connection, search.text, test, columns)
    query = select(*wanted, *(value.label(f"value_{at}") for at, value in enumerate(values.values())))
    query = query.select_from(columns.source).where(condition)
    if search.after is not None:
        query = query.where(_follow(connection, columns, terms, search.after))
    return test, query.order_by(*(_order(term) for term in terms)), list(values)


def _run(connection: Connection, query: Select[Any], limit: int | None) -> tuple[list[tuple[Any, ...]], bool]:
    """Return at most `limit` rows, and whether there are more."""
    rows = connection.execute(query if limit is None else query.limit(limit + 1)).all()
    return [tuple(row) for row in rows[:limit]], limit is not None and len(rows) > limit


def _join(terms: str | Sequence[str]) -> str:
    return terms if isinstance(terms, str) else ", ".join(terms)


def _compile(connection: Connection, text: str, test: syntax.Test | None, columns: Columns) -> ColumnElement[bool]:
    """Compile the condition; retired versions are left out unless it says something about that."""
    conditions = [] if test is None else [Compiler(connection, text, columns).condition(test)]
    if not {"retired", "retired_at"} & {str(name) for name in _names_of(test)}:
        conditions.append(versions.c.retired_at.is_(None))
    return and_(*conditions) if conditions else versions.c.id.is_not(None)


def _names_of(test: syntax.Test | None) -> list[syntax.Name]:
    return [one.field for one in iterate_tests(test) if not isinstance(one, syntax.Call)]


def _order(term: _Term) -> ColumnElement[Any]:
    """Order by a term; what has no value comes last, whichever way."""
    column, descending = term
    return (column.desc() if descending else column.asc()).nulls_last()


def _follow(connection: Connection, columns: Columns, terms: Sequence[_Term], after: str) -> ColumnElement[bool]:
    """Say that a row comes after the version `after` in the order of `terms`."""
    place = select(*(column.label(f"term_{at}") for at, (column, _) in enumerate(terms)))
    place = place.select_from(columns.source).where(versions.c.id == resolve_ref(connection, after).id)
    last = connection.execute(place).one()
    follows: ColumnElement[bool] = false()
    for (column, descending), value in reversed(list(zip(terms, last, strict=True))):
        if value is None:
            follows = and_(column.is_(None), follows)
            continue
        bound = bind(value)
        is_past = column < bound if descending else column > bound
        # the id, the last term, has always a value and never the same: else no index could be gone into there
        follows = is_past if column is versions.c.id else or_(is_past, column.is_(None), and_(column == bound, follows))
    return follows


def _explain_nothing(connection: Connection, test: syntax.Test | None) -> tuple[str, ...]:
    """Say which tags and metrics a search that found nothing names, but nobody ever recorded."""
    notes = {}
    for name in _names_of(test):
        if name.parts[0] not in ("tag", "metric") or len(name.parts) == 1:
            continue
        is_tag = name.parts[0] == "tag"
        wanted = ".".join(name.parts[1:]) if is_tag else name.parts[-1]
        column = tags.c.key if is_tag else validations.c.metric
        known = connection.execute(select(column).distinct().order_by(column)).scalars().all()
        if wanted not in known:
            similar = find_similar(wanted, known)
            meant = f" Did you mean {name.parts[0]}.{similar[0]}?" if similar else ""
            notes[str(name)] = f"No version has {name}.{meant}"
    return tuple(notes.values())
