"""OLMo: `OlmoForCausalLM`, Llama with a LayerNorm that has no weights, and clipped queries, keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

EPS = 1e-5  # OlmoLayerNorm's own; no field says so
_D_HEAD = "hidden_size / num_attention_heads"

FIELDS = {
    "vocab_size": used(int, 50304),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 11008),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 2048),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "clip_qkv": used(float, None, optional=True),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OLMo's config fields to the canonical architecture."""
    sizes = like_llama.describe_sizes({**config, "rms_norm_eps": EPS})
    return describe_architecture(
        **{**sizes, "normalization_type": "LN", "final_rms": False},
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        clip_qkv=config["clip_qkv"],
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give OlmoConfig what it reads; which token pads is none of the network's business, but must be in range."""
    return {**like_llama.make_arguments(config), "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and attention by hand."""
    from transformer_lens.pretrained.weight_conversions.olmo import convert_olmo_weights

    return convert_around_attention(convert_olmo_weights, network, cfg)


def convert_around_attention(
    converter: Callable[[Any, HookedTransformerConfig], dict[str, torch.Tensor]],
    network: Any,
    cfg: HookedTransformerConfig,
) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's `converter`, all but the matrices and biases of attention.

    Those of OLMo and OLMo 2 know no fewer key-value heads than heads, and no biases. Told of one head they do not fail,
    and what they make of attention then is not used.
    """
    one_head = copy.copy(cfg)
    one_head.n_heads = one_head.n_key_value_heads = 1
    converted = {
        name: tensor
        for name, tensor in converter(network, one_head).items()
        if ".attn." not in name or "_norm." in name
    }
    for layer in range(cfg.n_layers):
        tensors = _convert_attention(network.model.layers[layer].self_attn, cfg)
        converted |= {f"blocks.{layer}.attn.{name}": tensor for name, tensor in tensors.items()}
    return converted


def _convert_attention(attention: Any, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Return W_Q (n_heads, d_model, d_head), W_K and W_V with n_key_value_heads, W_O, and their biases.

    With fewer key-value heads than heads, transformer-lens calls theirs `_W_K`, `_W_V`, `_b_K` and `_b_V`.
    """
    grouped = "_" if cfg.n_key_value_heads else ""
    n_key_value_heads = cfg.n_key_value_heads or cfg.n_heads
    tensors = {}
    for letter, n_heads, mark in (
        ("Q", cfg.n_heads, ""),
        ("K", n_key_value_heads, grouped),
        ("V", n_key_value_heads, grouped),
    ):
        projection = getattr(attention, f"{letter.lower()}_proj")
        weight = projection.weight
        tensors[f"{mark}W_{letter}"] = weight.reshape(n_heads, cfg.d_head, cfg.d_model).transpose(1, 2)
        bias = weight.new_zeros(n_heads * cfg.d_head) if projection.bias is None else projection.bias
        tensors[f"{mark}b_{letter}"] = bias.reshape(n_heads, cfg.d_head)
    output = attention.o_proj
    tensors["W_O"] = output.weight.T.reshape(cfg.n_heads, cfg.d_head, cfg.d_model)
    tensors["b_O"] = output.weight.new_zeros(cfg.d_model) if output.bias is None else output.bias
    return tensors


FAMILY = Family(
    name="olmo",
    class_name="OlmoForCausalLM",
    config_class_name="OlmoConfig",
    model_type="olmo",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "d_head": _D_HEAD,
        "attn_scale": _D_HEAD,
        "rotary_dim": _D_HEAD,
        "clip_qkv": "clip_qkv",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
