"""What a receiver is handed: a manifest, records by their digests, and blobs in order; straight from a registry here.

`folder.py` and `tape.py` are the other kinds. Whoever receives trusts none of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol

from registry.audit import read_head, read_registry_id
from registry.database import Database
from registry.errors import (
    ArtifactCorrupt,
    InvalidInput,
    MalformedExport,
    RegistryError,
    StorageFull,
    StoreUnavailable,
)
from registry.store import LocalStore
from registry.transfer.form import Entry, Manifest, encode_record
from registry.transfer.gather import choose_versions, read_records

RECORDS = "records"


@dataclass(frozen=True)
class Parcel:
    """A blob on its way: a file of a store, or a stream that holds exactly so many bytes; nobody vouches for either."""

    digest: str
    size_bytes: int
    content: Path | RawIOBase


class Shipment(Protocol):
    """Versions that are handed over."""

    @property
    def manifest(self) -> Manifest:
        """What there is."""

    def read_record(self, entry: Entry) -> bytes:
        """Return a record's text, which the receiver checks."""

    def send_blobs(self, wanted: Collection[str]) -> Iterator[Parcel]:
        """Give the blobs that are wanted, each of which is read before the next is asked for."""

    def refuse_blob(self, digest: str) -> RegistryError:
        """Make the error for a blob that is not what its digest says."""


class RegistryShipment:
    """Versions that come straight out of a registry; their records are kept in the folder `scratch` meanwhile."""

    def __init__(self, database: Database, store: LocalStore, refs: Iterable[str], *, alone: bool, scratch: Path):
        self._store, self._records = store, scratch / RECORDS
        self._records.mkdir(exist_ok=True)
        self.manifest = write_records(database, refs, self._records, alone=alone)

    def read_record(self, entry: Entry) -> bytes:
        """Return a record's text."""
        return (self._records / record_name(entry.digest)).read_bytes()

    def send_blobs(self, wanted: Collection[str]) -> Iterator[Parcel]:
        """Give the blobs that are wanted, by digest."""
        for digest in sorted(wanted):
            size = self.manifest.blobs[digest]
            # whoever receives digests what it copies; a bucket's cached copy that is not whole is fetched again first
            yield Parcel(digest, size, self._store.check(digest, size, read=self._store.is_remote, verify="changed"))

    def refuse_blob(self, digest: str) -> RegistryError:
        """Make the error for a blob that was altered in the sender's store."""
        return ArtifactCorrupt(
            f"The blob sha256:{digest} in {self._store}, which is to be sent, was altered.",
            digest=digest,
            hint="Register the same source there again to heal it, then send again.",
        )


def write_records(database: Database, refs: Iterable[str], folder: Path, *, alone: bool) -> Manifest:
    """Write the records of what the refs mean, and of their ancestors, into a folder; all as of one moment.

    Raises InvalidInput if there are no refs.
    """
    entries: list[Entry] = []
    blobs: dict[str, int] = {}
    with database.read() as connection:
        named, ids = choose_versions(connection, refs, alone=alone)
        registry_id = read_registry_id(connection)
        if not named or registry_id is None:
            raise InvalidInput("No version is named.", hint="Say which ones: REF … (see: lensreg ls)")
        head = read_head(connection)
        for record in read_records(connection, ids):
            text = encode_record(record)
            digest = hashlib.sha256(text).hexdigest()
            (folder / record_name(digest)).write_bytes(text)
            entries.append(Entry(record.ref, record.operation_id, digest, len(text)))
            blobs |= record.blobs
    return Manifest(
        registry_id=registry_id,
        location=name_location(database),
        head=head,
        named=tuple(one.ref for one in named),
        entries=tuple(entries),
        blobs=dict(sorted(blobs.items())),
    )


def name_location(database: Database) -> str:
    """Return the database's URL without its password, and without its options, which may hold one, too."""
    return database.url.set(query={}).render_as_string(hide_password=True)[:1000]


def record_name(digest: str) -> str:
    """Name a record's file."""
    return f"{digest}.json"


def blob_name(digest: str) -> str:
    """Name a blob's file: the same place as in a store."""
    return f"blobs/{digest[:2]}/{digest}"


@contextlib.contextmanager
def typed_errors(place: str | Path) -> Iterator[None]:
    """Turn what the system says of a full or unusable disk into ours; a pipe that nobody reads is not our affair."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or place
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"There is no space left at {where}.", hint="Make room, then run the same command again."
            ) from error
        raise StoreUnavailable(
            f"{where} cannot be used: {error.strerror or error}.", hint="Check the path and its permissions."
        ) from error


class Bounded(RawIOBase):
    """The next `size_bytes` of a stream, as a stream of its own. Raises MalformedExport if they are not there."""

    def __init__(self, stream: Any, size_bytes: int, what: str) -> None:
        self._stream, self.left, self._what = stream, size_bytes, what

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; 0 is the end."""
        view = memoryview(buffer)[: self.left]
        if not len(view):
            return 0
        n_read = self._stream.readinto(view)
        if not n_read:
            raise MalformedExport(
                f"{self._what} was cut off: {self.left:,} bytes are missing. Nothing was changed.",
                hint="Copy the export again, or make it again.",
            )
        self.left -= n_read
        return int(n_read)
