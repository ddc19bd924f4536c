"""The edges above and below versions, by one recursive query in each direction, and what follows from them.

The query walks edges and not ways, and UNION ends it at what was seen: ways that part and meet again cost nothing, and
how deep something is, the shortest way in generations, is counted afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import CTE, Connection, Select, and_, literal, select

from registry.errors import AmbiguousRef, UnknownRef
from registry.query import bind_ids, read_absent_parents, summarise_ids
from registry.resolve import ResolvedRef
from registry.tables import absent_parents, models, version_parents, versions
from registry.versions import AbsentParent, VersionSummary

IdEdge = tuple[int, int]
"""A child and its parent, by the database's ids."""


@dataclass(frozen=True)
class Edge:
    """One step of the lineage, by refs: `child` is what `relation` says to `parent`.

    `declared` is how the parent was declared before it was registered. `evidence` is what the weights say of the edge,
    if that was looked at.
    """

    parent: str
    child: str
    relation: str
    admitted_differences: tuple[Mapping[str, Any], ...] = ()
    declared: str | None = None
    evidence: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class AbsentEdge:
    """A step to a parent that is declared and not registered."""

    child: str
    parent: AbsentParent


@dataclass(frozen=True)
class Relative:
    """A version somewhere above or below; `depth` counts the shortest way in generations."""

    version: VersionSummary
    depth: int


def read_relatives(
    connection: Connection, version_id: int, *, upwards: bool, depth: int | None = None
) -> list[Relative]:
    """Read the ancestors or the descendants of a version, nearest first."""
    edges = select_edges(connection, [version_id], upwards=upwards, depth=depth)
    depths = _measure(edges, version_id, upwards=upwards)
    del depths[version_id]
    summaries = summarise_ids(connection, depths)
    return [Relative(summaries[one], depths[one]) for one in sorted(depths, key=lambda one: (depths[one], one))]


def is_ancestor(connection: Connection, version_id: int, *, of: int) -> bool:
    """Return whether the version `of` came from the other one."""
    walk = _walk([of], upwards=True)
    found = select(walk.c.parent_id).where(walk.c.parent_id == version_id).limit(1)
    return connection.execute(found).first() is not None


def _walk(starts: Sequence[int], *, upwards: bool, depth: int | None = None) -> CTE:
    """Make the query for every edge above or below some versions, with its depth if that is limited."""
    child, parent = version_parents.c.version_id, version_parents.c.parent_id
    here, there = (child, parent) if upwards else (parent, child)
    first = [literal(1).label("depth")] if depth is not None else []
    walk = select(child, parent, *first).where(here.in_(starts)).cte("walk", recursive=True)
    further = here == walk.c[there.name]
    if depth is None:
        return walk.union(select(child, parent).join(walk, further))
    within = and_(further, walk.c.depth < depth)
    return walk.union(select(child, parent, walk.c.depth + 1).join(walk, within))


def select_edges(
    connection: Connection, starts: Sequence[int], *, upwards: bool, depth: int | None = None
) -> set[IdEdge]:
    """Read all edges above or below some versions."""
    walk = _walk(starts, upwards=upwards, depth=depth)
    return {(child, parent) for child, parent in connection.execute(select(walk.c.version_id, walk.c.parent_id)).all()}


def _measure(edges: Collection[IdEdge], start: int, *, upwards: bool) -> dict[int, int]:
    """Walk breadth first, so that every version has its shortest depth."""
    beyond: dict[int, list[int]] = defaultdict(list)
    for child, parent in edges:
        here, there = (child, parent) if upwards else (parent, child)
        beyond[here].append(there)
    depths = {start: 0}
    queue = [start]
    for one in queue:
        for other in beyond.get(one, ()):
            if other not in depths:
                depths[other] = depths[one] + 1
                queue.append(other)
    return depths


def find_path(connection: Connection, a: int, b: int) -> tuple[Edge, ...] | None:
    """Return the shortest way from the elder of two versions to the younger; None if neither came from the other."""
    if a == b:
        return ()
    edges = select_edges(connection, [a, b], upwards=True)
    for elder, younger in ((a, b), (b, a)):
        depths = _measure(edges, younger, upwards=True)
        if elder in depths:
            return describe_edges(connection, _trace(edges, depths, elder, younger))
    return None


def _trace(edges: Collection[IdEdge], depths: Mapping[int, int], elder: int, younger: int) -> list[IdEdge]:
    """Go down from the elder to the younger, always to the eldest child that is one generation nearer."""
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in edges:
        children[parent].append(child)
    way = []
    while elder != younger:
        child = min(one for one in children[elder] if depths.get(one) == depths[elder] - 1)
        way.append((child, elder))
        elder = child
    return way


def find_common_ancestor(connection: Connection, a: int, b: int) -> VersionSummary | None:
    """Return the latest version that both came from, or are; of several, the nearest."""
    edges = select_edges(connection, [a, b], upwards=True)
    from_a, from_b = (_measure(edges, one, upwards=True) for one in (a, b))
    common = from_a.keys() & from_b.keys()
    latest = common - {parent for child, parent in edges if child in common}
    if not latest:
        return None
    found = min(latest, key=lambda one: (from_a[one] + from_b[one], -one))
    return summarise_ids(connection, [found])[found]


def find_base(connection: Connection, version: ResolvedRef) -> VersionSummary:
    """Return what a lineage began with. Raises UnknownRef if that is absent, AmbiguousRef if it is several."""
    edges = select_edges(connection, [version.id], upwards=True)
    absent = read_absent(connection, version.id, None)
    if absent:
        raise UnknownRef(
            f"What {version.ref} began with is not registered: {absent[0].child} came from {absent[0].parent.ref}.",
            candidates=[one.parent.ref for one in absent],
            hint="Register it, and it is joined by its commit or digest, or by: lensreg join REF PARENT",
        )
    with_parents = {child for child, _ in edges}
    roots = summarise_ids(connection, {version.id, *(parent for _, parent in edges)} - with_parents)
    if len(roots) > 1:
        refs = [roots[one].ref for one in sorted(roots)]
        raise AmbiguousRef(
            f"{version.ref} began with {len(refs)} versions: {', '.join(refs[:10])}.",
            candidates=refs,
            hint=f"See the whole lineage: lensreg lineage {version.ref} --up",
        )
    return next(iter(roots.values()))


def read_absent(connection: Connection, version_id: int, depth: int | None) -> tuple[AbsentEdge, ...]:
    """Read what a version and its ancestors declare that is not registered, fewer than `depth` generations away."""
    walk = _walk([version_id], upwards=True, depth=depth)
    own = absent_parents.c.version_id == version_id
    within = select(walk.c.parent_id) if depth is None else select(walk.c.parent_id).where(walk.c.depth < depth)
    ids = connection.execute(
        select(absent_parents.c.version_id).where(own | absent_parents.c.version_id.in_(within)).distinct()
    ).scalars()
    declared = read_absent_parents(connection, ids)
    children = summarise_ids(connection, declared)
    return tuple(
        AbsentEdge(children[child].ref, one)
        for child in sorted(declared)
        for one in declared[child]
        if one.joined is None
    )


def describe_edges(connection: Connection, edges: Sequence[IdEdge]) -> tuple[Edge, ...]:
    """Read what is recorded of these edges, some hundred at a time; keep their order."""
    found: dict[IdEdge, Edge] = {}
    wanted = sorted({child for child, _ in edges})
    for start in range(0, len(wanted), 500):
        for row in connection.execute(_select_details(wanted[start : start + 500])):
            found[row.version_id, row.parent_id] = Edge(
                parent=f"{row.parent_model}@v{row.parent_number}",
                child=f"{row.child_model}@v{row.child_number}",
                relation=row.relation,
                admitted_differences=tuple(row.admitted_differences),
                declared=None if row.repo is None else f"hf://{row.repo}@{row.revision}",
                evidence=row.evidence,
            )
    return tuple(found[edge] for edge in edges)


def _select_details(children: Sequence[int]) -> Select[Any]:
    child, parent = versions.alias("child"), versions.alias("parent")
    of_child, of_parent = models.alias("of_child"), models.alias("of_parent")
    return (
        select(
            version_parents,
            of_child.c.name.label("child_model"),
            child.c.number.label("child_number"),
            of_parent.c.name.label("parent_model"),
            parent.c.number.label("parent_number"),
            absent_parents.c.repo,
            absent_parents.c.revision,
        )
        .select_from(
            version_parents.join(child, child.c.id == version_parents.c.version_id)
            .join(of_child, of_child.c.id == child.c.model_id)
            .join(parent, parent.c.id == version_parents.c.parent_id)
            .join(of_parent, of_parent.c.id == parent.c.model_id)
            .outerjoin(absent_parents, absent_parents.c.id == version_parents.c.absent_id)
        )
        .where(version_parents.c.version_id.in_(bind_ids(children)))
    )
