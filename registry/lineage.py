"""Lineage: who came from whom, by one recursive query in each direction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from registry.query import summarise_ids
from registry.resolve import ResolvedRef
from registry.tables import version_parents
from registry.versions import VersionSummary


@dataclass(frozen=True)
class Edge:
    """One step of the lineage, by refs: `child` is what `relation` says to `parent`."""

    parent: str
    child: str
    relation: str


@dataclass(frozen=True)
class Relative:
    """A version somewhere above or below; `depth` counts the shortest way in generations."""

    version: VersionSummary
    depth: int


@dataclass(frozen=True)
class Lineage:
    """All ancestors and descendants of one version, with the edges between them."""

    ref: str
    versions: Mapping[str, VersionSummary]
    edges: tuple[Edge, ...]

    def ancestors(self) -> list[Relative]:
        """Return where it came from, nearest first."""
        return self._walk(self.parents_of())

    def descendants(self) -> list[Relative]:
        """Return what came from it, nearest first."""
        return self._walk(self.children_of())

    def parents_of(self) -> dict[str, list[Edge]]:
        """Return the edges to each version's parents."""
        return _group((edge.child, edge) for edge in self.edges)

    def children_of(self) -> dict[str, list[Edge]]:
        """Return the edges to each version's children."""
        return _group((edge.parent, edge) for edge in self.edges)

    def _walk(self, edges: Mapping[str, list[Edge]]) -> list[Relative]:
        """Walk breadth first, so that every version has its shortest depth."""
        depths = {self.ref: 0}
        queue = [self.ref]
        for ref in queue:
            for edge in edges.get(ref, []):
                other = edge.parent if edge.child == ref else edge.child
                if other not in depths:
                    depths[other] = depths[ref] + 1
                    queue.append(other)
        return [Relative(self.versions[ref], depths[ref]) for ref in queue[1:]]

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(e.parent)}</td><td>{escape(e.relation)}</td><td>{escape(e.child)}</td></tr>"
            for e in self.edges
        )
        return (
            f"<table><caption>lineage of {escape(self.ref)}</caption>"
            f"<tr><th>parent</th><th>relation</th><th>child</th></tr>{rows}</table>"
        )


def read_lineage(connection: Connection, version: ResolvedRef, *, up: bool = True, down: bool = True) -> Lineage:
    """Read the ancestors (`up`) and the descendants (`down`) of a version."""
    found = set()
    if up:
        found |= _select_edges(connection, version.id, upwards=True)
    if down:
        found |= _select_edges(connection, version.id, upwards=False)
    ids = {version.id} | {child for child, _, _ in found} | {parent for _, parent, _ in found}
    summaries = summarise_ids(connection, ids)
    edges = tuple(
        Edge(summaries[parent].ref, summaries[child].ref, relation) for child, parent, relation in sorted(found)
    )
    return Lineage(version.ref, {summary.ref: summary for summary in summaries.values()}, edges)


def _select_edges(connection: Connection, version_id: int, *, upwards: bool) -> set[tuple[int, int, str]]:
    """Return (child, parent, relation) of every edge above or below a version; UNION ends at what was seen."""
    child, parent, relation = (
        version_parents.c.version_id,
        version_parents.c.parent_id,
        version_parents.c.relation,
    )
    here, there = (child, parent) if upwards else (parent, child)
    walk = select(child, parent, relation).where(here == version_id).cte("walk", recursive=True)
    walk = walk.union(select(child, parent, relation).join(walk, here == walk.c[there.name]))
    return {(row[0], row[1], row[2]) for row in connection.execute(select(walk))}


def _group(pairs: Iterable[tuple[str, Edge]]) -> dict[str, list[Edge]]:
    grouped: dict[str, list[Edge]] = defaultdict(list)
    for key, edge in pairs:
        grouped[key].append(edge)
    return grouped
