"""What the tests of derived files share: the plain way to load, and what they compare."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from registry import Registry
from registry.store.derived import DerivedFile, DerivedFiles
from tests.checkpoints import D_VOCAB

TOKENS = torch.arange(80).reshape(2, 40) * 7 % D_VOCAB


def register_one(registry: Registry, checkpoint: Path) -> Registry:
    """Register one version, `m`, whose blobs are no longer young."""
    registry.register("m", checkpoint, parity="skip")
    for blob in (registry.store.root / "blobs").rglob("*"):
        os.utime(blob, (1_700_000_000, 1_700_000_000))
    return registry


def load_plainly(registry: Registry, ref: str, **options: Any) -> Any:
    """Load without derived files."""
    plain = Registry(str(registry._unprepared.url.database), registry.store.root)
    plain.derived = DerivedFiles(plain.store, 0)
    before = plain.cached()
    network = plain.load(ref, **options)
    assert plain.cached() == before
    plain.close()
    return network


def mapped_files() -> set[str]:
    """Return the derived files that this process has mapped."""
    return set(re.findall(r"/derived/\S+\.safetensors", Path("/proc/self/maps").read_text()))


def assert_same(ours: Any, plain: Any) -> None:
    """The same parameters, buffers, logits and cached activations, bit for bit, and the same config."""
    assert set(ours.state_dict()) == set(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        other = ours.state_dict()[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape) and torch.equal(other, tensor), name
    assert ours.cfg.to_dict() == plain.cfg.to_dict()
    assert [name for name, one in ours.named_parameters() if not one.requires_grad] == []
    tokens = TOKENS[:, : plain.cfg.n_ctx]
    with torch.no_grad():
        (logits, cache), (expected, plain_cache) = ours.run_with_cache(tokens), plain.run_with_cache(tokens)
    assert torch.equal(logits, expected) and not ours.training
    assert set(cache) == set(plain_cache) and len(cache) > 20
    for name in plain_cache:
        assert torch.equal(cache[name], plain_cache[name]), name


def only(registry: Registry) -> DerivedFile:
    """Return the only derived file there is."""
    (file,) = registry.cached()
    return file


def flip(path: Path, *, restore: bool) -> None:
    """Flip a bit near a file's end; with `restore` its times stay as they were."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))
    if restore:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
