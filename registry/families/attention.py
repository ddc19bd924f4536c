"""Attention weights in hooked layout: what transformer-lens's converters drop (biases) or cannot lay out (few keys).

Its converters for Mixtral, OLMo, OLMo 2, OLMo 3, OLMoE and GPT-OSS either drop the biases of `attention_bias`, or
assume as many key-value heads as heads, or the opposite. Everything else of theirs is right, and is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_KEPT = ("q_norm.w", "k_norm.w", "sinks")


def convert_around_attention(
    converter: Callable[[Any, HookedTransformerConfig], dict[str, torch.Tensor]],
    network: Any,
    cfg: HookedTransformerConfig,
) -> dict[str, torch.Tensor]:
    """Convert all but the attention matrices and biases with transformer-lens's `converter`, and those here.

    The converter is told of one head, with which none of them fails; what it makes of the attention is not used.
    """
    one_head = copy.copy(cfg)
    one_head.n_heads = one_head.n_key_value_heads = 1
    converted = {
        name: tensor
        for name, tensor in converter(network, one_head).items()
        if ".attn." not in name or name.endswith(_KEPT)
    }
    for layer in range(cfg.n_layers):
        tensors = convert_attention(network.model.layers[layer].self_attn, cfg)
        converted |= {f"blocks.{layer}.attn.{name}": tensor for name, tensor in tensors.items()}
    return converted


def convert_attention(attention: Any, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
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
