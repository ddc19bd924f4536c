"""Make files that mean harm, or that are damaged in the ways in which people's files are; see RELIABILITY B4 to B6.

Whatever is meant to be run touches a sentinel file, so that a test sees whether it was.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import os
import pickle
import runpy
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(4, dtype=torch.bfloat16)}
Make = Callable[[Path, Path], object]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def gadgets(sentinel: Path) -> dict[str, Call]:
    """Calls that would touch the sentinel if anything in a pickle were run."""
    touch = f"touch {sentinel}"
    write = f"open({str(sentinel)!r}, 'w')"
    return {
        "system": Call(os.system, touch),
        "popen": Call(subprocess.Popen, ["sh", "-c", touch]),
        "eval": Call(builtins.eval, write),
        "exec": Call(builtins.exec, write),
        "open": Call(builtins.open, str(sentinel), "w"),
        "getattr": Call(builtins.getattr, dict, "get"),
        "runpy": Call(runpy._run_code, f"import os; os.system({touch!r})", {}),  # type: ignore[attr-defined]
        "torch-load": Call(torch.load, str(sentinel)),
        "hub": Call(torch.hub.load, "someone/repo", "model"),
        "jit": Call(torch.jit.load, str(sentinel)),
    }


def save_zip(path: Path, value: Any) -> None:
    torch.save(value, path)


def save_legacy(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def rewrite_zip(
    path: Path,
    *,
    compress: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
    change: Callable[[str, bytes], bytes | None] = lambda name, content: content,
) -> None:
    """Write a zip file of torch's again with other contents."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in entries:
            changed = change(name, content)
            if changed is not None:
                archive.writestr(name, changed)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)


def add_bytes(path: Path, content: bytes, *, front: bool = False) -> None:
    old = path.read_bytes()
    path.write_bytes(content + old if front else old + content)


def cut(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def edit_directory(path: Path, change: Callable[[bytearray, int], None], *, last: bool = False) -> None:
    """Change the zip directory's first entry, which is the pickle, or its last in place, given where it is."""
    content = bytearray(path.read_bytes())
    change(content, content.rindex(b"PK\x01\x02") if last else content.index(b"PK\x01\x02"))
    path.write_bytes(content)


def claim(size: int) -> Callable[[bytearray, int], None]:
    """Make a directory's entry claim that many bytes, stored."""

    def change(content: bytearray, at: int) -> None:
        struct.pack_into("<II", content, at + 20, size, size)

    return change


def write_pickle(path: Path, body: bytes) -> None:
    """Put opcodes of pickle in a zip file as torch.save would write it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _storage_of(n_bytes: int) -> bytes:
    """A dictionary with a storage of so many bytes, which weights_only allows anybody to make."""
    return (
        b"}"
        + _text("a")
        + b"ctorch.storage\nUntypedStorage\n"
        + b"\x8a\x06"
        + n_bytes.to_bytes(6, "little")
        + b"\x85Rs"
    )


def _rebuilt(numel: int) -> bytes:
    """A tensor of `numel` floats on the storage data/0, whatever size that has."""
    number = b"\x8a\x08" + numel.to_bytes(8, "little")
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + number + b"tQ"
    shape = number + b"\x85"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"K\x01\x85\x89"
    return b"}" + _text("a") + tensor + b"ccollections\nOrderedDict\n)RtRs"


def _nest(depth: int) -> bytes:
    return b"}" + _text("x") + b"]" * depth + b"a" * (depth - 1) + b"s"


# name -> how to make the file, given the sentinel; these never reach torch
BEFORE_TORCH: dict[str, tuple[str, str, Make]] = {
    "empty": ("malformed-artifact", "is empty", lambda path, _: path.touch()),
    "lfs-pointer": (
        "malformed-artifact",
        "Git LFS pointer",
        lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    ),
    "html": ("malformed-artifact", "web page", lambda path, _: path.write_text("\n<!DOCTYPE html><title>404</title>")),
    "json": ("malformed-artifact", "JSON", lambda path, _: path.write_text('{"error": "Repository not found"}')),
    "gguf": ("malformed-artifact", "GGUF", lambda path, _: path.write_bytes(b"GGUF" + bytes(100))),
    "hdf5": ("malformed-artifact", "HDF5", lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))),
    "torch-script": (
        "unsupported-source",
        "TorchScript",
        lambda path, _: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)), str(path)),
    ),
    "another-zip": (
        "unsupported-source",
        "torch.save did not write",
        lambda path, _: zipfile.ZipFile(path, "w").writestr("readme", "x"),
    ),
    "zip-bomb": (
        "unsafe-artifact",
        "is compressed",
        lambda path, _: (save_zip(path, {"a": torch.zeros(2**22)}), rewrite_zip(path, compress=zipfile.ZIP_DEFLATED)),
    ),
    "one-entry-deflated": (
        "unsafe-artifact",
        "is compressed",
        lambda path, _: (
            save_zip(path, TENSORS),
            edit_directory(path, lambda content, at: struct.pack_into("<H", content, at + 10, 8)),
        ),
    ),
    "encrypted": (
        "unsafe-artifact",
        "is encrypted",
        lambda path, _: (
            save_zip(path, TENSORS),
            edit_directory(path, lambda content, at: struct.pack_into("<H", content, at + 8, 1)),
        ),
    ),
    "duplicate-pickle": (
        "unsafe-artifact",
        "twice",
        lambda path, sentinel: (
            save_zip(path, TENSORS),
            rewrite_zip(
                path, extra={f"{path.stem}/data.pkl": pickle.dumps({"a": Call(os.system, f"touch {sentinel}")}, 2)}
            ),
        ),
    ),
    "claims-too-much": (
        "unsafe-artifact",
        "entries claim",
        lambda path, _: (save_zip(path, TENSORS), edit_directory(path, claim(2**31), last=True)),
    ),
    "huge-pickle": (
        "unsafe-artifact",
        "bytes beside the tensors",
        lambda path, _: (save_zip(path, TENSORS), edit_directory(path, claim(2**27))),
    ),
    "huge-directory": (
        "malformed-artifact",
        "its directory has",
        lambda path, _: path.write_bytes(
            b"PK\x03\x04" + bytes(2**24) + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 60_000, 60_000, 2**24, 4, 0)
        ),
    ),
    "torn-zip": ("malformed-artifact", "not whole", lambda path, _: (save_zip(path, TENSORS), cut(path, 0.8))),
    "zip-local-header-only": ("malformed-artifact", "not whole", lambda path, _: path.write_bytes(b"PK\x03\x04")),
}

# these do, in the child
IN_THE_CHILD: dict[str, tuple[str, str, Make]] = {
    "whole-module": (
        "unsafe-artifact",
        "'torch.nn.modules.linear.Linear'",
        lambda path, _: save_zip(path, torch.nn.Linear(2, 2)),
    ),
    "namespace": (
        "unsafe-artifact",
        "'argparse.Namespace'",
        lambda path, _: save_zip(path, {"model": TENSORS, "args": argparse.Namespace(lr=0.1)}),
    ),
    "numpy": (
        "unsafe-artifact",
        "numpy",
        lambda path, _: save_zip(path, {"model": TENSORS, "loss": numpy.float64(1.5)}),
    ),
    "protocol-4": (
        "unsafe-artifact",
        "Unsupported operand",
        lambda path, _: torch.save(TENSORS, path, pickle_protocol=4),
    ),
    "no-dictionary": ("unsupported-source", "holds a list", lambda path, _: save_zip(path, [*TENSORS.values()])),
    "no-tensors": ("unsupported-source", "holds no tensors", lambda path, _: save_zip(path, {"step": 3})),
    "numbered": (
        "unsupported-source",
        "numbers for names",
        lambda path, _: save_zip(path, dict(enumerate(TENSORS.values()))),
    ),
    "two-nests": (
        "unsupported-source",
        "in model and in state_dict",
        lambda path, _: save_zip(path, {"model": TENSORS, "state_dict": TENSORS}),
    ),
    "averaged-beside": (
        "unsupported-source",
        "in model and in ema",
        lambda path, _: save_zip(path, {"model": TENSORS, "ema": TENSORS, "step": 3}),
    ),
    "nest-beside-tensors": (
        "unsupported-source",
        "in model and in its top",
        lambda path, _: save_zip(path, {"model": TENSORS, "head.weight": torch.ones(3, 4)}),
    ),
    "nested-too-deeply": (
        "unsupported-source",
        "no tensors",
        lambda path, _: save_zip(
            path, {"model": {"model": {"model": {"model": {"model": {"model": {"model": TENSORS}}}}}}}
        ),
    ),
    "control-characters": (
        "malformed-artifact",
        "control characters",
        lambda path, _: save_zip(path, {"\x1b[2J": torch.ones(2)}),
    ),
    "endless-name": ("malformed-artifact", "too long", lambda path, _: save_zip(path, {"a" * 600: torch.ones(2)})),
    "stride-0": (
        "unsafe-artifact",
        "claims 4,398,046,511,104 bytes and has 4",
        lambda path, _: save_zip(path, {"a": torch.zeros(1).expand(2**40)}),
    ),
    "stride-0-legacy": (
        "unsafe-artifact",
        "claims 4,398,046,511,104 bytes and has 4",
        lambda path, _: save_legacy(path, {"a": torch.zeros(1).expand(2**40)}),
    ),
    "many-on-one-storage": (
        "unsafe-artifact",
        "its tensors claim",
        lambda path, _: save_zip(path, dict.fromkeys([f"a{index}" for index in range(100)], torch.zeros(10**4))),
    ),
    "sparse-coo": ("unsupported-source", "is sparse", lambda path, _: save_zip(path, {"a": torch.eye(3).to_sparse()})),
    "sparse-csr": ("unsupported-source", "is sparse", lambda path, _: save_zip(path, {"a": make_csr([0, 1, 2, 3])})),
    "sparse-csr-lying": ("unsupported-source", "is sparse", lambda path, _: save_lying_csr(path)),
    "meta": (
        "unsupported-source",
        "device meta",
        lambda path, _: save_zip(path, {"a": torch.empty(3, device="meta")}),
    ),
    "complex": (
        "unsupported-source",
        "complex64",
        lambda path, _: save_zip(path, {"a": torch.zeros(3, dtype=torch.complex64)}),
    ),
    "lazy-view": (
        "unsupported-source",
        "lazy view",
        lambda path, _: save_zip(path, {"a": torch.zeros(3, dtype=torch.complex64).conj().imag}),
    ),
    "counter": (
        "unsupported-source",
        "holds no tensors",
        lambda path, _: save_zip(path, collections.Counter("abc")),
    ),
    "storage-of-gigabytes": (
        "unsafe-artifact",
        "more memory than its size explains",
        lambda path, _: write_pickle(path, _storage_of(2**33)),
    ),
    "storage-missing": ("malformed-artifact", "damaged", lambda path, _: write_pickle(path, _rebuilt(4))),
    "storage-too-short": (
        "malformed-artifact",
        "damaged",
        lambda path, _: (write_pickle(path, _rebuilt(4096)), rewrite_zip(path, extra={"x/data/0": bytes(16)})),
    ),
    "storage-into-the-next": (
        "malformed-artifact",
        "do not go together",
        lambda path, _: (
            write_pickle(path, _rebuilt(8)),
            rewrite_zip(path, extra={"x/data/0": bytes(16), "x/data/1": bytes(64)}),
        ),
    ),
    "storage-cut-off": (
        "malformed-artifact",
        "do not go together",
        lambda path, _: (write_pickle(path, _rebuilt(2)), rewrite_zip(path, extra={"x/data/0": bytes(16)})),
    ),
    "deep-nesting": ("unsupported-source", "no tensors", lambda path, _: write_pickle(path, _nest(300_000))),
    "endless-text": (
        "malformed-artifact",
        "damaged",
        lambda path, _: write_pickle(path, b"}" + b"X" + struct.pack("<I", 2**31) + b"short"),
    ),
    "stack-empty": ("malformed-artifact", "damaged", lambda path, _: write_pickle(path, b"a")),
    "torn-legacy": ("malformed-artifact", "damaged", lambda path, _: (save_legacy(path, TENSORS), cut(path, 0.97))),
    "random": ("unsafe-artifact", "Unsupported operand", lambda path, _: path.write_bytes(bytes(range(200, 256)) * 9)),
    "text": ("malformed-artifact", "damaged", lambda path, _: path.write_text("the weights are elsewhere\n")),
    "prefixed-zip": (
        "unsafe-artifact",
        "Unsupported operand",
        lambda path, _: (save_zip(path, TENSORS), add_bytes(path, b"#!/bin/sh\n", front=True)),
    ),
}


def make_csr(rows: list[int]) -> torch.Tensor:
    return torch.sparse_csr_tensor(torch.tensor(rows), torch.tensor([0, 1, 2]), torch.ones(3), size=(3, 3))


def save_lying_csr(path: Path) -> None:
    """Save a sparse tensor whose row pointers lead a thousand rows beyond its values."""
    save_zip(path, {"a": make_csr([0, 1, 2, 3])})
    honest, lying = (struct.pack("<4q", *rows) for rows in ((0, 1, 2, 3), (0, 1000, 2000, 3)))
    rewrite_zip(path, change=lambda name, content: content.replace(honest, lying))


def make_gadget(path: Path, sentinel: Path, name: str, form: str) -> None:
    """Write one gadget in one of the forms in which pickles come."""
    call = gadgets(sentinel)[name]
    if form == "raw":
        path.write_bytes(pickle.dumps(call, 2))
    elif form == "protocol-0":
        path.write_bytes(pickle.dumps(call, 0))
    elif form == "protocol-4":
        path.write_bytes(pickle.dumps(call, 4))
    elif form == "legacy":
        save_legacy(path, {**TENSORS, "x": call})
    elif form == "nested":
        save_zip(path, {"model": {**TENSORS, "x": [{"y": (call,)}]}})
    else:
        save_zip(path, {**TENSORS, "x": call})


FORMS = ("zip", "legacy", "nested", "raw", "protocol-0", "protocol-4")
