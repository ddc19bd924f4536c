"""Quarantine: corrupt blobs are moved aside by an explicit act, never deleted, as each may be the last copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select

from registry.audit import append_event
from registry.database import Database
from registry.errors import ArtifactCorrupt
from registry.store import LocalStore
from registry.tables import blobs
from registry.verify_records import Fault


@dataclass(frozen=True)
class Quarantined:
    """A blob that was moved aside, where it is now, and the first of the versions that cannot be had without it."""

    digest: str
    place: str
    versions: tuple[str, ...]


def quarantine_blobs(database: Database, store: LocalStore, faults: Iterable[Fault]) -> list[Quarantined]:
    """Move the corrupt blobs among the faults aside, those that still are when they are read again."""
    done = []
    for fault in faults:
        if fault.code != ArtifactCorrupt.code:
            continue
        with database.read() as connection:
            query = select(blobs.c.size_bytes).where(blobs.c.digest == fault.subject)
            size_bytes = connection.execute(query).scalar_one()
        place = store.quarantine(fault.subject, size_bytes)
        if place is None:
            continue
        details = {"place": str(place), "versions": list(fault.versions), "n_versions": fault.n_versions}
        with database.write() as connection:
            append_event(connection, "blob.quarantined", f"sha256:{fault.subject}", details)
        done.append(Quarantined(fault.subject, str(place), fault.versions))
    return done
