"""Mixtral: `MixtralForCausalLM`, Mistral with a mixture of experts instead of each MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.attention import convert_around_attention
from registry.families.experts import ExpertNames
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used
from registry.families.layer_types import describe_windows, read_layer_types
from registry.families.sizes import read_experts, read_sizes

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

DEFAULT_THETA = 1e6

FIELDS = {
    "vocab_size": used(int, 32000),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 14336),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, 8),
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 131072),
    "rms_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "sliding_window": used(int, None, optional=True),
    "num_local_experts": used(int, 8),
    "num_experts_per_tok": used(int, 2),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
    "output_router_logits": neutral("the router's logits are given out beside the others"),
    "router_aux_loss_coef": neutral("it belongs to the training loss"),
    "router_jitter_noise": neutral("the router is given noise in training only"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Mixtral's config fields to the canonical architecture."""
    sizes = read_sizes(config, config["head_dim"])
    n_layers, n_ctx = config["num_hidden_layers"], config["max_position_embeddings"]
    window = config["sliding_window"]
    windows = describe_windows(read_layer_types(None, n_layers, lambda layer: window is not None), window)
    rotary = rope.read_rope(config, DEFAULT_THETA)
    rope.refuse_scaled_windows(rotary, windows.get("attn_types", ()))
    return describe_architecture(
        **sizes,
        n_layers=n_layers,
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=n_ctx,
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        eps=config["rms_norm_eps"],
        tie_word_embeddings=config["tie_word_embeddings"],
        # MixtralTopKRouter makes the chosen experts' weights sum to one, whatever config.json says
        **read_experts(config, "num_local_experts", norm_topk_prob=True),
        **windows,
        **rope.describe_rope(rotary, n_ctx),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give MixtralConfig its rotary fields in the one form of transformers 5, and the head_dim that yarn needs."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    head_dim = read_sizes(config, config["head_dim"])["d_head"]
    return {**others, "head_dim": head_dim, "rope_parameters": rope.read_rope(config, DEFAULT_THETA)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and the attention with biases (see attention.py)."""
    from transformer_lens.pretrained.weight_conversions.mixtral import convert_mixtral_weights

    return convert_around_attention(convert_mixtral_weights, network, cfg)


FAMILY = Family(
    name="mixtral",
    class_name="MixtralForCausalLM",
    config_class_name="MixtralConfig",
    model_type="mixtral",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_key_value_heads",
        "d_head": "head_dim",
        "d_mlp": "intermediate_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "hidden_act",
        "eps": "rms_norm_eps",
        "attn_scale": "head_dim",
        "rotary_dim": "head_dim",
        "tie_word_embeddings": "tie_word_embeddings",
        "num_experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "use_local_attn": "sliding_window",
        "window_size": "sliding_window",
        "attn_types": "sliding_window",
        **rope.CONFIG_KEYS,
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    spellings={"num_experts": "num_local_experts"},
    experts=ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2"),
    router="mlp.gate",
    ignored=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)
