"""Lineage: who came from whom, asked of one version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

from sqlalchemy import Connection

from registry.ancestry import (
    AbsentEdge,
    Edge,
    IdEdge,
    Relative,
    describe_edges,
    find_base,
    find_common_ancestor,
    find_path,
    read_absent,
    read_relatives,
    select_edges,
)
from registry.database import Database
from registry.query import summarise_ids
from registry.resolve import ResolvedRef, resolve_ref
from registry.versions import VersionSummary


class Lineage:
    """The ancestors and descendants of one version, and the ways between any two; asked for when they are needed.

    `up` and `down` say which of them `edges` and `versions` hold, and `depth` how many generations at most.
    """

    def __init__(
        self, database: Database, version: ResolvedRef, *, up: bool = True, down: bool = True, depth: int | None = None
    ) -> None:
        self._database, self._version = database, version
        self.up, self.down, self.depth = up, down, depth

    def __repr__(self) -> str:
        return f"Lineage({self.ref!r}, up={self.up}, down={self.down}, depth={self.depth})"

    @property
    def ref(self) -> str:
        """`NAME@vN`, of the version whose lineage it is."""
        return self._version.ref

    def ancestors(self) -> list[Relative]:
        """Return where it came from, nearest first."""
        return list(self._ancestors) if self.up else []

    def descendants(self) -> list[Relative]:
        """Return what came from it, nearest first."""
        return list(self._descendants) if self.down else []

    def path(self, a: str, b: str | None = None) -> tuple[Edge, ...] | None:
        """Return the steps of a shortest way from one version to the other, the elder first; None if there is none.

        `b` is this version unless it is given. A version is no step away from itself.
        """
        with self._database.read() as connection:
            ends = self._resolve(connection, a, b)
            return find_path(connection, ends[0].id, ends[1].id)

    def common_ancestor(self, a: str, b: str | None = None) -> VersionSummary | None:
        """Return the last version that both came from, or None if they share nothing.

        It may be one of the two. Where several are as late (no other common ancestor came from them), it is the one
        with the fewest generations to both, and of those the youngest. `b` is this version unless it is given.
        """
        with self._database.read() as connection:
            ends = self._resolve(connection, a, b)
            return find_common_ancestor(connection, ends[0].id, ends[1].id)

    def base(self, ref: str | None = None) -> VersionSummary:
        """Return the version without parents that everything in `ref` (this version, if left out) began with.

        Raises AmbiguousRef if it was merged from several, and UnknownRef if a parent on the way is absent.
        """
        with self._database.read() as connection:
            version = self._version if ref is None else resolve_ref(connection, ref)
            return find_base(connection, version)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The steps between the versions, by the order of registration."""
        return self._found[0]

    @property
    def absent(self) -> tuple[AbsentEdge, ...]:
        """The steps from it and its ancestors to parents that are declared and not registered."""
        return self._found[1]

    @property
    def steps(self) -> tuple[Edge, ...]:
        """The edges, and before them the steps from absent parents, whose refs begin with `hf://`."""
        absent = (Edge(one.parent.ref, one.child, one.parent.relation) for one in self.absent)
        return (*absent, *self.edges)

    @cached_property
    def versions(self) -> Mapping[str, VersionSummary]:
        """It and all its relatives, by ref."""
        relatives = [*self.ancestors(), *self.descendants()]
        found = {one.version.ref: one.version for one in relatives}
        with self._database.read() as connection:
            (itself,) = summarise_ids(connection, [self._version.id]).values()
        return {itself.ref: itself, **found}

    def parents_of(self) -> dict[str, list[Edge]]:
        """Return the edges to each version's parents."""
        return _group((edge.child, edge) for edge in self.edges)

    def children_of(self) -> dict[str, list[Edge]]:
        """Return the edges to each version's children."""
        return _group((edge.parent, edge) for edge in self.edges)

    def to_mermaid(self) -> str:
        """Draw it as a Mermaid flowchart."""
        from registry.draw_lineage import draw_mermaid

        return draw_mermaid(self)

    def to_dot(self) -> str:
        """Draw it for Graphviz."""
        from registry.draw_lineage import draw_dot

        return draw_dot(self)

    def to_html(self) -> str:
        """Draw it as a page of HTML that needs nothing else."""
        from registry.lineage_page import write_page

        return write_page(self)

    def _repr_html_(self) -> str:
        from registry.lineage_page import write_fragment

        return write_fragment(self)

    @cached_property
    def _ancestors(self) -> tuple[Relative, ...]:
        with self._database.read() as connection:
            return tuple(read_relatives(connection, self._version.id, upwards=True, depth=self.depth))

    @cached_property
    def _descendants(self) -> tuple[Relative, ...]:
        with self._database.read() as connection:
            return tuple(read_relatives(connection, self._version.id, upwards=False, depth=self.depth))

    @cached_property
    def _found(self) -> tuple[tuple[Edge, ...], tuple[AbsentEdge, ...]]:
        found: set[IdEdge] = set()
        with self._database.read() as connection:
            if self.down:
                found |= select_edges(connection, [self._version.id], upwards=False, depth=self.depth)
            if self.up:
                found |= select_edges(connection, [self._version.id], upwards=True, depth=self.depth)
            absent = read_absent(connection, self._version.id, self.depth) if self.up else ()
            return describe_edges(connection, sorted(found)), absent

    def _resolve(self, connection: Connection, a: str, b: str | None) -> tuple[ResolvedRef, ResolvedRef]:
        return resolve_ref(connection, a), self._version if b is None else resolve_ref(connection, b)


def _group(pairs: Iterable[tuple[str, Edge]]) -> dict[str, list[Edge]]:
    grouped: dict[str, list[Edge]] = defaultdict(list)
    for key, edge in pairs:
        grouped[key].append(edge)
    return grouped
