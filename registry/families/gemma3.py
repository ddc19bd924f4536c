"""Gemma 3, the text network: `Gemma3ForCausalLM`, Gemma 2 with norms on queries and keys and two kinds of rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture, describe_architecture
from registry.families import gemma, gemma2, like_llama, rope
from registry.families.family import Family
from registry.families.fields import Field, neutral, only, refuse_value, used
from registry.families.layer_types import FULL, SLIDING, describe_windows, read_layer_types

# Gemma3TextConfig's own defaults
FULL_THETA = 1e6
SLIDING_THETA = 1e4
SLIDING_WINDOW_PATTERN = 6

FIELDS: Mapping[str, Field] = {
    "vocab_size": used(int, 262208),
    "hidden_size": used(int, 2304),
    "intermediate_size": used(int, 9216),
    "num_hidden_layers": used(int, 26),
    "num_attention_heads": used(int, 8),
    "num_key_value_heads": used(int, 4),
    "head_dim": used(int, 256),
    "hidden_activation": used(str, "gelu_pytorch_tanh"),
    "hidden_act": used(str, None, optional=True),
    "max_position_embeddings": used(int, 131072),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, True),
    "attention_bias": used(bool, False),
    "query_pre_attn_scalar": used(int, 256),
    "sliding_window": used(int, 4096),
    "layer_types": used(list, None, optional=True),
    "sliding_window_pattern": used(int, None, optional=True),
    "final_logit_softcapping": used(float, None, optional=True),
    "use_bidirectional_attention": used(bool, False, optional=True),
    **rope.FIELDS,
    "rope_local_base_freq": used(float, None, optional=True),
    "attn_logit_softcapping": only(None, "transformers does not read it for Gemma 3, and other programs may"),
    "_sliding_window_pattern": neutral("transformers writes it beside layer_types and does not read it"),
    "attention_dropout": neutral("dropout is off when a network is read"),
    "cache_implementation": neutral("it says how keys and values are kept while sampling"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Gemma 3's config fields to the canonical architecture."""
    attn_types = _read_layers(config)
    if config["use_bidirectional_attention"] and "local" in attn_types:
        raise refuse_value(
            "use_bidirectional_attention", True, "HookedTransformer has no windows in attention to both sides"
        )
    return describe_architecture(
        **gemma2.describe_sandwich(config),
        use_qk_norm=True,
        attention_dir="bidirectional" if config["use_bidirectional_attention"] else "causal",
        **describe_windows(attn_types, config["sliding_window"]),
        **rope.describe_layered_rope(_read_rope(config), config["max_position_embeddings"], attn_types),
    )


def _read_layers(config: Mapping[str, Any]) -> list[str]:
    """Read the layers' types: from `layer_types`, or as older releases wrote it, every n-th layer sees everything."""
    n_layers, pattern = config["num_hidden_layers"], config["sliding_window_pattern"]
    by_pattern = read_layer_types(None, n_layers, lambda layer: (layer + 1) % (pattern or SLIDING_WINDOW_PATTERN) != 0)
    if config["layer_types"] is None:
        return by_pattern
    attn_types = read_layer_types(config["layer_types"], n_layers, lambda layer: False)
    if pattern is not None and attn_types != by_pattern:
        raise refuse_value("sliding_window_pattern", pattern, "layer_types says otherwise", "Keep one of the two.")
    return attn_types


def _read_rope(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return rope.read_layered_rope(config, FULL_THETA, SLIDING_THETA)


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Gemma3TextConfig what it reads, in the one form of transformers 5."""
    left_out = {*rope.FIELDS, "rope_local_base_freq", "sliding_window_pattern", "hidden_act"}
    return {
        **{name: value for name, value in config.items() if name not in left_out},
        "layer_types": [SLIDING if kind == "local" else FULL for kind in _read_layers(config)],
        "rope_parameters": _read_rope(config),
        "pad_token_id": None,
    }


FAMILY = Family(
    name="gemma3",
    class_name="Gemma3ForCausalLM",
    config_class_name="Gemma3TextConfig",
    model_type="gemma3_text",
    fields=FIELDS,
    describe=describe,
    convert=gemma.convert,
    config_keys={
        **gemma2.CONFIG_KEYS,
        "attention_dir": "use_bidirectional_attention",
        "rotary_base_local": "rope_local_base_freq",
        "yarn_global_attn_only": "rope_parameters",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
