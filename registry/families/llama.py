"""Llama: `LlamaForCausalLM`, with RMSNorm, rotary positions, grouped keys and values and a gated MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

FIELDS = {
    "vocab_size": used(int, 32000),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 11008),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 2048),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    **rope.FIELDS,
    "attention_bias": used(bool, False),
    "mlp_bias": only(False, "HookedTransformer's gated MLP has no bias on its gate, and adds the other behind it"),
    "pretraining_tp": neutral("it splits the same matrix products"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Llama's config fields to the canonical architecture."""
    like_llama.refuse_uneven_heads(config)
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which drops the biases that attention_bias brings."""
    from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

    return like_llama.add_attention_biases(convert_llama_weights(network, cfg), network, cfg)


FAMILY = Family(
    name="llama",
    class_name="LlamaForCausalLM",
    config_class_name="LlamaConfig",
    model_type="llama",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys=like_llama.CONFIG_KEYS,
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
