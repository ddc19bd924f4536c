"""Granite: `GraniteForCausalLM`, Llama with four multipliers; a bridge runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, used

FIELDS = {
    "vocab_size": used(int, 32000),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 11008),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 2048),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "mlp_bias": used(bool, False),
    "embedding_multiplier": used(float, 1.0),
    "logits_scaling": used(float, 1.0),
    "residual_multiplier": used(float, 1.0),
    "attention_multiplier": used(float, 1.0),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Granite's config fields to the canonical architecture."""
    return bridged.describe_like_llama("granite", config, like_llama.make_arguments(config))


FAMILY = Family(
    name="granite",
    class_name="GraniteForCausalLM",
    config_class_name="GraniteConfig",
    model_type="granite",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={**bridged.name_keys(FIELDS, bridged.LIKE_LLAMA), "d_head": "head_dim"},
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
