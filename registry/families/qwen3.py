"""Qwen3: `Qwen3ForCausalLM`, Qwen2 with norms on the queries and keys of every head instead of biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, qwen2, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used

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
    "head_dim": used(int, 128),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 32768),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "use_sliding_window": used(bool, False),
    "sliding_window": used(int, 4096, optional=True),
    "max_window_layers": used(int, 28, at_least=0),
    "layer_types": used(list, None, optional=True),
    "attention_bias": used(bool, False),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Qwen3's config fields to the canonical architecture."""
    windows = qwen2.describe_window_layers(config)
    n_ctx = config["max_position_embeddings"]
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        use_qk_norm=True,
        **windows,
        **rope.describe_rope(rope.read_rope(config), n_ctx, windows.get("attn_types", ())),
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which drops the biases that attention_bias brings."""
    from transformer_lens.pretrained.weight_conversions.qwen3 import convert_qwen3_weights

    return like_llama.add_attention_biases(convert_qwen3_weights(network, cfg), network, cfg)


FAMILY = Family(
    name="qwen3",
    class_name="Qwen3ForCausalLM",
    config_class_name="Qwen3Config",
    model_type="qwen3",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys=qwen2.CONFIG_KEYS,
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
