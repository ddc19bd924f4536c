"""GGUF files whose header lies: about lengths, counts, places, types, and what they are a part of."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.hostile.case import Case, Make, Place

GROUP = "GGUF"
FILE = "model.gguf"
BAD = "malformed-artifact"


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pack(
    *entries: bytes, tensors: bytes = b"", n_tensors: int = 0, n_keys: int | None = None, version: int = 3
) -> bytes:
    n = len(entries) if n_keys is None else n_keys
    return struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n) + b"".join(entries) + tensors


def tensor(name: bytes, *shape: int, packing: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", packing, offset)


def _write(content: bytes) -> Make:
    def make(place: Place) -> None:
        (place.source / FILE).write_bytes(content)

    return make


def _rewrite(**changes: Any) -> Make:
    """Write the whole file again with other metadata or tensors."""

    def make(place: Place) -> None:
        from tests.checkpoints import make_network
        from tests.gguf_files import write_gguf

        (place.source / FILE).unlink()
        write_gguf(place.source / FILE, make_network("gpt2"), **changes)

    return make


def _edit(change: Callable[[bytearray], Any]) -> Make:
    def make(place: Place) -> None:
        content = bytearray((place.source / FILE).read_bytes())
        change(content)
        (place.source / FILE).write_bytes(content)

    return make


def _place(name: bytes, offset: int) -> Make:
    """Say of one tensor that it is elsewhere."""

    def change(content: bytearray) -> None:
        at = content.index(text(name)) + 8 + len(name)
        (n_dimensions,) = struct.unpack_from("<I", content, at)
        struct.pack_into("<Q", content, at + 4 + 8 * n_dimensions + 4, offset)

    return _edit(change)


def _size(name: bytes, index: int, length: int) -> Make:
    def change(content: bytearray) -> None:
        struct.pack_into("<Q", content, content.index(text(name)) + 12 + len(name) + 8 * index, length)

    return _edit(change)


def _packing(name: bytes, packing: int) -> Make:
    def change(content: bytearray) -> None:
        at = content.index(text(name)) + 8 + len(name)
        (n_dimensions,) = struct.unpack_from("<I", content, at)
        struct.pack_into("<I", content, at + 4 + 8 * n_dimensions, packing)

    return _edit(change)


def _holes(n_bytes: int, start: bytes) -> Make:
    def make(place: Place) -> None:
        with (place.source / FILE).open("wb") as file:
            file.write(start)
            file.truncate(n_bytes)

    return make


_KEY = text(b"a")
_EMBEDDING = b"token_embd.weight"
_CASES: dict[str, tuple[str, Make]] = {
    "empty": (BAD, _write(b"")),
    "four-bytes": (BAD, _write(b"GGUF")),
    "version-1": (BAD, _write(pack(version=1))),
    "big-endian": (BAD, _write(struct.pack(">4sIQQ", b"GGUF", 3, 0, 0))),
    "keys-2-63": (BAD, _write(pack(n_keys=2**63))),
    "tensors-2-63": (BAD, _write(pack(n_tensors=2**63))),
    "key-2-63": (BAD, _write(pack(struct.pack("<Q", 2**63)))),
    "key-of-a-gigabyte": (BAD, _holes(2**31, pack(struct.pack("<Q", 2**30)))),
    "text-of-a-gigabyte": (BAD, _holes(2**31, pack(_KEY + struct.pack("<IQ", 8, 2**30)))),
    "texts-of-a-terabyte": (BAD, _holes(2**40, pack(_KEY + struct.pack("<IIQ", 9, 8, 2**36)))),
    "bytes-2-62": (BAD, _write(pack(_KEY + struct.pack("<IIQ", 9, 0, 2**62)))),
    "bytes-of-a-megabyte": ("unsupported-family", _holes(2**21, pack(_KEY + struct.pack("<IIQ", 9, 0, 2**20)))),
    "array-of-arrays": (BAD, _write(pack(_KEY + struct.pack("<IIQ", 9, 9, 1)))),
    "type-99": (BAD, _write(pack(_KEY + struct.pack("<I", 99)))),
    "key-twice": (BAD, _write(pack(*[_KEY + struct.pack("<IB", 7, 1)] * 2))),
    "key-not-utf-8": (BAD, _write(pack(text(b"\xff\xfe") + struct.pack("<IB", 7, 1)))),
    "alignment-0": (BAD, _rewrite(metadata={"general.alignment": 0})),
    "alignment-3": (BAD, _rewrite(metadata={"general.alignment": 3})),
    "alignment-a-text": (BAD, _rewrite(metadata={"general.alignment": "32"})),
    "dimensions-2-31": (BAD, _write(pack(tensors=text(b"t") + struct.pack("<I", 2**31), n_tensors=1))),
    "tensor-twice": (BAD, _write(pack(tensors=tensor(b"t", 4) * 2, n_tensors=2))),
    "tensor-name-of-escapes": (BAD, _write(pack(tensors=tensor(b"\x1b[2J", 4), n_tensors=1))),
    "tensor-name-long": (BAD, _write(pack(tensors=tensor(b"t" * 10**5, 4), n_tensors=1))),
    "tensors-60000": (
        BAD,
        _write(pack(tensors=b"".join(tensor(b"%d" % i, 4) for i in range(60_000)), n_tensors=60_000)),
    ),
    "shape-overflows": (BAD, _size(_EMBEDDING, 0, 2**63)),
    "shape-too-large": (BAD, _size(_EMBEDDING, 1, 2**20)),
    "shape-0": ("unsupported-config", _size(_EMBEDDING, 1, 0)),
    "offset-beyond": (BAD, _place(_EMBEDDING, 10**9)),
    "offset-2-64": (BAD, _place(_EMBEDDING, 2**64 - 32)),
    "offset-over-another": (BAD, _place(b"output_norm.weight", 0)),
    "offset-odd": (BAD, _place(b"output_norm.weight", 7)),
    "packing-unknown": (BAD, _packing(_EMBEDDING, 4711)),
    "packing-needs-more": (BAD, _packing(_EMBEDDING, 28)),
    "truncated": (BAD, _edit(lambda content: content.__delitem__(slice(-1000, None)))),
    "truncated-in-header": (BAD, _edit(lambda content: content.__delitem__(slice(400, None)))),
    "split": ("unsupported-source", _rewrite(metadata={"split.count": 2, "split.no": 0, "split.tensors.count": 99})),
    "layers-a-billion": ("weights-mismatch", _rewrite(metadata={"gpt2.block_count": 10**9})),
    "width-0": ("unsupported-config", _rewrite(metadata={"gpt2.embedding_length": 0})),
    "architecture-unknown": ("unsupported-family", _rewrite(metadata={"general.architecture": "../../evil"})),
    "an-unknown-key": ("unsupported-config", _rewrite(metadata={"gpt2.logit_scale": 2.0})),
    "tensor-missing": ("weights-mismatch", _rewrite(tensors={"output_norm.bias": None})),
    "vocabulary-too-long": (
        BAD,
        _rewrite(
            tokenizer={
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": [f"t{i}" for i in range(10**4)],
                "tokenizer.ggml.merges": [],
            }
        ),
    ),
    "vocabulary-of-escapes": (
        "unusable-tokenizer",
        _rewrite(
            tokenizer={
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": [f"\x1b[{i}m" for i in range(211)],
                "tokenizer.ggml.merges": [],
            }
        ),
    ),
    "vocabulary-without-tokens": ("unusable-tokenizer", _rewrite(tokenizer={"tokenizer.ggml.model": "gpt2"})),
    "tokenizer-unknown": (
        "unusable-tokenizer",
        _rewrite(tokenizer={"tokenizer.ggml.model": "evil", "tokenizer.ggml.tokens": ["a"]}),
    ),
    "zip": (BAD, _write(b"PK\3\4" + bytes(100))),
    "html": (BAD, _write(b"<!DOCTYPE html>")),
    "holes-of-a-terabyte": ("unsupported-family", _holes(2**40, b"GGUF\3\0\0\0")),
}
CASES = [Case(f"gguf-{name}", GROUP, make, code, base="gguf") for name, (code, make) in _CASES.items()]
