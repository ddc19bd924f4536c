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

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# GGUF's number for a type of value -> struct's letter for it
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """What the header says of one tensor: its shape, rows first, and ggml's number for how it is packed."""

    shape: tuple[int, ...]
    packing: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, where arrays are left out as `...`, and the tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, or raise MalformedArtifact."""
    with path.open("rb") as file:
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

    def take_text(self) -> str:
        (length,) = self.take("Q")
        start = self._place
        self.skip(length)
        return self._mapped[start : self._place].decode()


def _read(cursor: _Cursor) -> GgufHeader:
    version, n_tensors, n_metadata = cursor.take("IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not read")
    metadata: dict[str, Any] = {}
    for _ in range(n_metadata):
        key = cursor.take_text()
        (kind,) = cursor.take("I")
        if key in metadata:
            raise ValueError(f"it has the key {key[:80]!r} twice")
        metadata[key] = _take_value(cursor, kind)
    tensors: dict[str, GgufTensor] = {}
    for _ in range(n_tensors):
        name = cursor.take_text()
        (n_dimensions,) = cursor.take("I")
        if name in tensors or n_dimensions > 8:
            raise ValueError(f"the tensor {name[:80]!r} makes no sense")
        shape = cursor.take(f"{n_dimensions}Q")
        packing, _ = cursor.take("IQ")
        tensors[name] = GgufTensor(shape[::-1], packing)
    return GgufHeader(metadata, tensors)


def _take_value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.take_text()
    if kind == _ARRAY:
        _skip_array(cursor)
        return ...
    if kind not in _SCALARS:
        raise ValueError(f"there is no type {kind}")
    return cursor.take(_SCALARS[kind])[0]


def _skip_array(cursor: _Cursor) -> None:
    kind, length = cursor.take("IQ")
    if kind == _STRING:
        for _ in range(length):
            cursor.skip(*cursor.take("Q"))
    elif kind in _SCALARS:
        cursor.skip(length * struct.calcsize(_SCALARS[kind]))
    else:
        raise ValueError(f"an array of type {kind} is not read")


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(f"{path.name} cannot be read: {what}.", hint="Copy the file again.", path=str(path))
