"""Second implementations of attention, for the noise floor of networks that transformers's sdpa cannot run.

`attend` computes what transformers's `eager_attention_forward` of Gemma 2 (soft cap) and GPT-OSS (sinks) compute, in
another order: keys and values are not repeated for their group of heads, queries are scaled before the product, and the
softmax is taken in the dtype of the scores.

The attention of GPT-Neo, GPT-J and BLOOM cannot be exchanged, and parts of it are in float32 whatever the network is
in. `Float64Attention` makes them be computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
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


_PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.baddbmm)
_SOFTMAX = (torch.nn.functional.softmax, torch.Tensor.softmax)


class Float64Attention(TorchFunctionMode):
    """While this is entered, attention is computed in float64.

    A tensor in float64 stays so where the network says `.to(torch.float32)` or `softmax(dtype=torch.float32)`; and of
    tensors in float32 the products are taken in float64, and then rounded.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute `function` in float64."""
        options = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is None:
            return function(*args, **options)
        if first.dtype is torch.float64:
            if function is torch.Tensor.to and torch.float32 in args:
                return first
            if function in _SOFTMAX and options.get("dtype") is torch.float32:
                options["dtype"] = torch.float64
        elif first.dtype is torch.float32 and function in _PRODUCTS:
            wide = [_widen(argument) for argument in args]
            return function(*wide, **{name: _widen(value) for name, value in options.items()}).float()
        return function(*args, **options)


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) else value


def choose_second_attention(network: Any) -> str | Float64Attention:
    """Return what to compare `eager` with: transformers's own sdpa where the network can run it."""
    if not network._can_set_attn_implementation():
        return Float64Attention()
    return "sdpa" if network._supports_sdpa else SECOND_ATTENTION


AttentionInterface.register(SECOND_ATTENTION, attend)
AttentionMaskInterface.register(SECOND_ATTENTION, eager_mask)
