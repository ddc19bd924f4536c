"""The contents of a store that is a folder: listing, deleting and moving aside what lies in it.

STORE/quarantine/DIGEST.N   blobs that were corrupt, as they were found
STORE/registries/ID.json    which registries keep blobs here; see registry/ownership.py
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from registry.errors import ArtifactCorrupt, ArtifactMissing, StoreUnavailable
from registry.permissions import make_folder
from registry.store.contents import Claim, Leftover, LeftoverKind, StoredBlob
from registry.store.folder_locks import take
from registry.store.sealed import read_sealed, write_sealed
from registry.syncing import sync

_DIGEST = re.compile(r"[0-9a-f]{64}")


class LocalContents:
    """The half of LocalStore that tidies up."""

    root: Path
    heal = "Register the same source again to heal it, or restore the store from a backup."

    def blob_path(self, digest: str) -> Path:
        """Return where the blob of this digest is or would be."""
        raise NotImplementedError

    def check(self, digest: str, size_bytes: int) -> Path:
        """Return the blob's path if it is whole."""
        raise NotImplementedError

    def stage(self) -> AbstractContextManager[Path]:
        """Give an empty folder on the store's own file system."""
        raise NotImplementedError

    def _typed_errors(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _refuse_missing(self, digest: str) -> ArtifactMissing:
        hint = f"If the store is another one, name it: --store WHERE, or $LENSREG_STORE. If not: {self.heal}"
        return ArtifactMissing(f"The blob sha256:{digest} is not in {self}.", digest=digest, hint=hint)

    def list_blobs(self) -> Iterator[StoredBlob]:
        """Give every blob, in no particular order."""
        with self._typed_errors():
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))
            for path in _list(self.root / "blobs"):
                for blob in _list(path):
                    found = self.find_blob(blob.name) if _DIGEST.fullmatch(blob.name) else None
                    if found is not None and blob.parent.name == blob.name[:2]:
                        yield found

    def find_blob(self, digest: str) -> StoredBlob | None:
        """Return the blob as it is now, or None."""
        with self._typed_errors():
            status = _look_at(self.blob_path(digest))
            return StoredBlob(digest, status.st_size, _newest(status)) if status else None

    def delete_blob(self, digest: str) -> None:
        """Delete a blob; no error if it is gone."""
        with self._typed_errors():
            self.blob_path(digest).unlink(missing_ok=True)

    def renew(self, digests: Iterable[str]) -> None:
        """Have blobs count as new, for those who rely on them without writing them.

        Raises ArtifactMissing, and StoreUnavailable where the blobs are another user's.
        """
        with self._typed_errors():
            for digest in digests:
                try:
                    os.utime(self.blob_path(digest))
                except FileNotFoundError:
                    raise self._refuse_missing(digest) from None

    def list_leftovers(self) -> Iterator[Leftover]:
        """Give what a crash left in tmp/, quarantined blobs, folders with dangling links, derived files with no card.

        What another process is at work on is left out.
        """
        with self._typed_errors():
            for path in _list(self.root / "tmp"):
                with take(path) as is_free:
                    found = list(self._describe(path, "temporary")) if is_free else []
                yield from found
            for path in _list(self.root / "quarantine"):
                yield from self._describe(path, "quarantined", (path.name.partition(".")[0],))
            for shelf in _list(self.root / "folders"):
                for folder in _list(shelf):
                    if _dangles(folder):
                        yield from self._describe(folder, "folder", _read_digests(folder))
            for path in (self.root / "derived").glob("??/*.safetensors"):
                if not path.with_suffix(".json").exists():
                    yield from self._describe(path, "derived")

    def delete_leftover(self, leftover: Leftover) -> bool:
        """Delete a leftover; False if it has changed since it was listed, is in use, or is another user's."""
        path = self.root / leftover.place
        with self._typed_errors(), take(path) as is_free:
            if not is_free or list(self._describe(path, leftover.kind, leftover.digests)) != [leftover]:
                return False
            if leftover.kind == "derived" and path.with_suffix(".json").exists():
                return False
            if leftover.kind == "folder" and not _dangles(path):
                return False
            try:
                self._delete(path)
            except (PermissionError, FileNotFoundError):  # the latter if who had just made it takes it away himself
                return False
        return True

    def _delete(self, path: Path) -> None:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        doomed = self.root / "tmp" / f"deleted-{uuid.uuid4().hex}"  # a folder goes as a whole, or is left over again
        make_folder(doomed.parent)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _describe(self, path: Path, kind: LeftoverKind, digests: tuple[str, ...] = ()) -> Iterator[Leftover]:
        """Describe what is there, with all that is in it; nothing if it is gone meanwhile."""
        found = [status for one in (path, *_walk(path)) if (status := _look_at(one))]
        if found:
            size_bytes = sum(status.st_size for status in found if stat.S_ISREG(status.st_mode))
            # what is in a folder may have other names elsewhere, and st_ctime changes whenever one of those goes
            newest = max(_newest(found[0]), *(_written(status) for status in found))
            yield Leftover(path.relative_to(self.root).as_posix(), kind, size_bytes, newest, digests)

    def quarantine(self, digest: str, size_bytes: int) -> Path | str | None:
        """Move a blob that is not what its name says aside, and return where it is; None if it is whole, or gone.

        It may be the last copy of most of its bytes, so it is never deleted here.
        """
        path = self.blob_path(digest)
        with self._typed_errors():
            before = _look_at(path)
            with contextlib.suppress(ArtifactCorrupt, ArtifactMissing):
                self.check(digest, size_bytes)
                return None
            if before is None:
                return None
            folder = self.root / "quarantine"
            make_folder(folder)
            taken = {one.name for one in _list(folder)}
            aside = folder / next(name for n in range(len(taken) + 1) if (name := f"{digest}.{n}") not in taken)
            path.rename(aside)
            after = aside.lstat()
            if (after.st_ino, after.st_size, after.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
                aside.rename(path)  # somebody healed it between the look and the move
                return None
            return aside

    def list_claims(self) -> list[Claim]:
        """Return the claims of all registries that keep blobs here."""
        found = []
        with self._typed_errors():
            for path in sorted(_list(self.root / "registries")):
                card = read_sealed(path)
                if card is None:
                    raise StoreUnavailable(
                        f"{path} was altered, so nobody can tell which registry keeps blobs here.",
                        hint="Delete that file if no other registry uses this store, and say so: lensreg gc --adopt",
                    )
                found.append(Claim(**card))
        return found

    def has_claim(self, registry_id: str) -> bool:
        """Say whether that registry has a claim that can be read."""
        return read_sealed(self.root / "registries" / f"{registry_id}.json") is not None

    def write_claim(self, claim: Claim) -> None:
        """Write the claim of one registry, in place of its older one."""
        folder = self.root / "registries"
        path = folder / f"{claim.registry_id}.json"
        with self._typed_errors():
            make_folder(folder)
            is_first = not path.exists()
            with self.stage() as staging:
                if path.is_dir():  # a power cut can leave that on a file system without a journal
                    path.rename(staging / "no-claim")
                write_sealed(path, vars(claim), staging, sync=True)
            for one in (folder, self.root) if is_first else (folder,):
                sync(one)


def _dangles(folder: Path) -> bool:
    return any(link.is_symlink() and not link.exists() for link in _list(folder))


def _read_digests(folder: Path) -> tuple[str, ...]:
    """Return the names of the blobs that links in a folder lead to."""
    found = []
    for link in _list(folder):
        with contextlib.suppress(OSError):  # it is no link, or another gc took it meanwhile
            found.append(link.readlink().name)
    return tuple(found)


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(path: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(path):
        yield from (Path(parent, name) for name in (*folders, *files))


def _look_at(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _newest(status: os.stat_result) -> datetime:
    """Return when a file was last written or put in its place: a link keeps the first of these times, not the other."""
    return max(_written(status), datetime.fromtimestamp(status.st_ctime, UTC))


def _written(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)
