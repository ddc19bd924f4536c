"""What the families share that are built like Llama: the names of their config fields, heads, biases of attention."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from registry.families import rope
from registry.families.fields import refuse_value

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

CONFIG_KEYS: Mapping[str, str] = {
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
    **rope.CONFIG_KEYS,
}
BASE_PREFIX = "model."
TIED = ("model.embed_tokens.weight", "lm_head.weight")
# older releases of transformers saved this buffer among the weights
IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def describe_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Map the sizes, the norms and the head to architecture fields, or raise UnsupportedConfig."""
    n_key_value_heads, d_head = read_heads(config)
    return {
        "d_model": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_key_value_heads": n_key_value_heads,
        "d_head": d_head,
        "d_mlp": config["intermediate_size"],
        "d_vocab": config["vocab_size"],
        "n_ctx": config["max_position_embeddings"],
        "normalization_type": "RMS",
        "final_rms": True,
        "eps": config["rms_norm_eps"],
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def read_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return n_key_value_heads and d_head, which must fit the width, the heads, and rotary positions."""
    d_model, n_heads, d_head = config["hidden_size"], config["num_attention_heads"], config.get("head_dim")
    n_key_value_heads = config["num_key_value_heads"] or n_heads
    if d_head is None and d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads % n_key_value_heads:
        raise refuse_value("num_key_value_heads", n_key_value_heads, f"num_attention_heads = {n_heads} is no multiple")
    d_head = d_head or d_model // n_heads
    if d_head % 2:
        key = "head_dim" if "head_dim" in config else "num_attention_heads"
        raise refuse_value(key, config[key], f"rotary embeddings turn pairs, and a head has {d_head} dimensions")
    return n_key_value_heads, d_head


def refuse_uneven_heads(config: Mapping[str, Any]) -> None:
    """Refuse a width that is no multiple of the heads, as some config classes do even where head_dim is given."""
    if config["hidden_size"] % config["num_attention_heads"]:
        raise refuse_value(
            "num_attention_heads",
            config["num_attention_heads"],
            f"hidden_size = {config['hidden_size']} is no multiple of it",
        )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the config class its rotary fields in the one form of transformers 5, and no null that it may not know."""
    left_out = {*rope.FIELDS, *({"head_dim"} if config.get("head_dim") is None else ())}
    return {
        **{name: value for name, value in config.items() if name not in left_out},
        "num_key_value_heads": config["num_key_value_heads"] or config["num_attention_heads"],
        "rope_parameters": rope.read_rope(config),
    }


def convert_ungrouped(
    converter: Callable[[Any, Any], dict[str, Any]], network: torch.nn.Module, cfg: HookedTransformerConfig
) -> dict[str, torch.Tensor]:
    """Call one of transformer-lens's converters that know grouped keys and values only.

    Where every head has its own, they are asked for as many groups as heads, and the names of grouped tensors (`_W_K`)
    are made those of HookedTransformer's plain attention (`W_K`).
    """
    if cfg.n_key_value_heads is not None:
        return converter(network, cfg)
    grouped = copy.copy(cfg)
    grouped.n_key_value_heads = cfg.n_heads
    return {name.replace(".attn._", ".attn."): tensor for name, tensor in converter(network, grouped).items()}


def add_attention_biases(
    tensors: Mapping[str, torch.Tensor], network: Any, cfg: HookedTransformerConfig
) -> dict[str, torch.Tensor]:
    """Put the biases of q_proj, k_proj, v_proj and o_proj where transformer-lens's converter put zeros."""
    added = dict(tensors)
    grouped = "" if cfg.n_key_value_heads is None else "_"
    for index, layer in enumerate(network.model.layers):
        attention, prefix = layer.self_attn, f"blocks.{index}.attn."
        for projection, name in (("q_proj", "b_Q"), ("k_proj", grouped + "b_K"), ("v_proj", grouped + "b_V")):
            bias = getattr(attention, projection).bias
            if bias is not None:
                added[prefix + name] = bias.reshape(-1, cfg.d_head)
        if attention.o_proj.bias is not None:
            added[prefix + "b_O"] = attention.o_proj.bias
    return added
