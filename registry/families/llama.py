"""Llama: `LlamaForCausalLM`, with RMSNorm, rotary positions, grouped keys and values and a gated MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used

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
    "attention_bias": only(False, "transformer-lens's Llama converter drops attention biases"),
    "mlp_bias": only(False, "transformer-lens's Llama converter drops MLP biases"),
    "pretraining_tp": neutral("it splits the same matrix products"),
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Llama's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    n_key_value_heads = config["num_key_value_heads"] or n_heads
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads % n_key_value_heads:
        raise refuse_value("num_key_value_heads", n_key_value_heads, f"num_attention_heads = {n_heads} is no multiple")
    d_head = config["head_dim"] or d_model // n_heads
    if d_head % 2:
        raise refuse_value("head_dim", d_head, "rotary embeddings turn pairs")
    n_ctx = config["max_position_embeddings"]
    return describe_architecture(
        d_model=d_model,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_key_value_heads=n_key_value_heads,
        d_head=d_head,
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=n_ctx,
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        eps=config["rms_norm_eps"],
        tie_word_embeddings=config["tie_word_embeddings"],
        **rope.describe_rope(rope.read_rope(config), n_ctx),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give LlamaConfig its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": rope.read_rope(config)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter."""
    from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

    converted: dict[str, torch.Tensor] = convert_llama_weights(network, cfg)
    return converted


FAMILY = Family(
    name="llama",
    class_name="LlamaForCausalLM",
    config_class_name="LlamaConfig",
    model_type="llama",
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
        "tie_word_embeddings": "tie_word_embeddings",
        "rotary_dim": "head_dim",
        **rope.CONFIG_KEYS,
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
