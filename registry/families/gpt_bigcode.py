"""StarCoder and SantaCoder: `GPTBigCodeForCausalLM`, GPT-2 with one key and value for all heads; a bridge runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged
from registry.families.family import Family
from registry.families.fields import neutral, only, refuse_value, used

_DROPOUT = neutral("dropout is off when a network is read")
_PRECISION = neutral("it computes the same scores in float32, for training in half precision")
_SUMMARY = neutral("it belongs to another head than the language model's")
_WORDS = {
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_mlp": "n_inner",
    "d_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "tie_word_embeddings": "tie_word_embeddings",
}

FIELDS = {
    "vocab_size": used(int, 50257),
    "n_positions": used(int, 1024),
    "n_embd": used(int, 768),
    "n_layer": used(int, 12),
    "n_head": used(int, 12),
    "n_inner": used(int, None, optional=True),
    "activation_function": used(str, "gelu_pytorch_tanh"),
    "layer_norm_epsilon": used(float, 1e-5),
    "scale_attn_weights": only(True, "transformer-lens's bridge divides attention scores always", bridged.NO_BRIDGE),
    "tie_word_embeddings": used(bool, True),
    "multi_query": only(True, "transformer-lens's bridge takes one key and value for all heads", bridged.NO_BRIDGE),
    "num_key_value_heads": only(1, "with multi_query there is one key and value for all heads", bridged.NO_BRIDGE),
    "add_cross_attention": only(False, "transformer-lens's bridge has no cross-attention"),
    "attention_softmax_in_fp32": _PRECISION,
    "scale_attention_softmax_in_fp32": _PRECISION,
    "n_ctx": neutral("transformers reads n_positions"),
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
    """Map GPTBigCode's config fields to the canonical architecture."""
    d_model, n_heads = config["n_embd"], config["n_head"]
    if d_model % n_heads:
        raise refuse_value("n_head", n_heads, f"n_embd = {d_model} is no multiple of it")
    bridged.check_activation("activation_function", config["activation_function"])
    filled = {**config, "n_inner": config["n_inner"] or 4 * d_model}
    return bridged.describe("gpt_bigcode", filled, _WORDS, positional_embedding_type="standard")


FAMILY = Family(
    name="gpt_bigcode",
    class_name="GPTBigCodeForCausalLM",
    config_class_name="GPTBigCodeConfig",
    model_type="gpt_bigcode",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys=bridged.name_keys(FIELDS, _WORDS),
    base_prefix="transformer.",
    tied=("transformer.wte.weight", "lm_head.weight"),
    spellings={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=re.compile(r"transformer\.(h\.\d+\.attn\.)?(bias|masked_bias)"),
)
