"""Tensors as bytes: safetensors headers, tensor digests, and the weights digest, without torch.

The weights digest is SHA-256 over the sorted lines `name dtype shape digest-of-bytes`, so the same weights have the
same digest in any order, in one file or in shards.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from registry.bounded_json import BadJsonError, parse_json
from registry.digests import CHUNK_BYTES
from registry.errors import MalformedArtifact
from registry.regular_files import open_regular

MAX_HEADER_BYTES = 25 * 2**20
MAX_TENSORS = 50_000
"""In one file; the largest checkpoints have ninety thousand in a hundred files."""
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 16
_VALUES_PER_TENSOR = 12  # of a matrix there are eight

# https://github.com/huggingface/safetensors: the dtypes of the format, with their sizes in bytes
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

Advance = Callable[[int], None]


class TensorForm(Protocol):
    """What there is to say of a tensor without its bytes."""

    @property
    def dtype(self) -> str:
        """The dtype, by safetensors's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors header says of one tensor: where its bytes are and what they mean."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size_bytes: int

    @property
    def n_parameters(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read the header of one safetensors file and check it against the file's length.

    Raises MalformedArtifact for anything the format forbids, and for what its library lets pass: duplicate keys,
    names that are empty, too long or hold control characters, headers that need memory out of proportion.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = _check_length(path, file.read(8), size)
        return _parse_header(path, file.read(length), length, size)


def parse_header(path: Path, content: bytes, size: int) -> dict[str, TensorHeader]:
    """Parse the header that `content`, the first bytes of a safetensors file of `size` bytes, starts with.

    Raises MalformedArtifact as read_header does.
    """
    length = _check_length(path, content[:8], size)
    return _parse_header(path, content[8 : 8 + length], length, size)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Make the start of a safetensors file of (name, dtype, shape, bytes), whose tensors follow in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, size_bytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text


def digest_tensors(tensors: Iterable[TensorHeader], advance: Advance | None = None) -> dict[str, str]:
    """Return the SHA-256 of each tensor's bytes, in hex, by name; `advance` is called with bytes done."""
    digests = {}
    by_file: dict[Path, list[TensorHeader]] = {}
    for tensor in tensors:
        by_file.setdefault(tensor.file, []).append(tensor)
    for path, members in by_file.items():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            for tensor in sorted(members, key=lambda member: member.start):
                digests[tensor.name] = _digest_slice(view, tensor, advance)
            view.release()
    return digests


def digest_weights(tensors: Mapping[str, TensorForm], digests: Mapping[str, str]) -> str:
    """Return the weights digest: SHA-256, in hex, over the sorted tensors and the digests of their bytes."""
    total = hashlib.sha256()
    for name in sorted(digests):
        shape = ",".join(map(str, tensors[name].shape))
        total.update(f"{name} {tensors[name].dtype} {shape} {digests[name]}\n".encode())
    return total.hexdigest()


def digest_file(path: Path, advance: Advance | None = None) -> str:
    """Return the SHA-256 of a file, in hex."""
    total = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with open_regular(path) as file:
        while n_read := file.readinto(chunk):
            total.update(chunk[:n_read])
            if advance:
                advance(n_read)
    return total.hexdigest()


def _check_length(path: Path, start: bytes, size: int) -> int:
    """Return how long the header is by the file's first 8 bytes."""
    length = int.from_bytes(start, "little")
    if size < 8 or length > size - 8:
        raise _malformed(path, "it is truncated or no safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _malformed(path, f"its header claims {length:,} bytes")
    return length


def _parse_header(path: Path, text: bytes, length: int, size: int) -> dict[str, TensorHeader]:
    if len(text) < length:
        raise _malformed(path, "its header was cut off")
    if not text.startswith(b"{"):
        raise _malformed(path, "its header is not JSON")
    try:
        header = parse_json(text, max_values=_VALUES_PER_TENSOR * MAX_TENSORS)
    except BadJsonError as error:
        raise _malformed(path, f"its header {error}") from None
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise _malformed(path, f"it lists {len(header):,} tensors")
    tensors = [_read_entry(path, name, entry, 8 + length) for name, entry in header.items()]
    _check_cover(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _digest_slice(view: memoryview, tensor: TensorHeader, advance: Advance | None) -> str:
    total = hashlib.sha256()
    for start in range(tensor.start, tensor.start + tensor.size_bytes, CHUNK_BYTES):
        chunk = view[start : min(start + CHUNK_BYTES, tensor.start + tensor.size_bytes)]
        total.update(chunk)
        if advance:
            advance(len(chunk))
    return total.hexdigest()


def _read_entry(path: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES or not name.isprintable():
        raise _malformed(path, "a tensor's name is empty, too long, or holds control characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _malformed(path, f"{name} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _malformed(path, f"the shape of {name} makes no sense")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(path, f"the place of {name} makes no sense")
    size = offsets[1] - offsets[0]
    if math.prod(shape) * DTYPE_BYTES[dtype] != size:
        raise _malformed(path, f"{name} has shape {shape} and dtype {dtype}, but {size:,} bytes")
    return TensorHeader(name, dtype, tuple(shape), path, data_start + offsets[0], size)


def _check_cover(path: Path, tensors: list[TensorHeader], start: int, end: int) -> None:
    """Refuse holes, overlaps, and bytes that no tensor owns: they could hide a second file."""
    for tensor in sorted(tensors, key=lambda member: (member.start, member.size_bytes)):
        if tensor.start != start:
            raise _malformed(path, f"the bytes of {tensor.name} overlap others or leave a hole")
        start += tensor.size_bytes
    if start > end:
        raise _malformed(path, f"it is truncated: {end:,} bytes of {start:,}")
    if start < end:
        raise _malformed(path, f"{end - start:,} bytes follow the last tensor")


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "its metadata are not names with texts")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**62 for number in value)


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(
        f"{path.name} cannot be read: {what}.",
        hint="Copy or save the checkpoint again; the file may not have been written to its end.",
        path=str(path),
    )
