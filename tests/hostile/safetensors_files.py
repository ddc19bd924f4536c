"""Safetensors files that the format forbids, that its library lets pass though they should not, and odd but good ones.

Each replaces the model.safetensors of a whole folder.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.case import ACCEPTED, Case, Make, Place

WEIGHTS = "model.safetensors"
BROKEN, LENIENT, NUMBERS = "B1 safetensors, broken", "B2 safetensors, lenient", "B3 NaN and Inf"
Header = dict[str, Any]


def pack(header: bytes | Header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(content: bytes) -> Make:
    def make(place: Place) -> None:
        (place.source / WEIGHTS).write_bytes(content)

    return make


def entry(shape: list[Any], start: int = 0, end: int = 4, dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def read(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def edit(change: Callable[[Header, bytes], bytes | tuple[bytes | Header, bytes]]) -> Make:
    """Change header and bytes of the whole file that is there."""

    def make(place: Place) -> None:
        changed = change(*read(place.source / WEIGHTS))
        content = changed if isinstance(changed, bytes) else pack(*changed)
        (place.source / WEIGHTS).write_bytes(content)

    return make


def rename(new: str) -> Make:
    """Give one tensor of the file another name."""
    return edit(
        lambda header, data: ({new if name.endswith("wte.weight") else name: one for name, one in header.items()}, data)
    )


def _twice(header: Header, data: bytes) -> tuple[bytes, bytes]:
    name = next(name for name in header if name.endswith("ln_f.bias"))
    text = json.dumps(header)
    again = json.dumps({name: {**header[name], "dtype": "I32"}})
    return (text[:-1] + "," + again[1:]).encode(), data


def _spoil(number: bytes) -> Make:
    def change(header: Header, data: bytes) -> tuple[Header, bytes]:
        start = next(one for name, one in header.items() if name.endswith("ln_f.weight"))["data_offsets"][0]
        return header, data[:start] + number + data[start + 4 :]

    return edit(change)


def _many(n: int) -> bytes:
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return pack(("{" + ",".join(one % index for index in range(n)) + "}").encode())


def _grow(header: Header, data: bytes, n_bytes: int) -> tuple[Header, bytes]:
    return {
        "__metadata__": {"format": "pt", "more": "x" * n_bytes},
        **{k: v for k, v in header.items() if k[0] != "_"},
    }, data


def _claim_sparse(n_bytes: int) -> Make:
    """A file of holes, whose header says that all of it is one tensor."""

    def make(place: Place) -> None:
        with (place.source / WEIGHTS).open("wb") as file:
            file.write(pack({"a": entry([n_bytes // 4], 0, n_bytes)}))
            file.truncate(file.tell() + n_bytes)

    return make


def _flip(seed: int) -> Make:
    """Flip one bit of the header."""

    def make(place: Place) -> None:
        path, chance = place.source / WEIGHTS, random.Random(seed)
        content = bytearray(path.read_bytes())
        content[chance.randrange(8, 8 + int.from_bytes(content[:8], "little"))] ^= 1 << chance.randrange(7)
        path.write_bytes(content)

    return make


def _sparse(n_bytes: int, name: str = WEIGHTS) -> Make:
    def make(place: Place) -> None:
        with (place.source / name).open("wb") as file:
            file.truncate(n_bytes)

    return make


def _copy_of(start: bytes) -> Make:
    """Put the start of another kind of file before the whole one."""
    return edit(lambda header, data: start + pack(header, data))


def _zip(place: Place) -> None:
    import zipfile

    with zipfile.ZipFile(place.source / WEIGHTS, "w") as archive:
        archive.writestr("../../escaped.txt", "x")


def _tar(place: Place) -> None:
    import io
    import tarfile

    with tarfile.open(place.source / WEIGHTS, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped.txt"), io.BytesIO())


_MALFORMED: dict[str, tuple[str, Make]] = {
    "empty": ("truncated", write(b"")),
    "seven-bytes": ("truncated", write(b"\1\0\0\0\0\0\0")),
    "no-header": ("truncated", write(struct.pack("<Q", 100))),
    "length-0": ("not JSON", write(pack(b""))),
    "length-beyond-the-end": ("truncated", write(pack(b"{}", length=10**6))),
    "length-2-63": ("truncated", write(pack(b"{}", length=2**63))),
    "length-2-64": ("truncated", write(pack(b"{}", length=2**64 - 1))),
    "length-above-the-limit": ("header claims", _sparse(0)),  # made below
    "not-utf-8": ("not JSON", write(pack(b'{"\xff\xfe": 1}'))),
    "no-json": ("not JSON", write(pack(b'{"a": }'))),
    "array": ("not JSON", write(pack(b"[]"))),
    "null": ("not JSON", write(pack(b"null"))),
    "nul-bytes": ("not JSON", write(pack(b"{}" + bytes(8)))),
    "two-objects": ("not JSON", write(pack(b"{}{}"))),
    "truncated-by-one": ("truncated", edit(lambda header, data: (header, data[:-1]))),
    "truncated-by-half": ("truncated", edit(lambda header, data: (header, data[: len(data) // 2]))),
    "trailing-bytes": ("follow the last tensor", edit(lambda header, data: (header, data + b"#!/bin/sh"))),
    "hole": ("hole", write(pack({"a": entry([1]), "b": entry([1], 8, 12)}, bytes(12)))),
    "overlap": ("overlap", write(pack({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)))),
    "the-same-bytes-twice": ("overlap", write(pack({"a": entry([1]), "b": entry([1])}, bytes(4)))),
    "offsets-reversed": ("place of a", write(pack({"a": entry([1], 4, 0)}, bytes(4)))),
    "offsets-negative": ("place of a", write(pack({"a": entry([1], -4, 0)}, bytes(4)))),
    "offsets-three": ("place of a", write(pack({"a": {**entry([1]), "data_offsets": [0, 4, 4]}}, bytes(4)))),
    "offsets-a-text": ("place of a", write(pack({"a": {**entry([1]), "data_offsets": "04"}}, bytes(4)))),
    "offsets-fractions": ("place of a", write(pack({"a": entry([1], 0.0, 4.0)}, bytes(4)))),  # type: ignore[arg-type]
    "offsets-true": ("place of a", write(pack({"a": entry([1], False, True)}, bytes(4)))),
    "shape-is-not-the-bytes": ("4 bytes", write(pack({"a": entry([2])}, bytes(4)))),
    "shape-overflows": ("shape of a", write(pack({"a": entry([2**62, 4], 0, 0)}))),
    "shape-wraps-around": ("0 bytes", write(pack({"a": entry([2**32, 2**32], 0, 0)}))),
    "shape-negative": ("shape of a", write(pack({"a": entry([-1, -1])}, bytes(4)))),
    "shape-of-17": ("shape of a", write(pack({"a": entry([1] * 17)}, bytes(4)))),
    "shape-of-a-million": ("values", write(pack({"a": entry([1] * 10**6)}, bytes(4)))),
    "shape-null": ("shape of a", write(pack({"a": entry(None)}, bytes(4)))),  # type: ignore[arg-type]
    "dtype-unknown": ("unknown dtype", write(pack({"a": entry([1], dtype="Q4_K")}, bytes(4)))),
    "dtype-f4": ("unknown dtype", write(pack({"a": entry([8], dtype="F4")}, bytes(4)))),
    "dtype-a-number": ("unknown dtype", write(pack({"a": entry([1], dtype=7)}, bytes(4)))),
    "dtype-missing": ("is not dtype", write(pack({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)))),
    "entry-a-list": ("is not dtype", write(pack({"a": []}))),
    "nested-100000-deep": ("nested too deeply", write(pack(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"))),
    "a-5000-digit-number": ("not JSON", write(pack(b'{"a":' + b"9" * 5000 + b"}"))),
    "a-20-digit-offset": ("place of a", write(pack({"a": entry([1], 0, 10**20)}, bytes(4)))),
    "metadata-a-list": ("metadata", write(pack({"__metadata__": ["a"]}))),
    "metadata-of-numbers": ("metadata", write(pack({"__metadata__": {"a": 1}}))),
    "metadata-twice": ("twice", write(pack(b'{"__metadata__":{"a":"b"},"__metadata__":{}}'))),
    "text": ("truncated", write(b"the weights are elsewhere\n")),
    "html": ("truncated", write(b"<!DOCTYPE html><title>404</title>")),
    "lfs-pointer": ("truncated", write(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")),
    "gguf": ("truncated", write(b"GGUF" + bytes(100))),
    "zip": ("truncated", _zip),
    "tar": ("truncated", _tar),
    "polyglot-of-a-script": ("truncated", _copy_of(b"#!/bin/sh\n")),
    "polyglot-of-a-zip-behind": ("follow the last tensor", edit(lambda h, d: (h, d + b"PK\5\6" + bytes(18)))),
    "holes-of-a-terabyte": ("not JSON", _sparse(2**40)),
}  # fmt: skip


def _above_the_limit(place: Place) -> None:
    with (place.source / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 95 * 10**6) + b'{"__metadata__":{"a":"')
        file.truncate(96 * 10**6)


_MALFORMED["length-above-the-limit"] = ("header claims", _above_the_limit)

_LENIENT: dict[str, tuple[str, str, Make]] = {
    "key-twice": ("malformed-artifact", "twice", edit(_twice)),
    "dtype-twice": (
        "malformed-artifact",
        "twice",
        write(pack(b'{"a":{"dtype":"I32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
    ),
    "leading-space": ("malformed-artifact", "not JSON", edit(lambda h, d: (b" " + json.dumps(h).encode(), d))),
    "byte-order-mark": (
        "malformed-artifact",
        "not JSON",
        edit(lambda h, d: (b"\xef\xbb\xbf" + json.dumps(h).encode(), d)),
    ),
    "an-extra-key": ("malformed-artifact", "is not dtype", write(pack({"a": {**entry([1]), "code": "x"}}, bytes(4)))),
    "name-empty": ("malformed-artifact", "name is empty", rename("")),
    "name-with-nul": ("malformed-artifact", "control", rename("transformer\0.wte.weight")),
    "name-with-escapes": ("malformed-artifact", "control", rename("\x1b]0;owned\x07wte.weight")),
    "name-of-a-megabyte": ("malformed-artifact", "too long", rename("a" * 10**6)),
    "name-right-to-left": ("malformed-artifact", "control", rename("wte\u202etxt.exe")),
    "name-lone-surrogate": ("malformed-artifact", "surrogate", rename("wte\ud800")),
    "name-a-path": ("weights-mismatch", "", rename("../../etc/passwd")),
    "name-a-confusable": ("weights-mismatch", "", rename("transformer.wtе.weight")),  # the е is Cyrillic
    "tensors-none": ("weights-mismatch", "", write(pack({}))),
    "tensors-none-but-metadata": ("weights-mismatch", "", write(pack({"__metadata__": {"format": "pt"}}))),
    "tensors-a-million": ("malformed-artifact", "header", write(_many(10**6))),
    "tensors-400000": ("malformed-artifact", "", write(_many(4 * 10**5))),
    "tensors-100000": ("malformed-artifact", "", write(_many(10**5))),
    "values-eight-million": ("malformed-artifact", "", write(pack(b'{"a":[' + b"[]," * 8 * 10**6 + b"[]]}"))),
    "one-text-of-20-megabytes": (
        "malformed-artifact",
        "",
        write(pack('{"a":"😀'.encode() + b"x" * 20 * 10**6 + b'"}')),
    ),
    "metadata-of-10-megabytes": (ACCEPTED, "", edit(lambda h, d: _grow(h, d, 10**7))),
    "bool-byte-2": (
        "weights-mismatch",
        "",
        edit(lambda h, d: ({**h, "x": entry([1], len(d), len(d) + 1, "BOOL")}, d + b"\2")),
    ),
    "a-tensor-more": (
        "weights-mismatch",
        "",
        edit(lambda h, d: ({**h, "x": entry([1], len(d), len(d) + 4)}, d + bytes(4))),
    ),
    "an-empty-tensor-more": (
        "unusable-weights",
        "empty",
        edit(lambda h, d: ({**h, "x": entry([0], len(d), len(d))}, d)),
    ),
    "integers": (
        "unusable-weights",
        "",
        edit(lambda h, d: ({k: {**v, "dtype": "I32"} if k[0] != "_" else v for k, v in h.items()}, d)),
    ),
    "eight-bit-floats": (
        "unusable-weights",
        "",
        edit(
            lambda h, d: (
                {
                    k: {**v, "dtype": "F8_E4M3", "data_offsets": [o // 4 for o in v["data_offsets"]]}
                    if k[0] != "_"
                    else v
                    for k, v in h.items()
                },
                d[: len(d) // 4],
            )
        ),
    ),
    "complex-numbers": (
        "weights-mismatch",
        "",
        edit(lambda h, d: ({**h, "x": entry([1], len(d), len(d) + 8, "C64")}, d + bytes(8))),
    ),
    "one-tensor-of-a-terabyte": ("weights-mismatch", "", _claim_sparse(2**40)),
    "odd-but-good-metadata": (ACCEPTED, "", edit(lambda h, d: _grow(h, d, 1000))),
    "trailing-spaces": (ACCEPTED, "", edit(lambda h, d: (json.dumps(h).encode() + b" " * 64, d))),
    "sorted-otherwise": (ACCEPTED, "", edit(lambda h, d: (dict(reversed(h.items())), d))),
}
CASES = [
    *(
        Case(f"safetensors-{name}", BROKEN, make, "malformed-artifact", words)
        for name, (words, make) in _MALFORMED.items()
    ),
    *(Case(f"safetensors-{name}", LENIENT, make, code, words) for name, (code, words, make) in _LENIENT.items()),
    Case("nan", NUMBERS, _spoil(struct.pack("<f", float("nan"))), "unusable-weights", "NaN"),
    Case("infinity", NUMBERS, _spoil(struct.pack("<f", float("-inf"))), "unusable-weights", "infinit"),
    Case("nan-with-a-payload", NUMBERS, _spoil(b"\xef\xbe\xad\x7f"), "unusable-weights", "NaN"),
    Case("denormal", NUMBERS, _spoil(b"\1\0\0\0"), ACCEPTED),
]
