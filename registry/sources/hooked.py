"""A TransformerLens state dict: its weights under plain names, with hooked_config.json, which says all the rest.

What is kept are the weights alone. Wrappers' prefixes are taken off, buffers are compared with what the architecture
makes of them and left out, and which processing the weights have gone through is told from the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from registry.errors import MalformedArtifact, UnsupportedSource
from registry.hooked_names import BUFFER, are_hooked, refuse_adapters, strip_wrappers, ungroup_names
from registry.hooked_weights import check_buffers, check_hooked_weights
from registry.processing import tell_processing
from registry.sources.hooked_architecture import read_hooked_description
from registry.sources.hooked_files import PICKLES, WEIGHTS, refuse_names
from registry.sources.hooked_json import HOOKED_CONFIG, HookedDescription
from registry.sources.huggingface import CONFIG, TOKENIZER_FILES, has_vocabulary
from registry.sources.pickles import note_pickles, unpickle_weights
from registry.sources.quantised import refuse_packed_tensors
from registry.sources.source import Finding, ParentVersion, Source, SourceFile, SourceOptions
from registry.sources.written_weights import write_weights
from registry.tokenizer_files import check_tokenizer_files
from registry.weights import TensorHeader, read_header


def read_hooked(
    path: Path,
    weights: Path,
    location: str,
    scratch: Path,
    parents: Sequence[ParentVersion] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Source:
    """Open the hooked weights in the file `weights`, which is `path` or in it; what must be written goes to `scratch`.

    Raises UnsupportedSource, WeightsMismatch, UnusableWeights or ArchitectureMismatch.
    """
    file, findings = _open_file(weights, scratch)
    headers = read_header(file)
    if not are_hooked(headers):
        raise refuse_names(weights)
    refuse_adapters(headers)
    names = strip_wrappers(headers)
    found = {one: headers[name] for name, one in names.items()}
    refuse_packed_tensors({name: tensor for name, tensor in found.items() if not BUFFER.fullmatch(name)})
    config = _find_config(path, options)
    stated = read_hooked_description(config, parents, found, location)
    names = ungroup_names(names, stated.architecture)
    whose = config.name if config else f"the architecture of {parents[0].version.ref}"
    described, kept, more = _examine(file, headers, names, stated, whose)
    describes_itself = config == path / HOOKED_CONFIG
    if describes_itself:
        _compare_processing(stated, described)
    tokenizer = _find_tokenizer(path, None if describes_itself else next(iter(parents), None))
    file = _write_weights(file, headers, kept, described, scratch)
    config_file = scratch / HOOKED_CONFIG
    return Source(
        kind="hooked",
        location=location,
        config=described.write(config_file),
        files=(
            SourceFile(HOOKED_CONFIG, config_file, "config"),
            SourceFile(WEIGHTS, file, "weights"),
            *tokenizer.files,
        ),
        tensors={one: headers[name] for name, one in kept.items()},
        findings=(*findings, *more, *tokenizer.findings),
        layout="hooked",
        provenance=tokenizer.provenance,
    )


def _find_config(path: Path, options: SourceOptions) -> Path | None:
    """Return the config that the caller gave or that lies in the folder."""
    inside = [path / name for name in (HOOKED_CONFIG, CONFIG) if path.is_dir() and (path / name).is_file()]
    if options.config is not None and inside and inside[0].name == HOOKED_CONFIG:
        raise UnsupportedSource(
            f"{path} has a {HOOKED_CONFIG} of its own, and another config was given.",
            hint="Leave --config out, or take that file out of the folder if it is wrong.",
            path=str(path),
        )
    return options.config or next(iter(inside), None)


def _examine(
    file: Path,
    headers: Mapping[str, TensorHeader],
    names: Mapping[str, str],
    described: HookedDescription,
    whose: str,
) -> tuple[HookedDescription, dict[str, str], list[Finding]]:
    """Check the tensors against the architecture, and tell what processing they have gone through.

    Returns the description with that, which tensors are weights, and what is worth knowing.
    """
    architecture = described.architecture
    kept = {name: one for name, one in names.items() if not BUFFER.fullmatch(one)}
    folded = check_hooked_weights(architecture, {one: headers[name] for name, one in kept.items()}, whose)
    tensors = load_file(file)
    check_buffers({one: tensors[name] for name, one in names.items() if name not in kept}, architecture)
    told = tell_processing({one: tensors[name] for name, one in kept.items()}, architecture, folded)
    findings = []
    if told.blurred:
        message = (
            f"{', '.join(told.blurred)} had been applied and the weights were trained on since; they stay as they are."
        )
        findings.append(Finding("trained-after-processing", message))
    return replace(described, processing=told.flags), kept, findings


def _compare_processing(stated: HookedDescription, told: HookedDescription) -> None:
    if stated.processing != told.processing:
        raise MalformedArtifact(
            f"{HOOKED_CONFIG} says that the weights have gone through {', '.join(stated.processing) or 'nothing'}, and "
            f"the weights themselves say {', '.join(told.processing) or 'nothing'}.",
            hint="Save the network again with registry.save_network.",
            path=HOOKED_CONFIG,
        )


def _open_file(weights: Path, scratch: Path) -> tuple[Path, list[Finding]]:
    """Return the safetensors file to read: the one that is there, or what a limited process makes of a pickle."""
    if weights.suffix not in PICKLES:
        return weights, []
    folder = scratch / "unpickled"
    folder.mkdir()
    unpickled = unpickle_weights([weights], [folder / WEIGHTS], folder)
    return folder / WEIGHTS, note_pickles(unpickled)


@dataclass(frozen=True)
class _Tokenizer:
    files: tuple[SourceFile, ...]
    findings: tuple[Finding, ...]
    provenance: Mapping[str, Any]


def _find_tokenizer(path: Path, parent: ParentVersion | None) -> _Tokenizer:
    """Return the tokenizer of the folder; a state dict without one was trained with its parent's."""
    names = [name for name in TOKENIZER_FILES if path.is_dir() and (path / name).is_file()]
    if has_vocabulary(names):
        check_tokenizer_files(path / name for name in names)
        return _Tokenizer(tuple(SourceFile(name, path / name, "tokenizer") for name in names), (), {})
    if parent is not None and parent.version.with_role("tokenizer"):
        folder, ref = parent.open_folder(), parent.version.ref
        files = tuple(
            SourceFile(file.name, folder / file.name, "tokenizer") for file in parent.version.with_role("tokenizer")
        )
        finding = Finding("parent-tokenizer", f"The source has no tokenizer; that of {ref} was taken.")
        return _Tokenizer(files, (finding,), {"tokenizer_of": ref})
    finding = Finding("no-tokenizer", "The source has no tokenizer; the network will take token ids only.")
    return _Tokenizer((), (finding,), {})


def _write_weights(
    file: Path,
    headers: Mapping[str, TensorHeader],
    kept: Mapping[str, str],
    described: HookedDescription,
    scratch: Path,
) -> Path:
    """Return a file that holds the weights alone, under plain names: the one there is, or a copy in `scratch`.

    With ALiBi nothing reads `pos_embed.W_pos`, and transformer-lens leaves it uninitialised; it is kept as zeros.
    """
    unread = described.architecture["positional_embedding_type"] == "alibi"
    if dict(kept) == {name: name for name in headers} and not unread:
        return file
    tensors = load_file(file)
    weights = {one: tensors[name] for name, one in kept.items()}
    if unread:
        weights["pos_embed.W_pos"] = torch.zeros_like(weights["pos_embed.W_pos"])
    written = scratch / WEIGHTS
    write_weights(weights, written)
    return written
