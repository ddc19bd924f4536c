"""Qwen2 with experts: `Qwen2MoeForCausalLM`, one of them shared by all tokens; a bridge runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.experts import ExpertNames, read_experts
from registry.families.family import Family
from registry.families.fields import neutral, only, refuse_value, used
from registry.families.layer_types import read_layer_types

_NO_DENSE = "transformers itself can run this network."
_NO_WINDOW = neutral("no layer has a window, since use_sliding_window is false")

FIELDS = {
    "vocab_size": used(int, 151936),
    "hidden_size": used(int, 2048),
    "num_hidden_layers": used(int, 24),
    "num_attention_heads": used(int, 16),
    "num_key_value_heads": used(int, 16),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 32768),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, False),
    "qkv_bias": used(bool, True),
    "moe_intermediate_size": used(int, 1408),
    "shared_expert_intermediate_size": used(int, 5632),
    "num_experts_per_tok": used(int, 4),
    "num_experts": used(int, 60),
    "norm_topk_prob": used(bool, False),
    "layer_types": used(list, None, optional=True),
    **rope.FIELDS,
    "use_sliding_window": only(False, "windows are not provided for here", _NO_DENSE),
    "sliding_window": _NO_WINDOW,
    "max_window_layers": _NO_WINDOW,
    "intermediate_size": neutral("layers without experts have it, and there are none"),
    "decoder_sparse_step": only(1, "layers without experts are not provided for", _NO_DENSE),
    "mlp_only_layers": only([], "layers without experts are not provided for", _NO_DENSE),
    "output_router_logits": neutral("the router's logits are given out beside the others"),
    "router_aux_loss_coef": neutral("it belongs to the training loss"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Qwen2MoeConfig its fields in the form of transformers 5; no layer has a window."""
    return {name: value for name, value in like_llama.make_arguments(config).items() if name != "layer_types"}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Qwen2-MoE's config fields to the canonical architecture."""
    read_experts(config, "num_experts", norm_topk_prob=config["norm_topk_prob"])
    if "local" in read_layer_types(config["layer_types"], config["num_hidden_layers"], lambda _: False):
        raise refuse_value("layer_types", config["layer_types"], "windows are not provided for here", _NO_DENSE)
    return bridged.describe_like_llama("qwen2_moe", config, make_arguments(config), bridged.EXPERTS)


FAMILY = Family(
    name="qwen2_moe",
    class_name="Qwen2MoeForCausalLM",
    config_class_name="Qwen2MoeConfig",
    model_type="qwen2_moe",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={**bridged.name_keys(FIELDS, bridged.EXPERTS), "d_head": "head_dim"},
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    experts=ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    router="mlp.gate",
    ignored=like_llama.IGNORED,
)
