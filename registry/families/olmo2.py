"""OLMo 2: `Olmo2ForCausalLM`, with RMSNorm after each sublayer, and on whole queries and keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.attention import convert_around_attention
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used
from registry.families.sizes import read_sizes

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

FIELDS = {
    "vocab_size": used(int, 50304),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 11008),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 2048),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "rms_norm_eps": used(float, 1e-5),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OLMo 2's config fields to the canonical architecture."""
    return describe_architecture(
        **read_sizes(config),
        n_layers=config["num_hidden_layers"],
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=config["max_position_embeddings"],
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        eps=config["rms_norm_eps"],
        block_variant="olmo2",
        tie_word_embeddings=config["tie_word_embeddings"],
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Olmo2Config its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": rope.read_rope(config)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and the attention with biases (see attention.py)."""
    from transformer_lens.pretrained.weight_conversions.olmo2 import convert_olmo2_weights

    return convert_around_attention(convert_olmo2_weights, network, cfg)


FAMILY = Family(
    name="olmo2",
    class_name="Olmo2ForCausalLM",
    config_class_name="Olmo2Config",
    model_type="olmo2",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_key_value_heads",
        "d_head": "hidden_size / num_attention_heads",
        "d_mlp": "intermediate_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "hidden_act",
        "eps": "rms_norm_eps",
        "attn_scale": "hidden_size / num_attention_heads",
        "rotary_dim": "hidden_size / num_attention_heads",
        "tie_word_embeddings": "tie_word_embeddings",
        **rope.CONFIG_KEYS,
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)
