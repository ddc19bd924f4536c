"""A second implementation of attention, for the noise floor of networks that transformers's sdpa cannot run.

It computes what transformers's `eager_attention_forward` of Gemma 2 (soft cap) and GPT-OSS (sinks) compute, in another
order: keys and values are not repeated for their group of heads, queries are scaled before the product, and the softmax
is taken in the dtype of the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

SECOND_ATTENTION = "lensreg_second_attention"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from query (batch, n_heads, pos, d_head) to key and value (batch, n_key_value_heads, pos, d_head).

    `s_aux` (n_heads,) are attention sinks: scores of a key that has no value. Returns (batch, pos, n_heads, d_head).
    """
    batch, n_heads, n_queries, d_head = query.shape
    n_groups = key.shape[1]
    grouped = (query * scaling).reshape(batch, n_groups, n_heads // n_groups, n_queries, d_head)
    scores = torch.einsum("bghqd,bgkd->bghqk", grouped, key)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask.unsqueeze(1)  # (batch, 1, 1, n_queries, n_keys)
    largest = scores.amax(-1, keepdim=True)
    sinks = None if s_aux is None else s_aux.to(scores.dtype).reshape(1, n_groups, n_heads // n_groups, 1, 1)
    if sinks is not None:
        largest = torch.maximum(largest, sinks)
    weights = torch.exp(scores - largest)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks - largest)
    attended = torch.einsum("bghqk,bgkd->bqghd", weights / total, value)
    return attended.reshape(batch, n_queries, n_heads, d_head), None


def name_second_attention(network: Any) -> str:
    """Return the attention implementation to compare `eager` with: transformers's own sdpa where it can run."""
    return "sdpa" if network._supports_sdpa else SECOND_ATTENTION


AttentionInterface.register(SECOND_ATTENTION, attend)
AttentionMaskInterface.register(SECOND_ATTENTION, eager_mask)
