"""The version that holds already what somebody wants to register: found, and made whole again."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from registry.checkpoint import Checkpoint
from registry.database import Database
from registry.errors import LineageConflict
from registry.fetch import fetch_version
from registry.ownership import claim_store
from registry.parents import parse_absent_parents, refuse_other_lineage
from registry.progress import Progress
from registry.query import find_step
from registry.record import find_existing, record_missing_tensors
from registry.registration import Registration, Request
from registry.stage import Files, Weights
from registry.store import LocalStore
from registry.tensor_digests import has_tensors
from registry.versions import Version


def find_unchanged(
    connection: Connection, request: Request, checkpoint: Checkpoint, weights: Weights, files: Files
) -> Registration | None:
    """Return the version that holds this already, if its step is the one asked for or none was asked for."""
    if request.dry_run:
        return None
    fingerprint = checkpoint.architecture.fingerprint
    for version in find_existing(connection, request.name, fingerprint, weights.digest, files.stored):
        step = request.choose_step(checkpoint)
        if step is not None and step != version.step:
            continue
        absent = parse_absent_parents(request.absent_parents, {}, "finetuned", ())
        texts = (*request.parents, *request.absent_parents)
        named = {text: request.relations.get(text) or request.relation for text in texts}
        refuse_other_lineage(connection, version, request.parents, absent, named)
        return Registration(
            outcome="unchanged",
            name=request.name,
            version=version,
            architecture=checkpoint.architecture,
            weights_digest=weights.digest,
            n_parameters=weights.n_parameters,
            admitted_differences=(),
            parity=None,
            findings=(),
        )
    if request.new_step:
        _refuse_taken_step(connection, request.name, request.choose_step(checkpoint))
    return None


def _refuse_taken_step(connection: Connection, name: str, step: int | None) -> None:
    taken = find_step(connection, name, step) if step is not None else None
    if taken is not None:
        raise LineageConflict(
            f"{taken} holds other weights for step {step} of {name}.",
            hint="Register another run under another NAME, or retire that version first.",
        )


def heal_unchanged(
    database: Database,
    store: LocalStore,
    unchanged: Registration,
    files: Files,
    weights: Weights,
    request: Request,
    progress: Progress,
) -> Registration:
    """Put the blobs of the version that is there already in place again, in case one was lost or damaged.

    Weights that had been left elsewhere are here now, so that they can be measured; and so are tensors whose digests
    were not kept when it was registered.
    """
    version = unchanged.version
    if version is None:
        return unchanged
    kept = {file.digest for file in version.files}
    store.publish((file for file in files.staged if file.digest in kept), progress, replace=True)
    claim_store(database, store)
    if request.source_options.lazy:
        return unchanged
    _record_missing_tensors(database, version, weights)
    return replace(unchanged, version=fetch_version(database, store, version, request.parity, progress, request.allow))


def _record_missing_tensors(database: Database, version: Version, weights: Weights) -> None:
    if version.weights_digest is None or weights.digest != version.weights_digest:
        return
    with database.read() as connection:
        missing = not has_tensors(connection, version.weights_digest)
    if missing:
        database.change(
            lambda connection: record_missing_tensors(connection, version, weights.tensors, weights.digests)
        )
