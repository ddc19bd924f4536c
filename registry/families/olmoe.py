"""OLMoE: `OlmoeForCausalLM`, Llama with a mixture of experts, and RMSNorm on whole queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.experts import ExpertNames, read_experts
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_D_HEAD = "hidden_size / num_attention_heads"

FIELDS = {
    "vocab_size": used(int, 50304),
    "hidden_size": used(int, 2048),
    "intermediate_size": used(int, 2048),
    "num_hidden_layers": used(int, 16),
    "num_attention_heads": used(int, 16),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 4096),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "rms_norm_eps": used(float, 1e-5),
    "clip_qkv": used(float, None, optional=True),
    "num_experts": used(int, 64),
    "num_experts_per_tok": used(int, 8),
    "norm_topk_prob": used(bool, False),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
    "output_router_logits": neutral("the router's logits are given out beside the others"),
    "router_aux_loss_coef": neutral("it belongs to the training loss"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OLMoE's config fields to the canonical architecture."""
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        clip_qkv=config["clip_qkv"],
        block_variant="olmoe",
        **read_experts(config, "num_experts", norm_topk_prob=config["norm_topk_prob"]),
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give OlmoeConfig what it reads; which token pads is none of the network's business, but must be in range."""
    return {**like_llama.make_arguments(config), "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which drops the biases that attention_bias brings."""
    from transformer_lens.pretrained.weight_conversions.olmoe import convert_olmoe_weights

    return like_llama.add_attention_biases(
        like_llama.convert_ungrouped(convert_olmoe_weights, network, cfg), network, cfg
    )


FAMILY = Family(
    name="olmoe",
    class_name="OlmoeForCausalLM",
    config_class_name="OlmoeConfig",
    model_type="olmoe",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "d_head": _D_HEAD,
        "attn_scale": _D_HEAD,
        "rotary_dim": _D_HEAD,
        "clip_qkv": "clip_qkv",
        "num_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "norm_topk_prob": "norm_topk_prob",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    spellings={"num_local_experts": "num_experts"},
    experts=ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    router="mlp.gate",
    ignored=like_llama.IGNORED,
)
