"""A second implementation of attention with sinks, for measuring how far two right ones differ.

transformers 5.23 has one that runs anywhere, "eager". A sink takes part in the softmax and is then dropped, so it is
one more key whose score is the sink and whose value is zero: torch's scaled_dot_product_attention can compute that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

SINK_ATTENTION = "lensreg_sinks"


def attend_with_sinks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    s_aux: torch.Tensor,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers's attention interface asks; `query` (batch, n_heads, pos, d_head), `s_aux` (n_heads,)."""
    batch, n_heads, n_queries, _ = query.shape
    n_repeats = n_heads // key.shape[1]
    key, value = (pad(one.repeat_interleave(n_repeats, dim=1), (0, 0, 0, 1)) for one in (key, value))
    mask = query.new_zeros(batch, 1, n_queries, key.shape[2] - 1) if attention_mask is None else attention_mask
    sinks = s_aux.to(query.dtype).reshape(1, n_heads, 1, 1).expand(batch, n_heads, n_queries, 1)
    mask = torch.cat([mask.expand(batch, n_heads, n_queries, key.shape[2] - 1), sinks], dim=-1)
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(SINK_ATTENTION, attend_with_sinks)
AttentionMaskInterface.register(SINK_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
