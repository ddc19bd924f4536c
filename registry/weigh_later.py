"""Weigh edges that were not weighed when they were recorded, once both ends can be had: an edge stays, it is explained.

Parents never change, so that nothing is refused here; what the weights say is filled in, with an event.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from registry.architecture import UNRELATED_PARENT
from registry.database import Database
from registry.progress import Progress, no_progress
from registry.query import read_version
from registry.record import ParentEdge, record_weighed
from registry.resolve import resolve_ref
from registry.store import LocalStore
from registry.tables import version_parents, versions
from registry.versions import Version
from registry.weigh_parents import Claim, Weighed, find_sketch, weigh_parents


@dataclass(frozen=True)
class WeighedEdge:
    """An edge that had not been weighed, and what the weights say; None if one end can still not be had."""

    child: str
    parent: str
    relation: str
    evidence: dict[str, Any] | None

    @property
    def is_wrong(self) -> bool:
        """Whether the child does not come from its parent; a student need not."""
        return self.evidence is not None and self.evidence["verdict"] == "unrelated" and self.relation != "distilled"


def weigh_later(
    database: Database,
    store: LocalStore,
    refs: Sequence[str] = (),
    progress: Progress = no_progress,
    *,
    read: bool = True,
) -> list[WeighedEdge]:
    """Weigh the edges from the versions that `refs` mean, or all versions in use, to their parents, if not done yet.

    With `read` weights are read from the store where samples of them were not kept.
    """
    with database.read() as connection:
        ids = [resolve_ref(connection, ref).id for ref in refs] if refs else _list_unweighed(connection)
    found = []
    for version_id in dict.fromkeys(ids):
        with database.read() as connection:
            version = read_version(connection, version_id)
            claims = list_claims(connection, version, frozenset([UNRELATED_PARENT]))
        if claims:
            weighed = _weigh(database, store, version, version_id, claims, progress, read)
            for edge in weighed.edges:
                evidence = None if edge.evidence is None else dict(edge.evidence)
                found.append(WeighedEdge(version.ref, edge.ref, edge.relation, evidence))
    return found


def weigh_children(database: Database, store: LocalStore, version: Version) -> None:
    """Weigh the children of a version whose weights have come, and warn of those that do not come from it."""
    with database.read() as connection:
        parent_id = resolve_ref(connection, version.ref).id
        unweighed = version_parents.c.evidence.is_(None) & (version_parents.c.parent_id == parent_id)
        ids = connection.execute(select(version_parents.c.version_id).where(unweighed)).scalars()
        children = [read_version(connection, one).ref for one in ids]
    for edge in weigh_later(database, store, children, read=False) if children else ():
        if edge.is_wrong and edge.parent == version.ref:
            warnings.warn(
                f"{edge.child} is recorded as {edge.relation} from {edge.parent}, and its weights do not come from it.",
                stacklevel=3,
            )


def list_claims(connection: Connection, version: Version, allowed: frozenset[str]) -> list[Claim]:
    """Return the parents of a registered version that it was not weighed against yet.

    What was allowed when a parent was declared that was absent then is allowed still.
    """
    claims = []
    for parent in version.parents:
        if parent.evidence is None:
            parent_id = resolve_ref(connection, parent.ref).id
            declared = [set(one.allowed) for one in version.absent_parents if one.joined == parent.ref]
            edge = ParentEdge(parent_id, parent.ref, parent.relation)
            claims.append(Claim(edge, read_version(connection, parent_id), allowed.union(*declared)))
    return claims


def _weigh(
    database: Database,
    store: LocalStore,
    version: Version,
    version_id: int,
    claims: Sequence[Claim],
    progress: Progress,
    read: bool,
) -> Weighed:
    sketch, is_new = find_sketch(database, store, version, progress, read=read)
    weighed = weigh_parents(database, store, claims, sketch, version.ref, progress)
    taken = [*weighed.taken, *([(version, sketch)] if sketch is not None and is_new else [])]
    if any(edge.evidence is not None for edge in weighed.edges):
        database.change(lambda connection: record_weighed(connection, version_id, weighed.edges, taken))
    return weighed


def _list_unweighed(connection: Connection) -> list[int]:
    """Return the versions in use with an edge that was not weighed, the oldest first."""
    query = (
        select(version_parents.c.version_id)
        .join_from(version_parents, versions, versions.c.id == version_parents.c.version_id)
        .where(version_parents.c.evidence.is_(None), versions.c.retired_at.is_(None))
        .order_by(version_parents.c.version_id)
    )
    return list(connection.execute(query.distinct()).scalars())
