"""Weigh a checkpoint against its declared parents by their sketches, and refuse a parent that it does not come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from registry.compare_sketches import Evidence, compare_sketches, refuse_unrelated
from registry.database import Database
from registry.errors import StorageError
from registry.progress import Progress
from registry.record import ParentEdge
from registry.sketch import Sketch
from registry.sketches import read_sketch
from registry.sources import Finding
from registry.store import LocalStore
from registry.versions import Version


@dataclass(frozen=True)
class Weighed:
    """The edges with their evidence, what is worth knowing, and the parents' sketches that were not recorded yet."""

    edges: tuple[ParentEdge, ...]
    findings: tuple[Finding, ...] = ()
    taken: tuple[tuple[Version, Sketch], ...] = ()


def weigh_parents(
    database: Database,
    store: LocalStore,
    edges: Sequence[ParentEdge],
    parents: Mapping[int, Version],
    sketch: Sketch | None,
    source: str,
    allowed: frozenset[str],
    progress: Progress,
) -> Weighed:
    """Compare with every parent. Raises UnrelatedParent; nothing is compared where `sketch` was not taken."""
    weighed, findings, taken = [], [], []
    for edge in edges:
        other, is_new = _find_sketch(database, store, parents[edge.id], progress) if sketch else (None, False)
        if sketch is None or other is None:
            weighed.append(edge)
            findings.append(_tell_unmeasured(edge.ref, is_converted=sketch is not None))
            continue
        if is_new:
            taken.append((parents[edge.id], other))
        evidence = compare_sketches(other, sketch)
        refuse_unrelated(evidence, edge.ref, source, edge.relation, allowed)
        weighed.append(replace(edge, evidence=evidence.as_dict()))
        findings += _tell(evidence, edge)
    return Weighed(tuple(weighed), tuple(findings), tuple(taken))


def _find_sketch(
    database: Database, store: LocalStore, parent: Version, progress: Progress
) -> tuple[Sketch | None, bool]:
    """Return the parent's sketch, and whether it had to be taken; None if its bytes are not here."""
    with database.read() as connection:
        recorded = read_sketch(connection, parent)
    if recorded is not None or parent.weights_digest is None:
        return recorded, False
    from registry.resketch import sketch_version  # torch

    try:
        return sketch_version(store, parent, progress), True
    except StorageError:
        return None, False


def _tell_unmeasured(parent: str, *, is_converted: bool) -> Finding:
    reason = f"the bytes of {parent} are not here" if is_converted else "its own weights were not converted"
    return Finding("lineage-not-measured", f"Whether it comes from {parent} was not measured, since {reason}.")


def _tell(evidence: Evidence, edge: ParentEdge) -> list[Finding]:
    if evidence.verdict == "not-comparable":
        message = f"Whether it comes from {edge.ref} cannot be told: too few matrices have the same shape."
        return [Finding("parent-not-comparable", message)]
    if evidence.verdict == "unrelated" and edge.relation != "distilled":
        return [Finding("unrelated-parent", f"The weights are unrelated to those of {edge.ref} (admitted).")]
    return []
