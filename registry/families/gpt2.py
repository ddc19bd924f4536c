"""GPT-2: `GPT2LMHeadModel`, with learned positions, LayerNorm and one fused QKV matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_SUMMARY = neutral("it belongs to another head than the language model's")

FIELDS = {
    "vocab_size": used(int, 50257),
    "n_positions": used(int, 1024),
    "n_embd": used(int, 768),
    "n_layer": used(int, 12),
    "n_head": used(int, 12),
    "n_inner": used(int, None, optional=True),
    "activation_function": used(str, "gelu_new"),
    "layer_norm_epsilon": used(float, 1e-5),
    "scale_attn_weights": used(bool, True),
    "scale_attn_by_inverse_layer_idx": used(bool, False),
    "tie_word_embeddings": used(bool, True),
    "reorder_and_upcast_attn": neutral("it computes the same scores in float32, for training in half precision"),
    "n_ctx": neutral("transformers reads n_positions"),
    "n_special": neutral("transformers does not read it"),
    "predict_special_tokens": neutral("transformers does not read it"),
    "add_cross_attention": only(False, "HookedTransformer has no cross-attention"),
    "resid_pdrop": _DROPOUT,
    "embd_pdrop": _DROPOUT,
    "attn_pdrop": _DROPOUT,
    "summary_type": _SUMMARY,
    "summary_use_proj": _SUMMARY,
    "summary_activation": _SUMMARY,
    "summary_proj_to_labels": _SUMMARY,
    "summary_first_dropout": _SUMMARY,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map GPT-2's config fields to the canonical architecture."""
    d_model, n_heads = config["n_embd"], config["n_head"]
    if d_model % n_heads:
        raise refuse_value("n_head", n_heads, f"n_embd = {d_model} is no multiple of it")
    d_head = d_model // n_heads
    return describe_architecture(
        d_model=d_model,
        n_layers=config["n_layer"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=config["n_inner"] or 4 * d_model,
        d_vocab=config["vocab_size"],
        n_ctx=config["n_positions"],
        act_fn=read_activation("activation_function", config["activation_function"]),
        normalization_type="LN",
        eps=config["layer_norm_epsilon"],
        positional_embedding_type="standard",
        tie_word_embeddings=config["tie_word_embeddings"],
        attn_scale=math.sqrt(d_head) if config["scale_attn_weights"] else 1.0,
        scale_attn_by_inverse_layer_idx=config["scale_attn_by_inverse_layer_idx"],
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter."""
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    converted: dict[str, torch.Tensor] = convert_gpt2_weights(network, cfg)
    return converted


FAMILY = Family(
    name="gpt2",
    class_name="GPT2LMHeadModel",
    config_class_name="GPT2Config",
    model_type="gpt2",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "n_key_value_heads": "n_head",
        "d_head": "n_embd / n_head",
        "d_mlp": "n_inner",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "n_positions",
        "act_fn": "activation_function",
        "eps": "layer_norm_epsilon",
        "attn_scale": "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    base_prefix="transformer.",
    tied=("transformer.wte.weight", "lm_head.weight"),
    absent=("unembed.b_U",),
    spellings={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),
)
