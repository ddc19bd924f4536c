"""Stage a source: copy its files into a working folder, hashing them on the way, and digest its tensors.

What is staged here is what gets converted, verified, and made blobs; the source itself is not read again.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import SourceChanged
from registry.families.family import Family
from registry.progress import Counter, Progress
from registry.sources import Source
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.sources.huggingface import CONFIG
from registry.sources.json_file import read_json_object
from registry.store import LocalStore, StagedFile
from registry.versions import StoredFile
from registry.weights import TensorHeader, digest_tensors, digest_weights, read_header

_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Files:
    """The files to be kept: `folder` holds them under their own names, and `staged` those that may become blobs."""

    folder: Path
    stored: tuple[StoredFile, ...]
    staged: tuple[StagedFile, ...]

    def paths(self, role: str) -> list[Path]:
        """Return where the files with this role can be read."""
        return [self.folder / file.name for file in self.stored if file.role == role]


@dataclass(frozen=True)
class Weights:
    """The tensors by the names transformers uses today, or HookedTransformer's own, with the digest of their bytes."""

    tensors: Mapping[str, TensorHeader]
    digest: str

    @property
    def n_parameters(self) -> int:
        """How many numbers there are."""
        return sum(tensor.n_parameters for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtypes that occur, by torch's names, joined by `+`."""
        return "+".join(sorted({_DTYPE_NAMES.get(tensor.dtype, tensor.dtype) for tensor in self.tensors.values()}))


@contextlib.contextmanager
def open_working_folder(store: LocalStore, *, dry_run: bool) -> Iterator[Path]:
    """Give a folder on the store's file system, or for a dry run, which must not touch the store, anywhere else."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="lensreg-") as name:
            yield Path(name)
    else:
        with store.stage() as folder:
            yield folder


def stage_files(
    store: LocalStore, source: Source, folder: Path, *, link: bool, dry_run: bool, progress: Progress
) -> Files:
    """Copy the files into the working folder, hashing them on the way; a dry run reads them where they are."""
    kept = folder / "files"
    kept.mkdir()
    if dry_run:
        for file in source.files:
            (kept / file.name).symlink_to(file.path)
        return Files(kept, tuple(StoredFile(file.name, file.role, "", 0) for file in source.files), ())
    counter = Counter(progress, "copying", source.size_bytes)
    staged, stored = [], []
    for file in source.files:
        unpacked_here = file.path.is_relative_to(folder)
        one = store.copy_in(file.path, kept / file.name, link=link or unpacked_here, advance=counter.advance)
        staged.append(one)
        stored.append(StoredFile(file.name, file.role, one.digest, one.size_bytes))
    config = HOOKED_CONFIG if source.layout == "hooked" else CONFIG
    if read_json_object(kept / config) != source.config:
        raise SourceChanged(
            f"{source.location} was written to while it was being read.",
            hint="Register it again when nothing writes to it any more. Nothing was stored.",
        )
    return Files(kept, tuple(stored), tuple(staged))


def digest_staged_weights(
    family: Family, values: Mapping[str, Any], files: Sequence[Path], progress: Progress
) -> Weights:
    """Digest the tensors that count: without ignored buffers, and without a tied head that repeats the embedding."""
    headers: dict[str, TensorHeader] = {}
    for file in files:
        headers |= read_header(file)
    names = family.canonical_names(headers)
    counter = Counter(progress, "hashing", sum(headers[name].size_bytes for name in names))
    by_name = digest_tensors((headers[name] for name in names), counter.advance)
    digests = {names[name]: digest for name, digest in by_name.items()}
    tensors = {canonical: headers[name] for name, canonical in names.items()}
    embedding, head = family.tied
    if values.get("tie_word_embeddings") and digests.get(head) == digests.get(embedding):
        digests.pop(head, None)
        tensors.pop(head, None)
    return Weights(tensors, digest_weights(tensors, digests))


def digest_staged_hooked_weights(files: Sequence[Path], progress: Progress) -> Weights:
    """Digest the tensors of a hooked checkpoint, of which nothing is stored but what counts."""
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        tensors |= read_header(file)
    counter = Counter(progress, "hashing", sum(tensor.size_bytes for tensor in tensors.values()))
    return Weights(tensors, digest_weights(tensors, digest_tensors(tensors.values(), counter.advance)))
