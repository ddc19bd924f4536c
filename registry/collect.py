"""Garbage collection: what no version needs, as a plan that is shown first, then deleted, each thing looked at again.

Safe beside any number of writers for two reasons. What is younger than the grace is left alone, and everybody who
relies on a blob renews it first. And blobs are deleted within write transactions, while whoever names blobs looks at
them within his own (`change_with_blobs`): what he saw is there when his rows are. Nobody holds a lock for longer than
a moment, so writers and the collection take turns.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from sqlalchemy import Connection, select

from registry.audit import append_event, verify_chain
from registry.database import Database
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    InvalidInput,
    StorageError,
    StoreInconsistent,
    StoreUnavailable,
)
from registry.ownership import claim_store, refuse_foreign_store
from registry.progress import Counter, Progress, no_progress
from registry.store import LocalStore
from registry.store.contents import Leftover, StoredBlob
from registry.tables import version_files
from registry.verify_store import find_faults, list_needed_blobs

GRACE = timedelta(days=1)
SUBJECT = "the store"  # in the audit trail; no model can have a name with a space in it
_PAGE = 500
_TURN_SECONDS = 0.2  # for which writers wait at most, before it is their turn again
_N_NAMED = 10


@dataclass(frozen=True)
class CollectionPlan:
    """What would be deleted: blobs that no version names, and leftovers.

    `n_young` more would be, were they not younger than the grace; `n_needed` quarantined blobs stay because versions
    need them and nobody has registered them again.
    """

    grace: timedelta
    blobs: tuple[StoredBlob, ...]
    leftovers: tuple[Leftover, ...]
    n_young: int = 0
    n_needed: int = 0
    adopt: bool = False

    @property
    def size_bytes(self) -> int:
        """What would be free again, in bytes."""
        return _add_up(self.blobs) + _add_up(self.leftovers)


@dataclass(frozen=True)
class Collection:
    """What was deleted, leftovers by their kind; `n_skipped` were not: in use by then, or another user's.

    `fault` is what put an end to it, if something did.
    """

    n_blobs: int
    leftovers: Mapping[str, int]
    size_bytes: int
    n_skipped: int
    fault: StoreUnavailable | None = None

    @property
    def n_leftovers(self) -> int:
        """How many leftovers were deleted, of all kinds."""
        return sum(self.leftovers.values())


def plan_collection(
    database: Database, store: LocalStore, grace: timedelta = GRACE, *, adopt: bool = False
) -> CollectionPlan:
    """Say what would be deleted. Raises StoreInconsistent, StoreNotOwned."""
    if grace < timedelta(0):
        raise InvalidInput(f"A grace of {grace} cannot be meant.", hint="Write it as 1h, or 2d.")
    _refuse_inconsistent(database, store, adopt=adopt)
    before = datetime.now(UTC) - grace
    garbage = list(_find_unnamed_blobs(database, store))
    leftovers, n_needed = [], 0
    for leftover in store.list_leftovers():
        needed = _is_needed(database, store, leftover)
        n_needed += needed and leftover.kind == "quarantined"
        if not needed:
            leftovers.append(leftover)
    old = tuple(sorted((one for one in garbage if one.modified_at < before), key=lambda one: one.digest))
    old_leftovers = tuple(sorted((one for one in leftovers if one.modified_at < before), key=lambda one: one.place))
    n_young = len(garbage) + len(leftovers) - len(old) - len(old_leftovers)
    return CollectionPlan(grace, old, old_leftovers, n_young, n_needed, adopt)


def collect(
    database: Database, store: LocalStore, plan: CollectionPlan, progress: Progress = no_progress
) -> Collection:
    """Delete what the plan names and still nobody needs; `record_collection` has to follow.

    Raises StoreInconsistent, StoreNotOwned, before anything was deleted.
    """
    _refuse_inconsistent(database, store, adopt=plan.adopt)
    counter = Counter(progress, "deleting", plan.size_bytes)
    deleted: list[StoredBlob] = []
    gone: list[Leftover] = []
    fault = None
    try:
        _delete_blobs(database, store, plan, counter, deleted)
        gone.extend(one for one in plan.leftovers if _delete_leftover(database, store, plan, one))
        folders = _find_emptied_folders(store, {one.digest for one in deleted})
        gone.extend(one for one in folders if _delete_leftover(database, store, plan, one))
    except StoreUnavailable as error:
        fault = error
    planned, done = len(plan.blobs) + len(plan.leftovers), len(deleted) + len(set(plan.leftovers) & set(gone))
    kinds: Mapping[str, int] = Tally[str](one.kind for one in gone)
    return Collection(len(deleted), kinds, _add_up(deleted) + _add_up(gone), planned - done, fault)


def record_collection(database: Database, store: LocalStore, plan: CollectionPlan, done: Collection) -> None:
    """Note in the audit trail what was deleted, if anything was; on a full disk there may be room for it only now."""
    if done.n_blobs or done.n_leftovers:
        details = {"blobs": done.n_blobs, "leftovers": dict(done.leftovers), "size_bytes": done.size_bytes}
        with database.write() as connection:
            grace_seconds = plan.grace.total_seconds()
            append_event(connection, "store.collected", SUBJECT, {**details, "grace_seconds": grace_seconds})
        claim_store(database, store)
    elif plan.adopt:
        claim_store(database, store)


def _add_up(found: Iterable[StoredBlob] | Iterable[Leftover]) -> int:
    return sum(one.size_bytes for one in found)


def _refuse_inconsistent(database: Database, store: LocalStore, *, adopt: bool) -> None:
    """Raise if the database and the store do not agree: whatever is wrong then, deleting may make it worse."""
    with database.read() as connection:
        if fault := verify_chain(connection):
            raise StoreInconsistent(
                f"The chain of events of {database} does not hold: {fault.message}. Nothing was deleted.",
                hint="See: lensreg verify. Restore the database from a backup first.",
            )
    refuse_foreign_store(database, store, adopt=adopt)
    aside = {digest for one in store.list_leftovers() if one.kind == "quarantined" for digest in one.digests}
    needed = list(list_needed_blobs(database))  # before the listing, so that whatever comes meanwhile is in that
    there = {one.digest: one.size_bytes for one in store.list_blobs()}
    suspects = [(digest, size) for digest, size in needed if there.get(digest) != size and digest not in aside]
    faults: list[ArtifactMissing | ArtifactCorrupt] = []
    for _, found in find_faults(store, suspects):
        if isinstance(found, ArtifactMissing | ArtifactCorrupt):
            faults.append(found)
        elif found is not None:
            raise found
    if faults:
        raise StoreInconsistent(
            f"{len(faults):,} blobs that versions need are not in {store} as they should be, so it may be the wrong "
            f"store. Nothing was deleted. {faults[0].message}",
            hint="See: lensreg verify. Register the same sources again to heal them, or check --store.",
            digests=[error.digest for error in faults[:_N_NAMED]],
        )


def _find_unnamed_blobs(database: Database, store: LocalStore) -> Iterator[StoredBlob]:
    blobs = store.list_blobs()
    while page := list(islice(blobs, _PAGE)):
        with database.read() as connection:
            named = _find_named(connection, [one.digest for one in page])
        yield from (one for one in page if one.digest not in named)


def _find_named(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Return which of these blobs versions name, retired ones and those that are still to be fetched included."""
    query = select(version_files.c.digest).where(version_files.c.digest.in_(digests)).distinct()
    return set(connection.execute(query).scalars())


def _is_needed(database: Database, store: LocalStore, leftover: Leftover) -> bool:
    """Say whether versions need it: a folder whose blobs they all name, or a quarantined blob that was not healed."""
    if not leftover.digests:
        return False
    with database.read() as connection:
        named = _find_named(connection, leftover.digests)
    if leftover.kind == "folder":
        return named >= set(leftover.digests)
    return any(digest in named and not _is_whole(store, digest) for digest in leftover.digests)


def _is_whole(store: LocalStore, digest: str) -> bool:
    try:
        found = store.find_blob(digest)
        if found is not None:
            store.verify(digest, found.size_bytes, read=True)
        return found is not None
    except StorageError:
        return False


def _delete_blobs(
    database: Database, store: LocalStore, plan: CollectionPlan, counter: Counter, deleted: list[StoredBlob]
) -> None:
    """Delete the plan's blobs, some in each of many short transactions, and add those that were to `deleted`."""
    waiting = list(reversed(plan.blobs))
    while waiting:
        with database.write() as connection:
            until = time.monotonic() + _TURN_SECONDS
            page = waiting[-_PAGE:]
            named = _find_named(connection, [one.digest for one in page])
            while page and time.monotonic() < until:
                planned = page.pop()
                waiting.pop()
                found = store.find_blob(planned.digest) if planned.digest not in named else None
                is_old = found is not None and found.modified_at < datetime.now(UTC) - plan.grace
                if found is not None and is_old:
                    store.delete_blob(planned.digest)
                    deleted.append(found)
                counter.advance(planned.size_bytes)


def _delete_leftover(database: Database, store: LocalStore, plan: CollectionPlan, leftover: Leftover) -> bool:
    if leftover.modified_at >= datetime.now(UTC) - plan.grace or _is_needed(database, store, leftover):
        return False
    return store.delete_leftover(leftover)


def _find_emptied_folders(store: LocalStore, deleted: set[str]) -> list[Leftover]:
    """Return the folders that dangle since the blobs that they link to were deleted."""
    if not deleted:
        return []
    folders: Iterable[Leftover] = (one for one in store.list_leftovers() if one.kind == "folder")
    return [one for one in folders if not deleted.isdisjoint(one.digests)]
