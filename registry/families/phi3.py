"""Phi-3 and Phi-4: `Phi3ForCausalLM`, a Llama with fused matrices, partly rotated heads and perhaps a window."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used
from registry.families.layer_types import describe_windows, read_layer_types

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_DEFAULT_PART = 1.0

FIELDS = {
    "vocab_size": used(int, 32064),
    "hidden_size": used(int, 3072),
    "intermediate_size": used(int, 8192),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 4096),
    "rms_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "sliding_window": used(int, None, optional=True),
    **rope.PARTIAL_FIELDS,
    "original_max_position_embeddings": neutral("only longrope reads it, which is refused"),
    "attention_bias": only(False, "transformers's Phi-3 has no attention biases"),
    "lm_head_bias": only(False, "transformers's Phi-3 has no head bias"),
    "resid_pdrop": _DROPOUT,
    "embd_pdrop": _DROPOUT,
    "attention_dropout": _DROPOUT,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Phi-3's config fields to the canonical architecture."""
    d_model, n_heads, n_layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    n_key_value_heads = config["num_key_value_heads"] or n_heads
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads % n_key_value_heads:
        raise refuse_value("num_key_value_heads", n_key_value_heads, f"num_attention_heads = {n_heads} is no multiple")
    d_head, n_ctx, window = d_model // n_heads, config["max_position_embeddings"], config["sliding_window"]
    return describe_architecture(
        d_model=d_model,
        n_layers=n_layers,
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
        rotary_dim=rope.describe_rotary_dim(config, d_head, _DEFAULT_PART),
        **rope.describe_rope(_read_rope(config), n_ctx),
        **describe_windows(read_layer_types(None, n_layers, lambda _: window is not None), window),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Phi3Config its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.PARTIAL_FIELDS}
    return {**others, "rope_parameters": _read_rope(config)}


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the rotary fields; here transformers knows plain rope and longrope only, and reads yarn and su as that."""
    rotary = rope.read_partial_rope(config, _DEFAULT_PART)
    if rotary["rope_type"] != "default":
        source = "rope_parameters" if config["rope_parameters"] else "rope_scaling"
        raise refuse_value(
            source, config[source], "of the scaled ropes, Phi-3 has longrope only, which is not computed"
        )
    return rotary


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, without its mistakes.

    It makes up norm biases, as long as the vocabulary, where there are none; and it leaves out the MLP's biases, which
    HookedTransformer has, as zeros.
    """
    import torch
    from transformer_lens.pretrained.weight_conversions.phi3 import convert_phi3_weights

    converted: dict[str, torch.Tensor] = convert_phi3_weights(network, cfg)
    for layer in range(cfg.n_layers):
        for norm in ("ln1", "ln2"):
            del converted[f"blocks.{layer}.{norm}.b"]
        for leaf, width in (("b_in", cfg.d_mlp), ("b_out", cfg.d_model)):
            converted[f"blocks.{layer}.mlp.{leaf}"] = torch.zeros(width, dtype=cfg.dtype)
    return converted


FAMILY = Family(
    name="phi3",
    class_name="Phi3ForCausalLM",
    config_class_name="Phi3Config",
    model_type="phi3",
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
        "tie_word_embeddings": "tie_word_embeddings",
        "use_local_attn": "sliding_window",
        "window_size": "sliding_window",
        "attn_types": "sliding_window",
        **rope.CONFIG_KEYS,
        "rotary_dim": "partial_rotary_factor",
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
