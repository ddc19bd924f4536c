"""Qwen3 with experts: `Qwen3MoeForCausalLM`, with RMSNorm on queries and keys; a bridge runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.experts import ExpertNames, read_experts
from registry.families.family import Family
from registry.families.fields import neutral, only, used

_NO_DENSE = "transformers itself can run this network."

FIELDS = {
    "vocab_size": used(int, 151936),
    "hidden_size": used(int, 2048),
    "num_hidden_layers": used(int, 24),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, 4),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 32768),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "moe_intermediate_size": used(int, 768),
    "num_experts_per_tok": used(int, 8),
    "num_local_experts": used(int, 128),
    "norm_topk_prob": used(bool, False),
    "use_sliding_window": used(bool, False),
    "sliding_window": used(int, 4096, optional=True),
    **rope.FIELDS,
    "intermediate_size": neutral("layers without experts have it, and there are none"),
    "max_window_layers": neutral("transformers does not read it here"),
    "decoder_sparse_step": only(1, "layers without experts are not provided for", _NO_DENSE),
    "mlp_only_layers": only([], "layers without experts are not provided for", _NO_DENSE),
    "output_router_logits": neutral("the router's logits are given out beside the others"),
    "router_aux_loss_coef": neutral("it belongs to the training loss"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Qwen3MoeConfig its fields in the form of transformers 5; without use_sliding_window there is no window."""
    others = {name: value for name, value in like_llama.make_arguments(config).items() if name != "num_local_experts"}
    window = config["sliding_window"] if config["use_sliding_window"] else None
    return {
        **others,
        "num_experts": config["num_local_experts"],
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Qwen3-MoE's config fields to the canonical architecture."""
    read_experts(config, "num_local_experts", norm_topk_prob=config["norm_topk_prob"])
    arguments = make_arguments(config)
    windows = {"use_local_attn": arguments.pop("use_sliding_window"), "window_size": arguments.pop("sliding_window")}
    return bridged.describe_like_llama("qwen3_moe", config, arguments, bridged.EXPERTS, **windows)


FAMILY = Family(
    name="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    config_class_name="Qwen3MoeConfig",
    model_type="qwen3_moe",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={
        **bridged.name_keys(FIELDS, bridged.EXPERTS),
        "d_head": "head_dim",
        "use_local_attn": "use_sliding_window",
        "window_size": "sliding_window",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    spellings={"num_experts": "num_local_experts"},
    experts=ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    router="mlp.gate",
    ignored=like_llama.IGNORED,
)
