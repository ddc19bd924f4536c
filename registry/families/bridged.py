"""What the families share that only a TransformerBridge can run: architectures in two sets of words.

What HookedTransformerConfig has a word for is said in it, so that a probe can be made and `--allow d_vocab` means what
it always does; every other argument of the Hugging Face config class stands as it is, under `config.NAME`. Nothing that
is used is left out, so two networks of a family have one fingerprint only if their configs come to the same arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture, describe_bridged_architecture
from registry.families import like_llama, rope
from registry.families.fields import Field, refuse_value

NO_BRIDGE = (
    "transformer-lens's TransformerBridge computes something else here. transformers itself can run this network."
)

# those that transformers's networks and their bridges were seen to compute alike
_ACTIVATIONS = {
    *("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh"),
}
# field of the architecture -> the argument of the config class that says the same
LIKE_LLAMA: Mapping[str, str] = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_key_value_heads": "num_key_value_heads",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
EXPERTS: Mapping[str, str] = {
    **LIKE_LLAMA,
    "d_mlp": "moe_intermediate_size",
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "norm_topk_prob": "norm_topk_prob",
}


def check_activation(name: str, value: str) -> None:
    """Refuse an activation that is none of transformers's plain ones; `name` is the field that gives it."""
    if value not in _ACTIVATIONS:
        hint = f"What is provided for: {', '.join(sorted(_ACTIVATIONS))}."
        raise refuse_value(name, value, "this activation is not provided for", hint)


def describe(family: str, arguments: Mapping[str, Any], words: Mapping[str, str], **fields: Any) -> Architecture:
    """Describe the network of these arguments; `words` are said in HookedTransformerConfig's, and `fields` besides."""
    said = {name: arguments[key] for name, key in words.items()}
    rest = {key: value for key, value in arguments.items() if key not in words.values()}
    return describe_bridged_architecture(family, rest, **said, **fields)


def describe_rotary(family: str, arguments: Mapping[str, Any], words: Mapping[str, str], **fields: Any) -> Architecture:
    """Describe a network with rotary positions, which HookedTransformerConfig's words say whole."""
    rest = {key: value for key, value in arguments.items() if key not in ("rope_parameters", "head_dim")}
    rotary = rope.describe_rope(arguments["rope_parameters"], arguments["max_position_embeddings"])
    return describe(family, rest, words, **rotary, **fields)


def describe_like_llama(
    family: str,
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    words: Mapping[str, str] = LIKE_LLAMA,
    **fields: Any,
) -> Architecture:
    """Describe a network with Llama's heads and rotary positions, or raise UnsupportedConfig."""
    check_activation("hidden_act", config["hidden_act"])
    return describe_rotary(family, arguments, words, d_head=like_llama.read_heads(config)[1], **fields)


def name_keys(fields: Mapping[str, Field], words: Mapping[str, str]) -> dict[str, str]:
    """Say which config.json key each field of such an architecture is read from."""
    own = {f"config.{name}": name for name in fields}
    return {**own, **rope.CONFIG_KEYS, "d_vocab_out": words["d_vocab"], **words, "family": "architectures"}
