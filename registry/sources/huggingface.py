"""A Hugging Face folder: config.json, weights in whatever form training left them, tokenizer files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact, SourceNotFound, UnsupportedSource
from registry.sources.distributed import find_distributed, read_distributed, refuse_partitioned
from registry.sources.json_file import read_json_object
from registry.sources.quantised import refuse_packed_tensors, refuse_quantised_config
from registry.sources.source import Finding, Source, SourceFile, SourceOptions
from registry.sources.weight_files import has_weights, read_weights

CONFIG = "config.json"
TRAINER_STATE = "trainer_state.json"
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
    _refuse_adapter(folder)
    pieces = find_distributed(folder, options)
    if not pieces and not has_weights(folder):
        refuse_partitioned(folder)
    # torch's pieces have a folder of their own, and what describes them is in it or around it
    homes = [pieces, pieces.parent] if pieces else [folder]
    config_file = _find_config(homes, folder, options)
    config = read_json_object(config_file)
    refuse_quantised_config(config)
    weights = read_distributed(pieces, scratch) if pieces else read_weights(folder, scratch, options)
    refuse_packed_tensors(weights.tensors)
    files = [SourceFile(CONFIG, config_file, "config"), *weights.files]
    findings = list(weights.findings)
    tokenizer = _find_tokenizer(homes)
    if tokenizer:
        files += [SourceFile(path.name, path, "tokenizer") for path in tokenizer]
    else:
        findings.append(Finding("no-tokenizer", "The source has no tokenizer; the network will take token ids only."))
    if (homes[-1] / "generation_config.json").is_file():
        files.append(SourceFile("generation_config.json", homes[-1] / "generation_config.json", "generation"))
    return Source(
        "distributed" if pieces else "huggingface",
        location,
        config,
        tuple(files),
        weights.tensors,
        tuple(findings),
        step=_read_step(homes),
        provenance=weights.provenance,
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
            return [home / name for name in names]
    return []


def _read_step(homes: Sequence[Path]) -> int | None:
    """Read the step from what Hugging Face's Trainer wrote, and never from the folder's name."""
    for home in homes:
        if (home / TRAINER_STATE).is_file():
            try:
                step: Any = read_json_object(home / TRAINER_STATE, constants=True).get("global_step")
            except MalformedArtifact:
                return None
            return step if type(step) is int and 0 <= step < 10**15 else None
    return None


def _refuse_adapter(folder: Path) -> None:
    """Refuse what plain loaders swallow: an adapter read as its base."""
    if (folder / "adapter_config.json").exists():
        raise UnsupportedSource(
            f"{folder} holds an adapter that is not merged; loading it as a model would give the base.",
            hint="Merge it first: model.merge_and_unload().save_pretrained(folder).",
            path=str(folder),
        )
