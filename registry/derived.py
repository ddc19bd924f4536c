"""Hooked tensors by the facts that decide them: mapped from a derived file, or made, kept, and compared bit for bit."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from registry.converter import read_converter_version
from registry.errors import ArtifactCorrupt
from registry.store.derived import DerivedFiles, make_key
from registry.store.stamps import Verify
from registry.versions import Version
from registry.weights import make_header

Tensors = Mapping[str, torch.Tensor]
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 64  # as torch's own memory is: kernels may add up otherwise where it is not
_log = logging.getLogger(__name__)


def describe_tensors(version: Version, processing: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """Return the facts that decide a version's hooked tensors, after `processing`, in `dtype`.

    The files are those whose digests are checked at every load, so a derived file cannot stand for other weights than
    the blobs do; config.json is among them, with whatever it says beyond the architecture. Processors round otherwise
    from kind to kind, and a store may be shared.
    """
    files = [*version.with_role("weights"), *version.with_role("config")]
    return {
        "weights_digest": version.weights_digest,
        "files": sorted([file.name, file.digest] for file in files),
        "fingerprint": version.fingerprint,
        "family": version.family,
        "layout": version.layout,
        "processing": processing,
        "dtype": str(dtype).removeprefix("torch."),
        "converter": read_converter_version(),
        "processor": f"{sys.byteorder} {torch.backends.cpu.get_cpu_capability()}",
    }


def derive_tensors(
    files: DerivedFiles, facts: Mapping[str, Any], ref: str, make: Callable[[], Tensors], verify: Verify
) -> Tensors:
    """Return the tensors that `make` makes, mapped from the derived file; it is written if there is none.

    The map is private: what is written to a tensor stays in memory. Where nothing can be kept (a store that is read
    only, a full disk, a bound), the tensors are those that `make` made.
    """
    tensors = _map_derived(files, facts, verify)
    if tensors is not None:
        return tensors
    with files.lock(make_key(facts)) as locked:
        if locked:  # another process may have been first
            tensors = _map_derived(files, facts, verify)
            if tensors is not None:
                return tensors
        made = make()
        if not locked or any(tensor.dtype not in _DTYPES for tensor in made.values()):
            return made
        size_bytes = sum(tensor.nbytes for tensor in made.values())
        if files.add(facts, ref, size_bytes, lambda path: _write_compared(path, made)) is None:
            return made
    return _map_derived(files, facts, verify) or made


def _map_derived(files: DerivedFiles, facts: Mapping[str, Any], verify: Verify) -> Tensors | None:
    path = files.find(facts, verify)
    if path is None:
        return None
    try:
        tensors: Tensors = load_file(path)
    except (OSError, SafetensorError) as error:  # it was removed or replaced this very moment
        _log.debug("%s cannot be mapped: %s", path, error)
        return None
    return tensors


def _write_compared(path: Path, tensors: Tensors) -> str:
    """Write tensors as safetensors, read them back and compare every bit; return the file's SHA-256, in hex."""
    digest = _write(path, tensors)
    written = load_file(path)
    if set(written) != set(tensors) or not all(_is_same(written[name], tensors[name]) for name in tensors):
        raise ArtifactCorrupt(f"{path} was not written as it should.", digest=digest, hint="Check the disk.")
    return digest


def _write(path: Path, tensors: Tensors) -> str:
    ordered = sorted(
        tensors, key=lambda name: tensors[name].nbytes % _ALIGNMENT != 0
    )  # the others would shift the rest
    header = make_header(
        (name, _DTYPES[tensors[name].dtype], tuple(tensors[name].shape), tensors[name].nbytes) for name in ordered
    )
    text = header[8:] + b" " * (-len(header) % _ALIGNMENT)
    total = hashlib.sha256()
    with path.open("xb") as file:
        for part in (len(text).to_bytes(8, "little"), text, *(_view_bytes(tensors[name]) for name in ordered)):
            file.write(part)
            total.update(part)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    return total.hexdigest()


def _view_bytes(tensor: torch.Tensor) -> Any:
    """Return the tensor's bytes as a buffer, without copying them."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare bits, so that -0.0 is not 0.0 and NaN is itself."""
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
