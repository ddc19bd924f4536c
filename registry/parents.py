"""What registering takes of parents: their relations, those that are absent, and never others than at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection

from registry.absent import find_declared, parse_absent_parent
from registry.architecture import check_allowed
from registry.checkpoint import Checkpoint
from registry.compare_parent import compare_with_parent
from registry.errors import InvalidInput, LineageConflict
from registry.query import read_version
from registry.resolve import resolve_ref
from registry.store import LocalStore
from registry.tables import RELATIONS
from registry.versions import AbsentParent, Version


def check_relations(relations: Iterable[str | None]) -> None:
    """Raise InvalidInput for a word that is no relation; None is one that is left to be chosen."""
    for relation in relations:
        if relation is not None and relation not in RELATIONS:
            raise InvalidInput(f"{relation!r} is no relation.", hint=f"The relations are: {', '.join(RELATIONS)}.")


def choose_relations(ids: Mapping[str, int], named: Mapping[str, str | None], default: str) -> dict[int, str]:
    """Return each parent's relation, by the database's id; two refs to one parent must not say different ones."""
    chosen: dict[int, str] = {}
    for ref, one in ids.items():
        relation = named.get(ref) or default
        if chosen.setdefault(one, relation) != relation:
            raise InvalidInput(
                f"{ref} is named as parent twice: as {chosen[one]} and as {relation}.", hint="Name it once."
            )
    return chosen


def declare_absent(
    connection: Connection,
    store: LocalStore,
    source: str,
    checkpoint: Checkpoint,
    declared: Sequence[AbsentParent],
    present: Iterable[int],
) -> None:
    """Check what is declared of absent parents; one that is registered already is compared like any parent.

    Raises ArchitectureMismatch, LineageConflict or InvalidInput.
    """
    origin = checkpoint.source.provenance
    for one in declared:
        if one.digest is None and (origin.get("repo"), origin.get("commit")) == (one.repo, one.revision):
            raise InvalidInput(f"{one.ref} is {source} itself.", hint="Name what it was made from, or leave it out.")
        for parent_id in find_declared(connection, one)[:1]:
            parent = read_version(connection, parent_id)
            if parent_id in set(present):
                raise LineageConflict(
                    f"{one.ref} is {parent.ref}, which is named as parent already.", hint="Leave one out."
                )
            compare_with_parent(store, parent, checkpoint, source, check_allowed(one.allowed))


def parse_absent_parents(
    texts: Sequence[str], named: Mapping[str, str | None], default: str, allow: Iterable[str]
) -> tuple[AbsentParent, ...]:
    """Parse absent parents, each with its relation; the same one twice is refused."""
    found = [parse_absent_parent(text, named.get(text) or default, allow) for text in texts]
    refs = [one.ref for one in found]
    if len(set(refs)) < len(refs):
        raise InvalidInput("An absent parent is named twice.", hint="Name each once.")
    return tuple(found)


def refuse_other_lineage(
    connection: Connection,
    version: Version,
    parents: Sequence[str],
    absent: Sequence[AbsentParent],
    named: Mapping[str, str | None],
) -> None:
    """Raise LineageConflict if parents are named, and `version`, which holds these weights already, has others.

    An absent parent that was joined since counts by either of its names.
    """
    joined = {one.ref: one.joined for one in version.absent_parents}
    wanted = {resolve_ref(connection, ref).ref for ref in parents} | {joined.get(one.ref) or one.ref for one in absent}
    relations = {parent.ref: parent.relation for parent in version.parents}
    relations |= {one.ref: one.relation for one in version.absent_parents if one.joined is None}
    if wanted and wanted != set(relations):
        had = ", ".join(relations) or "no parent"
        raise LineageConflict(
            f"{version.ref} holds these weights already, with {had}, and lineage never changes.",
            hint="Retire that version first if its parent was wrong, or leave out --parent.",
        )
    for text, relation in named.items():
        ref = resolve_ref(connection, text).ref if text in parents else _label(text, joined)
        if relation is not None and relations.get(ref, relation) != relation:
            raise LineageConflict(
                f"{version.ref} holds these weights already, {relations[ref]} from {ref}, and lineage never changes.",
                hint="Retire that version first if the relation was wrong, or leave it out.",
            )


def _label(text: str, joined: Mapping[str, str | None]) -> str:
    ref = parse_absent_parent(text).ref
    return joined.get(ref) or ref
