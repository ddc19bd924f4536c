"""Verify what is kept, reading only: the blobs that versions need, the chain of events, and rows against their events.

Two levels, as restic has them: that every blob is there in its size, and with `read_data` that every byte is right, for
all blobs or for one part of them. Rows are read some hundred at a time and no transaction stays open while files are
hashed, so that memory and locks do not grow with the registry. (Parity is measured by verify.py, not here.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from registry.database import Database
from registry.errors import ArtifactCorrupt, ArtifactMissing, InvalidInput, StorageError
from registry.progress import Counter, Progress, no_progress
from registry.resolve import resolve_ref
from registry.store import LocalStore
from registry.tables import blobs, models, version_files, versions
from registry.verify_records import MAX_FAULTS, Fault, Faults, verify_events, verify_records

_PAGE = 500
N_NAMED = 10


@dataclass(frozen=True)
class Verification:
    """What was looked at and what was found: the first MAX_FAULTS faults, and how many there are in all.

    `part` is (n, t) if the n-th of t parts of the blobs was read. Rows are not compared with a chain that is broken.
    """

    n_versions: int
    n_blobs: int
    n_events: int
    n_read: int
    read_bytes: int
    part: tuple[int, int] | None
    n_faults: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.n_faults == 0

    def with_faults(self, more: Sequence[Fault]) -> Verification:
        """Return the same with what was found besides."""
        return replace(self, n_faults=self.n_faults + len(more), faults=(*self.faults, *more)[:MAX_FAULTS])


def verify_store(
    database: Database,
    store: LocalStore,
    refs: Sequence[str] = (),
    read_data: bool | tuple[int, int] = False,
    progress: Progress = no_progress,
) -> Verification:
    """Check the versions that `refs` mean, or all of them, retired ones too, and the chain of events.

    With `read_data` every byte is hashed; (n, t) reads the n-th of t parts, which digests choose, so that t runs read
    everything. Weights that `lazy` left on the Hub are no fault.
    """
    part = _check_part(read_data)
    faults = Faults()
    with database.read() as connection:
        ids = sorted({resolve_ref(connection, ref).id for ref in refs}) if refs else None
        n_events = verify_events(connection, faults)
    n_versions = verify_records(database, ids, faults, compare=not faults.count, progress=progress)
    n_blobs, n_read, read_bytes = _verify_blobs(database, store, ids, part, faults, progress)
    return Verification(
        n_versions=n_versions,
        n_blobs=n_blobs,
        n_events=n_events,
        n_read=n_read,
        read_bytes=read_bytes,
        part=part if part != (1, 1) else None,
        n_faults=faults.count,
        faults=tuple(faults.kept),
    )


def _check_part(read_data: bool | tuple[int, int]) -> tuple[int, int] | None:
    """Return which part of how many is to be read: None for nothing, (1, 1) for everything."""
    if isinstance(read_data, bool):
        return (1, 1) if read_data else None
    n, t = read_data
    if not 1 <= n <= t < 2**31:
        raise InvalidInput(f"There is no part {n} of {t}.", hint="Parts are numbered from 1: 1/5, 2/5, … 5/5.")
    return n, t


def _is_in(part: tuple[int, int] | None, digest: str) -> bool:
    return part is not None and int(digest[:16], 16) % part[1] == part[0] - 1


def _verify_blobs(
    database: Database,
    store: LocalStore,
    ids: Sequence[int] | None,
    part: tuple[int, int] | None,
    faults: Faults,
    progress: Progress,
) -> tuple[int, int, int]:
    """Check that all blobs are there, then read those of the part; return their numbers, and the bytes that were read.

    What is missing or torn is known within moments that way, whatever is read after it.
    """
    n_blobs = to_read = n_read = read_bytes = 0
    for (digest, size_bytes), fault in find_faults(store, list_needed_blobs(database, ids)):
        n_blobs += 1
        if fault is not None:
            _add_fault(database, digest, fault, ids, faults)
        elif _is_in(part, digest):
            to_read += size_bytes
    if part is None:
        return n_blobs, 0, 0
    counter = Counter(progress, "reading", to_read)
    for digest, size_bytes in list_needed_blobs(database, ids):
        if _is_in(part, digest) and digest not in faults.subjects:
            fault = _find_fault(store, digest, size_bytes, counter)
            if fault is not None:
                _add_fault(database, digest, fault, ids, faults)
            n_read += 1
            read_bytes += size_bytes
    return n_blobs, n_read, read_bytes


def find_faults(
    store: LocalStore, needed: Iterable[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int], StorageError | None]]:
    """Check that blobs, given as (digest, size), are there in their size; give each with its fault.

    As many at once are asked for as the store likes. What keeps one that is elsewhere from answering is raised.
    """
    if store.n_at_once == 1:
        yield from ((blob, _find_fault(store, *blob)) for blob in needed)
        return
    waiting = iter(needed)
    with ThreadPoolExecutor(store.n_at_once) as pool:
        while some := list(islice(waiting, store.n_at_once)):
            yield from zip(some, pool.map(lambda blob: _find_fault(store, *blob), some), strict=True)


def _find_fault(store: LocalStore, digest: str, size_bytes: int, counter: Counter | None = None) -> StorageError | None:
    """Check one blob, and read it if there is a counter."""
    try:
        store.verify(digest, size_bytes, read=counter is not None, advance=counter.advance if counter else None)
    except StorageError as error:
        if store.is_remote and not isinstance(error, ArtifactMissing | ArtifactCorrupt):
            raise
        return error
    return None


def _add_fault(database: Database, digest: str, error: StorageError, ids: Sequence[int] | None, faults: Faults) -> None:
    """Add the fault of one blob, with the versions that cannot be had without it."""
    with database.read() as connection:
        query = _select_needing(ids).where(version_files.c.digest == digest)
        named = connection.execute(query.order_by(versions.c.id).limit(N_NAMED)).all()
        n_versions = connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
    needing = tuple(f"{row.name}@v{row.number}" for row in named)
    faults.add(Fault(error.code, digest, error.message, error.hint or "", needing, n_versions))


def list_needed_blobs(database: Database, ids: Sequence[int] | None = None) -> Iterator[tuple[str, int]]:
    """Give digest and size of every blob that a version needs here, by digest; of all versions, or of those ids."""
    needed = select(1).where(version_files.c.digest == blobs.c.digest, _needs(ids))
    needed = needed.select_from(version_files.join(versions, versions.c.id == version_files.c.version_id))
    query = select(blobs.c.digest, blobs.c.size_bytes).where(needed.correlate(blobs).exists())
    last = ""
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(blobs.c.digest > last).order_by(blobs.c.digest).limit(_PAGE)).all()
        for row in rows:
            yield row.digest, row.size_bytes
        if len(rows) < _PAGE:
            return
        last = rows[-1].digest


def _select_needing(ids: Sequence[int] | None) -> Select[Any]:
    """Select the versions, each once, that need a file's blob."""
    joined = version_files.join(versions, versions.c.id == version_files.c.version_id).join(
        models, models.c.id == versions.c.model_id
    )
    return select(versions.c.id, models.c.name, versions.c.number).select_from(joined).where(_needs(ids)).distinct()


def _needs(ids: Sequence[int] | None) -> ColumnElement[bool]:
    """Say whether a version needs one of its files here: not the weights that it left elsewhere."""
    here = or_(versions.c.weights_digest.is_not(None), version_files.c.role != "weights")
    return here if ids is None else and_(here, versions.c.id.in_(ids))
