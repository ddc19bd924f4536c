"""Exports as folders, which can be written on where writing stopped, and are read with suspicion.

FOLDER/lensreg-export.json      the manifest; written last, and without it the folder is no export
FOLDER/records/DIGEST.json      a version each
FOLDER/blobs/ab/abcd…           as in a store
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from registry.database import Database
from registry.errors import MalformedExport, RegistryError, SourceNotFound, StorageError, TransferConflict
from registry.progress import Counter, Progress
from registry.store import LocalStore
from registry.syncing import sync
from registry.transfer.form import Entry, Manifest, encode_manifest
from registry.transfer.parse import parse_manifest
from registry.transfer.shipment import RECORDS, Bounded, Parcel, RegistryShipment, blob_name, record_name
from registry.transfer.values import MAX_BYTES
from registry.weights import digest_file

MANIFEST = "lensreg-export.json"
# it is not there, or is no file but a link, a folder, a socket
_NOT_WHOLE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)


class FolderShipment:
    """Versions in an exported folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / MANIFEST).exists():
            raise SourceNotFound(
                f"There is no {MANIFEST} in {folder}, so it is no export, or one that was not finished.",
                hint="Finish it by running the same lensreg export again.",
                path=str(folder),
            )
        self.manifest = parse_manifest(self._read(MANIFEST, MAX_BYTES))

    def read_record(self, entry: Entry) -> bytes:
        """Return a record's text."""
        return self._read(f"{RECORDS}/{record_name(entry.digest)}", entry.size_bytes)

    def send_blobs(self, wanted: Collection[str]) -> Iterator[Parcel]:
        """Give the blobs that are wanted, by digest."""
        for digest in sorted(wanted):
            size = self.manifest.blobs[digest]
            with self._open(blob_name(digest), size) as stream:
                yield Parcel(digest, size, stream)

    def refuse_blob(self, digest: str) -> RegistryError:
        """Make the error for a blob that was altered."""
        return refuse_altered(blob_name(digest))

    def _read(self, name: str, most: int) -> bytes:
        with self._open(name, None, most) as stream:
            return bytes(stream.readall() or b"")

    @contextlib.contextmanager
    def _open(self, name: str, size: int | None, most: int | None = None) -> Iterator[Bounded]:
        """Open a file of ours, which must be one: no link, no folder, no device, and of the size that is stated."""
        for folder in Path(name).parents:
            if (self._folder / folder).is_symlink() and folder != Path():
                raise refuse_altered(name)
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _NOT_WHOLE:
                raise MalformedExport(
                    f"{name} of the export cannot be read: {error.strerror}. Nothing was changed.",
                    hint="Copy the export again, or make it again.",
                ) from error
            raise StorageError(
                f"{self._folder / name} cannot be read: {error.strerror}. Nothing was changed.",
                hint="Check its permissions, and the disk that it is on.",
            ) from error
        found = os.fstat(descriptor)
        right = size is None or found.st_size == size
        if not stat.S_ISREG(found.st_mode) or not right or (most is not None and found.st_size > most):
            os.close(descriptor)
            raise refuse_altered(name)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            yield Bounded(stream, found.st_size, name)


def refuse_altered(name: str) -> MalformedExport:
    """Make the error for a file that is not what its digest says."""
    return MalformedExport(
        f"{name} of the export was altered. Nothing was changed.",
        hint="Copy the export again, or make it again. If somebody else could write to it, ask who did.",
    )


def export_folder(
    database: Database, store: LocalStore, refs: Collection[str], folder: Path, *, alone: bool, progress: Progress
) -> tuple[Manifest, int]:
    """Export into a folder; return the manifest, and how many blobs were written, as those that are there are kept.

    Raises TransferConflict if the folder holds another export or anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        shipment = RegistryShipment(database, store, refs, alone=alone, scratch=Path(scratch))
        manifest, text = shipment.manifest, encode_manifest(shipment.manifest)
        _refuse_other(folder, text)
        counter = Counter(progress, "exporting", sum(manifest.blobs.values()))
        wanted = set()
        for digest, size in manifest.blobs.items():
            if _is_there(folder / blob_name(digest), digest, size):
                counter.advance(size)
            else:
                wanted.add(digest)
        for parcel in shipment.send_blobs(wanted):
            source, target = Path(str(parcel.content)), folder / blob_name(parcel.digest)
            staged = store.copy_in(source, Path(scratch) / parcel.digest, advance=counter.advance)
            if staged.digest != parcel.digest:
                raise shipment.refuse_blob(parcel.digest)
            _put(staged.path, target)
        for entry in manifest.entries:
            name = record_name(entry.digest)
            _put(Path(scratch) / RECORDS / name, folder / RECORDS / name)
        for below in (folder / RECORDS, *(folder / "blobs").glob("*"), folder / "blobs"):
            if below.is_dir():
                sync(below)
        written = Path(scratch) / MANIFEST
        written.write_bytes(text)
        _put(written, folder / MANIFEST)
        sync(folder)
    return manifest, len(wanted)


def _refuse_other(folder: Path, text: bytes) -> None:
    if (folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() != text:
        raise TransferConflict(
            f"{folder} holds another export already, or what is exported has changed since.",
            conflicts=[str(folder)],
            hint="Export into another folder; nothing is overwritten.",
        )
    ours = {MANIFEST, RECORDS, "blobs"}
    foreign = sorted(one.name for one in folder.iterdir() if one.name not in ours and not one.name.startswith(".part-"))
    if foreign:
        raise TransferConflict(
            f"{folder} holds other files, such as {foreign[0]}.",
            conflicts=foreign[:10],
            hint="Export into a new or an empty folder; nothing is overwritten.",
        )


def _is_there(path: Path, digest: str, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size and digest_file(path) == digest


def _put(path: Path, target: Path) -> None:
    sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
