"""Phi 1 and 2: `PhiForCausalLM`, with partly rotated heads, attention beside the MLP, one norm for both."""

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

_DROPOUT = neutral("dropout is off when a network is read")
_DEFAULT_PART = 0.5

FIELDS = {
    "vocab_size": used(int, 51200),
    "hidden_size": used(int, 2048),
    "intermediate_size": used(int, 8192),
    "num_hidden_layers": used(int, 24),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "gelu_new"),
    "max_position_embeddings": used(int, 2048),
    "layer_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    **rope.PARTIAL_FIELDS,
    "qk_layernorm": only(False, "HookedTransformer has no LayerNorm on queries and keys"),
    "resid_pdrop": _DROPOUT,
    "embd_pdrop": _DROPOUT,
    "attention_dropout": _DROPOUT,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Phi's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    n_key_value_heads = config["num_key_value_heads"] or n_heads
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads % n_key_value_heads:
        raise refuse_value("num_key_value_heads", n_key_value_heads, f"num_attention_heads = {n_heads} is no multiple")
    d_head, n_ctx = d_model // n_heads, config["max_position_embeddings"]
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
        normalization_type="LN",
        eps=config["layer_norm_eps"],
        parallel_attn_mlp=True,
        tie_word_embeddings=config["tie_word_embeddings"],
        rotary_dim=rope.describe_rotary_dim(config, d_head, _DEFAULT_PART),
        **rope.describe_rope(rope.read_partial_rope(config, _DEFAULT_PART), n_ctx),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give PhiConfig its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.PARTIAL_FIELDS}
    return {**others, "rope_parameters": rope.read_partial_rope(config, _DEFAULT_PART)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and the grouped keys and values, which it does not know, here."""
    from transformer_lens.pretrained.weight_conversions.phi import convert_phi_weights

    converted: dict[str, torch.Tensor] = convert_phi_weights(network, cfg)
    if cfg.n_key_value_heads is None:
        return converted
    phi: Any = network
    for index, layer in enumerate(phi.model.layers):
        for leaf, projection in (("K", layer.self_attn.k_proj), ("V", layer.self_attn.v_proj)):
            prefix, shape = f"blocks.{index}.attn.", (cfg.n_key_value_heads, cfg.d_head)
            del converted[f"{prefix}W_{leaf}"], converted[f"{prefix}b_{leaf}"]
            # (n_key_value_heads·d_head, d_model) -> (n_key_value_heads, d_model, d_head)
            converted[f"{prefix}_W_{leaf}"] = projection.weight.reshape(*shape, cfg.d_model).transpose(1, 2)
            converted[f"{prefix}_b_{leaf}"] = projection.bias.reshape(shape)
    return converted


FAMILY = Family(
    name="phi",
    class_name="PhiForCausalLM",
    config_class_name="PhiConfig",
    model_type="phi",
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
        "eps": "layer_norm_eps",
        "attn_scale": "hidden_size / num_attention_heads",
        "tie_word_embeddings": "tie_word_embeddings",
        **rope.CONFIG_KEYS,
        "rotary_dim": "partial_rotary_factor",
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)
