"""Write the rows of received versions and one event for each, some hundred at a time, within one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, exists, select

from registry.absent import join_parents
from registry.audit import append_events
from registry.query import read_version
from registry.said import RECEIVED as RECEIVED_EVENT
from registry.sketches import pack_row
from registry.tables import (
    absent_parents,
    architectures,
    blobs,
    models,
    sketches,
    tags,
    tensor_digests,
    validations,
    version_files,
    version_parents,
    versions,
)
from registry.transfer.form import RECEIVED, Manifest, VersionRecord
from registry.transfer.plan import Placed
from registry.versions import Measurement

_IN_VERSIONS = (
    "step", "family", "fingerprint", "weights_digest", "vocabulary_digest", "layout", "dtype", "n_parameters",
    "source_kind", "source_location", "note", "operation_id", "created_at", "retired_at",
)  # fmt: skip


@dataclass(frozen=True)
class Received:
    """A version to be written: where it goes, its record, and what was found here: its tensors' row, measurements."""

    placed: Placed
    record: VersionRecord
    tensors: Mapping[str, Any] | None
    measurements: Sequence[Mapping[str, Any]] = ()


def write_versions(
    connection: Connection, manifest: Manifest, page: Sequence[Received], known: dict[str, tuple[int, str]]
) -> None:
    """Write some versions and their events; the caller's transaction must be the only writer.

    `known` says which version each operation is here, parents included; the new ones are added to it.
    """
    now = datetime.now(UTC)
    _insert_missing(
        connection,
        architectures,
        ("fingerprint",),
        [{"fingerprint": one.record.fingerprint, "fields": dict(one.record.architecture)} for one in page],
    )
    files = [(one, file) for one in page for file in one.record.files]
    _insert_missing(
        connection,
        blobs,
        ("digest",),
        [{"digest": file.digest, "size_bytes": file.size_bytes, "created_at": now} for _, file in files],
    )
    known |= _insert_versions(connection, manifest, page, now)
    ids = {one.record.operation_id: known[one.record.operation_id][0] for one in page}

    def rows(pairs: Iterable[tuple[Received, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        return [{"version_id": ids[one.record.operation_id], **row} for one, row in pairs]

    _insert_all(
        connection,
        version_files,
        rows((one, {"name": file.name, "role": file.role, "digest": file.digest}) for one, file in files),
    )
    _insert_all(
        connection,
        tags,
        rows((one, {"key": key, "value": value}) for one in page for key, value in one.record.tags.items()),
    )
    elsewhere = {RECEIVED: {"registry": manifest.registry_id, "location": manifest.location}}
    measured = [
        (one, {**row, "environment": {**elsewhere, **row["environment"]}})
        for one in page
        for row in one.record.validations
    ]
    unknown = dict.fromkeys(Measurement.__dataclass_fields__)  # what only runs of suites say
    here = [(one, {**unknown, "created_at": now, **row}) for one in page for row in one.measurements]
    _insert_all(connection, validations, rows([*measured, *here]))
    _insert_parents(connection, page, known)
    _insert_missing(connection, tensor_digests, ("weights_digest",), [one.tensors for one in page if one.tensors])
    _insert_missing(
        connection,
        sketches,
        ("weights_digest", "fingerprint"),
        [
            pack_row(one.record.fingerprint, one.record.weights_digest, one.record.sketch)
            for one in page
            if one.record.sketch is not None and one.record.weights_digest is not None
        ],
    )
    append_events(connection, [(RECEIVED_EVENT, one.placed.ref, _describe(manifest, one, known, now)) for one in page])


def join_received(connection: Connection, ids: Sequence[int]) -> None:
    """Join what the new versions declare, and what declares them, if anybody in the registry declares anything."""
    joined = exists().where(version_parents.c.absent_id == absent_parents.c.id)
    if connection.execute(select(absent_parents.c.id).where(~joined).limit(1)).first() is None:
        return
    for version_id in ids:
        version = read_version(connection, version_id)
        join_parents(connection, version_id, version.weights_digest, version.files, version.provenance)


def _insert_versions(
    connection: Connection, manifest: Manifest, page: Sequence[Received], now: datetime
) -> dict[str, tuple[int, str]]:
    _insert_missing(connection, models, ("name",), [{"name": one.placed.model, "created_at": now} for one in page])
    names = {one.placed.model for one in page}
    found = connection.execute(select(models.c.name, models.c.id).where(models.c.name.in_(names)))
    of_name = {row.name: row.id for row in found}
    _insert_all(
        connection,
        versions,
        [
            {
                **{name: getattr(one.record, name) for name in _IN_VERSIONS},
                "model_id": of_name[one.placed.model],
                "number": one.placed.number,
                "processing": None if one.record.processing is None else list(one.record.processing),
                "size_bytes": sum(file.size_bytes for file in one.record.files),
                "provenance": _provenance(manifest, one, now),
                "findings": [dict(finding) for finding in one.record.findings],
            }
            for one in page
        ],
    )
    operations = [one.record.operation_id for one in page]
    written = connection.execute(
        select(versions.c.operation_id, versions.c.id).where(versions.c.operation_id.in_(operations))
    )
    ids = {row.operation_id: row.id for row in written}
    return {one.record.operation_id: (ids[one.record.operation_id], one.placed.ref) for one in page}


def _insert_parents(connection: Connection, page: Sequence[Received], known: Mapping[str, tuple[int, str]]) -> None:
    """Insert declarations and edges; a declaration that had been joined is tied to its edge again."""
    _insert_all(
        connection,
        absent_parents,
        [
            {
                "version_id": known[one.record.operation_id][0],
                "repo": absent.repo,
                "revision": absent.revision,
                "digest": absent.digest,
                "relation": absent.relation,
                "allowed": list(absent.allowed),
            }
            for one in page
            for absent in one.record.absent_parents
        ],
    )
    of_page = [known[one.record.operation_id][0] for one in page if one.record.absent_parents]
    declared = {
        (row.version_id, row.repo, row.revision): row.id
        for row in (
            connection.execute(select(absent_parents).where(absent_parents.c.version_id.in_(of_page)))
            if of_page
            else ()
        )
    }
    edges = []
    for one in page:
        version_id = known[one.record.operation_id][0]
        for parent in one.record.parents:
            absent = None if parent.declared is None else one.record.absent_parents[parent.declared]
            edges.append(
                {
                    "version_id": version_id,
                    "parent_id": known[parent.operation_id][0],
                    "relation": parent.relation,
                    "admitted_differences": [dict(difference) for difference in parent.admitted_differences],
                    "evidence": None if parent.evidence is None else dict(parent.evidence),
                    "absent_id": absent and declared[version_id, absent.repo, absent.revision],
                }
            )
    _insert_all(connection, version_parents, edges)


def _provenance(manifest: Manifest, one: Received, now: datetime) -> dict[str, Any]:
    """Add to where it was from where it came from now; how it had come there is told by the events."""
    origin = {
        "registry": manifest.registry_id,
        "location": manifest.location,
        "ref": one.record.ref,
        "n_events": manifest.head.n_events,
        "head": manifest.head.digest,
        "record": one.placed.outline.entry.digest,
        "at": now.isoformat(timespec="seconds"),
    }
    return {**one.record.provenance, RECEIVED: origin}


def _describe(manifest: Manifest, one: Received, known: Mapping[str, tuple[int, str]], now: datetime) -> dict[str, Any]:
    """Say in the event what was written, as `version.registered` does, and all that its events say elsewhere."""
    record = one.record
    return {
        "weights_digest": record.weights_digest,
        "fingerprint": record.fingerprint,
        "vocabulary_digest": record.vocabulary_digest,
        "processing": None if record.processing is None else list(record.processing),
        "files": {file.name: file.digest for file in record.files},
        "parents": {known[parent.operation_id][1]: parent.relation for parent in record.parents},
        "evidence": {
            known[parent.operation_id][1]: parent.evidence["verdict"] for parent in record.parents if parent.evidence
        },
        "absent_parents": {absent.ref: absent.relation for absent in record.absent_parents},
        "admitted": sorted(
            {difference["field"] for parent in record.parents for difference in parent.admitted_differences}
        ),
        "step": record.step,
        "tags": dict(record.tags),
        "note": record.note,
        "retired": record.retired_at is not None,
        "operation_id": record.operation_id,
        "source": {
            "kind": record.source_kind,
            "location": record.source_location,
            **_provenance(manifest, one, now),
        },
        "parity": {str(row["metric"]): row["value"] for row in record.validations if row["suite"] == "parity"},
        "measured_here": {str(row["metric"]): row["value"] for row in one.measurements},
        "events": [asdict(event) for event in record.events],
    }


def _insert_missing(
    connection: Connection, table: Table, keys: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert the rows whose key is new; the same key always means the same content."""
    by_key = {tuple(row[key] for key in keys): row for row in rows}
    first = table.c[keys[0]]
    columns = [table.c[key] for key in keys]
    wanted = [key[0] for key in by_key]
    there: set[tuple[Any, ...]] = set()
    for start in range(0, len(wanted), 1000):
        query = select(*columns).where(first.in_(wanted[start : start + 1000]))
        there |= {tuple(row) for row in connection.execute(query)}
    _insert_all(connection, table, [row for key, row in by_key.items() if key not in there])


def _insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(table.insert(), list(rows))
