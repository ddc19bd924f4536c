"""Weigh a checkpoint against its declared parents by their sketches, and refuse a parent that it does not come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from registry.compare_sketches import Evidence, compare_sketches, refuse_unrelated
from registry.database import Database
from registry.errors import HookedTransformerMissing, StorageError
from registry.progress import Progress
from registry.record import ParentEdge
from registry.sketch import Sketch
from registry.sketches import read_sketch
from registry.sources import Finding
from registry.store import LocalStore
from registry.versions import Version


@dataclass(frozen=True)
class Claim:
    """A parent that somebody declared: the edge to it, the version, and what may be all the same (`--allow`)."""

    edge: ParentEdge
    parent: Version
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Weighed:
    """The edges with their evidence, what is worth knowing, and the parents' sketches that were not recorded yet."""

    edges: tuple[ParentEdge, ...]
    findings: tuple[Finding, ...] = ()
    taken: tuple[tuple[Version, Sketch], ...] = ()


def weigh_parents(
    database: Database,
    store: LocalStore,
    claims: Sequence[Claim],
    sketch: Sketch | None,
    source: str,
    progress: Progress,
    *,
    lazy: bool = False,
    hint: str | None = None,
) -> Weighed:
    """Compare with every parent. Raises UnrelatedParent, with `hint` if one is given.

    Nothing is compared where there is no `sketch`; `lazy` says that there will be one once the weights are fetched.
    """
    weighed, findings, taken = [], [], []
    for claim in claims:
        edge = claim.edge
        other, is_new = find_sketch(database, store, claim.parent, progress) if sketch else (None, False)
        if sketch is None or other is None:
            weighed.append(edge)
            findings.append(_tell_unmeasured(edge.ref, has_sketch=sketch is not None, lazy=lazy))
            continue
        if is_new:
            taken.append((claim.parent, other))
        evidence = compare_sketches(other, sketch)
        refuse_unrelated(evidence, edge.ref, source, edge.relation, claim.allowed, hint)
        weighed.append(replace(edge, evidence=evidence.as_dict()))
        findings += _tell(evidence, edge)
    return Weighed(tuple(weighed), tuple(findings), tuple(taken))


def find_sketch(
    database: Database, store: LocalStore, version: Version, progress: Progress, *, read: bool = True
) -> tuple[Sketch | None, bool]:
    """Return a version's sketch, and whether it had to be taken, which only `read` does.

    None if its bytes are not here, or if transformer-lens has no HookedTransformer to convert them to.
    """
    with database.read() as connection:
        recorded = read_sketch(connection, version)
    if recorded is not None or version.weights_digest is None or not read:
        return recorded, False
    from registry.resketch import sketch_version  # torch

    try:
        return sketch_version(store, version, progress), True
    except (StorageError, HookedTransformerMissing):
        return None, False


def _tell_unmeasured(parent: str, *, has_sketch: bool, lazy: bool) -> Finding:
    asked = f"Whether it comes from {parent}"
    if has_sketch:
        message = f"{asked} was not measured, since the bytes of {parent} are not here; it is when they are fetched."
    elif lazy:
        message = f"{asked} is measured when its weights are fetched."
    else:
        message = f"{asked} was not measured, since transformer-lens has no HookedTransformer here to compare with."
    return Finding("lineage-not-measured", message)


def _tell(evidence: Evidence, edge: ParentEdge) -> list[Finding]:
    if evidence.verdict == "not-comparable":
        message = f"Whether it comes from {edge.ref} cannot be told: too few matrices have the same shape."
        return [Finding("parent-not-comparable", message)]
    if evidence.verdict == "unrelated" and edge.relation != "distilled":
        return [Finding("unrelated-parent", f"The weights are unrelated to those of {edge.ref} (admitted).")]
    return []
