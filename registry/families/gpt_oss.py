"""GPT-OSS: `GptOssForCausalLM`, with experts, attention sinks, biases, and windows in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.experts import read_experts
from registry.families.family import Family
from registry.families.fields import neutral, only, used
from registry.families.layer_types import describe_windows, read_layer_types

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

DEFAULT_THETA = 150000.0
# what GptOssConfig takes where config.json says nothing
DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_EXPERT = "HookedTransformer has this number of the experts' activation built in"

FIELDS = {
    "vocab_size": used(int, 201088),
    "hidden_size": used(int, 2880),
    "intermediate_size": used(int, 2880),
    "num_hidden_layers": used(int, 36),
    "num_attention_heads": used(int, 64),
    "num_key_value_heads": used(int, 8),
    "head_dim": used(int, 64),
    "max_position_embeddings": used(int, 131072),
    "rms_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, True),
    "sliding_window": used(int, 128, optional=True),
    "layer_types": used(list, None, optional=True),
    "num_local_experts": used(int, 128),
    "num_experts_per_tok": used(int, 4),
    **rope.FIELDS,
    "swiglu_alpha": only(1.702, _EXPERT),
    "swiglu_limit": only(7.0, _EXPERT),
    "hidden_act": neutral("the experts have an activation of their own"),
    "experts_per_token": neutral("transformers reads num_experts_per_tok"),
    "initial_context_length": neutral("transformers reads rope_scaling.original_max_position_embeddings"),
    "attention_dropout": neutral("dropout is off when a network is read"),
    "output_router_logits": neutral("the router's logits are given out beside the others"),
    "router_aux_loss_coef": neutral("it belongs to the training loss"),
    "quantization_config": only(
        None,
        "its experts are packed numbers, as in the MXFP4 checkpoints of OpenAI",
        hint="Dequantise it first: GptOssForCausalLM.from_pretrained(SOURCE, dtype='bfloat16', "
        "quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(FOLDER), and register FOLDER.",
    ),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map GPT-OSS's config fields to the canonical architecture."""
    n_layers, n_ctx = config["num_hidden_layers"], config["max_position_embeddings"]
    attn_types = read_layer_types(config["layer_types"], n_layers, lambda layer: layer % 2 == 0)
    rotary = read_rope(config)
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn="silu",  # HookedTransformer's GptOssExpert does not read it either
        gated_mlp=True,
        use_attention_sinks=True,
        block_variant="gpt_oss",
        # the softmax is taken over the chosen experts only
        **read_experts(config, "num_local_experts", norm_topk_prob=True),
        **describe_windows(attn_types, config["sliding_window"]),
        **rope.describe_rope(rotary, n_ctx, attn_types),
    )


def read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters, which are scaled by yarn unless config.json says otherwise."""
    if config["rope_parameters"] is None and not config["rope_scaling"]:
        config = {**config, "rope_parameters": DEFAULT_ROPE}
    return rope.read_rope(config, DEFAULT_THETA)


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give GptOssConfig its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": read_rope(config)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which knows grouped keys and values only."""
    from transformer_lens.pretrained.weight_conversions.openai import convert_gpt_oss_weights

    return like_llama.convert_ungrouped(convert_gpt_oss_weights, network, cfg)


FAMILY = Family(
    name="gpt_oss",
    class_name="GptOssForCausalLM",
    config_class_name="GptOssConfig",
    model_type="gpt_oss",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "use_local_attn": "layer_types",
        "attn_types": "layer_types",
        "window_size": "sliding_window",
        "num_experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    spellings={"num_experts": "num_local_experts"},
    router="mlp.router",
    ignored=like_llama.IGNORED,
)
