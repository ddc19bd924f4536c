"""Mistral: `MistralForCausalLM`, built like Llama; either every layer attends to a window or none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used
from registry.families.layer_types import describe_windows, read_layer_types

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

FIELDS = {
    "vocab_size": used(int, 32000),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 14336),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, 8),
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 4096 * 32),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "sliding_window": used(int, 4096, optional=True),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Mistral's config fields to the canonical architecture."""
    window = config["sliding_window"]
    windows: dict[str, Any] = {}
    if window is not None:
        attn_types = read_layer_types(None, config["num_hidden_layers"], lambda layer: True)
        windows = describe_windows(attn_types, window)
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
    from transformer_lens.pretrained.weight_conversions.mistral import convert_mistral_weights

    return like_llama.convert_ungrouped(convert_mistral_weights, network, cfg)


FAMILY = Family(
    name="mistral",
    class_name="MistralForCausalLM",
    config_class_name="MistralConfig",
    model_type="mistral",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "use_local_attn": "sliding_window",
        "window_size": "sliding_window",
        "attn_types": "sliding_window",
    },
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
