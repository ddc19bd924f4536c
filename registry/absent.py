"""Parents that are declared but absent: recorded without their bytes, and joined when they are registered.

A declaration is joined by itself only to what it means exactly: the commit that it names, or the digest. What a branch
or a tag meant then nobody can say later, so there a person joins it. Joining is the one way in which an edge may lead
to a version that is younger than its child, and so the one place where a cycle has to be looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, or_, select

from registry.ancestry import is_ancestor
from registry.architecture import Architecture, check_allowed, find_differences, refuse_differences
from registry.audit import append_event
from registry.compare_sketches import refuse_unrelated
from registry.errors import ArchitectureMismatch, InvalidInput, LineageConflict, UnknownRef, UnrelatedParent
from registry.query import read_version
from registry.resolve import ResolvedRef, resolve_ref
from registry.rows import insert_rows
from registry.sketches import compare_recorded
from registry.sources.hub_id import parse_hub_id
from registry.sources.source import Finding
from registry.tables import absent_parents, version_files, version_parents, versions
from registry.versions import AbsentParent, StoredFile, Version

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"(.*)#sha256:([0-9a-f]{64})")
# the declarations that are not joined yet
_OPEN = (
    select(absent_parents)
    .where(~exists().where(version_parents.c.absent_id == absent_parents.c.id))
    .order_by(absent_parents.c.id)
)
# of them, a version's own and those that mean exactly what it is
_OPEN_FOR = _OPEN.where(
    or_(
        absent_parents.c.version_id == bindparam("id"),
        absent_parents.c.digest.in_(bindparam("digests", expanding=True)),
        and_(
            absent_parents.c.digest.is_(None),
            absent_parents.c.repo == bindparam("repo"),
            absent_parents.c.revision == bindparam("commit"),
        ),
    )
)


def parse_absent_parent(text: str, relation: str = "finetuned", allowed: Iterable[str] = ()) -> AbsentParent:
    """Parse `ORG/NAME@REVISION`, which may end in `#sha256:` and the digest of the weights or of the one weight file.

    Raises InvalidInput for anything else.
    """
    with_digest = _DIGEST.fullmatch(text)
    hub_id, digest = (with_digest[1], with_digest[2]) if with_digest else (text, None)
    found = None if "#" in hub_id else parse_hub_id(hub_id)
    if found is None or found.revision is None:
        raise InvalidInput(
            f"{text[:300]!r} is no model on the Hub at a revision.",
            hint="Write ORG/NAME@REVISION, best with a commit's 40 hex digits, or ORG/NAME@REVISION#sha256:DIGEST "
            "with all 64 hex digits of the weights digest or of the one weight file's.",
        )
    return AbsentParent(found.repo, found.revision, digest, relation, tuple(sorted(allowed)))


def declare_parents(connection: Connection, version_id: int, declared: Sequence[AbsentParent]) -> None:
    """Record what a new version declares, within the caller's write transaction."""
    rows = [
        {
            "version_id": version_id,
            "repo": one.repo,
            "revision": one.revision,
            "digest": one.digest,
            "relation": one.relation,
            "allowed": list(one.allowed),
        }
        for one in declared
    ]
    insert_rows(connection, absent_parents, rows)


def find_declared(connection: Connection, declared: AbsentParent) -> list[int]:
    """Return the versions in use that a declaration means exactly, the oldest first."""
    if declared.digest is None and not _COMMIT.fullmatch(declared.revision):
        return []
    if declared.digest is None:
        origin = versions.c.provenance
        means = and_(origin["repo"].as_string() == declared.repo, origin["commit"].as_string() == declared.revision)
    else:
        means = or_(versions.c.weights_digest == declared.digest, _has_one_file(declared.digest))
    query = select(versions.c.id).where(means, versions.c.retired_at.is_(None)).order_by(versions.c.id)
    return list(connection.execute(query).scalars())


def join_parents(
    connection: Connection,
    version_id: int,
    weights_digest: str | None,
    files: Sequence[StoredFile],
    provenance: Mapping[str, Any],
) -> None:
    """Join the parents that a new version declares and that are here, and the declarations that mean this version.

    What cannot be joined stays absent. An event says either. The caller's transaction must be the only writer.
    """
    this = {
        "id": version_id,
        "digests": _digests_of(weights_digest, files),
        "repo": provenance.get("repo"),
        "commit": provenance.get("commit"),
    }
    found = connection.execute(_OPEN_FOR, this).all()
    for row in (one for one in found if one.version_id == version_id):
        for parent_id in find_declared(connection, _as_declared(row)):
            if parent_id != version_id and _try_to_join(connection, row, parent_id):
                break
    for row in (one for one in found if one.version_id != version_id):
        _try_to_join(connection, row, version_id)


def join_by_hand(
    connection: Connection, ref: str, parent_ref: str, declared: str | None = None, allow: Sequence[str] = ()
) -> ResolvedRef:
    """Join an absent parent of the version `ref` means to the version that somebody says it is.

    Raises LineageConflict if what is recorded says otherwise or a cycle would arise, and ArchitectureMismatch.
    """
    child, parent = resolve_ref(connection, ref), resolve_ref(connection, parent_ref)
    row = _choose_open(connection, child, declared)
    _refuse_contradiction(_as_declared(row), read_version(connection, parent.id))
    _join(connection, row, parent.id, "hand", check_allowed(allow))
    return child


def explain_declarations(
    connection: Connection,
    provenance: Mapping[str, Any],
    weights_digest: str | None,
    files: Sequence[StoredFile],
    architecture: Architecture,
) -> list[Finding]:
    """Point out to whoever registers a version that it is declared as a parent and will not be joined."""
    findings = []
    same_commit = _is_commit(provenance) if provenance.get("repo") else None
    means = [one for one in (_has_digest(weights_digest, files), same_commit) if one is not None]
    for row in _select_open(connection, or_(*means)) if means else []:
        declared, child = _as_declared(row), read_version(connection, row.version_id)
        if declared.digest is not None and declared.digest not in _digests_of(weights_digest, files):
            if weights_digest is not None:
                message = (
                    f"{child.ref} declares {declared.ref} as its parent with other weights than these: not joined."
                )
                findings.append(Finding("declared-otherwise", message))
            continue
        differences = find_differences(architecture, Architecture(child.architecture))
        try:
            refuse_differences(declared.ref, child.ref, differences, frozenset(declared.allowed))
        except ArchitectureMismatch as error:
            fields = ", ".join(one.field for one in error.differences)
            message = (
                f"{child.ref} declares this as its parent, but its architecture differs in {fields}: not joined. "
                f"If that is meant: lensreg join {child.ref} REF --allow …"
            )
            findings.append(Finding("declared-otherwise", message))
    return findings


def _try_to_join(connection: Connection, row: Row[Any], parent_id: int) -> bool:
    try:
        _join(connection, row, parent_id, "commit" if row.digest is None else "digest", frozenset(row.allowed))
    except (ArchitectureMismatch, LineageConflict, UnrelatedParent) as error:
        child, parent = (read_version(connection, one).ref for one in (row.version_id, parent_id))
        details = {"declared": _as_declared(row).ref, "parent": parent, "reason": error.code, "message": error.message}
        append_event(connection, "parent.not-joined", child, details)
        return False
    return True


def _join(connection: Connection, row: Row[Any], parent_id: int, by: str, allowed: frozenset[str]) -> None:
    """Add the edge and its event, or raise LineageConflict, ArchitectureMismatch or UnrelatedParent."""
    child, parent = read_version(connection, row.version_id), read_version(connection, parent_id)
    declared = _as_declared(row)
    if parent.ref in {one.ref for one in child.parents}:
        raise LineageConflict(f"{parent.ref} is a parent of {child.ref} already.", hint="Nothing was changed.")
    if row.version_id == parent_id or is_ancestor(connection, row.version_id, of=parent_id):
        raise LineageConflict(
            f"{declared.ref} cannot be {parent.ref}: that came from {child.ref}, and nothing comes from itself.",
            hint="Name the version that was there before, or leave the parent absent.",
        )
    differences = find_differences(Architecture(parent.architecture), Architecture(child.architecture))
    admitted = [
        one.as_dict() for one in refuse_differences(parent.ref, child.ref, differences, allowed.union(declared.allowed))
    ]
    evidence = compare_recorded(connection, parent, child)
    if evidence is not None:
        refuse_unrelated(evidence, parent.ref, child.ref, declared.relation, allowed.union(declared.allowed))
    connection.execute(
        version_parents.insert().values(
            version_id=row.version_id,
            parent_id=parent_id,
            relation=declared.relation,
            admitted_differences=admitted,
            absent_id=row.id,
            evidence=None if evidence is None else evidence.as_dict(),
        )
    )
    details = {
        "declared": declared.ref,
        "digest": declared.digest,
        "parent": parent.ref,
        "relation": declared.relation,
        "admitted": [one["field"] for one in admitted],
        "by": by,
        "evidence": None if evidence is None else evidence.verdict,
    }
    append_event(connection, "parent.joined", child.ref, details)


def _choose_open(connection: Connection, child: ResolvedRef, declared: str | None) -> Row[Any]:
    found = _select_open(connection, absent_parents.c.version_id == child.id)
    labels = [_as_declared(row).ref for row in found]
    if declared is not None:
        wanted = parse_absent_parent(declared).ref
        found = [row for row, label in zip(found, labels, strict=True) if label == wanted]
    if len(found) == 1:
        return found[0]
    if not labels:
        raise UnknownRef(f"{child.ref} has no absent parent.", hint=f"See: lensreg lineage {child.ref} --up")
    raise UnknownRef(
        f"{child.ref} has {len(labels)} absent {'parents' if len(labels) > 1 else 'parent'}: {', '.join(labels)}.",
        candidates=labels,
        hint="Say which one it is: --declared ORG/NAME@REVISION",
    )


def _refuse_contradiction(declared: AbsentParent, parent: Version) -> None:
    """Raise LineageConflict if the record shows that this is not what was declared."""
    if declared.digest is not None and declared.digest not in _digests_of(parent.weights_digest, parent.files):
        raise LineageConflict(
            f"{declared.ref} was declared with the weights sha256:{declared.digest[:16]}, and {parent.ref} has others.",
            hint=f"Register what was declared, or fetch it first if it was left on the Hub: lensreg fetch {parent.ref}",
        )
    repo, commit = parent.provenance.get("repo"), parent.provenance.get("commit")
    if repo == declared.repo and _COMMIT.fullmatch(declared.revision) and commit != declared.revision:
        raise LineageConflict(
            f"{declared.ref} is another commit than {parent.ref}, which is {str(commit)[:12]} of {repo}.",
            hint=f"Register the one that was declared: lensreg add NAME {declared.repo}@{declared.revision}",
        )


def _select_open(connection: Connection, condition: ColumnElement[bool]) -> list[Row[Any]]:
    """Return the declarations that are not joined yet."""
    return list(connection.execute(_OPEN.where(condition)))


def _is_commit(provenance: Mapping[str, Any]) -> ColumnElement[bool]:
    return and_(
        absent_parents.c.repo == provenance["repo"],
        absent_parents.c.revision == provenance.get("commit"),
    )


def _has_digest(weights_digest: str | None, files: Sequence[StoredFile]) -> ColumnElement[bool]:
    return absent_parents.c.digest.in_(_digests_of(weights_digest, files))


def _digests_of(weights_digest: str | None, files: Sequence[StoredFile]) -> list[str]:
    """Return the digests that mean these weights: their own, and that of the file if there is but one."""
    of_files = [file.digest for file in files if file.role == "weights"]
    return [one for one in (weights_digest, *(of_files if len(of_files) == 1 else ())) if one]


def _has_one_file(digest: str) -> ColumnElement[bool]:
    of_version = and_(version_files.c.version_id == versions.c.id, version_files.c.role == "weights")
    n_files = select(func.count()).where(of_version).correlate(versions).scalar_subquery()
    return and_(exists().where(of_version, version_files.c.digest == digest), n_files == 1)


def _as_declared(row: Row[Any]) -> AbsentParent:
    return AbsentParent(row.repo, row.revision, row.digest, row.relation, tuple(row.allowed))
