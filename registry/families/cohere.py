"""Command R: `CohereForCausalLM`, attention beside the MLP, norms without biases, scaled logits; a bridge runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, only, used

DEFAULT_THETA = 500000.0

FIELDS = {
    "vocab_size": used(int, 256000),
    "hidden_size": used(int, 8192),
    "intermediate_size": used(int, 22528),
    "logit_scale": used(float, 0.0625),
    "num_hidden_layers": used(int, 40),
    "num_attention_heads": used(int, 64),
    "num_key_value_heads": used(int, None, optional=True),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 8192),
    "layer_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, True),
    "attention_bias": used(bool, False),
    "use_qk_norm": only(False, "transformer-lens's bridge leaves the norms of queries and keys out", bridged.NO_BRIDGE),
    **rope.FIELDS,
    "model_max_length": neutral("transformers reads max_position_embeddings"),
    "pretraining_tp": neutral("it splits the same matrix products"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give CohereConfig its rotary fields in the one form of transformers 5."""
    return {**like_llama.make_arguments(config), "rope_parameters": rope.read_rope(config, DEFAULT_THETA)}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Command R's config fields to the canonical architecture."""
    return bridged.describe_like_llama("cohere", config, make_arguments(config))


FAMILY = Family(
    name="cohere",
    class_name="CohereForCausalLM",
    config_class_name="CohereConfig",
    model_type="cohere",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={**bridged.name_keys(FIELDS, bridged.LIKE_LLAMA), "d_head": "head_dim"},
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
