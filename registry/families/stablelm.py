"""StableLM: `StableLmForCausalLM`, built like Llama, with LayerNorm and partly rotated heads; a bridge runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, used

_DEFAULT_PART = 0.25
_DROPOUT = neutral("dropout is off when a network is read")

FIELDS = {
    "vocab_size": used(int, 50304),
    "hidden_size": used(int, 2560),
    "intermediate_size": used(int, 6912),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, 32),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 4096),
    "layer_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "use_qkv_bias": used(bool, False),
    "qk_layernorm": used(bool, False),
    "use_parallel_residual": used(bool, False),
    **rope.PARTIAL_FIELDS,
    "hidden_dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give StableLmConfig its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.PARTIAL_FIELDS}
    return {**others, "rope_parameters": rope.read_partial_rope(config, _DEFAULT_PART)}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map StableLM's config fields to the canonical architecture."""
    rotary_dim = rope.describe_rotary_dim(config, like_llama.read_heads(config)[1], _DEFAULT_PART)
    return bridged.describe_like_llama("stablelm", config, make_arguments(config), rotary_dim=rotary_dim)


FAMILY = Family(
    name="stablelm",
    class_name="StableLmForCausalLM",
    config_class_name="StableLmConfig",
    model_type="stablelm",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={
        **bridged.name_keys(FIELDS, bridged.LIKE_LLAMA),
        "d_head": "hidden_size / num_attention_heads",
        "rotary_dim": "partial_rotary_factor",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
