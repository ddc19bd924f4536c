"""A backup of a SQLite registry: one moment of it, by SQLite's backup API, while others go on writing.

Never by copying the file, which may be half written; nor is it opened and closed here in any other way than through
SQLite, since that would drop this process's locks on it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from registry.database import Database
from registry.errors import ArtifactCorrupt, DatabaseError, InvalidInput, StorageError, StorageFull, StoreUnavailable
from registry.ownership import make_claim
from registry.progress import Counter, Progress, no_progress
from registry.store import LocalStore
from registry.syncing import sync
from registry.verify_store import list_needed_blobs

_PAGES = 1000  # that are copied between two reports of the progress


@dataclass(frozen=True)
class Backup:
    """A backup: its file, how many events it holds and the digest of the newest, and what was copied of the store.

    `store` is the folder that holds the blobs of all its versions, or None if they were not asked for; `n_blobs` were
    copied now, as the others were there already.
    """

    path: Path
    size_bytes: int
    n_events: int
    head: str
    store: Path | None = None
    n_blobs: int = 0
    blob_bytes: int = 0


def back_up(
    database: Database, store: LocalStore, target: Path, *, with_store: bool = False, progress: Progress = no_progress
) -> Backup:
    """Write the database to the file `target`, or into the folder `target`, and with `with_store` its blobs there too.

    Raises InvalidInput for a file that is there, and for Postgres, which has a tool of its own.
    """
    if not database.is_sqlite:
        url = database.url.set(drivername="postgresql", password=None).render_as_string()
        raise InvalidInput(
            f"{database} is a Postgres database, which lensreg does not back up itself.",
            hint=f"Run: pg_dump --format=custom --file={target} '{url}' (and restore it with pg_restore).",
        )
    with _typed_errors(target):
        path = _choose_path(target, with_store=with_store)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            done = _copy_database(database, partial, path, progress)
            if with_store:
                done = _copy_blobs(database, store, done, progress)
            _put_in_place(partial, path)
        finally:
            for leftover in (partial, *(partial.with_name(f"{partial.name}{end}") for end in ("-wal", "-shm"))):
                leftover.unlink(missing_ok=True)
    return done


def _choose_path(target: Path, *, with_store: bool) -> Path:
    if target.is_dir() or with_store:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        target = target / f"registry-{now}.db"
    if os.path.lexists(target):
        raise InvalidInput(f"{target} is there already, and nothing is overwritten.", hint="Give another name.")
    return target


def _copy_database(database: Database, partial: Path, path: Path, progress: Progress) -> Backup:
    """Copy the database as it is at one moment, check the copy, and sync it."""
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with database.read_alone() as source, contextlib.closing(sqlite3.connect(partial)) as copy:
        source.execute("BEGIN")  # or every write of somebody else's would make the copy begin again
        source.execute("SELECT 1 FROM sqlite_schema").fetchone()
        page_bytes = source.execute("PRAGMA page_size").fetchone()[0]
        counter: Counter | None = None
        copied = 0

        def report(status: int, remaining: int, total: int) -> None:
            nonlocal counter, copied
            counter = counter or Counter(progress, "copying", total * page_bytes)
            counter.advance((total - remaining) * page_bytes - copied)
            copied = (total - remaining) * page_bytes

        source.backup(copy, pages=_PAGES, progress=report)
        # one file, complete in itself, until somebody writes to it
        copy.execute("PRAGMA journal_mode = DELETE")
        (found,) = copy.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise DatabaseError(
                f"{database} is damaged: {found}.", hint="Restore an older backup; see: lensreg verify."
            )
        newest = copy.execute("SELECT sequence, digest FROM events ORDER BY sequence DESC LIMIT 1").fetchone()
    sync(partial)
    n_events, head = newest or (0, "0" * 64)
    return Backup(path, partial.stat().st_size, n_events, head)


def _copy_blobs(database: Database, store: LocalStore, done: Backup, progress: Progress) -> Backup:
    """Copy the blobs that versions need and that are not there yet; versions are never deleted, so gc takes none."""
    copies = LocalStore(done.path.parent / "store")
    needed = list(list_needed_blobs(database))
    counter = Counter(progress, "copying blobs", sum(size_bytes for _, size_bytes in needed))
    n_blobs = blob_bytes = 0
    for digest, size_bytes in needed:
        if _is_there(copies, digest, size_bytes):
            counter.advance(size_bytes)
            continue
        path = store.check(digest, size_bytes, read=False)
        with copies.stage() as folder:
            copy = copies.copy_in(path, folder / digest, advance=counter.advance)
            if copy.digest != digest:
                raise ArtifactCorrupt(
                    f"The blob sha256:{digest} was altered.",
                    digest=digest,
                    hint="Register the same source again to heal it, then back up again: it goes on from here.",
                )
            copies.publish([copy])
        n_blobs, blob_bytes = n_blobs + 1, blob_bytes + size_bytes
    with database.read() as connection:
        claim = make_claim(connection, database)
    if claim is not None:
        copies.write_claim(replace(claim, database=str(done.path), head=done.head))
    return replace(done, store=copies.root, n_blobs=n_blobs, blob_bytes=blob_bytes)


def _is_there(store: LocalStore, digest: str, size_bytes: int) -> bool:
    try:
        store.check(digest, size_bytes, read=False)
    except StorageError:
        return False
    return True


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename without replacing what somebody has put there meanwhile."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise InvalidInput(f"{path} is there already, and nothing is overwritten.", hint="Try again.") from None
    except OSError:  # a file system without links
        partial.rename(path)
    sync(path.parent)


@contextlib.contextmanager
def _typed_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if "full" in str(error):
            raise StorageFull(f"There is no space left at {target}.", hint="Point it at another disk.") from error
        raise DatabaseError(f"The backup cannot be made: {error}.", hint="See: lensreg verify.") from error
    except OSError as error:
        raise StoreUnavailable(
            f"{error.filename or target} cannot be written: {error.strerror}.",
            hint="Check its permissions and the space left, or give another folder.",
        ) from error
