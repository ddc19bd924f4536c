"""A model on the Hugging Face Hub, pinned to the commit that its revision is now.

Opening it fetches config.json (and the index of shards) and reads safetensors headers by their first bytes; the rest
is fetched when it is staged, or with --lazy at the first load. What keeps its weights otherwise, as pickles, as an
adapter, or under names with a wrapper's prefix, is fetched whole and opened as the folder it then is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.errors import InvalidInput, MalformedArtifact, SourceError, SourceUnreachable, UnsupportedSource
from registry.progress import no_progress
from registry.sources.hub_id import PREFIX, HubId
from registry.sources.hub_snapshot import Snapshot, find_snapshot, is_cached, refuse_cached, remember_revision
from registry.sources.huggingface import CONFIG, TOKENIZER_FILES, has_vocabulary, refuse_adapter_layers
from registry.sources.json_file import read_json_object
from registry.sources.quantised import refuse_packed_tensors, refuse_quantised_config
from registry.sources.source import Finding, RemoteFile, Role, Source, SourceFile, SourceOptions
from registry.sources.weight_files import INDEX, WEIGHTS
from registry.sources.wrappers import find_prefix, note_prefix
from registry.weights import TensorHeader, digest_file

GENERATION = "generation_config.json"
_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_BIN_FILE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def open_hub(
    hub_id: HubId, location: str, options: SourceOptions, open_folder: Callable[[Path], Source], scratch: Path
) -> Source:
    """Open a model on the Hub; `open_folder` opens what had to be fetched whole, into a folder within `scratch`.

    Raises SourceNotFound, AccessDenied or SourceUnreachable if it cannot be had, InvalidInput if it
    is only to be looked at and does not keep safetensors that can be, and what opening a folder raises.
    """
    snapshot = find_snapshot(hub_id.repo, hub_id.revision)
    source = _open_safetensors(snapshot, location, options) if _has_safetensors(snapshot, options) else None
    if source is None:
        source = _open_fetched(snapshot, open_folder, scratch / "hub", options)
    return replace(
        source,
        kind="hub",
        location=location,
        step=source.step if source.step is not None else hub_id.step,
        findings=(*source.findings, *_find_notable(snapshot)),
        provenance={**source.provenance, **describe_origin(snapshot)},
    )


def describe_origin(snapshot: Snapshot) -> dict[str, Any]:
    """Say where the bytes come from, for the version's record."""
    return {"repo": snapshot.repo, "revision": snapshot.revision, "commit": snapshot.commit}


def find_shadowed(hub_id: HubId | None, folder: Path) -> list[Finding]:
    """Point out that a folder was read although the Hub cache holds a model of the same spelling."""
    if hub_id is None or not is_cached(hub_id.repo, hub_id.revision):
        return []
    message = (
        f"{hub_id} was read from the folder {folder}, and not from the model of that name in your Hub cache; "
        f"the latter is {PREFIX}{hub_id}."
    )
    return [Finding("shadows-hub-model", message)]


def _has_safetensors(snapshot: Snapshot, options: SourceOptions) -> bool:
    """Choose how the weights are read: as safetensors, or (False) as something that must be fetched whole."""
    names = snapshot.files
    has_safetensors = WEIGHTS in names or INDEX in names
    has_bin = _BIN in names or _BIN_INDEX in names
    if has_safetensors and _ADAPTER_CONFIG in names:
        raise UnsupportedSource(
            f"{snapshot} holds an adapter and a model, and nobody can say which one is meant.",
            hint=f"Fetch the files you mean (hf download {snapshot.repo} --local-dir FOLDER) and register the folder.",
        )
    for one, other in ((WEIGHTS, INDEX), (_BIN, _BIN_INDEX)):
        if one in names and other in names:
            raise MalformedArtifact(
                f"{snapshot} has both {one} and {other}, and they may hold different weights.",
                hint=f"Fetch the ones you mean (hf download {snapshot.repo} --local-dir FOLDER).",
            )
    if has_safetensors and not (options.weights == "bin" and has_bin):
        return True
    if options.lazy or options.headers_only:
        raise InvalidInput(
            f"{snapshot} does not keep its weights as safetensors, so they cannot be looked at from afar.",
            hint="Leave out --lazy, or instead of `check` run `add --dry-run`: the weights must be fetched to be read.",
        )
    if not has_bin and _ADAPTER_CONFIG not in names:
        raise _refuse_missing(
            snapshot,
            f"it has no {WEIGHTS}, no {INDEX} and no {_BIN}",
            "A GGUF file is fetched by itself: hf download "
            f"{snapshot.repo} FILE.gguf --local-dir FOLDER; then register the file.",
        )
    return False


def _open_safetensors(snapshot: Snapshot, location: str, options: SourceOptions) -> Source | None:
    """Open what can stay on the Hub until it is staged; None if the files must be written anew, without a prefix."""
    if CONFIG not in snapshot.files:
        raise _refuse_missing(
            snapshot,
            f"it has no {CONFIG}, and the architecture is never guessed",
            "Ask its owner for the config.json that it was trained with.",
        )
    remember_revision(snapshot, CONFIG)
    read_now = [name for name in (CONFIG, INDEX) if name in snapshot.files]
    paths = snapshot.fetch(read_now, no_progress)
    config = read_json_object(paths[CONFIG])
    refuse_quantised_config(config)
    shards = _list_shards(snapshot, paths[INDEX]) if INDEX in paths else {}
    headers = snapshot.read_headers(sorted(shards) or [WEIGHTS])
    for shard, listed in shards.items():
        if listed != set(headers[shard]):
            wrong = sorted(listed ^ set(headers[shard]))
            raise _bad_index(snapshot, f"it and {shard} disagree about {len(wrong)} tensors, such as {wrong[0][:80]!r}")
    tensors: dict[str, TensorHeader] = {}
    for header in headers.values():
        tensors |= header
    refuse_adapter_layers(tensors)
    refuse_packed_tensors(tensors)
    prefix = find_prefix(tensors)
    if prefix and options.lazy:
        raise UnsupportedSource(
            f"The names of all tensors of {snapshot} have the prefix {prefix!r}, which a wrapper of training left: the "
            "files must be written anew without it, so they cannot be left on the Hub.",
            hint="Leave out --lazy.",
        )
    if prefix and not options.headers_only:
        return None
    remote = [_leave(snapshot, name, "weights") for name in headers]
    tokenizer = [name for name in TOKENIZER_FILES if name in snapshot.files]
    findings = note_prefix(prefix)
    if has_vocabulary(tokenizer):
        remote += [_leave(snapshot, name, "tokenizer") for name in tokenizer]
    else:
        findings.append(Finding("no-tokenizer", "The source has no tokenizer; the network will take token ids only."))
    if GENERATION in snapshot.files:
        remote.append(_leave(snapshot, GENERATION, "generation"))
    return Source(
        kind="hub",
        location=location,
        config=config,
        files=tuple(SourceFile(name, path, "config", snapshot.files[name].sha256) for name, path in paths.items()),
        tensors={name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
        findings=tuple(findings),
        remote=tuple(remote),
        fetch=snapshot.fetch,
    )


def _leave(snapshot: Snapshot, name: str, role: Role) -> RemoteFile:
    file = snapshot.files[name]
    return RemoteFile(name, role, file.size_bytes, file.sha256)


def _list_shards(snapshot: Snapshot, index: Path) -> dict[str, set[str]]:
    """Return which tensors each shard holds by the index; every shard must be a file that the Hub lists."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index(snapshot, "it has no weight_map")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _NAME.fullmatch(shard):
            raise _bad_index(snapshot, f"it names {str(shard)[:80]!r}, which is no file of this repository")
        if shard not in snapshot.files:
            raise _refuse_missing(
                snapshot, f"the shard {shard} is missing", "Take another revision, or ask the repository's owner."
            )
        shards.setdefault(shard, set()).add(name)
    return shards


def _open_fetched(
    snapshot: Snapshot, open_folder: Callable[[Path], Source], folder: Path, options: SourceOptions
) -> Source:
    """Fetch everything that may count into a folder, and open that."""
    names = snapshot.files
    small = [CONFIG, GENERATION, *TOKENIZER_FILES, _ADAPTER_CONFIG, *_ADAPTERS]
    wanted = [name for name in [*small, *_list_weights(snapshot, options)] if name in names]
    if CONFIG in names:
        remember_revision(snapshot, CONFIG)
    paths = snapshot.fetch(wanted, no_progress)
    folder.mkdir()
    for name, path in paths.items():
        _place(path, folder / name)
        stated = names[name].sha256
        if stated is not None and digest_file(folder / name) != stated:
            raise refuse_cached(name, path)
    try:
        return open_folder(folder)
    except SourceError as error:  # that folder will be gone, and nobody knows its name
        error.message = error.message.replace(str(folder), str(snapshot))
        raise


def _list_weights(snapshot: Snapshot, options: SourceOptions) -> list[str]:
    """List the files of the one form of the weights that counts, as `_has_safetensors` has chosen it."""
    if _has_safetensors(snapshot, options):
        if INDEX in snapshot.files:
            return [INDEX, *_list_shards(snapshot, snapshot.fetch([INDEX], no_progress)[INDEX])]
        return [WEIGHTS]
    return [_BIN_INDEX, *(name for name in snapshot.files if _BIN_FILE.fullmatch(name))]


def _place(path: Path, target: Path) -> None:
    """Put a file of the Hub cache into a folder, without copying it where the file system allows."""
    with contextlib.suppress(OSError):
        os.link(path, target)
        return
    shutil.copyfile(path, target)


def _find_notable(snapshot: Snapshot) -> list[Finding]:
    findings = []
    if (WEIGHTS in snapshot.files or INDEX in snapshot.files) and (
        _BIN in snapshot.files or _BIN_INDEX in snapshot.files
    ):
        message = f"{snapshot.repo} also keeps its weights as pickles; those were not looked at."
        findings.append(Finding("other-weights", message))
    if snapshot.not_asked is not None:
        names = ", ".join(name for name in TOKENIZER_FILES if name in snapshot.files) or "none"
        message = (
            f"The Hub was not asked ({snapshot.not_asked}) This is what the Hub cache holds of {snapshot.revision}, "
            f"commit {snapshot.commit[:12]}; the repository may have moved on. Tokenizer files in the cache: {names}."
        )
        findings.append(Finding("hub-not-asked", message))
    return findings


def _refuse_missing(snapshot: Snapshot, what: str, hint: str) -> UnsupportedSource | SourceUnreachable:
    """Make the error for a file that is not there; without the Hub's answer it may be there all the same."""
    if snapshot.not_asked is None:
        return UnsupportedSource(f"{snapshot} cannot be registered: {what}.", hint=hint)
    return SourceUnreachable(
        f"The Hub cache holds {snapshot} only in part: {what}. The Hub was not asked: {snapshot.not_asked}",
        hint=f"Try again with a network, or put it into the cache first: hf download {snapshot.repo}",
    )


def _bad_index(snapshot: Snapshot, what: str) -> MalformedArtifact:
    return MalformedArtifact(
        f"{INDEX} of {snapshot} cannot be used: {what}.",
        hint="The repository is not whole at this revision; take another, or ask its owner.",
    )
