"""A Hugging Face folder: config.json, one safetensors file or shards with their index, tokenizer files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from registry.errors import MalformedArtifact, SourceNotFound, UnsupportedSource
from registry.sources.json_file import read_json_object
from registry.sources.source import Finding, Role, Source, SourceFile
from registry.weights import TensorHeader, read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.safetensors")
# how peft names what it puts into a network
_ADAPTER_LAYER = re.compile(r"\b(lora_\w+|ia3_l|base_layer|modules_to_save|token_adapter)\b")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# any one of these (vocab.json only with merges.txt) makes a tokenizer; without them transformers makes one up
_VOCABULARIES = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"}, {"vocab.txt"})


def read_folder(folder: Path, location: str) -> Source:
    """Open a Hugging Face folder, reading config.json and the safetensors headers only."""
    _refuse_other_weights(folder)
    if not (folder / CONFIG).is_file():
        raise SourceNotFound(
            f"{folder} has no config.json, and the architecture is never guessed.",
            hint="Save the model with save_pretrained, or copy the config.json that it was trained with beside it.",
            path=str(folder),
        )
    weights, tensors = _read_weights(folder)
    refuse_adapter_layers(tensors)
    files = [SourceFile(CONFIG, folder / CONFIG, "config"), *weights]
    tokenizer = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    findings: tuple[Finding, ...] = ()
    if has_vocabulary(tokenizer):
        files += [SourceFile(name, folder / name, "tokenizer") for name in tokenizer]
    else:
        findings = (Finding("no-tokenizer", "The source has no tokenizer; the network will take token ids only."),)
    if (folder / "generation_config.json").is_file():
        files.append(SourceFile("generation_config.json", folder / "generation_config.json", "generation"))
    return Source("huggingface", location, read_json_object(folder / CONFIG), tuple(files), tensors, findings)


def has_vocabulary(names: list[str]) -> bool:
    """Say whether these files are enough to make the tokenizer that was registered, and not a made-up one."""
    return any(needed <= set(names) for needed in _VOCABULARIES)


def _read_weights(folder: Path) -> tuple[list[SourceFile], dict[str, TensorHeader]]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file() and index.is_file():
        raise MalformedArtifact(
            f"{folder} has both {WEIGHTS} and {INDEX}, and they may hold different weights.",
            hint="Move the one that is out of date away.",
            path=str(folder),
        )
    if index.is_file():
        return _read_shards(folder)
    if not single.is_file():
        raise SourceNotFound(
            f"{folder} has no {WEIGHTS} and no {INDEX}.",
            hint="Save the model with save_pretrained(…, safe_serialization=True).",
            path=str(folder),
        )
    return [_weights_file(single)], read_header(single)


def _read_shards(folder: Path) -> tuple[list[SourceFile], dict[str, TensorHeader]]:
    """Read an index and its shards, which must list the same tensors."""
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index("it has no weight_map", folder)
    tensors: dict[str, TensorHeader] = {}
    files: list[SourceFile] = []
    for shard in sorted({str(value) for value in weight_map.values()}):
        if not _SHARD.fullmatch(shard):
            raise _bad_index(f"it names {shard[:80]!r}, which is no file of this folder", folder)
        if not (folder / shard).is_file():
            raise _bad_index(f"the shard {shard} is missing", folder)
        header = read_header(folder / shard)
        listed = {name for name, value in weight_map.items() if value == shard}
        if listed != set(header):
            wrong = sorted(listed ^ set(header))
            raise _bad_index(f"it and {shard} disagree about {len(wrong)} tensors, such as {wrong[0][:80]!r}", folder)
        tensors |= header
        files.append(_weights_file(folder / shard))
    stray = {path.name for path in folder.glob("model*.safetensors")} - {file.name for file in files}
    if stray:
        raise _bad_index(f"the folder has {min(stray)}, which it does not list", folder)
    return [SourceFile(INDEX, folder / INDEX, "config"), *files], tensors


def _refuse_other_weights(folder: Path) -> None:
    """Refuse what plain loaders swallow: pickles beside safetensors."""
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles and any(folder.glob("*.safetensors")):
        raise UnsupportedSource(
            f"{folder} has both safetensors and {pickles[0]}, and they may hold different weights.",
            hint="Move the one that is out of date away.",
            path=str(folder),
        )
    if pickles:
        raise UnsupportedSource(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which is not read yet.",
            hint="Load it where you trust it and save it again with save_pretrained(…, safe_serialization=True).",
            path=str(folder),
        )


def refuse_adapter_layers(names: Iterable[str]) -> None:
    """Refuse the tensors of a network with unmerged adapter layers in it: without them it would be its base."""
    layers = sorted(name for name in names if _ADAPTER_LAYER.search(name))
    if layers:
        raise UnsupportedSource(
            f"The weights are those of a network with adapter layers in it that are not merged, such as {layers[0]}.",
            hint="Merge them where it was trained, model.merge_and_unload().save_pretrained(folder), or save the "
            "adapter by itself, model.save_pretrained(folder), and register that folder with --parent.",
        )


def _weights_file(path: Path) -> SourceFile:
    role: Role = "weights"
    return SourceFile(path.name, path, role)


def _bad_index(what: str, folder: Path) -> MalformedArtifact:
    return MalformedArtifact(
        f"{INDEX} cannot be used: {what}.",
        hint="Copy or save the checkpoint again, with all of its shards.",
        path=str(folder / INDEX),
    )
