"""Mixtral: `MixtralForCausalLM`, Mistral with a mixture of experts instead of each MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.experts import ExpertNames, read_experts
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used
from registry.families.layer_types import describe_windows, read_layer_types

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
    n_layers, n_ctx, window = (
        config[key] for key in ("num_hidden_layers", "max_position_embeddings", "sliding_window")
    )
    attn_types = read_layer_types(None, n_layers, lambda layer: window is not None)
    sizes = like_llama.describe_sizes(config)
    rotary = rope.read_rope(config, DEFAULT_THETA)
    if rotary["rope_type"] == "yarn" and config["head_dim"] is None:
        key = "rope_parameters" if config["rope_parameters"] else "rope_scaling"
        why = "transformers 5.23 can build no Mixtral with yarn and without head_dim"
        raise refuse_value(key, config[key], why, f"Add head_dim = {sizes['d_head']} to config.json.")
    return describe_architecture(
        **sizes,
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        # MixtralTopKRouter makes the chosen experts' weights sum to one, whatever config.json says
        **read_experts(config, "num_local_experts", norm_topk_prob=True),
        **describe_windows(attn_types, window),
        **rope.describe_rope(rotary, n_ctx, attn_types),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give MixtralConfig its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": rope.read_rope(config, DEFAULT_THETA)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which knows grouped keys and values only."""
    from transformer_lens.pretrained.weight_conversions.mixtral import convert_mixtral_weights

    return like_llama.convert_ungrouped(convert_mixtral_weights, network, cfg)


FAMILY = Family(
    name="mixtral",
    class_name="MixtralForCausalLM",
    config_class_name="MixtralConfig",
    model_type="mixtral",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "num_experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "use_local_attn": "sliding_window",
        "window_size": "sliding_window",
        "attn_types": "sliding_window",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    spellings={"num_experts": "num_local_experts"},
    experts=ExpertNames(block="block_sparse_moe", gate="w1", up="w3", down="w2"),
    router="mlp.gate",
    ignored=like_llama.IGNORED,
)
