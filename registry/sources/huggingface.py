"""A Hugging Face folder: config.json, weights in whatever form training left them, tokenizer files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from registry.errors import SourceNotFound, UnsupportedSource
from registry.sources.code import find_code
from registry.sources.distributed import find_distributed, read_distributed, refuse_partitioned
from registry.sources.json_file import read_json_object
from registry.sources.quantised import refuse_packed_tensors, refuse_quantised_config
from registry.sources.source import Finding, Source, SourceFile, SourceOptions
from registry.sources.trainer_state import read_trainer_state
from registry.sources.weight_files import has_weights, read_weights
from registry.tokenizer_files import check_tokenizer_files

CONFIG = "config.json"
GENERATION = "generation_config.json"
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


def read_folder(
    folder: Path,
    location: str,
    scratch: Path,
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Source:
    """Open a Hugging Face folder, reading config.json and headers only, where the weights are safetensors.

    What has to be written anew goes into `scratch`: pickles, prefixed names, what training left in pieces.
    """
    pieces = find_distributed(folder, options)
    if not pieces and not has_weights(folder):
        refuse_partitioned(folder)
    # torch's pieces have a folder of their own, and what describes them is in it or around it
    homes = [pieces, pieces.parent] if pieces else [folder]
    config_file = _find_config(homes, folder, options)
    config = read_json_object(config_file)
    refuse_quantised_config(config)
    weights = read_distributed(pieces, scratch) if pieces else read_weights(folder, scratch, options)
    refuse_adapter_layers(weights.tensors)
    refuse_packed_tensors(weights.tensors)
    files = [SourceFile(CONFIG, config_file, "config"), *weights.files]
    findings = list(weights.findings)
    tokenizer = _find_tokenizer(homes)
    if tokenizer:
        files += [SourceFile(path.name, path, "tokenizer") for path in tokenizer]
    else:
        findings.append(Finding("no-tokenizer", "The source has no tokenizer; the network will take token ids only."))
    if (homes[-1] / GENERATION).is_file():
        read_json_object(homes[-1] / GENERATION, constants=True)
        files.append(SourceFile(GENERATION, homes[-1] / GENERATION, "generation"))
    training = read_trainer_state(homes)
    files += training.files
    findings += [*training.findings, *find_code(folder, config, tokenizer)]
    return Source(
        "distributed" if pieces else "huggingface",
        location,
        config,
        tuple(files),
        weights.tensors,
        tuple(findings),
        step=training.step,
        provenance={**weights.provenance, **training.provenance},
    )


def has_vocabulary(names: list[str]) -> bool:
    """Say whether these files are enough to make the tokenizer that was registered, and not a made-up one."""
    return any(needed <= set(names) for needed in _VOCABULARIES)


def _find_config(homes: Sequence[Path], folder: Path, options: SourceOptions) -> Path:
    """Return the one config file: the folder's own, or the caller's where the folder has none."""
    found = next((home / CONFIG for home in homes if (home / CONFIG).is_file()), None)
    given = options.config
    if given and found and read_json_object(given) != read_json_object(found):
        raise UnsupportedSource(
            f"{found} says something else than {given}, and the weights go with one of them.",
            hint="Leave out --config, or move the folder's own config.json away if it is the wrong one.",
            path=str(folder),
        )
    if found:
        return found
    if given:
        return given.absolute()
    raise SourceNotFound(
        f"{folder} has no config.json, and the architecture is never guessed.",
        hint="Copy the config.json that the model was trained with beside it, or name it with --config.",
        path=str(folder),
    )


def _find_tokenizer(homes: Sequence[Path]) -> list[Path]:
    for home in homes:
        names = [name for name in TOKENIZER_FILES if (home / name).is_file()]
        if has_vocabulary(names):
            check_tokenizer_files(home / name for name in names)
            return [home / name for name in names]
    return []


def refuse_adapter_layers(names: Iterable[str]) -> None:
    """Refuse the tensors of a network with unmerged adapter layers in it: without them it would be its base."""
    layers = sorted(name for name in names if _ADAPTER_LAYER.search(name))
    if layers:
        raise UnsupportedSource(
            f"The weights are those of a network with adapter layers in it that are not merged, such as {layers[0]}.",
            hint="Merge them where it was trained, model.merge_and_unload().save_pretrained(folder), or save the "
            "adapter by itself, model.save_pretrained(folder), and register that folder with --parent.",
        )
