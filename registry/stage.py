"""Stage a source: copy its files into a working folder, digesting them and their tensors in the same pass.

What is staged here is what gets converted, verified, and made blobs; the source itself is not read again.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.checkpoint import Checkpoint
from registry.digests import Range
from registry.errors import SourceChanged
from registry.families.family import Family
from registry.progress import Counter, Progress
from registry.sources import Source, SourceFile
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.sources.hub_snapshot import refuse_cached
from registry.sources.huggingface import CONFIG
from registry.sources.json_file import read_json_object
from registry.store import LocalStore, StagedFile
from registry.versions import StoredFile
from registry.weights import Advance, TensorHeader, digest_file, digest_tensors, digest_weights, read_header

_LARGE_BYTES = 4 * 2**30
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
    """The tensors by the names transformers uses today, or HookedTransformer's own, with the digest of their bytes.

    The digest is None if only headers are known; `digests` are those of the single tensors. A tied head that repeats
    the embedding is left out.
    """

    tensors: Mapping[str, TensorHeader]
    digest: str | None
    digests: Mapping[str, str] = field(default_factory=dict)

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


def refuse_misfits(checkpoint: Checkpoint) -> None:
    """Compare the tensors of a large checkpoint with its config by their headers, before hours go into copying it.

    Of a small one that is found out afterwards, and what is there already is found without the libraries it takes.
    """
    family, tensors = checkpoint.family, checkpoint.source.tensors
    if family is not None and sum(tensor.size_bytes for tensor in tensors.values()) > _LARGE_BYTES:
        from registry.networks import check_tensors

        check_tensors(family, checkpoint.values, describe_weights(family, checkpoint.values, tensors).tensors)


def stage_files(
    store: LocalStore,
    source: Source,
    family: Family | None,
    folder: Path,
    *,
    link: bool,
    lazy: bool,
    dry_run: bool,
    progress: Progress,
) -> Files:
    """Copy the files into the working folder, digesting them and their tensors on the way.

    A dry run reads them where they are.

    Files that are elsewhere are fetched first; with `lazy` the weights stay there, under the digest that is stated.
    """
    kept = folder / "files"
    kept.mkdir()
    left = [file for file in source.remote if lazy and file.role == "weights" and file.stated_digest]
    stored = [StoredFile(file.name, file.role, file.stated_digest or "", file.size_bytes) for file in left]
    files = [*source.files, *_fetch(source, {file.name for file in left}, progress)]
    if dry_run:
        for file in files:
            if file.stated_digest:
                check_stated(file, digest_file(file.path))
            (kept / file.name).symlink_to(file.path)
            stored.append(StoredFile(file.name, file.role, "", 0))
        return Files(kept, tuple(stored), ())
    counter = Counter(progress, "copying", sum(file.path.stat().st_size for file in files))
    staged = []
    for file in files:
        one = stage_file(store, file, family, kept / file.name, link=link, unpacked_in=folder, advance=counter.advance)
        staged.append(one)
        stored.append(StoredFile(file.name, file.role, one.digest, one.size_bytes))
    config = HOOKED_CONFIG if source.layout == "hooked" else CONFIG
    if read_json_object(kept / config) != source.config:
        raise SourceChanged(
            f"{source.location} was written to while it was being read.",
            hint="Register it again when nothing writes to it any more. Nothing was stored.",
        )
    return Files(kept, tuple(stored), tuple(staged))


def stage_file(
    store: LocalStore,
    file: SourceFile,
    family: Family | None,
    target: Path,
    *,
    link: bool,
    unpacked_in: Path,
    advance: Advance,
) -> StagedFile:
    """Copy one file to `target`, with the digests of its tensors, and refuse other bytes than are stated for it.

    What was unpacked into the working folder is linked, and so are fetched weights where the file system allows: they
    lie in a cache that replaces its files and never writes into them. Somebody who does is found out at the next load.
    """
    unpacked_here = file.path.is_relative_to(unpacked_in)
    if unpacked_here:  # else the blob that it becomes could be written to
        file.path.chmod(file.path.stat().st_mode & ~0o222)
    fetched = file.stated_digest is not None and file.role == "weights"
    one = store.copy_in(
        file.path,
        target,
        ranges=_find_ranges(family, file),
        link=link or unpacked_here or fetched,
        or_copy=fetched and not link,
        advance=advance,
    )
    check_stated(file, one.digest)
    return one


def _find_ranges(family: Family | None, file: SourceFile) -> list[Range]:
    """List where the tensors lie that will be digested, if the file is still the same when it is copied."""
    if file.role != "weights":
        return []
    tensors = read_header(file.path)
    if family is not None:
        tensors = family.canonical_headers(tensors)
    return [(tensor.start, tensor.size_bytes) for tensor in tensors.values()]


def check_stated(file: SourceFile, digest: str) -> None:
    """Raise MalformedArtifact if the file is not the one whose digest is stated where it was fetched."""
    if file.stated_digest is not None and digest != file.stated_digest:
        raise refuse_cached(file.name, file.path)


def _fetch(source: Source, left: set[str], progress: Progress) -> list[SourceFile]:
    wanted = [file for file in source.remote if file.name not in left]
    if source.fetch is None or not wanted:
        return []
    paths = source.fetch((file.name for file in wanted), progress)
    return [SourceFile(file.name, paths[file.name], file.role, file.stated_digest) for file in wanted]


def digest_staged_weights(
    family: Family,
    values: Mapping[str, Any],
    files: Sequence[Path],
    progress: Progress,
    staged: Sequence[StagedFile] = (),
) -> Weights:
    """Digest the tensors that count: without ignored buffers, and without a tied head that repeats the embedding.

    What was digested when it was staged is not read again.
    """
    headers: dict[str, TensorHeader] = {}
    for file in files:
        headers |= read_header(file)
    tensors = family.canonical_headers(headers)
    digests = _digest_tensors(tensors, staged, progress)
    embedding, head = family.tied
    if values.get("tie_word_embeddings") and digests.get(head) == digests.get(embedding):
        digests.pop(head, None)
        tensors.pop(head, None)
    return Weights(tensors, digest_weights(tensors, digests), digests)


def describe_weights(family: Family, values: Mapping[str, Any], headers: Mapping[str, TensorHeader]) -> Weights:
    """Describe by their headers alone the tensors that count; a tied head shaped like the embedding should repeat it.

    If it does not, that is found when the bytes are there, and refused.
    """
    tensors = family.canonical_headers(headers)
    embedding, head = (tensors.get(name) for name in family.tied)
    same_form = head and embedding and (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    if values.get("tie_word_embeddings") and same_form:
        del tensors[family.tied[1]]
    return Weights(tensors, None)


def digest_staged_hooked_weights(
    files: Sequence[Path], progress: Progress, staged: Sequence[StagedFile] = ()
) -> Weights:
    """Digest the tensors of a hooked checkpoint, of which nothing is stored but what counts."""
    tensors: dict[str, TensorHeader] = {}
    for file in files:
        tensors |= read_header(file)
    digests = _digest_tensors(tensors, staged, progress)
    return Weights(tensors, digest_weights(tensors, digests), digests)


def _digest_tensors(
    tensors: Mapping[str, TensorHeader], staged: Sequence[StagedFile], progress: Progress
) -> dict[str, str]:
    """Return the digests of the tensors' bytes by name: those known from staging, and the others by reading."""
    known = {(file.path, *place): digest for file in staged for place, digest in file.ranges.items()}
    digests, unknown = {}, []
    for name, tensor in tensors.items():
        digest = known.get((tensor.file, tensor.start, tensor.size_bytes))
        if digest is None:
            unknown.append(tensor)
        else:
            digests[name] = digest
    if unknown:
        counter = Counter(progress, "hashing", sum(tensor.size_bytes for tensor in unknown))
        digests |= digest_tensors(unknown, counter.advance)
    return digests
