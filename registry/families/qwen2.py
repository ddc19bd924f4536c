"""Qwen2 and 2.5: `Qwen2ForCausalLM`, built like Llama, with biases on Q, K and V; later layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used
from registry.families.layer_types import describe_windows, read_layer_types

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

FIELDS = {
    "vocab_size": used(int, 151936),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 22016),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, 32, optional=True),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 32768),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "use_sliding_window": used(bool, False),
    "sliding_window": used(int, 4096, optional=True),
    "max_window_layers": used(int, 28, at_least=0),
    "layer_types": used(list, None, optional=True),
    **rope.FIELDS,
    "use_mrope": only(False, "HookedTransformer has no rotary positions in three dimensions"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe_window_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Map the fields of windows: unless use_sliding_window is on there is none, whatever else is given.

    Without `layer_types`, the layers from `max_window_layers` on have it.
    """
    window = config["sliding_window"] if config["use_sliding_window"] else None
    if window is None and config["layer_types"] is None:
        return {}
    first = config["max_window_layers"]
    attn_types = read_layer_types(
        config["layer_types"], config["num_hidden_layers"], lambda layer: window is not None and layer >= first
    )
    if "local" in attn_types and not config["use_sliding_window"]:
        raise refuse_value("use_sliding_window", False, "layer_types has layers that need a window")
    return describe_windows(attn_types, window)


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Qwen2's config fields to the canonical architecture."""
    windows = describe_window_layers(config)
    n_ctx = config["max_position_embeddings"]
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        **windows,
        **rope.describe_rope(rope.read_rope(config), n_ctx, windows.get("attn_types", ())),
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which knows grouped keys and values only."""
    from transformer_lens.pretrained.weight_conversions.qwen2 import convert_qwen2_weights

    return like_llama.convert_ungrouped(convert_qwen2_weights, network, cfg)


CONFIG_KEYS = {
    **like_llama.CONFIG_KEYS,
    "use_local_attn": "use_sliding_window",
    "window_size": "sliding_window",
    "attn_types": "layer_types",
}

FAMILY = Family(
    name="qwen2",
    class_name="Qwen2ForCausalLM",
    config_class_name="Qwen2Config",
    model_type="qwen2",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys=CONFIG_KEYS,
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
