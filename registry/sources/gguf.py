"""A GGUF file: dequantised by transformers into a Hugging Face folder, and marked as such.

A GGUF file does not hold the numbers that a network computes with; they come out of dequantisation, which a later
release could do differently. So the dequantised tensors are what is registered, and the file itself is kept beside
them.

Its metadata are its config. A key of the architecture that is not in the tables here is refused: a logit scale or a
clamp changes what the file computes, and transformers leaves what it does not know unread, without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.errors import (
    MalformedArtifact,
    UnsupportedConfig,
    UnsupportedFamily,
    UnsupportedSource,
    UnusableTokenizer,
)
from registry.families import FAMILIES
from registry.families.family import Family, check_config
from registry.plain_text import quote_error
from registry.quiet import quiet
from registry.sources.gguf_header import GgufHeader, read_gguf_header
from registry.sources.huggingface import read_folder
from registry.sources.source import Finding, Source, SourceFile

_LIKE_LLAMA = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
# architecture -> key of GGUF -> field of config.json; keys of one field must agree. Mistral's files are of the
# architecture llama, without a window, which is how llama.cpp runs them.
_CONFIG_FIELDS: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    "llama": _LIKE_LLAMA,
    "qwen2": _LIKE_LLAMA,
    "qwen3": _LIKE_LLAMA,
}
# For these, llama.cpp and config.json have the same value when they are absent; no other may be absent. Least of all
# num_key_value_heads, which has a default too: without it transformers leaves W_Q and W_K in llama.cpp's order.
_HAVE_DEFAULTS = {"head_dim", "rope_theta", "vocab_size"}
# as to a head's width, llama.cpp and config.json differ
_HAVE_NONE = {"qwen3": {"head_dim"}}
# how long these may be, by the number of tokens
_LISTS_OF_TOKENS = {
    "tokenizer.ggml.tokens": 1,
    "tokenizer.ggml.scores": 1,
    "tokenizer.ggml.token_type": 1,
    "tokenizer.ggml.merges": 4,
}
_MAX_LISTED = 4096  # of whatever else
_NO_TOKENIZER = (None, "none", "no_vocab")
_HINT = "Register the Hugging Face checkpoint that it was made from."


def read_gguf(path: Path, location: str, scratch: Path) -> Source:
    """Dequantise a GGUF file into `scratch`, a folder of the caller's, and open that."""
    header = read_gguf_header(path)
    _refuse_pieces(path, header)
    family = _find_family(header)
    config = _read_config(family, header)
    _check_lists(path, header)
    _check_places(path, header)
    (scratch / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _write_weights(path, scratch, family, config, header)
    if header.metadata.get("tokenizer.ggml.model") not in _NO_TOKENIZER:
        _write_tokenizer(path, scratch)
    source = read_folder(scratch, location, scratch)
    finding = Finding(
        "dequantised",
        f"The weights were dequantised from GGUF ({', '.join(_name_packings(header))}); "
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


def _refuse_pieces(path: Path, header: GgufHeader) -> None:
    n_pieces = header.metadata.get("split.count", 1)
    if n_pieces not in (0, 1):
        raise UnsupportedSource(
            f"{path.name} is one of {str(n_pieces)[:20]} pieces of a GGUF file.",
            hint="Put them together: llama-gguf-split --merge FIRST.gguf WHOLE.gguf. Then register that.",
            path=str(path),
        )


def _check_lists(path: Path, header: GgufHeader) -> None:
    """Refuse lists that are longer than the vocabulary explains: gguf-py needs a hundred times their bytes."""
    embedding = header.tensors.get("token_embd.weight")
    n_tokens = embedding.shape[0] if embedding and embedding.shape else 0
    for key, length in header.lengths.items():
        if length > max(_LISTS_OF_TOKENS.get(key, 0) * n_tokens, _MAX_LISTED):
            raise _malformed(path, f"{key[:80]!r} lists {length:,} entries for {n_tokens:,} tokens")


def _check_places(path: Path, header: GgufHeader) -> None:
    """Refuse tensors whose bytes overlap or are not all in the file."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    end = 0
    for name, tensor in sorted(header.tensors.items(), key=lambda one: one[1].offset):
        if tensor.packing not in sizes:
            raise _malformed(path, f"{name[:80]!r} is packed in the unknown way {tensor.packing}")
        n_numbers, n_bytes = sizes[tensor.packing]
        if not tensor.shape or math.prod(tensor.shape) > 2**48 or tensor.shape[-1] % n_numbers:
            raise _malformed(path, f"the shape of {name[:80]!r} makes no sense")
        if tensor.offset < end:
            raise _malformed(path, f"the bytes of {name[:80]!r} overlap those of another tensor")
        end = tensor.offset + math.prod(tensor.shape) // n_numbers * n_bytes
        if end > header.data_bytes:
            raise _malformed(path, f"it is truncated: {name[:80]!r} ends beyond it")


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(f"{path.name} cannot be read: {what}.", hint="Copy the file again.", path=str(path))


def _find_family(header: GgufHeader) -> Family:
    architecture = header.metadata.get("general.architecture")
    for family in FAMILIES.values():
        if family.model_type == architecture and architecture in _CONFIG_FIELDS:
            return family
    raise UnsupportedFamily(
        f"GGUF files of the architecture {str(architecture)[:80]!r} cannot be converted yet.",
        hint=f"What can be converted: {', '.join(sorted(_CONFIG_FIELDS))}.",
        family=str(architecture)[:80],
    )


def _read_config(family: Family, header: GgufHeader) -> dict[str, Any]:
    """Make the config.json of the metadata; the vocabulary's size, where it is left out, is the embedding's."""
    fields = _CONFIG_FIELDS[family.model_type]
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    for key, given in header.metadata.items():
        group, _, name = key.partition(".")
        if group != family.model_type:
            continue
        value = _restore_float(given) if isinstance(given, float) else given
        if name not in fields or config.get(fields[name], value) != value or value is ...:
            raise UnsupportedConfig(
                f"The GGUF file has {key[:80]!r} = {_show(given)}, and {family.class_name} has no place for it.",
                field=key,
                hint=_HINT,
            )
        config[fields[name]] = value
    optional = _HAVE_DEFAULTS - _HAVE_NONE.get(family.model_type, set())
    missing = sorted(key for key, name in fields.items() if name not in config and name not in optional)
    if missing:
        raise UnsupportedConfig(
            f"The GGUF file does not say {family.model_type}.{missing[0]}, and it is never guessed.",
            field=f"{family.model_type}.{missing[0]}",
            hint=_HINT,
        )
    embedding = header.tensors.get("token_embd.weight")
    if "vocab_size" not in config and embedding and embedding.shape:
        config["vocab_size"] = embedding.shape[0]
    return config


def _show(value: Any) -> str:
    return "a list" if value is ... else repr(value)[:80]


def _restore_float(value: float) -> float:
    """Give a number back as it was written before float32 cut it: 1e-5, not 9.999999747378752e-06."""
    import numpy as np

    return float(np.format_float_positional(np.float32(value)))


def _write_weights(path: Path, folder: Path, family: Family, config: Mapping[str, Any], header: GgufHeader) -> None:
    import torch
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from registry.networks import make_empty_network
    from registry.sources.written_weights import write_weights

    network = make_empty_network(family, check_config(family, config), len(header.tensors))
    with quiet():
        try:
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=network)["tensors"]
        except Exception as error:  # gguf-py and transformers raise whatever a damaged file leads to
            reason = quote_error(error)
            raise MalformedArtifact(
                f"{path.name} cannot be dequantised: {reason}.", hint="Copy the file again.", path=str(path)
            ) from error
    if len(tensors) != len(header.tensors):
        raise MalformedArtifact(
            f"{path.name} holds {len(header.tensors)} tensors, and transformers can place {len(tensors)} of them.",
            hint=f"The rest may change the network, as rope_freqs does, so the file is refused. {_HINT}",
            path=str(path),
        )
    write_weights({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, folder / "model.safetensors")


def _write_tokenizer(path: Path, folder: Path) -> None:
    """Make the tokenizer's files of the GGUF file alone: transformers would also read what lies beside it."""
    from transformers import AutoTokenizer

    alone = folder / "alone"
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(alone), gguf_file="model.gguf", local_files_only=True)
            tokenizer.save_pretrained(str(folder))
        except Exception as error:  # for each way in which a vocabulary can be wrong, another
            reason = quote_error(error)
            raise UnusableTokenizer(f"The tokenizer in {path.name} cannot be read: {reason}.", hint=_HINT) from error


def _name_packings(header: GgufHeader) -> list[str]:
    from gguf import GGMLQuantizationType

    return sorted({GGMLQuantizationType(tensor.packing).name for tensor in header.tensors.values()})
