"""Sizes that several families' configs give in the same words: heads and experts, refused where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.families.fields import refuse_value


def read_sizes(config: Mapping[str, Any], head_dim: int | None = None) -> dict[str, int]:
    """Return d_model, n_heads, n_key_value_heads and d_head; `head_dim` is the family's own field, if it has one."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    n_key_value_heads = config["num_key_value_heads"] or n_heads
    if head_dim is None and d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads % n_key_value_heads:
        raise refuse_value("num_key_value_heads", n_key_value_heads, f"num_attention_heads = {n_heads} is no multiple")
    d_head = head_dim or d_model // n_heads
    if d_head % 2:
        key = "num_attention_heads" if head_dim is None else "head_dim"
        raise refuse_value(key, config[key], f"rotary embeddings turn pairs, and a head has {d_head} dimensions")
    return {"d_model": d_model, "n_heads": n_heads, "n_key_value_heads": n_key_value_heads, "d_head": d_head}


def read_experts(config: Mapping[str, Any], key: str, *, norm_topk_prob: bool) -> dict[str, Any]:
    """Return the fields of a mixture of experts; `key` is the field that counts them."""
    n_experts, n_chosen = config[key], config["num_experts_per_tok"]
    if n_chosen > n_experts:
        raise refuse_value("num_experts_per_tok", n_chosen, f"there are only {key} = {n_experts} to choose from")
    return {"num_experts": n_experts, "experts_per_token": n_chosen, "norm_topk_prob": norm_topk_prob}
