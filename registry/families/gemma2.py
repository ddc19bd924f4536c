"""Gemma 2: `Gemma2ForCausalLM`, Gemma with a window in every other layer, norms around each sublayer, and soft caps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture, describe_architecture
from registry.families import gemma, like_llama, rope
from registry.families.family import Family
from registry.families.fields import Field, neutral, read_activation, read_soft_cap, refuse_value, used
from registry.families.layer_types import describe_windows, read_layer_types

FIELDS: Mapping[str, Field] = {
    "vocab_size": used(int, 256000),
    "hidden_size": used(int, 2304),
    "intermediate_size": used(int, 9216),
    "num_hidden_layers": used(int, 26),
    "num_attention_heads": used(int, 8),
    "num_key_value_heads": used(int, 4),
    "head_dim": used(int, 256),
    "hidden_activation": used(str, "gelu_pytorch_tanh"),
    "hidden_act": used(str, None, optional=True),
    "max_position_embeddings": used(int, 8192),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, True),
    "attention_bias": used(bool, False),
    "query_pre_attn_scalar": used(int, 256),
    "sliding_window": used(int, 4096),
    "layer_types": used(list, None, optional=True),
    "final_logit_softcapping": used(float, 30.0, optional=True),
    "attn_logit_softcapping": used(float, 50.0, optional=True),
    "use_bidirectional_attention": used(bool, None, optional=True),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
    "cache_implementation": neutral("it says how keys and values are kept while sampling"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Gemma 2's config fields to the canonical architecture."""
    gemma.refuse_bidirectional_attention(config)
    attn_types = read_layer_types(config["layer_types"], config["num_hidden_layers"], lambda layer: layer % 2 == 0)
    n_ctx = config["max_position_embeddings"]
    return describe_architecture(
        **describe_sandwich(config),
        **describe_windows(attn_types, config["sliding_window"]),
        attn_scores_soft_cap=read_soft_cap("attn_logit_softcapping", config["attn_logit_softcapping"]),
        **rope.describe_rope(rope.read_rope(config), n_ctx, attn_types),
    )


def describe_sandwich(config: Mapping[str, Any]) -> dict[str, Any]:
    """Map what Gemma 2 and Gemma 3 have in common: sizes, norms on both sides, attention scale, cap on the logits."""
    like_llama.refuse_uneven_heads(config)
    activation = read_activation("hidden_activation", config["hidden_activation"])
    other = config["hidden_act"]
    if other is not None and read_activation("hidden_act", other) != activation:
        raise refuse_value(
            "hidden_act", other, f"transformers reads hidden_activation = {config['hidden_activation']!r}", "Keep that."
        )
    return {
        **like_llama.describe_sizes(config),
        "act_fn": activation,
        "gated_mlp": True,
        "use_normalization_before_and_after": True,
        "attn_scale": math.sqrt(config["query_pre_attn_scalar"]),
        "output_logits_soft_cap": read_soft_cap("final_logit_softcapping", config["final_logit_softcapping"]),
    }


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Gemma2Config what it reads."""
    arguments = like_llama.make_arguments(config)
    del arguments["hidden_act"]
    return {**arguments, "pad_token_id": None}


CONFIG_KEYS: Mapping[str, str] = {
    **like_llama.CONFIG_KEYS,
    "act_fn": "hidden_activation",
    "attn_scale": "query_pre_attn_scalar",
    "attn_scores_soft_cap": "attn_logit_softcapping",
    "output_logits_soft_cap": "final_logit_softcapping",
    "use_local_attn": "layer_types",
    "attn_types": "layer_types",
    "window_size": "sliding_window",
}

FAMILY = Family(
    name="gemma2",
    class_name="Gemma2ForCausalLM",
    config_class_name="Gemma2Config",
    model_type="gemma2",
    fields=FIELDS,
    describe=describe,
    convert=gemma.convert,
    config_keys=CONFIG_KEYS,
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
