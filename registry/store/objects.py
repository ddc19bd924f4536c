"""A store in S3, Google Cloud or Azure: the bucket holds the blobs, and a folder of this machine those that it uses.

BUCKET/PREFIX/blobs/ab/abcd…   the blobs; what else may be there: registry/store/object_contents.py
CACHE/…                        laid out as a LocalStore, from which everything is read and mapped; it may be deleted

Written is the bucket first, then the cache; what is read comes into the cache whole, digested on the way, or not at
all. What counts as kept is what the bucket holds: `verify` asks there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    RegistryError,
    SourceChanged,
    StorageError,
    StorageFull,
    StoreUnavailable,
)
from registry.permissions import make_folder
from registry.progress import Counter, Progress, no_progress
from registry.store.bucket import Bucket, StoredObject
from registry.store.local import LocalStore, StagedFile
from registry.store.object_contents import ObjectContents, is_fresh
from registry.store.room import CacheRoom
from registry.store.stamps import Stamps, Verify
from registry.weights import Advance

_CHUNK_BYTES = 2**20
_AGED_SECONDS = 10
_MARK_SECONDS = 60
_LOCK_SECONDS = 900  # for another process that downloads the same; then it is downloaded here, too
_log = logging.getLogger(__name__)


class ObjectStore(ObjectContents, LocalStore):
    """The blobs in a bucket, with their cache in the folder `root`."""

    is_remote = True
    n_at_once = 16

    def __init__(self, bucket: Bucket, root: Path, stamps: Stamps | None = None, room: CacheRoom | None = None) -> None:
        super().__init__(root, stamps)
        self.bucket = bucket
        self.room = room or CacheRoom(root)

    def __str__(self) -> str:
        return str(self.bucket.url)

    # --- writing

    def publish(self, files: Iterable[StagedFile], progress: Progress = no_progress, *, replace: bool = False) -> None:
        """Make staged files blobs: each whole in the bucket, then in the cache; if one fails those before it are there.

        One that the bucket has in its size is not sent again unless it is old, or `replace` says so, which heals it.
        """
        files = list(files)
        counter = Counter(progress, "uploading", sum(file.size_bytes for file in files))
        sent: list[StagedFile] = []
        try:
            with self._typed_errors():
                for file in files:
                    self._upload(file, counter.advance, replace=replace)
                    sent.append(file)
        finally:
            super().publish(sent)
            self.room.mark(file.digest for file in sent)
        with self._typed_errors():
            self.room.make()

    def _upload(self, file: StagedFile, advance: Advance, *, replace: bool) -> None:
        key = self._key(file.digest)
        found = self.bucket.find(key)
        if found is not None and not replace and found.size_bytes == file.size_bytes and is_fresh(found):
            advance(file.size_bytes)
            return
        try:
            self.bucket.put(key, _read_checked(file, advance), file.size_bytes)
        except SourceChanged:
            raise
        except StorageError as error:
            # The reply may have been lost after the work was done, or somebody else was faster: what is there counts.
            # An object appears whole or not at all, and its key says what was sent.
            there = self.bucket.find(key)
            if there is None or there == found or there.size_bytes != file.size_bytes:
                raise
            _log.debug("%s arrived, though this was said of it: %s", key, error)
            return
        there = self.bucket.find(key)
        if there is None or there.size_bytes != file.size_bytes:
            n_bytes = "nothing" if there is None else f"{there.size_bytes:,} bytes"
            raise ArtifactCorrupt(
                f"{self} holds {n_bytes} after the blob sha256:{file.digest}, {file.size_bytes:,} bytes, was sent.",
                digest=file.digest,
                hint="Try again; if it stays so, the service does not keep what it is given.",
            )

    def _is_whole(self, file: StagedFile) -> bool:
        try:
            super().check(file.digest, file.size_bytes)
        except StorageError:
            return False
        return True

    # --- reading

    def bring(self, files: Sequence[tuple[str, int]], progress: Progress = no_progress) -> None:
        """Download those of (digest, size) that are not in the cache, and keep all of them there while it lasts."""
        digests = [digest for digest, _ in files]
        self.room.mark(digests)
        missing = [(digest, size) for digest, size in files if not self._is_cached(digest, size)]
        if not missing:
            return
        counter = Counter(progress, "downloading", sum(size for _, size in missing))
        marked = time.monotonic()

        def advance(n_bytes: int) -> None:
            nonlocal marked
            counter.advance(n_bytes)
            if time.monotonic() - marked > _MARK_SECONDS:
                self.room.mark(digests)
                marked = time.monotonic()

        for digest, size in missing:
            self._download(digest, size, advance)
        self.room.mark(digests)

    def check(
        self,
        digest: str,
        size_bytes: int,
        *,
        read: bool = True,
        verify: Verify = "always",
        advance: Advance | None = None,
    ) -> Path:
        """Return the path of the blob's copy in the cache, checked as `LocalStore.check` does, or downloaded for it.

        A copy that is not whole is downloaded again. Raises ArtifactMissing or ArtifactCorrupt of what the bucket has.
        """
        path = self.blob_path(digest)
        self.room.mark([digest])
        if os.path.lexists(path):
            try:
                return super().check(digest, size_bytes, read=read, verify=verify, advance=advance)
            except (ArtifactMissing, ArtifactCorrupt) as error:
                _log.warning("the cached copy is replaced: %s", error.message)
                with self._typed_errors():
                    path.unlink(missing_ok=True)
        self._download(digest, size_bytes, advance)
        return path

    def verify(self, digest: str, size_bytes: int, *, read: bool = False, advance: Advance | None = None) -> None:
        """Check that the bucket has the blob in its size and, with `read`, its digest; the cache has no say."""
        key = self._key(digest)
        self._find_object(digest, size_bytes)
        if read:
            found = hashlib.sha256()
            for chunk in self._read(key, digest, size_bytes):
                found.update(chunk)
                if advance:
                    advance(len(chunk))
            self._compare(digest, found.hexdigest())

    def _is_cached(self, digest: str, size_bytes: int) -> bool:
        try:
            super().check(digest, size_bytes, read=False)
        except StorageError:
            return False
        return True

    def _download(self, digest: str, size_bytes: int, advance: Advance | None = None) -> None:
        path = self.blob_path(digest)
        with self._lock(digest):
            if self._is_cached(digest, size_bytes):  # another process was first
                return
            key = self._key(digest)
            self._find_object(digest, size_bytes)
            with self._typed_errors():
                self.room.make(size_bytes)
            with self.stage() as staging:
                fresh = staging / digest
                found = hashlib.sha256()
                with fresh.open("xb") as writer:
                    for chunk in self._read(key, digest, size_bytes):
                        writer.write(chunk)
                        found.update(chunk)
                        if advance:
                            advance(len(chunk))
                    self._compare(digest, found.hexdigest())
                    writer.flush()
                    os.fchmod(writer.fileno(), 0o444)
                    os.fsync(writer.fileno())
                # as if it were older, so that whatever is written to it later shows in its time
                aged = time.time_ns() - _AGED_SECONDS * 10**9
                os.utime(fresh, ns=(aged, aged))
                make_folder(path.parent)
                fresh.replace(path)
                self.stamps.record(path, digest, path.stat())

    def _read(self, key: str, digest: str, size_bytes: int) -> Iterator[memoryview]:
        n_read = 0
        try:
            for chunk in self.bucket.read(key, size_bytes):
                n_read += len(chunk)
                yield memoryview(chunk)
        except FileNotFoundError as error:
            raise self._refuse_missing(digest) from error
        if n_read != size_bytes:
            raise self._refuse_size(digest, size_bytes, n_read)

    def _find_object(self, digest: str, size_bytes: int) -> StoredObject:
        found = self.bucket.find(self._key(digest))
        if found is None:
            raise self._refuse_missing(digest)
        if found.size_bytes != size_bytes:
            raise self._refuse_size(digest, size_bytes, found.size_bytes)
        return found

    @contextlib.contextmanager
    def _lock(self, digest: str) -> Iterator[None]:
        """Let one process of this machine download a blob, and the others wait for it; without locks all download."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "locks" / digest[:2], timeout=_LOCK_SECONDS)
        try:
            make_folder(Path(lock.lock_file).parent)
            lock.acquire()
        except (OSError, NotImplementedError, Timeout) as error:
            _log.debug("no lock: %s", error)
        try:
            yield
        finally:
            lock.release()

    # --- words

    def _refuse_full(self, where: str | None) -> RegistryError:
        bytes_now, bound = self.room.measure()
        return StorageFull(
            f"There is no space left at {where or self.root}: here is the cache of {self.bucket.url.place} "
            f"({bytes_now / 1e9:,.1f} GB of blobs, at most {bound / 1e9:,.1f} GB).",
            hint="Make room on that disk, keep the cache on another one ($LENSREG_STORE_CACHE=FOLDER), or let it keep "
            f"less ($LENSREG_STORE_CACHE_BYTES, such as 20GB). When nothing runs {self.root} may be deleted: the "
            "bucket has everything.",
        )

    def _refuse_unusable(self, error: OSError) -> RegistryError:
        return StoreUnavailable(
            f"The cache of {self.bucket.url.place} cannot be used: {error.strerror or error} "
            f"({error.filename or self.root}).",
            hint="Check its permissions, or keep it in another folder: $LENSREG_STORE_CACHE=FOLDER",
        )

    def _compare(self, digest: str, found: str) -> None:
        if found != digest:
            raise ArtifactCorrupt(
                f"The blob sha256:{digest} in {self} was altered: its bytes have the digest {found}.",
                digest=digest,
                hint=self.heal,
            )

    def _refuse_size(self, digest: str, size_bytes: int, found: int) -> ArtifactCorrupt:
        return ArtifactCorrupt(
            f"The blob sha256:{digest} in {self} has {found:,} bytes instead of {size_bytes:,}.",
            digest=digest,
            hint=self.heal,
        )


def _read_checked(file: StagedFile, advance: Advance) -> Iterator[bytes]:
    """Give the bytes of a staged file; at their end, raise SourceChanged if they are not those that were digested.

    A hard link can be written to by others meanwhile. Raised here, it keeps the object from coming into being.
    """
    found = hashlib.sha256()
    with file.path.open("rb", buffering=0) as reader:
        while chunk := reader.read(_CHUNK_BYTES):
            found.update(chunk)
            advance(len(chunk))
            yield chunk
    if found.hexdigest() != file.digest:
        raise SourceChanged(
            f"{file.path.name} was written to while it was being sent to the store.",
            hint="Register it again when nothing writes to it any more. Nothing was registered.",
        )
