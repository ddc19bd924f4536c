"""What the scenarios strike: small registries, sources for them, and children that act and note what they were told.

All is made once, in a process that has imported torch and transformer-lens; children are forked from it, so that a
fault costs a tenth of a second and not ten. The sources are TransformerLens checkpoints, registered with
`parity="skip"`: what is struck is how bytes and rows are written, and that is the same for every source.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from registry import Registry, RegistryError, save_network
from registry.files import open_files
from tests.checkpoints import make_tokenizer
from tests.faults.invariant import find_breaches, read_acknowledged

N_SOURCES = 6
_D_VOCAB = 23


@dataclass(frozen=True)
class Home:
    """A registry in a folder: the database and the store beside it."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "registry.db"

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    @contextmanager
    def open(self) -> Iterator[Registry]:
        """Open it, as a process of its own does."""
        registry = Registry(str(self.database), self.store)
        try:
            yield registry
        finally:
            registry.close()


@dataclass(frozen=True)
class Prepared:
    """Sources whose weights differ, and a registry that holds the first of them as base@v1."""

    sources: tuple[Path, ...]
    home: Home


@cache
def prepare() -> Prepared:
    """Make sources and a registry, once for this process and for all that are forked from it."""
    folder = Path(tempfile.mkdtemp(prefix="lensreg-workload-"))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    sources = [_save_source(folder / "source0")]
    for index in range(1, N_SOURCES):
        source = Path(shutil.copytree(sources[0], folder / f"source{index}"))
        generator = torch.Generator().manual_seed(index)
        tensors = load_file(source / "model.safetensors")
        other = {name: one + torch.randn(one.shape, generator=generator) for name, one in tensors.items()}
        save_file(other, source / "model.safetensors", metadata={"format": "pt"})
        sources.append(source)
    home = Home(folder / "home")
    with home.open() as registry:
        registry.register("base", sources[0], parity="skip")
        registry.set_alias("base@first", "base@v1")
        open_files(registry.store, registry.version("base@v1"))
    gc.collect()
    gc.freeze()  # what children do not touch they need no copy of
    return Prepared(tuple(sources), home)


def make_home(folder: Path) -> Home:
    """Copy the prepared registry into `folder`, which must not be there yet."""
    return Home(Path(shutil.copytree(prepare().home.folder, folder, symlinks=True)))


def make_source(folder: Path, rng: random.Random) -> Path:
    """Make a source with weights of its own: what is lost of it, nobody heals by registering the same."""
    shutil.copytree(prepare().sources[0], folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(struct.pack("<4f", *(rng.uniform(-1, 1) for _ in range(4))))
    return folder


def register(registry: Registry, name: str, source: Path, acknowledged: Path | None = None) -> str:
    """Register, and note the ref in the file `acknowledged` once `register` has returned; return it."""
    version = registry.register(name, source, parity="skip").version
    ref = version.ref if version else ""
    if acknowledged is not None:
        acknowledge(acknowledged, ref)
    return ref


def acknowledge(path: Path, what: str) -> None:
    """Append a line that outlives this process and a power cut, as whoever was told would remember it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, (json.dumps(what) + "\n").encode())
    os.fsync(descriptor)
    os.close(descriptor)


def fork(work: Callable[[], None], said: Path) -> int:
    """Do `work` in a child and return its id; what it raises is appended to the file `said`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        gc.disable()
        warnings.simplefilter("ignore")
        work()
        status = 0
    except BaseException as error:  # noqa: BLE001 it is told there, and this process ends
        typed = f"typed {error.code}" if isinstance(error, RegistryError) else "untyped"
        acknowledge(said, f"{typed}: {''.join(traceback.format_exception(error))}")
    finally:
        os._exit(status)


def inspect(home: Home, acknowledged: Path | None = None) -> list[str]:
    """Return every breach: of the invariant, blobs that are not what their names say, versions that cannot be opened.

    A blob that no version names is what gc removes; but registering the same content relies on its name.
    """
    with home.open() as registry:
        try:
            broken = find_breaches(registry, read_acknowledged(acknowledged) if acknowledged else ())
            for model in registry.models():
                for version in registry.history(model.name):
                    open_files(registry.store, registry.version(version.ref))
        except RegistryError as error:
            return [f"{type(error).__name__}: {error.message}"]
    return broken + find_unexplained(home)


def find_unexplained(home: Home) -> list[str]:
    """Return blobs that are not what their names say, whether a version names them or not."""
    blobs = [path for path in (home.store / "blobs").rglob("*") if not path.is_dir()]
    lying = [path for path in blobs if sha256(path.read_bytes()).hexdigest() != path.name]
    return [f"the blob {path.name[:16]} has {path.stat().st_size} bytes that are not its own" for path in lying]


def collect(home: Home) -> list[str]:
    """Collect garbage with nobody at work, and return what it leaves, or takes away."""
    with home.open() as registry:
        registry.gc(registry.plan_gc(grace=timedelta(0)))
        plan = registry.plan_gc(grace=timedelta(0))
        left = [*(one.digest for one in plan.blobs), *(one.place for one in plan.leftovers)]
        faults = registry.verify(read_data=True).faults
    return [f"gc leaves {one}" for one in left] + [f"after gc: {fault.message}" for fault in faults]


def find_untyped(said: Path) -> list[str]:
    """Return what children raised that is none of our errors."""
    return [one for one in read_acknowledged(said) if one.startswith("untyped")]


def _save_source(folder: Path) -> Path:
    import transformers
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    transformers.utils.logging.disable_progress_bar()  # or the children show one for each checkpoint that they save
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_mlp=16, d_vocab=_D_VOCAB, act_fn="gelu_new",
        normalization_type="LN", seed=0, tokenizer_prepends_bos=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformer-lens 4 will have no HookedTransformer
        network = HookedTransformer(cfg)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    save_network(network, folder)
    make_tokenizer(_D_VOCAB).save_pretrained(folder)
    return folder
