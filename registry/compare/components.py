"""Where a tensor belongs: its layer, its component, and how it is seen as a matrix and as heads."""

from __future__ import annotations

import re
from typing import Literal

import torch

Component = Literal["embed", "attention", "MLP", "norm", "unembed", "other"]
COMPONENTS: tuple[Component, ...] = ("embed", "attention", "MLP", "norm", "unembed", "other")

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|h|layer)\.(\d+)\.")
# in this order: a norm inside of attention is a norm
_PATTERNS: tuple[tuple[Component, re.Pattern[str]], ...] = (
    ("norm", re.compile(r"(^|\.|_)(ln|norm|layernorm)[^.]*\.|(^|\.)ln_f\.")),
    ("unembed", re.compile(r"(^|\.)(unembed|lm_head|embed_out)\.")),
    ("embed", re.compile(r"(^|\.)(pos_)?embed(_tokens|_in)?\.|(^|\.)(wte|wpe|word_embeddings|token_type_embed)\.")),
    ("attention", re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.")),
    ("MLP", re.compile(r"(^|\.)(mlp|feed_forward|block_sparse_moe|experts|mixer)\.")),
)
_IN_HEADS = re.compile(r"attn\._?[Wb]_([QKVO])$")


def find_layer(name: str) -> int | None:
    """Return the layer that a tensor is in, counted from 0, or None for those that are in none."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def find_component(name: str) -> Component:
    """Return what a tensor is a part of, by HookedTransformer's names or by transformers's."""
    return next((component for component, pattern in _PATTERNS if pattern.search(name)), "other")


def view_matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as the matrix whose rank is that of a change: heads side by side, `(d_model, n_heads * d_head)`.

    In transformer-lens `W_Q`, `W_K` and `W_V` are `(n_heads, d_model, d_head)`, and `W_O` is `(n_heads, d_head,
    d_model)`. Vectors become one row, also those that are kept by head.
    """
    match = _IN_HEADS.search(name)
    if tensor.ndim < 2 or (match and tensor.ndim == 2):
        return tensor.reshape(1, -1)
    if match and match[1] != "O" and tensor.ndim == 3:
        return tensor.permute(1, 0, 2).reshape(tensor.shape[1], -1)
    return tensor.reshape(-1, tensor.shape[-1])


def view_heads(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor with a row for each head, `(n_heads, …)`, or None where heads share it."""
    match = _IN_HEADS.search(name)
    if match is None or tensor.ndim < 2:
        return None
    return tensor.reshape(tensor.shape[0], -1)
