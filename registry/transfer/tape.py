"""Exports as one tar, written and read as a stream: the manifest, then the records, then the blobs, and nothing else.

The order and every header follow from the manifest, so equal exports are equal bytes, and a reader knows each header
before it comes: another name, a link, a device, a path that leads elsewhere, or a second meaning of the same bytes is
not interpreted but refused. Nothing is ever extracted.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from tarfile import BLOCKSIZE, GNU_FORMAT, TarInfo
from typing import Any, BinaryIO

from registry.digests import digest_stream
from registry.errors import MalformedExport, RegistryError, SourceNotFound
from registry.progress import Counter, Progress
from registry.transfer.folder import MANIFEST, refuse_altered
from registry.transfer.form import Entry, encode_manifest
from registry.transfer.parse import parse_manifest
from registry.transfer.shipment import RECORDS, Bounded, Parcel, RegistryShipment, blob_name, record_name
from registry.transfer.values import MAX_BYTES


class TapeShipment:
    """Versions in a tar that is read once, from its beginning to its end; `scratch` keeps the records meanwhile."""

    def __init__(self, stream: Any, scratch: Path) -> None:
        self._stream, self._records = stream, scratch / RECORDS
        self._records.mkdir()
        header = self._read(BLOCKSIZE, "the tar")
        size = _read_size(header)
        self._expect(MANIFEST, size, header)
        self.manifest = parse_manifest(self._read_padded(size, MANIFEST))
        for entry in self.manifest.entries:
            name = f"{RECORDS}/{record_name(entry.digest)}"
            self._expect(name, entry.size_bytes)
            text = self._read_padded(entry.size_bytes, name)
            if hashlib.sha256(text).hexdigest() != entry.digest:
                raise refuse_altered(name)
            (self._records / record_name(entry.digest)).write_bytes(text)

    def read_record(self, entry: Entry) -> bytes:
        """Return a record's text."""
        return (self._records / record_name(entry.digest)).read_bytes()

    def send_blobs(self, wanted: Collection[str]) -> Iterator[Parcel]:
        """Give the blobs that are wanted, by digest; the others are read past, and so is the end."""
        for digest, size in sorted(self.manifest.blobs.items()):
            name = blob_name(digest)
            self._expect(name, size)
            content = Bounded(self._stream, size, name)
            if digest in wanted:
                yield Parcel(digest, size, content)
            self._skip(content)
            self._read_padding(size, name)
        self._check_end()

    def refuse_blob(self, digest: str) -> RegistryError:
        """Make the error for a blob that was altered."""
        return refuse_altered(blob_name(digest))

    def _expect(self, name: str, size: int, header: bytes | None = None) -> None:
        if (header or self._read(BLOCKSIZE, name)) != make_header(name, size):
            raise MalformedExport(
                f"The tar does not go on with {name} of {size:,} bytes. Nothing was changed.",
                hint="It was altered, or not written by lensreg export; only such a tar can be imported, as it is.",
            )

    def _read_padded(self, size: int, name: str) -> bytes:
        text = self._read(size, name)
        self._read_padding(size, name)
        return text

    def _read_padding(self, size: int, name: str) -> None:
        if self._read(-size % BLOCKSIZE, name).strip(b"\x00"):
            raise refuse_altered(name)

    def _read(self, size: int, name: str) -> bytes:
        return bytes(Bounded(self._stream, size, name).readall() or b"")

    def _skip(self, content: Bounded) -> None:
        buffer = bytearray(2**20)
        while content.left:
            content.readinto(buffer)

    def _check_end(self) -> None:
        """Refuse anything behind the last blob but the zeros that end a tar."""
        rest = self._read(2 * BLOCKSIZE, "the tar's end")
        if rest.strip(b"\x00") or self._stream.read(1):
            raise MalformedExport("Something follows the end of the tar.", hint="It was altered; make it again.")


def make_header(name: str, size: int) -> bytes:
    """Make the one header that a member of this name and size has."""
    member = TarInfo(name)
    member.size, member.mode = size, 0o444
    return member.tobuf(GNU_FORMAT, "ascii", "strict")


def _read_size(header: bytes) -> int:
    """Read the size in the first header, which nothing announces."""
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BYTES:
        raise MalformedExport(
            "This is no tar that lensreg export wrote. Nothing was changed.",
            hint="Give the folder or the tar that lensreg export made; a compressed one has to be unpacked first.",
        )
    return size


def write_tape(shipment: RegistryShipment, stream: BinaryIO, progress: Progress) -> None:
    """Write a shipment as a tar."""
    manifest = shipment.manifest
    _write(stream, MANIFEST, encode_manifest(manifest))
    for entry in manifest.entries:
        _write(stream, f"{RECORDS}/{record_name(entry.digest)}", shipment.read_record(entry))
    counter = Counter(progress, "exporting", sum(manifest.blobs.values()))
    for parcel in shipment.send_blobs(manifest.blobs):
        stream.write(make_header(blob_name(parcel.digest), parcel.size_bytes))
        with Path(str(parcel.content)).open("rb", buffering=0) as blob:
            content = Bounded(blob, parcel.size_bytes, blob_name(parcel.digest))
            if digest_stream(content, write=stream.write, advance=counter.advance).whole != parcel.digest:
                raise shipment.refuse_blob(parcel.digest)
        stream.write(b"\x00" * (-parcel.size_bytes % BLOCKSIZE))
    stream.write(b"\x00" * 2 * BLOCKSIZE)


def _write(stream: BinaryIO, name: str, text: bytes) -> None:
    stream.write(make_header(name, len(text)) + text + b"\x00" * (-len(text) % BLOCKSIZE))


@contextlib.contextmanager
def open_tape(source: str | Path) -> Iterator[Any]:
    """Open a tar to be read once; `-` is standard input."""
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            raise SourceNotFound(
                f"{source} cannot be read: {error.strerror}.",
                hint="Give the folder or the tar that lensreg export made.",
                path=str(source),
            ) from error
        yield stream
