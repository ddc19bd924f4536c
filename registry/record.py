"""Write a version's rows and its event, all in one transaction; the only place that inserts versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, func, or_, select

from registry.absent import declare_parents, join_parents
from registry.architecture import Architecture, Difference
from registry.audit import append_event
from registry.model_names import check_new_model
from registry.query import read_version
from registry.rows import insert_missing, insert_row, insert_rows
from registry.sketch import Sketch
from registry.sketches import record_sketch
from registry.sources.source import Finding
from registry.tables import (
    architectures,
    blobs,
    models,
    tags,
    validations,
    version_files,
    version_parents,
    versions,
)
from registry.tensor_digests import record_tensors
from registry.versions import AbsentParent, StoredFile, Version
from registry.weights import TensorForm

_model_id = select(models.c.id).where(models.c.name == bindparam("model")).scalar_subquery()
# the version if the operation was recorded, the model's id, the number of its newest version, the architecture if known
_WHERE_TO = select(
    select(versions.c.id).where(versions.c.operation_id == bindparam("operation_id")).scalar_subquery(),
    _model_id,
    select(func.max(versions.c.number)).where(versions.c.model_id == _model_id).scalar_subquery(),
    select(architectures.c.fingerprint)
    .where(architectures.c.fingerprint == bindparam("fingerprint"))
    .scalar_subquery(),
)
_of_these_files = exists().where(
    version_files.c.version_id == versions.c.id,
    version_files.c.role == "weights",
    version_files.c.digest.in_(bindparam("files", expanding=True)),
)
_in_use = (
    select(versions.c.id)
    .join_from(versions, models)
    .where(
        models.c.name == bindparam("model"),
        versions.c.fingerprint == bindparam("fingerprint"),
        versions.c.retired_at.is_(None),
    )
    .order_by(versions.c.id)
)
_OF_SAME_FILES = _in_use.where(_of_these_files)
_OF_SAME_WEIGHTS = _in_use.where(
    or_(
        versions.c.weights_digest == bindparam("weights_digest"),
        and_(versions.c.weights_digest.is_(None), _of_these_files),
    )
)


@dataclass(frozen=True)
class ParentEdge:
    """A parent by the database's id, with what the child is to it, what was admitted, and what the weights say."""

    id: int
    ref: str
    relation: str
    admitted_differences: tuple[Difference, ...] = ()
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Draft:
    """Everything that a version's rows will say."""

    model: str
    step: int | None
    family: str
    architecture: Architecture
    weights_digest: str | None
    vocabulary_digest: str | None
    layout: str
    processing: Sequence[str] | None
    dtype: str
    n_parameters: int
    source_kind: str
    source_location: str
    provenance: Mapping[str, Any]
    note: str | None
    tags: Mapping[str, str]
    findings: Sequence[Finding]
    files: Sequence[StoredFile]
    parents: Sequence[ParentEdge]
    measurements: Sequence[Mapping[str, Any]]
    operation_id: str
    absent_parents: Sequence[AbsentParent] = ()
    tensors: Mapping[str, TensorForm] = field(default_factory=dict)
    tensor_digests: Mapping[str, str] = field(default_factory=dict)
    sketch: Sketch | None = None
    parent_sketches: Sequence[tuple[Version, Sketch]] = ()
    """Those of parents that had none before."""


def find_existing(
    connection: Connection, model: str, fingerprint: str, weights_digest: str | None, files: Sequence[StoredFile]
) -> list[Version]:
    """Return the model's versions, not retired, that hold this very network with this very tokenizer, oldest first.

    Where the weights digest is not known yet, of what is asked for or of a version, the same files must do.
    """
    of_weights = {(file.name, file.digest) for file in files if file.role == "weights"}
    this: dict[str, Any] = {"model": model, "fingerprint": fingerprint, "files": [digest for _, digest in of_weights]}
    if weights_digest is None:
        ids = connection.execute(_OF_SAME_FILES, this).scalars()
    else:
        ids = connection.execute(_OF_SAME_WEIGHTS, this | {"weights_digest": weights_digest}).scalars()
    tokenizer = {(file.name, file.digest) for file in files if file.role == "tokenizer"}
    found = [read_version(connection, version_id) for version_id in ids]
    return [
        one
        for one in found
        if {(file.name, file.digest) for file in one.with_role("tokenizer")} == tokenizer
        and (
            (weights_digest is not None and one.weights_digest == weights_digest)
            or {(file.name, file.digest) for file in one.with_role("weights")} == of_weights
        )
    ]


def record_version(connection: Connection, draft: Draft) -> int:
    """Insert the version and all that hangs on it, and its event; return the database's id.

    The caller's transaction must be the only writer. A draft whose operation was recorded already (its COMMIT's answer
    was lost) gives that version.
    """
    fingerprint = draft.architecture.fingerprint
    this = {"operation_id": draft.operation_id, "model": draft.model, "fingerprint": fingerprint}
    done, model_id, newest, known = connection.execute(_WHERE_TO, this).one()
    if done is not None:
        return int(done)
    now = datetime.now(UTC)
    number = 1 + (newest or 0)
    if known is None:
        row = {"fingerprint": fingerprint, "fields": dict(draft.architecture.fields)}
        insert_rows(connection, architectures, [row])
    insert_missing(
        connection,
        blobs,
        [{"digest": file.digest, "size_bytes": file.size_bytes, "created_at": now} for file in draft.files],
    )
    if model_id is None:
        check_new_model(connection, draft.model)
        model_id = insert_row(connection, models, {"name": draft.model, "created_at": now})
    version_id = insert_row(connection, versions, _make_row(draft, model_id, number, now))
    of_version = {"version_id": version_id}
    insert_rows(
        connection,
        version_files,
        [of_version | {"name": file.name, "role": file.role, "digest": file.digest} for file in draft.files],
    )
    insert_rows(
        connection,
        version_parents,
        [
            of_version
            | {
                "parent_id": edge.id,
                "relation": edge.relation,
                "admitted_differences": [difference.as_dict() for difference in edge.admitted_differences],
                "evidence": None if edge.evidence is None else dict(edge.evidence),
            }
            for edge in draft.parents
        ],
    )
    insert_rows(connection, tags, [of_version | {"key": key, "value": value} for key, value in draft.tags.items()])
    insert_rows(connection, validations, [{**of_version, "created_at": now, **one} for one in draft.measurements])
    declare_parents(connection, version_id, draft.absent_parents)
    if draft.weights_digest is not None and draft.tensor_digests:
        record_tensors(connection, draft.weights_digest, draft.tensors, draft.tensor_digests)
    if draft.sketch is not None and draft.weights_digest is not None:
        record_sketch(connection, fingerprint, draft.weights_digest, draft.sketch)
    _record_sketches(connection, draft.parent_sketches)
    append_event(connection, "version.registered", f"{draft.model}@v{number}", _describe(draft))
    join_parents(connection, version_id, draft.weights_digest, draft.files, draft.provenance)
    return version_id


def record_fetched(
    connection: Connection,
    version_id: int,
    weights_digest: str,
    measurements: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, TensorForm] | None = None,
    tensor_digests: Mapping[str, str] | None = None,
    sketch: Sketch | None = None,
    edges: Sequence[ParentEdge] = (),
    parent_sketches: Sequence[tuple[Version, Sketch]] = (),
) -> bool:
    """Fill in the weights digest of a version whose bytes had been left elsewhere; False if that was done meanwhile.

    With it comes what the weights say of its `edges`. Nothing else of a version is ever filled in, and these only where
    they were not known. The caller's transaction must be the only writer.
    """
    filled = connection.execute(
        versions.update()
        .where(versions.c.id == version_id, versions.c.weights_digest.is_(None))
        .values(weights_digest=weights_digest)
    )
    if filled.rowcount != 1:
        return False
    now = datetime.now(UTC)
    rows = [{"version_id": version_id, "created_at": now, **measurement} for measurement in measurements]
    insert_rows(connection, validations, rows)
    version = read_version(connection, version_id)
    details = {
        "weights_digest": weights_digest,
        "files": {file.name: file.digest for file in version.with_role("weights")},
        "parity": _describe_parity(measurements),
        "evidence": _fill_in_evidence(connection, version_id, edges),
    }
    if tensors and tensor_digests:
        record_tensors(connection, weights_digest, tensors, tensor_digests)
    if sketch is not None:
        record_sketch(connection, version.fingerprint, weights_digest, sketch)
    _record_sketches(connection, parent_sketches)
    append_event(connection, "version.fetched", version.ref, details)
    join_parents(connection, version_id, weights_digest, version.files, version.provenance)
    return True


def record_missing_tensors(
    connection: Connection,
    version: Version,
    tensors: Mapping[str, TensorForm],
    digests: Mapping[str, str],
) -> None:
    """Keep the digests of the tensors of a version that was registered before they were kept, with an event."""
    if version.weights_digest is None or not record_tensors(connection, version.weights_digest, tensors, digests):
        return
    details = {"weights_digest": version.weights_digest, "n_tensors": len(digests)}
    append_event(connection, "version.tensors-recorded", version.ref, details)


def record_weighed(
    connection: Connection,
    version_id: int,
    edges: Sequence[ParentEdge],
    taken: Sequence[tuple[Version, Sketch]] = (),
) -> None:
    """Fill in what the weights say of edges that were not weighed when they were recorded, with an event.

    `taken` are sketches that were taken for it. The caller's transaction must be the only writer.
    """
    _record_sketches(connection, taken)
    verdicts = _fill_in_evidence(connection, version_id, edges)
    if verdicts:
        append_event(connection, "parents.weighed", read_version(connection, version_id).ref, {"evidence": verdicts})


def _fill_in_evidence(connection: Connection, version_id: int, edges: Sequence[ParentEdge]) -> dict[str, str]:
    """Write evidence where there was none, and return the verdicts that were written, by the parent's ref."""
    verdicts = {}
    for edge in edges:
        if edge.evidence is None:
            continue
        this_edge = (version_parents.c.version_id == version_id, version_parents.c.parent_id == edge.id)
        filled = connection.execute(
            version_parents.update()
            .where(*this_edge, version_parents.c.evidence.is_(None))
            .values(evidence=dict(edge.evidence))
        )
        if filled.rowcount == 1:
            verdicts[edge.ref] = str(edge.evidence["verdict"])
    return verdicts


def _record_sketches(connection: Connection, taken: Sequence[tuple[Version, Sketch]]) -> None:
    for version, sketch in taken:
        if version.weights_digest is not None:
            record_sketch(connection, version.fingerprint, version.weights_digest, sketch)


def _make_row(draft: Draft, model_id: int, number: int, now: datetime) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "number": number,
        "step": draft.step,
        "family": draft.family,
        "fingerprint": draft.architecture.fingerprint,
        "weights_digest": draft.weights_digest,
        "vocabulary_digest": draft.vocabulary_digest,
        "layout": draft.layout,
        "processing": None if draft.processing is None else list(draft.processing),
        "dtype": draft.dtype,
        "n_parameters": draft.n_parameters,
        "size_bytes": sum(file.size_bytes for file in draft.files),
        "source_kind": draft.source_kind,
        "source_location": draft.source_location,
        "provenance": dict(draft.provenance),
        "note": draft.note,
        "findings": [finding.as_dict() for finding in draft.findings],
        "operation_id": draft.operation_id,
        "created_at": now,
    }


def _describe(draft: Draft) -> dict[str, Any]:
    """Say in the event what was recorded, in digests, so that the rows can be checked against it."""
    return {
        "weights_digest": draft.weights_digest,
        "fingerprint": draft.architecture.fingerprint,
        "vocabulary_digest": draft.vocabulary_digest,
        "processing": None if draft.processing is None else list(draft.processing),
        "files": {file.name: file.digest for file in draft.files},
        "parents": {edge.ref: edge.relation for edge in draft.parents},
        "evidence": {edge.ref: edge.evidence["verdict"] for edge in draft.parents if edge.evidence},
        "absent_parents": {one.ref: one.relation for one in draft.absent_parents},
        "admitted": sorted({difference.field for edge in draft.parents for difference in edge.admitted_differences}),
        "step": draft.step,
        "tags": dict(draft.tags),
        "note": draft.note,
        "source": {"kind": draft.source_kind, "location": draft.source_location, **draft.provenance},
        "parity": _describe_parity(draft.measurements),
    }


def _describe_parity(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {str(one["metric"]): one["value"] for one in measurements if one["suite"] == "parity"}
