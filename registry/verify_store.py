"""Verify what is kept, reading only: the blobs that versions need, the chain of events, and rows against their events.

Two levels, as restic has them: that every blob is there in its size, and with `read_data` that every byte is right, for
all blobs or for one part of them. Rows are read some hundred at a time and no transaction stays open while files are
hashed, so that memory and locks do not grow with the registry. (Parity is measured by verify.py, not here.)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, and_, cast, func, or_, select

from registry.architecture import Architecture
from registry.audit import verify_chain
from registry.database import Database
from registry.errors import ArtifactCorrupt, ArtifactMissing, InvalidInput, StorageError
from registry.progress import Counter, Progress, no_progress
from registry.resolve import resolve_ref
from registry.said import CAME_IN, SAYING, take_in
from registry.store import LocalStore
from registry.tables import architectures, blobs, events, models, version_files, version_parents, versions

_PAGE = 500
N_NAMED = 10
MAX_FAULTS = 1000
_UPGRADED = "schema.upgraded"
_DIGESTS = ("weights_digest", "fingerprint", "vocabulary_digest")
_RESTORE = "Restore the database from a backup of before; what was altered is not made up."


@dataclass(frozen=True)
class Fault:
    """One thing that does not hold.

    `code` is that of the error a load would raise, `record-altered` or `chain-broken`; `subject` the blob's digest, the
    version, the architecture's fingerprint or the event. `versions` are the first of those that need it.
    """

    code: str
    subject: str
    message: str
    hint: str
    versions: tuple[str, ...] = ()
    n_versions: int = 0


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


class _Faults:
    """Counts faults and keeps the first."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.subjects: set[str] = set()
        self.count = 0

    def add(self, fault: Fault) -> None:
        self.count += 1
        self.subjects.add(fault.subject)
        if len(self.kept) < MAX_FAULTS:
            self.kept.append(fault)


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
    faults = _Faults()
    with database.read() as connection:
        ids = sorted({resolve_ref(connection, ref).id for ref in refs}) if refs else None
        n_events = _verify_events(connection, faults)
    n_versions = _verify_records(database, ids, faults, compare=not faults.count, progress=progress)
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


def _verify_events(connection: Connection, faults: _Faults) -> int:
    broken = verify_chain(connection)
    if broken is not None:
        message = f"The chain of events does not hold: {broken.message}."
        faults.add(Fault("chain-broken", f"event {broken.sequence}", message, _RESTORE))
    return int(connection.execute(select(func.count()).select_from(events)).scalar_one())


# --- blobs -----------------------------------------------------------------------------------------------------


def _verify_blobs(
    database: Database,
    store: LocalStore,
    ids: Sequence[int] | None,
    part: tuple[int, int] | None,
    faults: _Faults,
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


def _add_fault(
    database: Database, digest: str, error: StorageError, ids: Sequence[int] | None, faults: _Faults
) -> None:
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


# --- rows ------------------------------------------------------------------------------------------------------


def _verify_records(
    database: Database, ids: Sequence[int] | None, faults: _Faults, *, compare: bool, progress: Progress
) -> int:
    """Compare every version's rows with its events, if `compare`, and architectures with their fingerprints.

    Returns the number of versions.
    """
    with database.read() as connection:
        total = connection.execute(select(func.count()).select_from(versions)).scalar_one() if ids is None else len(ids)
        _verify_architectures(connection, faults)
        if compare and ids is None:
            _find_lost(connection, faults)
    if not compare:
        return int(total)
    counter = Counter(progress, "comparing", total)
    columns = [versions.c[name] for name in ("id", "number", "step", *_DIGESTS)]
    query = select(*columns, models.c.name).join_from(versions, models).order_by(versions.c.id).limit(_PAGE)
    if ids is not None:
        query = query.where(versions.c.id.in_(ids))
    last, n_versions = 0, 0
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(versions.c.id > last)).all()
            _compare_page(connection, rows, faults)
        counter.advance(len(rows))
        n_versions += len(rows)
        if len(rows) < _PAGE:
            return n_versions
        last = rows[-1].id


def _compare_page(connection: Connection, rows: Sequence[Any], faults: _Faults) -> None:
    refs = {row.id: f"{row.name}@v{row.number}" for row in rows}
    files, parents = _read_files(connection, list(refs)), _read_parents(connection, list(refs))
    said = _read_said(connection, list(refs.values()))
    for row in rows:
        ref = refs[row.id]
        found = {name: getattr(row, name) for name in ("step", *_DIGESTS)}
        edges = parents[row.id]
        found |= {
            "files": files[row.id],
            "parents": {parent: relation for parent, (relation, _) in edges.items()},
            "evidence": {parent: verdict for parent, (_, verdict) in edges.items() if verdict is not None},
        }
        if ref not in said:
            message = f"{ref} is in the database, and no event says that it was registered."
            faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))
            continue
        wrong = [name for name, value in found.items() if said[ref].get(name) != value]
        if wrong:
            message = f"The rows of {ref} do not say what its event says: {', '.join(wrong)}."
            faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))


def _read_said(connection: Connection, refs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the events say of each version that they name: as it came in, with what came to it since."""
    said: dict[str, dict[str, Any]] = {}
    query = select(events.c.subject, events.c.action, events.c.details).where(
        events.c.subject.in_(refs), events.c.action.in_(SAYING)
    )
    for event in connection.execute(query.order_by(events.c.sequence)):
        now = take_in(said.get(event.subject), event.action, event.details)
        if now is not None:
            said[event.subject] = now
    renamed = _read_renamed(connection)
    for one in said.values():
        one["fingerprint"] = renamed.get(one.get("fingerprint"), one.get("fingerprint"))
    return said


def _read_renamed(connection: Connection) -> dict[Any, Any]:
    """Return which fingerprint became which when the schema was upgraded."""
    renamed: dict[Any, Any] = {}
    query = select(events.c.details).where(events.c.subject == "architectures", events.c.action == _UPGRADED)
    for details in connection.execute(query.order_by(events.c.sequence)).scalars():
        fresh = details.get("fingerprints", {})
        renamed = {old: fresh.get(new, new) for old, new in renamed.items()} | fresh
    return renamed


def _read_files(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    columns = (version_files.c.version_id, version_files.c.name, version_files.c.digest)
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(select(*columns).where(version_files.c.version_id.in_(ids))):
        found[row.version_id][row.name] = row.digest
    return found


def _read_parents(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, tuple[str, str | None]]]:
    """Return the relation and the verdict of the weights (None: not weighed) of every version's parents."""
    edge = (version_parents.c.version_id, version_parents.c.relation, version_parents.c.evidence)
    query = (
        select(*edge, models.c.name, versions.c.number)
        .join_from(version_parents, versions, versions.c.id == version_parents.c.parent_id)
        .join(models, models.c.id == versions.c.model_id)
        .where(version_parents.c.version_id.in_(ids))
    )
    found: dict[int, dict[str, tuple[str, str | None]]] = defaultdict(dict)
    for row in connection.execute(query):
        verdict = None if row.evidence is None else str(row.evidence.get("verdict"))
        found[row.version_id][f"{row.name}@v{row.number}"] = (row.relation, verdict)
    return found


def _find_lost(connection: Connection, faults: _Faults) -> None:
    """Find versions that came in by an event and that are no longer there: nothing ever deletes one."""
    query = select(events.c.subject).where(events.c.action.in_(CAME_IN)).order_by(events.c.sequence)
    for page in connection.execute(query.execution_options(yield_per=_PAGE)).scalars().partitions():
        named = [tuple(subject.rpartition("@v")[::2]) for subject in page]
        rows = connection.execute(
            select(models.c.name, versions.c.number)
            .join_from(versions, models)
            .where(
                models.c.name.in_({name for name, _ in named}),
                versions.c.number.in_({int(number) for _, number in named}),
            )
        )
        there = {f"{row.name}@v{row.number}" for row in rows}
        for ref in page:
            if ref not in there:
                message = f"{ref} was registered, and its row is gone; nothing here deletes rows."
                faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))


def _verify_architectures(connection: Connection, faults: _Faults) -> None:
    query = select(architectures.c.fingerprint, cast(architectures.c.fields, Text).label("fields"))
    for row in connection.execute(query.execution_options(yield_per=_PAGE)):
        try:
            right = Architecture(json.loads(row.fields)).fingerprint == row.fingerprint
        except (ValueError, TypeError, RecursionError):
            right = False
        if not right:
            message = f"The architecture sha256:{row.fingerprint} was altered: its fields have another fingerprint."
            faults.add(Fault("record-altered", row.fingerprint, message, _RESTORE))
