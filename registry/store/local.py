"""Blobs in a local folder, named by their SHA-256: written beside, synced, renamed in, and never changed.

STORE/blobs/ab/abcd…   the bytes, read-only; for whom, registry/permissions.py says
STORE/folders/…        a version's files under their own names, as links to the blobs
STORE/derived/…        what loading made of them; see registry/store/derived.py
STORE/tmp/…            what is being written; a crash leaves its leftovers here only
STORE/quarantine/…     corrupt blobs; see registry/store/local_contents.py
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from registry.digests import Range
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    RegistryError,
    SourceNotFound,
    StorageError,
    StorageFull,
    StoreUnavailable,
)
from registry.permissions import file_mode, folder_mode, make_folder, set_mode
from registry.progress import Progress, no_progress
from registry.store.copying import copy_file, digest_ranges, link_file, try_link
from registry.store.folder_locks import hold, lock
from registry.store.linked_folders import link_blobs
from registry.store.local_contents import LocalContents
from registry.store.stamps import Stamps, Verify
from registry.syncing import sync
from registry.weights import Advance

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StagedFile:
    """A file that is in the store's temporary folder and not yet a blob; `ranges` are digests of parts of it."""

    path: Path
    digest: str
    size_bytes: int
    ranges: Mapping[Range, str] = field(default_factory=dict)


class LocalStore(LocalContents):
    """A folder of blobs; `stamps` is what this machine remembers of those it has hashed."""

    database_folder: Path | None = None
    """Where the SQLite file is that knows of the blobs, if it is one."""
    is_remote = False
    n_at_once = 1  # how many blobs `verify` is best asked of at once

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
            if not (self.root / "blobs").is_dir():
                self._make_blob_folders()
            make_folder(self.root / "tmp")
            folder, held = self._make_held_folder()
        try:
            with self._typed_errors():
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if held is not None:
                os.close(held)

    def _make_held_folder(self) -> tuple[Path, int | None]:
        while True:
            folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
            try:
                return folder, hold(folder)
            except FileNotFoundError:  # taken for a leftover in the moment before it was held
                shutil.rmtree(folder, ignore_errors=True)

    def _make_blob_folders(self) -> None:
        """Make all folders for blobs before anything else is in the store.

        A folder made later can get the number of one that was deleted: on a file system without a journal, after a
        power cut, the name of the deleted one is still there, and fsck may decide that it is the right one.
        """
        blobs = self.root / "blobs"
        make_folder(blobs)
        mode = folder_mode(blobs)
        for number in range(256):
            with contextlib.suppress(FileExistsError):  # another process is at it too
                (blobs / f"{number:02x}").mkdir(0o700)
                set_mode(blobs / f"{number:02x}", mode)
        sync(blobs)

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
            if link and (try_link(source, target) if or_copy else link_file(source, target)):
                digests = digest_ranges(target, ranges, advance)
            else:
                digests = copy_file(source, target, file_mode(self.root, frozen=True), ranges, advance)
            return StagedFile(target, digests.whole, target.stat().st_size, digests.ranges)

    def publish(self, files: Iterable[StagedFile], progress: Progress = no_progress, *, replace: bool = False) -> None:
        """Make staged files blobs: sync all bytes, rename all in, sync the folders. A name never comes before bytes.

        A blob that is there already is replaced too: that heals it, whatever is wrong with it. Only a hard link, which
        somebody else can write to, does not take the place of a blob that is whole. Either way the blob counts as new
        from then on, so that nobody tidies it up before the rows name it. (`progress` and `replace` are for stores that
        are elsewhere.)
        """
        fresh, folders = [], set()
        with self._typed_errors():
            for file in files:
                blob = self.blob_path(file.digest)
                make_folder(blob.parent)
                # one that is there may have been renamed in by somebody who has not synced the folder yet
                folders |= {blob.parent, blob.parent.parent, self.root}
                if file.path.stat().st_nlink == 1:
                    os.utime(file.path)  # verifying may have taken longer than the grace of a gc
                    fresh.append((file.path, blob))
                elif not self._is_whole(file):
                    fresh.append((file.path, blob))
                elif not self._renew(file.digest):
                    copy = file.path.with_name(f"{file.path.name}.copy")
                    copy_file(file.path, copy, file_mode(self.root, frozen=True), (), None)
                    fresh.append((copy, blob))
            self._sync_database_folder()
            for path, _ in fresh:
                sync(path)
            for path, blob in fresh:
                _put(path, blob)
            for folder in folders:
                sync(folder)

    def _sync_database_folder(self) -> None:
        """Have the disk forget a `-wal` file that SQLite deleted, before a blob can be where it was.

        SQLite does not sync its folder after that. On a file system without a journal a power cut may bring the name
        back, which would lead to whatever has the file's number by then, and SQLite would write its log into that.
        """
        if self.database_folder is not None:
            with contextlib.suppress(PermissionError):  # as in SQLite: a folder that cannot be opened is not synced
                sync(self.database_folder)

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
        with self._typed_errors():
            if path.is_symlink():
                raise ArtifactCorrupt(f"The blob sha256:{digest} is a symbolic link.", digest=digest, hint=self.heal)
            if not path.is_file():
                raise self._refuse_missing(digest)
            size = path.stat().st_size
            if size != size_bytes:
                raise ArtifactCorrupt(
                    f"The blob sha256:{digest} has {size:,} bytes instead of {size_bytes:,}.",
                    digest=digest,
                    hint=self.heal,
                )
            if read and not self.stamps.agrees(path, digest, verify, advance):
                raise ArtifactCorrupt(f"The blob sha256:{digest} was altered.", digest=digest, hint=self.heal)
        return path

    def bring(self, files: Sequence[tuple[str, int]], progress: Progress = no_progress) -> None:
        """Fetch what `check` will be asked for, as (digest, size), if the store is elsewhere."""

    def verify(self, digest: str, size_bytes: int, *, read: bool = False, advance: Advance | None = None) -> None:
        """Check what the store keeps of a blob, fetching nothing to stay: its size and, with `read`, its digest."""
        self.check(digest, size_bytes, read=read, advance=advance)

    def link_folder(self, files: Iterable[tuple[str, str]]) -> Path:
        """Return a folder in which blobs have their own names, given as (name, digest); made once, by links.

        Raises ArtifactCorrupt if somebody wrote into it: a file there could stand in for the blob that was checked.
        """
        listing = sorted(files)
        key = hashlib.sha256(repr(listing).encode()).hexdigest()
        folder = self.root / "folders" / key[:2] / key
        with self._typed_errors():
            link_blobs(folder, {name: self.blob_path(digest) for name, digest in listing}, self.stage)
        return folder

    def _renew(self, digest: str) -> bool:
        try:
            self.renew([digest])
        except (ArtifactMissing, StoreUnavailable):  # it was deleted just now, or is another user's
            return False
        return True

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
            raise self._type_error(error) from error

    def _type_error(self, error: OSError) -> RegistryError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._refuse_full(error.filename)
        if error.errno == errno.EXDEV:
            return StoreUnavailable(
                f"{error.filename or self} is on another file system than the store, so it cannot be linked.",
                hint="Leave out --link.",
            )
        if error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(self.root):
            return SourceNotFound(
                f"{error.filename} cannot be read: {error.strerror}.",
                hint="Check its permissions, and that nothing moves or deletes it meanwhile.",
                path=str(error.filename),
            )
        return self._refuse_unusable(error)

    def _refuse_full(self, where: str | None) -> RegistryError:
        return StorageFull(
            f"There is no space left at {where or self}.",
            hint="Make room (lensreg gc), or point --store at another disk. Nothing was registered.",
        )

    def _refuse_unusable(self, error: OSError) -> RegistryError:
        return StoreUnavailable(
            f"The store {self} cannot be used: {error.strerror or error} ({error.filename or self}).",
            hint="Check its permissions, or point --store or $LENSREG_STORE at another folder.",
        )


def _put(path: Path, blob: Path) -> None:
    """Rename a staged file in; what it takes the place of keeps a name in the staging folder, until all is synced."""
    with lock(blob.parent):  # what is kept must be what is replaced
        _keep(blob, path.with_name(f"{path.name}.old"))
        path.replace(blob)


def _keep(blob: Path, name: Path) -> None:
    """Give a blob that is about to be replaced another name, if it is there.

    On a file system without a journal a power cut may bring the older file back. Were it deleted before the folder is
    synced, its number could be another file's by then, and the blob's name would lead to that.
    """
    with contextlib.suppress(OSError):  # there is none, it is another user's, or the file system has no links
        os.link(blob, name, follow_symlinks=False)
