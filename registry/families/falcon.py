"""Falcon: `FalconForCausalLM`, attention beside the MLP, keys and values shared by heads; a bridge runs it.

There are two kinds. The older has one key and value for all heads (`multi_query`) or one for each; the newer
(`new_decoder_architecture`: 40B, 180B, 11B) one for each group of heads. transformer-lens 3.9 splits the newer one's
fused matrix as if it held all queries, then all keys, then all values; it holds them group by group, and is split here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, rope
from registry.families.family import Family
from registry.families.fields import neutral, only, refuse_value, used

_DROPOUT = neutral("dropout is off when a network is read")
_WORDS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_key_value_heads": "num_kv_heads",
    "d_mlp": "ffn_hidden_size",
    "d_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}

FIELDS = {
    "vocab_size": used(int, 65024),
    "hidden_size": used(int, 4544),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 71),
    "num_kv_heads": used(int, None, optional=True),
    "num_ln_in_parallel_attn": used(int, None, optional=True),
    "layer_norm_epsilon": used(float, 1e-5),
    "new_decoder_architecture": used(bool, False),
    "multi_query": used(bool, True),
    "parallel_attn": used(bool, True),
    "bias": used(bool, False),
    "ffn_hidden_size": used(int, None, optional=True),
    "activation": used(str, "gelu"),
    "max_position_embeddings": used(int, 2048),
    "tie_word_embeddings": used(bool, True),
    **rope.FIELDS,
    "alibi": only(False, "transformer-lens's bridge is 3.8 nats off Falcon with alibi", bridged.NO_BRIDGE),
    "apply_residual_connection_post_layernorm": only(False, "transformers has no such connection in Falcon"),
    "hidden_dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give FalconConfig what it reads, in one form: `multi_query` counts in the older kind only, as in transformers."""
    grouped = config["new_decoder_architecture"]
    return {
        **{name: value for name, value in config.items() if name not in rope.FIELDS},
        "rope_parameters": rope.read_rope(config),
        "multi_query": config["multi_query"] and not grouped,
        "num_kv_heads": _count_key_value_heads(config),
        "num_ln_in_parallel_attn": _count_norms(config),
        "ffn_hidden_size": config["ffn_hidden_size"] or 4 * config["hidden_size"],
    }


def _count_key_value_heads(config: Mapping[str, Any]) -> int:
    n_heads, given = config["num_attention_heads"], config["num_kv_heads"]
    if config["new_decoder_architecture"]:
        if n_heads % (given or n_heads):
            raise refuse_value("num_kv_heads", given, f"num_attention_heads = {n_heads} is no multiple of it")
        return int(given or n_heads)
    if config["multi_query"]:
        return 1
    if given not in (None, n_heads):
        why = f"without multi_query and new_decoder_architecture every head has its own, and there are {n_heads}"
        raise refuse_value("num_kv_heads", given, why, bridged.NO_BRIDGE)
    return int(n_heads)


def _count_norms(config: Mapping[str, Any]) -> int:
    """Return how many norms a layer has before what is side by side; the older kind has one."""
    given = config["num_ln_in_parallel_attn"]
    if not config["new_decoder_architecture"]:
        if given not in (None, 1):
            why = "that is for new_decoder_architecture"
            raise refuse_value("num_ln_in_parallel_attn", given, why, bridged.NO_BRIDGE)
        return 1
    if not config["parallel_attn"]:
        why = "with new_decoder_architecture attention is beside the MLP"
        raise refuse_value("parallel_attn", False, why, bridged.NO_BRIDGE)
    if given not in (None, 1, 2):
        raise refuse_value("num_ln_in_parallel_attn", given, "there is one or two", bridged.NO_BRIDGE)
    return int(given or 2)


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Falcon's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    d_head = d_model // n_heads
    if d_head % 2:
        why = f"rotary embeddings turn pairs, and a head has {d_head} dimensions"
        raise refuse_value("num_attention_heads", n_heads, why)
    bridged.check_activation("activation", config["activation"])
    return bridged.describe_rotary("falcon", make_arguments(config), _WORDS, d_head=d_head)


def adapt_bridge(adapter: Any, config: Any) -> None:
    """Split the newer kind's fused matrix by groups, and name its norm as transformers does where it has one."""
    if not config.new_decoder_architecture:
        return
    parts = adapter.component_mapping["blocks"].submodules
    parts["attn"].split_qkv_matrix = lambda attention: _split_groups(
        attention.query_key_value, config.num_kv_heads, config.head_dim
    )
    if config.num_ln_in_parallel_attn == 1:
        parts["ln1"].name = "input_layernorm"


def _split_groups(fused: Any, n_groups: int, d_head: int) -> tuple[Any, ...]:
    """Make a linear layer each of queries, keys and values of one whose rows are, group by group, all three."""
    import torch

    def split(tensor: torch.Tensor) -> list[torch.Tensor]:
        grouped = tensor.detach().reshape(n_groups, -1, d_head, *tensor.shape[1:])
        parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        return [part.reshape(-1, *tensor.shape[1:]).contiguous() for part in parts]

    layers = []
    for index, weight in enumerate(split(fused.weight)):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=fused.bias is not None, device="meta")
        layer.weight = torch.nn.Parameter(weight)
        if fused.bias is not None:
            layer.bias = torch.nn.Parameter(split(fused.bias)[index])
        layers.append(layer)
    return tuple(layers)


FAMILY = Family(
    name="falcon",
    class_name="FalconForCausalLM",
    config_class_name="FalconConfig",
    model_type="falcon",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={**bridged.name_keys(FIELDS, _WORDS), "d_head": "hidden_size / num_attention_heads"},
    arguments=make_arguments,
    base_prefix="transformer.",
    tied=("transformer.word_embeddings.weight", "lm_head.weight"),
    ignored=re.compile(r"transformer\.h\.\d+\.self_attention\.(rotary_emb|maybe_rotary)\.inv_freq"),
    adapt_bridge=adapt_bridge,
)
