"""The weights of a Hugging Face folder, in whatever form training left them: as safetensors files with today's names.

One file or shards with an index, safetensors or pickles, with or without a wrapper's prefix. Where a folder holds both
safetensors and pickles, they must be the same weights, or the caller says which ones count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact, RegistryError, SourceError, SourceNotFound, UnsupportedSource
from registry.sources.json_file import read_json_object
from registry.sources.pickles import note_pickles, unpickle_weights
from registry.sources.source import Finding, SourceFile, SourceOptions
from registry.sources.wrappers import copy_without_prefix, find_prefix, note_prefix
from registry.weights import MAX_TENSORS, TensorHeader, digest_tensors, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_LISTED = 2 * MAX_TENSORS


@dataclass(frozen=True)
class _Format:
    """The names of one kind of weights in a folder."""

    name: str
    singles: tuple[str, ...]
    index: str
    all: tuple[str, ...]
    shard: re.Pattern[str]


_SAFETENSORS = _Format(
    "safetensors",
    (WEIGHTS,),
    INDEX,
    ("model*.safetensors",),
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors"),
)
# the second name is what accelerate gives to what it gathered from FSDP
_BIN = _Format(
    "bin",
    ("pytorch_model.bin", "pytorch_model_fsdp.bin"),
    "pytorch_model.bin.index.json",
    ("pytorch_model.bin", "pytorch_model_fsdp.bin", "pytorch_model-*.bin"),
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.bin"),
)


@dataclass(frozen=True)
class FolderWeights:
    """The files to keep, the headers of their tensors, and what is worth knowing about how they were read."""

    files: tuple[SourceFile, ...]
    tensors: Mapping[str, TensorHeader]
    findings: tuple[Finding, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def has_weights(folder: Path) -> bool:
    """Say whether a folder holds weights under one of Hugging Face's names."""
    return _is_in(folder, _SAFETENSORS) or _is_in(folder, _BIN)


def read_weights(folder: Path, scratch: Path, options: SourceOptions) -> FolderWeights:
    """Read the weights of a folder; what has to be written anew goes into folders of its own in `scratch`.

    Raises SourceNotFound, UnsupportedSource, MalformedArtifact or UnsafeArtifact.
    """
    has_safetensors, has_bin = _is_in(folder, _SAFETENSORS), _is_in(folder, _BIN)
    if options.weights == "bin" or (has_bin and not has_safetensors and options.weights is None):
        return _read_bin(folder, scratch)
    weights = _read_safetensors(folder, scratch)
    if has_bin and options.weights is None:
        pickles = min(_glob(folder, _BIN) | {_BIN.index})
        return compare_pickles(folder, weights, pickles, lambda: _read_bin(folder, scratch))
    return weights


def compare_pickles(
    folder: Path, weights: FolderWeights, pickles: str, read_pickles: Callable[[], FolderWeights]
) -> FolderWeights:
    """Refuse `pickles` beside safetensors unless they hold the same weights, a tied head written twice allowed for.

    Raises UnsupportedSource, also if the pickles cannot be read.
    """
    both = f"{folder} has both safetensors and {pickles}"
    try:
        other = read_pickles()
    except SourceError as error:
        raise _refuse_both(f"{both}, and they cannot be compared: {error.message}", folder) from error
    ours, theirs = digest_tensors(weights.tensors.values()), digest_tensors(other.tensors.values())
    every, shared = {**theirs, **ours}, {ours[name] for name in ours if name in theirs}
    different = [
        name
        for name in sorted({*ours, *theirs})
        if _describe(name, weights, ours) != _describe(name, other, theirs)
        and not ((name not in ours or name not in theirs) and every[name] in shared)
    ]
    if different:
        raise _refuse_both(
            f"{both}, and they hold different weights: {len(different)} tensors differ, such as {different[0]}.", folder
        )
    note = Finding("both-formats", f"{pickles} beside the safetensors holds the same weights; it is not kept.")
    return FolderWeights(weights.files, weights.tensors, (*weights.findings, note))


def write_weights_index(files: Sequence[Path], folder: Path) -> SourceFile:
    """Write the index of shards, as transformers would."""
    headers = {file.name: read_header(file) for file in files}
    index = {
        "metadata": {"total_size": sum(one.size_bytes for header in headers.values() for one in header.values())},
        "weight_map": {tensor: name for name, header in headers.items() for tensor in header},
    }
    path = folder / _SAFETENSORS.index
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return SourceFile(path.name, path, "config")


def _is_in(folder: Path, kind: _Format) -> bool:
    return (folder / kind.index).is_file() or bool(_glob(folder, kind))


def _glob(folder: Path, kind: _Format) -> set[str]:
    return {path.name for pattern in kind.all for path in folder.glob(pattern)}


def _read_safetensors(folder: Path, scratch: Path) -> FolderWeights:
    files, listed = _list_files(folder, _SAFETENSORS)
    headers = {file: read_header(file) for file in files}
    if listed:
        for file in files:
            _check_listed(folder, _SAFETENSORS, file.name, listed[file.name], set(headers[file]))
    prefix = find_prefix(name for header in headers.values() for name in header)
    if prefix:
        unwrapped = scratch / "unwrapped"
        unwrapped.mkdir()
        for file in files:
            copy_without_prefix(headers[file], prefix, unwrapped / file.name)
        files = [unwrapped / file.name for file in files]
        headers = {file: read_header(file) for file in files}
    kept = [SourceFile(file.name, file, "weights") for file in files]
    if listed:
        index = folder / _SAFETENSORS.index
        written = write_weights_index(files, files[0].parent) if prefix else SourceFile(index.name, index, "config")
        kept = [written, *kept]
    return FolderWeights(tuple(kept), _join(headers.values()), tuple(note_prefix(prefix)))


def _read_bin(folder: Path, scratch: Path) -> FolderWeights:
    files, listed = _list_files(folder, _BIN)
    unpacked = scratch / "unpickled"
    unpacked.mkdir()
    names = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    targets = [unpacked / name for name in (names if listed else _SAFETENSORS.singles)]
    unpickled = unpickle_weights(files, targets, unpacked)
    headers = [read_header(target) for target in targets]
    if listed:
        for file, header in zip(files, headers, strict=True):
            found = {unpickled.prefix + name for name in header}
            _check_listed(folder, _BIN, file.name, listed[file.name], found)
    kept = [SourceFile(target.name, target, "weights") for target in targets]
    if listed:
        kept = [write_weights_index(targets, unpacked), *kept]
    return FolderWeights(
        tuple(kept),
        _join(headers),
        (*note_pickles(unpickled), *note_prefix(unpickled.prefix)),
        {"pickles": {file.pickle.name: file.digest for file in unpickled.files}},
    )


def _describe(name: str, weights: FolderWeights, digests: Mapping[str, str]) -> tuple[object, ...] | None:
    tensor = weights.tensors.get(name)
    return (tensor.dtype, tensor.shape, digests[name]) if tensor else None


def _refuse_both(what: str, folder: Path) -> RegistryError:
    return UnsupportedSource(
        what, hint="Say which ones count: --weights safetensors or --weights bin.", path=str(folder)
    )


def _list_files(folder: Path, kind: _Format) -> tuple[list[Path], dict[str, set[str]]]:
    """List the one file, or the shards with the names of the tensors that the index says they hold."""
    singles = [folder / name for name in kind.singles if (folder / name).is_file()]
    index = folder / kind.index
    if len(singles) + index.is_file() > 1:
        both = [*(file.name for file in singles), *([kind.index] if index.is_file() else [])]
        raise MalformedArtifact(
            f"{folder} has both {both[0]} and {both[1]}, and they may hold different weights.",
            hint="Move the one that is out of date away.",
            path=str(folder),
        )
    if index.is_file():
        listed = _read_index(folder, kind)
        return [folder / shard for shard in sorted(listed)], listed
    if not singles:
        raise SourceNotFound(
            f"{folder} has no {kind.singles[0]} and no {kind.index}.",
            hint="Save the model with save_pretrained, all of its shards and their index.",
            path=str(folder),
        )
    return singles, {}


def _read_index(folder: Path, kind: _Format) -> dict[str, set[str]]:
    weight_map = read_json_object(folder / kind.index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index("it has no weight_map", folder, kind)
    if len(weight_map) > _MAX_LISTED:
        raise _bad_index(f"it lists {len(weight_map):,} tensors", folder, kind)
    listed: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        listed.setdefault(str(shard), set()).add(name)
    for shard in sorted(listed):
        if not kind.shard.fullmatch(shard):
            raise _bad_index(f"it names {shard[:80]!r}, which is no file of this folder", folder, kind)
        if not (folder / shard).is_file():
            raise _bad_index(f"the shard {shard} is missing", folder, kind)
    stray = _glob(folder, kind) - set(listed)
    if stray:
        raise _bad_index(f"the folder has {min(stray)}, which it does not list", folder, kind)
    return listed


def _check_listed(folder: Path, kind: _Format, shard: str, listed: set[str], found: set[str]) -> None:
    wrong = sorted(listed ^ found)
    if wrong:
        raise _bad_index(f"it and {shard} disagree about {len(wrong)} tensors, such as {wrong[0][:80]!r}", folder, kind)


def _join(headers: Sequence[Mapping[str, TensorHeader]] | Any) -> dict[str, TensorHeader]:
    return {name: tensor for header in headers for name, tensor in header.items()}


def _bad_index(what: str, folder: Path, kind: _Format) -> MalformedArtifact:
    return MalformedArtifact(
        f"{kind.index} cannot be used: {what}.",
        hint="Copy or save the checkpoint again, with all of its shards.",
        path=str(folder / kind.index),
    )
