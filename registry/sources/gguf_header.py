"""The header of a GGUF file: its metadata and its list of tensors, read within bounds and without its library.

gguf-py walks an array that claims to be longer than the file until memory is full; here nothing is read that the file
does not hold. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact
from registry.regular_files import open_regular
from registry.weights import MAX_NAME_BYTES, MAX_TENSORS

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_KEY_BYTES, _MAX_TEXT_BYTES = 10_000, 65_535, 16 * 2**20
_MAX_LISTED = 2**20
_ALIGNMENT = "general.alignment"
# GGUF's number for a type of value -> struct's letter for it
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What the header says of one tensor: its shape, rows first, and ggml's number for how it is packed.

    `offset` is where its bytes start, counted from where those of all tensors do.
    """

    shape: tuple[int, ...]
    packing: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, where arrays are left out as `...`, and the tensors by name.

    `lengths` are those of the arrays, `data_bytes` what the file has for all tensors together.
    """

    metadata: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Mapping[str, GgufTensor]
    data_bytes: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, or raise MalformedArtifact."""
    with open_regular(path) as file:
        if file.read(4) != _MAGIC:
            raise _malformed(path, "it is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                return _read(_Cursor(mapped, 4))
            except (struct.error, ValueError) as error:
                raise _malformed(path, f"it is damaged or not whole ({error})") from None


class _Cursor:
    """A place in the file from which values are taken; what lies beyond the end raises struct.error."""

    def __init__(self, mapped: mmap.mmap, place: int) -> None:
        self._mapped, self._place = mapped, place

    def take(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self._mapped, self._place)
        self._place += struct.calcsize(f"<{letters}")
        return values

    def skip(self, n_bytes: int) -> None:
        if n_bytes > len(self._mapped) - self._place:
            raise ValueError("an array goes beyond the end")
        self._place += n_bytes

    def align(self, n_bytes: int) -> int:
        """Go on to a multiple of `n_bytes`, and return how many bytes follow."""
        self.skip(-self._place % n_bytes)
        return len(self._mapped) - self._place

    def take_text(self, max_bytes: int) -> str:
        (length,) = self.take("Q")
        if length > max_bytes:
            raise ValueError(f"a text claims {length:,} bytes")
        start = self._place
        self.skip(length)
        return self._mapped[start : self._place].decode()


def _read(cursor: _Cursor) -> GgufHeader:
    version, n_tensors, n_metadata = cursor.take("IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not read")
    if n_metadata > _MAX_KEYS or n_tensors > MAX_TENSORS:
        raise ValueError(f"it claims {n_metadata:,} keys and {n_tensors:,} tensors")
    metadata: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_metadata):
        key = cursor.take_text(_MAX_KEY_BYTES)
        (kind,) = cursor.take("I")
        if key in metadata:
            raise ValueError(f"it has the key {key[:80]!r} twice")
        if kind == _ARRAY:
            metadata[key], lengths[key] = ..., _skip_array(cursor)
        else:
            metadata[key] = _take_value(cursor, kind)
    tensors: dict[str, GgufTensor] = {}
    for _ in range(n_tensors):
        name = cursor.take_text(MAX_NAME_BYTES)
        (n_dimensions,) = cursor.take("I")
        if name in tensors or n_dimensions > 8 or not name.isprintable():
            raise ValueError(f"the tensor {name[:80]!r} makes no sense")
        shape = cursor.take(f"{n_dimensions}Q")
        tensors[name] = GgufTensor(shape[::-1], *cursor.take("IQ"))
    return GgufHeader(metadata, lengths, tensors, cursor.align(_read_alignment(metadata)) if tensors else 0)


def _read_alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {str(alignment)[:40]}")
    return alignment


def _take_value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.take_text(_MAX_TEXT_BYTES)
    if kind not in _SCALARS:
        raise ValueError(f"there is no type {kind}")
    return cursor.take(_SCALARS[kind])[0]


def _skip_array(cursor: _Cursor) -> int:
    kind, length = cursor.take("IQ")
    if length > _MAX_LISTED:
        raise ValueError(f"an array claims {length:,} entries")
    if kind == _STRING:
        for _ in range(length):
            cursor.skip(*cursor.take("Q"))
    elif kind in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    else:
        raise ValueError(f"an array of type {kind} is not read")
    return int(length)


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(f"{path.name} cannot be read: {what}.", hint="Copy the file again.", path=str(path))
