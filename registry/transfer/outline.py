"""What of a record is kept in memory while all of a shipment is looked at: enough to decide where each version goes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from registry.errors import MalformedExport
from registry.transfer.form import Entry, VersionRecord
from registry.transfer.parse import parse_record
from registry.transfer.shipment import Shipment
from registry.versions import StoredFile


@dataclass(frozen=True)
class Outline:
    """One version of a shipment; `parents` are pairs of an operation and a relation, with the sender's refs beside."""

    entry: Entry
    model: str
    number: int
    step: int | None
    fingerprint: str
    weights_digest: str | None
    files: tuple[StoredFile, ...]
    parents: tuple[tuple[str, str], ...]
    parent_refs: tuple[str, ...]
    aliases: tuple[str, ...]
    is_retired: bool
    blobs: dict[str, int]

    @property
    def operation_id(self) -> str:
        """What tells it from every other version, in all registries."""
        return self.entry.operation_id


def read_whole(shipment: Shipment, entry: Entry) -> VersionRecord:
    """Read one record and check it against its digest, or raise MalformedExport."""
    text = shipment.read_record(entry)
    if hashlib.sha256(text).hexdigest() != entry.digest or len(text) != entry.size_bytes:
        raise MalformedExport(
            f"The record of {entry.ref} was altered. Nothing was changed.",
            hint="Copy the export again, or make it again. If somebody else could write to it, ask who did.",
        )
    return parse_record(text, entry, shipment.manifest.head)


def read_outlines(shipment: Shipment) -> list[Outline]:
    """Read every record once, and check them against each other and against the manifest; or raise MalformedExport.

    A parent comes before its children, so that nothing can come from itself.
    """
    seen: dict[str, str] = {}
    blobs: dict[str, int] = {}
    found = []
    listed = {entry.operation_id: entry.ref for entry in shipment.manifest.entries}
    for entry in shipment.manifest.entries:
        record = read_whole(shipment, entry)
        for parent in record.parents:
            if parent.operation_id in listed and seen.get(parent.operation_id) != parent.ref:
                raise _malformed(f"{record.ref} comes before its parent {parent.ref}, or that has two names")
        seen[entry.operation_id] = record.ref
        for digest, size in record.blobs.items():
            if blobs.setdefault(digest, size) != size:
                raise _malformed(f"the blob sha256:{digest} has two sizes")
        found.append(_outline(entry, record))
    if blobs != dict(shipment.manifest.blobs):
        raise _malformed("the list of blobs is not that of the versions' files")
    if not found or not set(shipment.manifest.named) <= set(seen.values()):
        raise _malformed("what was named is not in it")
    return found


def _outline(entry: Entry, record: VersionRecord) -> Outline:
    return Outline(
        entry=entry,
        model=record.model,
        number=record.number,
        step=record.step,
        fingerprint=record.fingerprint,
        weights_digest=record.weights_digest,
        files=record.files,
        parents=tuple((one.operation_id, one.relation) for one in record.parents),
        parent_refs=tuple(one.ref for one in record.parents),
        aliases=record.aliases,
        is_retired=record.retired_at is not None,
        blobs=record.blobs,
    )


def _malformed(what: str) -> MalformedExport:
    return MalformedExport(
        f"The export cannot be received: {what}. Nothing was changed.",
        hint="It was altered, or made by another program than lensreg; make it again.",
    )
