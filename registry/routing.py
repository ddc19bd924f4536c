"""Run networks on the probe in such a way that all of them send every token to the same experts.

Where the next expert is as good as the last one chosen, a rounding error decides, and all that follows differs by far
more than the error: no fault of a conversion, and no noise that a bound could allow for. So what the routers say is
compared like the log-probs of the tokens, and then every network goes on with what the first one's routers said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from registry.attention import Float64Attention
from registry.families.family import Family

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Computed:
    """What a network makes of the probe: log-probs (batch, pos, d_vocab), and what the router of each layer gave.

    The first tensor of a router is its logits (batch · pos, n_experts).
    """

    log_probs: torch.Tensor
    routing: tuple[tuple[torch.Tensor, ...], ...] = ()


def find_largest_difference(one: Computed, other: Computed) -> float:
    """Return the largest absolute difference of log-probs, of tokens and of experts; NaN counts as infinite."""
    pairs = [(one.log_probs, other.log_probs)]
    for given, others in zip(one.routing, other.routing, strict=True):
        pairs.append((given[0].log_softmax(-1), others[0].log_softmax(-1)))
    largest = max(float((mine - theirs).abs().max()) for mine, theirs in pairs)
    return largest if all(bool(torch.isfinite(mine - theirs).all()) for mine, theirs in pairs) else float("inf")


def compute_source(
    source: PreTrainedModel,
    family: Family,
    probe: torch.Tensor,
    attention: str | Float64Attention,
    *,
    like: Computed | None = None,
    first_position: int = 0,
) -> Computed:
    """Run the Hugging Face network with this implementation of attention, and the experts of `like`.

    `first_position` is the position of the first token; a network with rotary positions does not mind which.
    """
    model: Any = source
    layers = model.model.layers if family.router else []
    routers = [layer.get_submodule(family.router) for layer in layers]
    exchanged: AbstractContextManager[Any] = contextlib.nullcontext()
    if isinstance(attention, Float64Attention):
        exchanged = attention
    elif model._can_set_attn_implementation():
        model.set_attn_implementation(attention)
    positions = torch.arange(first_position, first_position + probe.shape[1], device=probe.device).expand_as(probe)
    places = {"position_ids": positions} if first_position else {}
    with torch.inference_mode(), exchanged, _record(routers, like.routing if like else None) as routing:
        log_probs = model(probe, use_cache=False, **places).logits.log_softmax(-1)
    return Computed(log_probs, tuple(routing))


def compute_hooked(network: HookedTransformer, probe: torch.Tensor, like: Computed) -> Computed:
    """Run the HookedTransformer with the experts of `like`."""
    routers: list[Any] = [block.mlp.W_gate for block in network.blocks] if like.routing else []
    logits = [given[0] for given in like.routing]
    with torch.inference_mode(), _record(routers, logits) as routing:
        log_probs = network(probe).log_softmax(-1)
    return Computed(log_probs, tuple((one,) for one in routing))


@contextlib.contextmanager
def _record(routers: Sequence[torch.nn.Module], instead: Sequence[Any] | None) -> Iterator[list[Any]]:
    """Yield a list that receives what each router gives; the network itself receives what `instead` has for it."""
    routing: list[Any] = []

    def pass_on(_router: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        routing.append(output)
        return output if instead is None else instead[len(routing) - 1]

    handles = [router.register_forward_hook(pass_on) for router in routers]
    try:
        yield routing
    finally:
        for handle in handles:
            handle.remove()
