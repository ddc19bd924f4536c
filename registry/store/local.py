"""Blobs in a local folder, named by their SHA-256: written beside, synced, renamed in, and never changed.

STORE/blobs/ab/abcd…   the bytes, read-only
STORE/folders/…        a version's files under their own names, as links to the blobs
STORE/derived/…        what loading made of them; see registry/store/derived.py
STORE/tmp/…            what is being written; a crash leaves its leftovers here only
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path

from registry.digests import Digests, Range, digest_stream
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    RegistryError,
    SourceNotFound,
    StorageError,
    StorageFull,
    StoreUnavailable,
)
from registry.regular_files import open_regular
from registry.store.stamps import Stamps, Verify
from registry.weights import Advance

_SYNC_BYTES = 64 * 2**20
_FICLONE = 0x40049409  # linux/fs.h: share the other file's blocks
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StagedFile:
    """A file that is in the store's temporary folder and not yet a blob; `ranges` are digests of parts of it."""

    path: Path
    digest: str
    size_bytes: int
    ranges: Mapping[Range, str] = field(default_factory=dict)


class LocalStore:
    """A folder of blobs; `stamps` is what this machine remembers of those it has hashed."""

    def __init__(self, root: Path, stamps: Stamps | None = None) -> None:
        self.root = root
        self.stamps = stamps or Stamps(None)

    def __str__(self) -> str:
        return str(self.root)

    def blob_path(self, digest: str) -> Path:
        """Return where the blob of this digest is or would be; the only place that turns a digest into a path."""
        if not _DIGEST.fullmatch(digest):
            raise ArtifactCorrupt(
                f"{digest!r} is no SHA-256 in lower-case hex.",
                digest=digest,
                hint="The record was altered. See: lensreg audit verify; then restore a backup.",
            )
        return self.root / "blobs" / digest[:2] / digest

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Give an empty folder on the store's own file system; whatever is left in it at the end is deleted."""
        with self._typed_errors():
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            with self._typed_errors():
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def copy_in(
        self,
        source: Path,
        target: Path,
        *,
        ranges: Iterable[Range] = (),
        link: bool = False,
        or_copy: bool = False,
        advance: Advance | None = None,
    ) -> StagedFile:
        """Copy a file to `target` in a staging folder, digesting it and ranges of it in the same pass.

        `link` makes a hard link; with `or_copy` it is copied where the file system cannot link.
        """
        with self._typed_errors():
            if link and (_try_link(source, target) if or_copy else _link(source, target)):
                digests = _digest(target, ranges, advance)
            else:
                digests = _copy(source, target, ranges, advance)
            return StagedFile(target, digests.whole, target.stat().st_size, digests.ranges)

    def publish(self, files: Iterable[StagedFile]) -> None:
        """Make staged files blobs: sync all bytes, rename all in, sync the folders. A name never comes before bytes.

        A blob that is there already is replaced too: that heals it, whatever is wrong with it. Only a hard link, which
        somebody else can write to, does not take the place of a blob that is whole.
        """
        fresh, folders = [], set()
        with self._typed_errors():
            for file in files:
                blob = self.blob_path(file.digest)
                blob.parent.mkdir(parents=True, exist_ok=True)
                # one that is there may have been renamed in by somebody who has not synced the folder yet
                folders |= {blob.parent, blob.parent.parent, self.root}
                if file.path.stat().st_nlink == 1 or not self._is_whole(file):
                    fresh.append((file.path, blob))
            for path, _ in fresh:
                _sync(path)
            for path, blob in fresh:
                path.replace(blob)
            for folder in folders:
                _sync(folder)

    def check(
        self,
        digest: str,
        size_bytes: int,
        *,
        read: bool = True,
        verify: Verify = "always",
        advance: Advance | None = None,
    ) -> Path:
        """Return the blob's path if it is there, has its size and (with `read`, as `verify` says) its digest.

        Raises ArtifactMissing or ArtifactCorrupt.
        """
        path = self.blob_path(digest)
        hint = "Register the same source again to heal it, or restore the store from a backup."
        with self._typed_errors():
            if path.is_symlink():
                raise ArtifactCorrupt(f"The blob sha256:{digest} is a symbolic link.", digest=digest, hint=hint)
            if not path.is_file():
                raise ArtifactMissing(f"The blob sha256:{digest} is not in {self}.", digest=digest, hint=hint)
            size = path.stat().st_size
            if size != size_bytes:
                raise ArtifactCorrupt(
                    f"The blob sha256:{digest} has {size:,} bytes instead of {size_bytes:,}.", digest=digest, hint=hint
                )
            if read and not self.stamps.agrees(path, digest, verify, advance):
                raise ArtifactCorrupt(f"The blob sha256:{digest} was altered.", digest=digest, hint=hint)
        return path

    def link_folder(self, files: Iterable[tuple[str, str]]) -> Path:
        """Return a folder in which blobs have their own names, given as (name, digest); made once, by links.

        Other tools read a version from here; what they must not do is write here. Raises ArtifactCorrupt if somebody
        did: a file there could stand in for the blob that was checked.
        """
        listing = sorted(files)
        key = hashlib.sha256(repr(listing).encode()).hexdigest()
        folder = self.root / "folders" / key[:2] / key
        links = {name: os.path.relpath(self.blob_path(digest), folder) for name, digest in listing}
        with self._typed_errors():
            if not folder.is_dir():
                self._make_folder(folder, links)
            found = {path.name: str(path.readlink()) if path.is_symlink() else "" for path in folder.iterdir()}
            for name, digest in listing:
                if found.pop(name, "") != links[name]:
                    raise _refuse_altered(folder, name, digest)
            if found:
                raise _refuse_altered(folder, min(found), listing[0][1])
        return folder

    def _make_folder(self, folder: Path, links: Mapping[str, str]) -> None:
        with self.stage() as staging:
            fresh = staging / folder.name
            fresh.mkdir()
            for name, target in links.items():
                if Path(name).name != name or name in ("", "..") or "\x00" in name:
                    raise StorageError(f"{name!r} is no file name.", hint="The record was altered; restore a backup.")
                (fresh / name).symlink_to(target)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise

    def _is_whole(self, file: StagedFile) -> bool:
        try:
            self.check(file.digest, file.size_bytes)
        except StorageError:
            return False
        return True

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _type_error(self, error) from error


def _copy(source: Path, target: Path, ranges: Iterable[Range], advance: Advance | None) -> Digests:
    """Copy by sharing blocks where the file system can, else byte by byte, and digest what is then in the copy."""
    with open_regular(source, follow=False) as reader, target.open("xb") as writer:
        if _clone(reader.fileno(), writer.fileno()):
            digests = _digest(target, ranges, advance)
        else:
            _refuse_full(reader.fileno(), writer)
            with _write_back(writer) as write:
                digests = digest_stream(reader, ranges, write, advance)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
    return digests


def _digest(path: Path, ranges: Iterable[Range], advance: Advance | None) -> Digests:
    with path.open("rb", buffering=0) as reader:
        return digest_stream(reader, ranges, advance=advance)


def _refuse_full(source: int, writer: BufferedWriter) -> None:
    """Raise ENOSPC before a disk is filled to the brim with a file that cannot fit: one of holes, say."""
    if hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(writer.fileno())
        if os.fstat(source).st_size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), writer.name)


@contextlib.contextmanager
def _write_back(writer: BufferedWriter) -> Iterator[Callable[[memoryview], None]]:
    """Give a function that writes, and has the disk begin with what was written while the rest is still to come.

    `publish` syncs what is left; nothing relies on what was written back before.
    """
    waiting = 0
    syncing: Future[None] | None = None

    def write(chunk: memoryview) -> None:
        nonlocal waiting, syncing
        writer.write(chunk)
        waiting += len(chunk)
        if waiting >= _SYNC_BYTES and (syncing is None or syncing.done()):
            if syncing is not None:
                syncing.result()
            syncing = pool.submit(os.fsync, writer.fileno())
            waiting = 0

    with ThreadPoolExecutor(1) as pool:
        yield write
    if syncing is not None:
        syncing.result()


def _clone(source: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


def _refuse_altered(folder: Path, name: str, digest: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"{folder / name} is not what was put there: somebody wrote into that folder.",
        digest=digest,
        hint=f"Move what you need out of {folder}, then delete it; it is made again from the blobs.",
    )


def _link(source: Path, target: Path) -> bool:
    os.link(source, target, follow_symlinks=False)
    if not stat.S_ISREG(target.lstat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(source))
    return True


def _try_link(source: Path, target: Path) -> bool:
    try:
        return _link(source, target)
    except OSError:  # another file system, one without links, or a file that is not ours to link
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _type_error(store: LocalStore, error: OSError) -> RegistryError:
    where = error.filename or store
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"There is no space left at {where}.",
            hint="Make room, or point --store at another disk. Nothing was registered.",
        )
    if error.errno == errno.EXDEV:
        return StoreUnavailable(
            f"{where} is on another file system than the store, so it cannot be linked.", hint="Leave out --link."
        )
    if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(store.root):
        return SourceNotFound(
            f"{error.filename} cannot be read: {error.strerror}.",
            hint="Check its permissions, and that nothing moves or deletes it meanwhile.",
            path=str(error.filename),
        )
    return StoreUnavailable(
        f"The store {store} cannot be used: {error.strerror or error} ({where}).",
        hint="Check its permissions, or point --store or $LENSREG_STORE at another folder.",
    )
