"""A GGUF file: dequantised by transformers into a Hugging Face folder, and marked as such.

A GGUF file does not hold the numbers that a network computes with; they come out of dequantisation, which a later
release could do differently. So the dequantised tensors are what is registered, and the file itself is kept beside
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import MalformedArtifact, UnsupportedConfig, UnsupportedFamily
from registry.families import FAMILIES
from registry.families.family import Family, check_config
from registry.quiet import quiet
from registry.sources.huggingface import read_folder
from registry.sources.source import Finding, Source, SourceFile

if TYPE_CHECKING:
    from gguf import GGUFReader

MAGIC = b"GGUF"
# what GGUF says of rotary scaling; transformers 5.23 leaves these unread, without a word
_UNREAD = (".rope.scaling.", ".attention.sliding_window", ".rope.scale")


def read_gguf(path: Path, location: str, scratch: Path) -> Source:
    """Dequantise a GGUF file into `scratch`, a folder of the caller's, and open that."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise MalformedArtifact(f"{path.name} is not a GGUF file.", hint="Copy the file again.", path=str(path))
    types = _write_folder(path, scratch)
    source = read_folder(scratch, location)
    finding = Finding(
        "dequantised",
        f"The weights were dequantised from GGUF ({', '.join(types)}); "
        "they are what that file computes with, not the numbers of training.",
    )
    return Source(
        "gguf",
        location,
        source.config,
        (*source.files, SourceFile(path.name, path, "original")),
        source.tensors,
        (finding, *source.findings),
    )


def _write_folder(path: Path, folder: Path) -> list[str]:
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from registry.networks import make_config, make_empty_network

    with quiet():
        try:
            reader = GGUFReader(path)
            metadata = load_gguf_checkpoint(str(path))
        except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, TypeError) as error:
            raise MalformedArtifact(
                f"{path.name} cannot be read as GGUF: {error}.", hint="Copy the file again.", path=str(path)
            ) from None
        family = _find_family(metadata["config"].get("model_type"))
        _refuse_unread(reader)
        config = _clean_config(family, metadata["config"])
        network = make_empty_network(family, make_config(family, check_config(family, config)))
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=network)["tensors"]
    if len(tensors) != len(reader.tensors):
        raise MalformedArtifact(
            f"{path.name} holds {len(reader.tensors)} tensors, and transformers can place {len(tensors)} of them.",
            hint="The rest may change the network (as rope_freqs does), so the file is refused. "
            "Register the Hugging Face checkpoint that it was made from.",
            path=str(path),
        )
    contiguous = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _write_tokenizer(path, folder)
    return sorted({tensor.tensor_type.name for tensor in reader.tensors})


def _find_family(model_type: Any) -> Family:
    for family in FAMILIES.values():
        if family.model_type == model_type:
            return family
    raise UnsupportedFamily(
        f"GGUF files of the architecture {model_type!r} cannot be converted yet.",
        hint=f"What can be converted: {', '.join(sorted(family.name for family in FAMILIES.values()))}.",
        family=str(model_type),
    )


def _refuse_unread(reader: GGUFReader) -> None:
    for name in reader.fields:
        if any(part in f".{name}" for part in _UNREAD) and not name.endswith(".scaling.finetuned"):
            raise UnsupportedConfig(
                f"The GGUF file has {name}, which transformers does not read.",
                field=name,
                hint="Register the Hugging Face checkpoint that it was made from.",
            )


def _clean_config(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Give the config the class it is for, and its floats back as they were written before float32 cut them."""
    import numpy as np

    cleaned: dict[str, Any] = {"architectures": [family.class_name]}
    for name, value in config.items():
        if name == "_model_name_or_path":
            continue
        is_float = isinstance(value, float)
        cleaned[name] = float(np.format_float_positional(np.float32(value))) if is_float else value
    return cleaned


def _write_tokenizer(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        tokenizer.save_pretrained(str(folder))
