"""A case of the corpus: how to make it out of a whole checkpoint, and what the registry must say to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from registry.quiet import quiet

ACCEPTED = "accepted"
SECRET = b"SECRET-2b1f-that-belongs-to-nobody-but-its-owner"


@dataclass(frozen=True)
class Place:
    """Where a case is made: `source` is a copy of a whole checkpoint, `outside` is what it must not lead to.

    Whatever is meant to be run touches `sentinel`.
    """

    source: Path
    outside: Path
    sentinel: Path

    @property
    def secret(self) -> Path:
        """A file outside that no checkpoint may bring into a store."""
        return self.outside / "secret.json"


Make = Callable[[Place], Path | None]
"""Damages the checkpoint at the place; returns what is to be registered if that is not the place's source."""


@dataclass(frozen=True)
class Case:
    """One hostile file or folder.

    `base` is the kind of checkpoint that it is made from; `verdict` the code of the error, or ACCEPTED, with the code
    of the `finding` that must be among those recorded; `words` must be in the error's message. `options` are given to
    `register`, `check` and `identify` alike. `as_nobody` is for what root may do: it is judged without root's rights.
    """

    name: str
    group: str
    make: Make
    verdict: str
    words: str = ""
    base: str = "huggingface"
    finding: str = ""
    parent: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    only_register: bool = False
    as_nobody: bool = False


def make_place(root: Path, base: str) -> Place:
    """Make a place for a case in `root`, with a copy of the checkpoint of the kind `base`."""
    source = root / "source"
    whole = save_whole(base)
    if whole.is_dir():
        shutil.copytree(whole, source, symlinks=True)
    else:
        source.mkdir()
        shutil.copy(whole, source)
    place = Place(source, root / "outside", root / "sentinel")
    place.outside.mkdir()
    place.secret.write_bytes(b'{"password": "' + SECRET + b'"}')
    return place


@cache
def save_whole(base: str) -> Path:
    """Save a checkpoint of this kind that is as it should be, once in a process."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="lensreg-whole-")) / base
    with quiet():
        return _WHOLE[base](folder)


def _save_huggingface(folder: Path) -> Path:
    from tests.checkpoints import save_checkpoint

    save_checkpoint(folder, "gpt2")
    (folder / "trainer_state.json").write_text('{"global_step": 7, "log_history": []}')
    return folder


def _save_shards(folder: Path) -> Path:
    from tests.checkpoints import save_checkpoint

    save_checkpoint(folder, "gpt2", max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def _save_pickle(folder: Path) -> Path:
    import torch
    from safetensors.torch import load_file

    _save_huggingface(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _save_adapter(folder: Path) -> Path:
    from tests.adapters import make_adapted, save_adapter

    return save_adapter(folder, make_adapted("gpt2", target_modules=["c_attn"], r=2, fan_in_fan_out=True))


def _save_hooked(folder: Path) -> Path:
    from registry.save import save_network
    from tests.networks import make_hooked

    return save_network(make_hooked(), folder)


def _save_gguf(folder: Path) -> Path:
    from tests.checkpoints import make_network
    from tests.gguf_files import write_gguf

    folder.mkdir()
    return write_gguf(folder / "model.gguf", make_network("gpt2"))


def _save_pieces(folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    _save_huggingface(folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    dcp.save({"model": tensors}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)
    (folder / "model.safetensors").unlink()
    return folder


def _save_hub_cache(folder: Path) -> Path:
    """Lay a checkpoint out as the Hub cache does: every file a link to a blob."""
    plain = folder / "plain"
    _save_huggingface(plain)
    home = folder / "models--org--name"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for index, path in enumerate(sorted(plain.iterdir())):
        shutil.move(path, home / "blobs" / f"{index:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{index:040x}")
    plain.rmdir()
    return folder


_WHOLE: dict[str, Callable[[Path], Path]] = {
    "huggingface": _save_huggingface,
    "shards": _save_shards,
    "pickle": _save_pickle,
    "adapter": _save_adapter,
    "hooked": _save_hooked,
    "gguf": _save_gguf,
    "pieces": _save_pieces,
    "hub-cache": _save_hub_cache,
}
BASES = tuple(_WHOLE)
SNAPSHOT = "models--org--name/snapshots/" + "0" * 40
