"""The prefixes that wrappers of training leave on every tensor's name, and files without them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from registry.sources.source import Finding
from registry.weights import TensorHeader, make_header

# DataParallel and DistributedDataParallel, torch.compile, PEFT, FSDP, activation checkpointing
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def find_prefix(names: Iterable[str]) -> str:
    """Return what wrappers put before the names, one or several after another; empty unless every name has it."""
    prefix, names = "", list(names)
    while names:
        found = [wrapper for wrapper in WRAPPERS if all(name.startswith(prefix + wrapper) for name in names)]
        if not found:
            break
        prefix += found[0]
    return prefix


def copy_without_prefix(tensors: Mapping[str, TensorHeader], prefix: str, target: Path) -> None:
    """Copy a safetensors file, given by the headers of all its tensors, taking `prefix` off every name."""
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size_bytes))
    header = make_header(
        (tensor.name.removeprefix(prefix), tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in ordered
    )
    with ordered[0].file.open("rb") as source, target.open("xb") as copy:
        copy.write(header)
        source.seek(ordered[0].start)
        shutil.copyfileobj(source, copy, 4 * 2**20)


def note_prefix(prefix: str) -> list[Finding]:
    """Tell that a prefix was taken off, if one was."""
    if not prefix:
        return []
    return [Finding("unwrapped", f"The prefix {prefix!r}, which a wrapper of training left, was taken off every name.")]
