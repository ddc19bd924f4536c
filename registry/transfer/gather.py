"""Gather versions for sending: which ones, parents before children, and their records, some at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from sqlalchemy import Connection, Row, select

from registry.ancestry import select_edges
from registry.audit import Event
from registry.query import bind_ids, read_absent_parents
from registry.resolve import ResolvedRef, resolve_ref
from registry.sketch import Sketch, unpack
from registry.tables import (
    aliases,
    architectures,
    blobs,
    events,
    models,
    sketches,
    tags,
    validations,
    version_files,
    version_parents,
    versions,
)
from registry.transfer.form import RecordedParent, VersionRecord
from registry.versions import AbsentParent, Measurement, StoredFile

_PAGE = 100
_STARTS = 5000  # a statement takes some ten thousand values
Grouped = Mapping[int, list[Any]]


def choose_versions(connection: Connection, refs: Iterable[str], *, alone: bool) -> tuple[list[ResolvedRef], list[int]]:
    """Return what the refs mean, and the ids of those and (unless `alone`) all their ancestors, parents first."""
    named = list({one.id: one for one in (resolve_ref(connection, ref) for ref in refs)}.values())
    ids = [one.id for one in named]
    found: set[tuple[int, int]] = set().union(
        *(select_edges(connection, ids[start : start + _STARTS], upwards=True) for start in range(0, len(ids), _STARTS))
    )
    chosen = set(ids) if alone else {*ids, *(parent for _, parent in found)}
    graph: dict[int, list[int]] = {one: [] for one in sorted(chosen)}
    for child, parent in sorted(found):
        if child in chosen and parent in chosen:
            graph[child].append(parent)
    return named, list(TopologicalSorter(graph).static_order())


def read_records(connection: Connection, ids: Sequence[int]) -> Iterator[VersionRecord]:
    """Read the records of versions in this order, by some queries for every hundred of them."""
    for start in range(0, len(ids), _PAGE):
        page = list(ids[start : start + _PAGE])
        found = dict(_read_page(connection, page))
        yield from (found[one] for one in page)


def _read_page(connection: Connection, ids: list[int]) -> Iterator[tuple[int, VersionRecord]]:
    rows = connection.execute(
        select(versions, models.c.name.label("model"), architectures.c.fields)
        .join(models)
        .join(architectures)
        .where(versions.c.id.in_(bind_ids(ids)))
    ).all()
    files = _group(
        connection.execute(
            select(version_files.c.version_id, version_files.c.name, version_files.c.role, blobs.c.digest)
            .add_columns(blobs.c.size_bytes)
            .join_from(version_files, blobs)
            .where(version_files.c.version_id.in_(bind_ids(ids)))
            .order_by(version_files.c.name)
        )
    )
    absent = read_absent_parents(connection, ids)
    parents = _read_parents(connection, ids)
    tagged = _group(
        connection.execute(
            select(tags.c.version_id, tags.c.key, tags.c.value).where(tags.c.version_id.in_(bind_ids(ids)))
        )
    )
    names = list(Measurement.__dataclass_fields__)
    measured = _group(
        connection.execute(
            select(validations.c.version_id, *(validations.c[name] for name in names))
            .where(validations.c.version_id.in_(bind_ids(ids)))
            .order_by(validations.c.id)
        )
    )
    called = _group(
        connection.execute(
            select(aliases.c.version_id, aliases.c.name)
            .where(aliases.c.version_id.in_(bind_ids(ids)), aliases.c.removed_at.is_(None))
            .order_by(aliases.c.name)
        )
    )
    happened = _read_events(connection, [f"{row.model}@v{row.number}" for row in rows])
    sketched = _read_sketches(connection, [row.weights_digest for row in rows if row.weights_digest])
    plain = [
        name
        for name in VersionRecord.__dataclass_fields__
        if name in versions.c and name not in ("processing", "findings")
    ]
    for row in rows:
        ref = f"{row.model}@v{row.number}"
        processing = None if row.processing is None else tuple(row.processing)
        yield (
            row.id,
            VersionRecord(
                **{name: getattr(row, name) for name in plain},
                model=row.model,
                architecture=row.fields,
                processing=processing,
                findings=tuple(row.findings),
                files=tuple(StoredFile(*one[1:]) for one in files[row.id]),
                parents=tuple(_make_parent(one, absent[row.id]) for one in parents[row.id]),
                absent_parents=absent[row.id],
                aliases=tuple(one.name for one in called[row.id]),
                tags={one.key: one.value for one in tagged[row.id]},
                validations=tuple(dict(zip(names, one[1:], strict=True)) for one in measured[row.id]),
                sketch=_unpack(sketched.get((row.weights_digest, row.fingerprint)), processing or ()),
                events=tuple(happened[ref]),
            ),
        )


def _read_parents(connection: Connection, ids: list[int]) -> Grouped:
    parent = versions.alias("parent")
    return _group(
        connection.execute(
            select(
                version_parents.c.version_id,
                parent.c.operation_id,
                models.c.name,
                parent.c.number,
                version_parents.c.relation,
                version_parents.c.admitted_differences,
                version_parents.c.evidence,
                version_parents.c.absent_id,
            )
            .select_from(
                version_parents.join(parent, parent.c.id == version_parents.c.parent_id).join(
                    models, models.c.id == parent.c.model_id
                )
            )
            .where(version_parents.c.version_id.in_(bind_ids(ids)))
            .order_by(version_parents.c.version_id, version_parents.c.parent_id)
        )
    )


def _make_parent(row: Row[Any], absent: Sequence[AbsentParent]) -> RecordedParent:
    ref = f"{row.name}@v{row.number}"
    joined = [one.joined for one in absent]
    return RecordedParent(
        operation_id=row.operation_id,
        ref=ref,
        relation=row.relation,
        admitted_differences=tuple(row.admitted_differences),
        evidence=row.evidence,
        declared=None if row.absent_id is None else joined.index(ref),
    )


def _read_events(connection: Connection, refs: Sequence[str]) -> Mapping[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for row in connection.execute(select(events).where(events.c.subject.in_(refs)).order_by(events.c.sequence)):
        found[row.subject].append(Event(**row._asdict()))
    return found


def _read_sketches(connection: Connection, digests: Sequence[str]) -> dict[tuple[str | None, str], Row[Any]]:
    rows = connection.execute(select(sketches).where(sketches.c.weights_digest.in_(set(digests))))
    return {(row.weights_digest, row.fingerprint): row for row in rows}


def _unpack(row: Row[Any] | None, processing: Sequence[str]) -> Sketch | None:
    """Read a sketch that is sent; one that was damaged is not, as it can be taken again from the weights."""
    if row is None:
        return None
    try:
        return unpack(row.names, row.samples, tuple(processing))
    except ValueError:
        return None


def _group(rows: Iterable[Row[Any]]) -> Grouped:
    """Group rows by their first column."""
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row[0]].append(row)
    return found
