"""The derived files of a store: what loading made of a version's weights, kept so that it is made once.

STORE/derived/ab/KEY.safetensors   the tensors, read-only
STORE/derived/ab/KEY.json          what they were made of, and their digest; its time is that of the last use
STORE/derived/locks/ab             held by whoever makes one

They are written at the first load and not when a version is registered: hundreds of checkpoints that nobody loads
would take twice the disk. All of them may be deleted at any time, also while they are mapped; the next load makes them
again. A KEY is the digest of the facts that decide the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from registry.errors import StorageError, StoreUnavailable
from registry.permissions import file_mode, make_folder, set_mode
from registry.store.local import LocalStore
from registry.store.sealed import read_sealed, write_sealed
from registry.store.stamps import Verify

MAX_BYTES = 50 * 10**9
_WAIT_SECONDS = 900  # for another process that makes the same file; then it is made here, and not kept
_AGED_SECONDS = 10
_ORPHANED_SECONDS = 3600  # so old, a file whose card is missing will not get it any more
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DerivedFile:
    """One derived file: its key, the version it was first made for, what was done, its size and its times."""

    key: str
    path: Path
    ref: str
    processing: tuple[str, ...]
    dtype: str
    converter: str
    size_bytes: int
    made_at: datetime
    used_at: datetime


class DerivedFiles:
    """The derived files of one store.

    `max_bytes` bounds what they take together; the ones that were not used for longest go first. None means 50 GB, or
    half of what the disk has left for them if that is less; 0 keeps none, and uses none.
    """

    def __init__(self, store: LocalStore, max_bytes: int | None = None) -> None:
        self.store = store
        self.root = store.root / "derived"
        self._max_bytes = max_bytes

    def path(self, key: str) -> Path:
        """Return where the derived file of this key is or would be."""
        return self.root / key[:2] / f"{key}.safetensors"

    def find(self, facts: Mapping[str, Any], verify: Verify) -> Path | None:
        """Return the file that was made of these facts, or None if there is none, or it is not what was written."""
        path = self.path(make_key(facts))
        card = read_sealed(path.with_suffix(".json")) if self._max_bytes != 0 else None
        if card is None or card["facts"] != facts:
            return None
        try:
            whole = path.stat().st_size == card["size_bytes"] and self.store.stamps.agrees(path, card["sha256"], verify)
        except OSError:
            return None
        if not whole:
            _log.debug("%s was altered; it is made again", path)
            return None
        with contextlib.suppress(OSError):  # a store that is read only keeps no order of use
            os.utime(path.with_suffix(".json"))
        return path

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Keep others from making the same file meanwhile; False if nothing can be written here."""
        from filelock import FileLock, Timeout  # commands that read need none, and it costs as much as a query

        place = self.root / "locks" / key[:2]
        try:
            make_folder(place.parent)
            lock = FileLock(place, timeout=_WAIT_SECONDS, mode=file_mode(place.parent))
            lock.acquire()
        except (OSError, NotImplementedError, Timeout) as error:  # NotImplementedError: no locks on this file system
            _log.debug("no derived file is kept: %s", error)
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def add(self, facts: Mapping[str, Any], ref: str, size_bytes: int, write: Callable[[Path], str]) -> Path | None:
        """Keep what `write` writes, whose SHA-256 it returns; the lock must be held. None if there is no room for it.

        It is written beside, synced and renamed in; the card, without which it does not count, comes last.
        """
        if not self._make_room(size_bytes):
            return None
        path = self.path(make_key(facts))
        try:
            with self.store.stage() as staging:
                fresh = staging / path.name
                digest = write(fresh)
                make_folder(path.parent)
                set_mode(fresh, file_mode(path.parent, frozen=True))
                # as if it were older, so that whatever is written to it later shows in its time
                aged = time.time_ns() - _AGED_SECONDS * 10**9
                os.utime(fresh, ns=(aged, aged))
                fresh.replace(path)
                status = path.stat()
                card = {
                    "facts": facts,
                    "ref": ref,
                    "sha256": digest,
                    "size_bytes": status.st_size,
                    "made_at": datetime.now(UTC).isoformat(),
                }
                write_sealed(path.with_suffix(".json"), card, staging)
            self.store.stamps.record(path, digest, status)
        except StorageError as error:
            _log.debug("no derived file is kept: %s", error)
            return None
        return path

    def list_files(self) -> list[DerivedFile]:
        """List the derived files that count, the one used last first."""
        found = []
        for card_path in self.root.glob("??/*.json"):
            path = card_path.with_suffix(".safetensors")
            card = read_sealed(card_path)
            with contextlib.suppress(OSError):  # removed meanwhile
                if card is not None:
                    found.append(_read_card(path, card, card_path.stat().st_mtime, path.stat().st_size))
        return sorted(found, key=lambda one: one.used_at, reverse=True)

    def max_bytes(self, taken: int) -> int:
        """Return the bound, in bytes, when the derived files take `taken`."""
        if self._max_bytes is not None:
            return self._max_bytes
        return min(MAX_BYTES, (shutil.disk_usage(self.store.root).free + taken) // 2)

    def plan_pruning(self, converter: str, max_bytes: int | None = None) -> list[DerivedFile]:
        """Return what pruning would remove: what another converter made, and the longest unused above the bound."""
        files = self.list_files()
        old = [one for one in files if one.converter != converter]
        kept = [one for one in files if one.converter == converter]
        bound = self.max_bytes(sum(one.size_bytes for one in files)) if max_bytes is None else max_bytes
        return [*old, *_exceeding(kept, bound)]

    def remove(self, files: Iterable[DerivedFile]) -> None:
        """Remove derived files, the card first; a process that has mapped one keeps it."""
        try:
            for one in files:
                one.path.with_suffix(".json").unlink(missing_ok=True)
                one.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"A derived file cannot be removed: {error.strerror} ({error.filename}).",
                hint="Check the permissions of the store. Derived files may also be deleted by hand.",
            ) from error

    def _make_room(self, size_bytes: int) -> bool:
        try:
            files = self.list_files()
            bound = self.max_bytes(sum(one.size_bytes for one in files))
            if size_bytes > bound:
                _log.debug("no derived file is kept: it takes %s bytes, and all may take %s", size_bytes, bound)
                return False
            self.remove(_exceeding(files, bound - size_bytes))
            self._remove_orphans({one.path for one in files})
        except (OSError, StorageError) as error:
            _log.debug("no derived file is kept: %s", error)
            return False
        return True

    def _remove_orphans(self, counted: set[Path]) -> None:
        """Remove what a builder left that was killed before it wrote the card."""
        for path in set(self.root.glob("??/*.safetensors")) - counted:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime < time.time() - _ORPHANED_SECONDS:
                    path.unlink()


def make_key(facts: Mapping[str, Any]) -> str:
    """Return the key of these facts: their SHA-256, in hex."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _exceeding(files: Iterable[DerivedFile], bound: int) -> list[DerivedFile]:
    """Return those that do not fit into `bound` bytes any more, when the ones used last are taken first."""
    exceeding, taken = [], 0
    for one in sorted(files, key=lambda file: file.used_at, reverse=True):
        taken += one.size_bytes
        if taken > bound:
            exceeding.append(one)
    return exceeding


def _read_card(path: Path, card: Mapping[str, Any], used: float, size_bytes: int) -> DerivedFile:
    facts = card["facts"]
    return DerivedFile(
        key=path.stem,
        path=path,
        ref=card["ref"],
        processing=tuple(facts["processing"]),
        dtype=facts["dtype"],
        converter=facts["converter"],
        size_bytes=size_bytes,
        made_at=datetime.fromisoformat(card["made_at"]),
        used_at=datetime.fromtimestamp(used, UTC),
    )
