"""What each field is in SQL: an expression of one value per version, the same on both databases.

A version is one row of `versions` joined with its model. What lies in other tables is looked up for that row, or, where
few rows stand for many versions (architectures) or all must be walked at once (depth), computed once and joined.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Float,
    FromClause,
    Select,
    Subquery,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    select,
    true,
    type_coerce,
)

from registry.query import is_verified
from registry.search.fields import ARCHITECTURE
from registry.tables import aliases, architectures, models, tags, validations, version_parents, versions


def _say(condition: ColumnElement[Any]) -> ColumnElement[Any]:
    """Make a value of a condition that is never null, to be compared and ordered by."""
    return type_coerce(case((condition, true()), else_=false()), Boolean)


_PLAIN: Mapping[str, ColumnElement[Any]] = {
    "model": models.c.name,
    "model_created_at": models.c.created_at,
    "version": versions.c.number,
    "size": versions.c.size_bytes,
    "received_as": versions.c.provenance["received", "ref"].as_string(),
    "received_from": versions.c.provenance["received", "registry"].as_string(),
    "retired": _say(versions.c.retired_at.is_not(None)),
    **{
        name: versions.c[name]
        for name in (
            "step", "family", "layout", "dtype", "n_parameters", "size_bytes", "fingerprint", "weights_digest",
            "vocabulary_digest", "source_kind", "source_location", "note", "created_at", "retired_at",
        )
    },
}  # fmt: skip


class Columns:
    """The expressions of the fields `names`, and what versions have to be joined with for them.

    Depth is walked down from the bases to `depth_limit` generations, or all the way if that is None; what lies deeper
    counts as `depth_limit` + 1.
    """

    def __init__(self, names: Collection[str], depth_limit: int | None, *, is_sqlite: bool) -> None:
        self.is_sqlite = is_sqlite
        self._depth_limit = depth_limit
        self._depths = _walk_depths(depth_limit) if "depth" in names else None
        of_architectures = [name for name in ARCHITECTURE if name in names]
        self._architectures = self._extract(of_architectures) if of_architectures else None

    @property
    def source(self) -> FromClause:
        """What to select from."""
        joined: FromClause = versions.join(models, models.c.id == versions.c.model_id)
        if self._architectures is not None:
            joined = joined.join(self._architectures, self._architectures.c.fingerprint == versions.c.fingerprint)
        if self._depths is not None:
            joined = joined.outerjoin(self._depths, self._depths.c.id == versions.c.id)
        return joined

    def of_version(self, name: str) -> ColumnElement[Any]:
        """Return the expression of a field of versions that has one value."""
        if name == "verified":
            return _say(is_verified())
        if name == "depth" and self._depths is not None:
            depth = self._depths.c.depth
            return depth if self._depth_limit is None else func.coalesce(depth, self._depth_limit + 1)
        return _PLAIN[name]

    def of_architecture(self, name: str) -> ColumnElement[Any]:
        """Return the expression of a field of architectures."""
        if self._architectures is None:
            raise KeyError(name)
        return self._architectures.c[name]

    def of_tag(self, key: str) -> ColumnElement[Any]:
        """Return the value of a tag."""
        return _look_up(select(tags.c.value).where(tags.c.version_id == versions.c.id, tags.c.key == key))

    def of_metric(self, suite: str | None, metric: str) -> ColumnElement[Any]:
        """Return the newest value of a metric; NaN, which SQLite keeps as NULL, is unmeasured everywhere."""
        measured = func.nullif(validations.c.value, literal(math.nan, Float), type_=Float)
        query = select(measured).where(validations.c.version_id == versions.c.id, validations.c.metric == metric)
        if suite is not None:
            query = query.where(validations.c.suite == suite)
        return _look_up(query.order_by(validations.c.id.desc()).limit(1))

    def in_order(self, column: ColumnElement[Any], kind: str) -> ColumnElement[Any]:
        """Return an expression that is sorted and compared alike everywhere: text by code point."""
        return column if self.is_sqlite or kind not in ("text", "digest") else column.collate("C")

    def _extract(self, names: list[str]) -> CTE:
        """Take fields out of the architectures' JSON, once for each; what is not of the field's type is null."""
        extract = _extract_sqlite if self.is_sqlite else _extract_postgres
        columns = [extract(name, ARCHITECTURE[name].kind).label(name) for name in names]
        return select(architectures.c.fingerprint, *columns).cte("shapes").prefix_with("MATERIALIZED")


def name_exists(name: str, condition: ColumnElement[bool] | None) -> ColumnElement[bool]:
    """Say that a version has an alias, or a relation, for which `condition` holds; any at all if that is None."""
    if name == "alias":
        found = exists().where(aliases.c.version_id == versions.c.id, aliases.c.removed_at.is_(None))
    else:
        found = exists().where(version_parents.c.version_id == versions.c.id)
    return found if condition is None else found.where(condition)


def column_of_names(name: str) -> ColumnElement[Any]:
    """Return the column that `condition` of `name_exists` is about."""
    return aliases.c.name if name == "alias" else version_parents.c.relation


def walk_lineage(start: Select[Any], name: str, *, upwards: bool) -> CTE:
    """Select the ids of all that lies above or below the versions whose ids `start` selects."""
    child, parent = version_parents.c.version_id, version_parents.c.parent_id
    here, there = (child, parent) if upwards else (parent, child)
    walk = select(there.label("id")).where(here.in_(start)).cte(name, recursive=True)
    return walk.union(select(there).join(walk, here == walk.c.id))


def _walk_depths(limit: int | None) -> Subquery:
    is_child = exists().where(version_parents.c.version_id == versions.c.id)
    walk = select(versions.c.id, literal(0).label("depth")).where(~is_child).cte("walk_depths", recursive=True)
    step = select(version_parents.c.version_id, walk.c.depth + 1).join(walk, version_parents.c.parent_id == walk.c.id)
    if limit is not None:
        step = step.where(walk.c.depth < limit)
    walk = walk.union(step)
    return select(walk.c.id, func.min(walk.c.depth).label("depth")).group_by(walk.c.id).subquery("depths")


def _look_up(query: Select[Any]) -> ColumnElement[Any]:
    return query.correlate(versions).scalar_subquery()


def _extract_sqlite(name: str, kind: str) -> ColumnElement[Any]:
    path = f'$."{name}"'
    is_a = func.json_type(architectures.c.fields, path)
    value = func.json_extract(architectures.c.fields, path)
    if kind == "number":
        return case((is_a.in_(["integer", "real"]), cast(value, Float)))
    if kind == "boolean":
        return type_coerce(case((is_a == "true", true()), (is_a == "false", false())), Boolean)
    return case((is_a == ("array" if kind == "list" else "text"), value))


def _extract_postgres(name: str, kind: str) -> ColumnElement[Any]:
    is_a = func.json_typeof(architectures.c.fields[name])
    value = architectures.c.fields[name].as_string()
    types = {"number": "number", "boolean": "boolean", "list": "array"}
    if kind == "number":
        value = cast(value, Float)
    elif kind == "boolean":
        value = cast(value, Boolean)
    return case((is_a == types.get(kind, "string"), value))
