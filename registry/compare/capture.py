"""Run a network on a batch and take from it what a comparison needs, as it comes: nothing else is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from registry.compare.readout import Readout
from registry.hooked_config import BLOCK_CLASSES
from registry.processing import POST_NORM_BLOCKS

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Part = tuple[str, int | None, int | None]
"""A component (embed, attention, MLP, or head) with its layer and, for heads, its number."""
Take = Callable[[str, torch.Tensor], None]

_PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")
_HEADS = re.compile(r"blocks\.(\d+)\.attn\.hook_z")
_PARTS = re.compile(r"blocks\.(\d+)\.hook_(attn|mlp)_out|hook_(pos_)?embed")
_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_POST_NORM = {BLOCK_CLASSES[one] for one in POST_NORM_BLOCKS}


@dataclass(frozen=True)
class Kept:
    """What is kept of a network's run on one batch.

    `activations` holds `residual.N`, the residual stream before block N or after the last, `(batch, position,
    d_model)`, and `pattern.N`, the attention pattern of layer N, `(batch, head, query, key)`; `attributed` what each
    part adds to the logits of the next tokens, summed over them.
    """

    activations: Mapping[str, torch.Tensor]
    attributed: Mapping[Part, float]


def name_residual(layer: int) -> str:
    """Name the residual stream before block `layer`, or after the last."""
    return f"residual.{layer}"


def keep(network: HookedTransformer, readout: Readout, tokens: torch.Tensor) -> Kept:
    """Run a network on a batch and keep what the other is compared with."""
    activations: dict[str, torch.Tensor] = {}
    attributed = run(network, readout, tokens, activations.__setitem__)
    return Kept(activations, attributed)


def run(network: HookedTransformer, readout: Readout, tokens: torch.Tensor, take: Take) -> dict[Part, float]:
    """Run a network on a batch to its last block, giving `take` each activation as it comes, by `Kept`'s names.

    Returns what each part adds to the logits of the next tokens, summed over them: nothing where there is but one
    token. Heads are left out where a norm follows attention, which has no share of its own for each of them.
    """
    dots: dict[Part, torch.Tensor] = {}
    directions = readout.find_directions(tokens[:, 1:]) if tokens.shape[1] > 1 else None

    def see(tensor: torch.Tensor, hook: Any) -> None:
        tensor = tensor.detach()
        if match := _PATTERN.fullmatch(hook.name):
            take(f"pattern.{match[1]}", tensor)
        elif match := _RESIDUAL.fullmatch(hook.name):
            take(name_residual(int(match[1]) + 1), tensor)
        elif hook.name == "blocks.0.hook_resid_pre":
            take(name_residual(0), tensor)
        elif directions is not None:
            _project(network, hook.name, tensor[:, :-1], directions, dots)

    wanted = [name for name in network.hook_dict if _is_wanted(network, name)]
    last = network.run_with_hooks(
        tokens.to(network.cfg.device),
        fwd_hooks=[(name, see) for name in wanted],
        stop_at_layer=network.cfg.n_layers,  # the unembedding is not for all positions at once
    )
    if directions is None:
        return {}
    scale = readout.measure_scale(last)[:, :-1, 0]
    return {part: float((dot / scale).sum(dtype=torch.float64)) for part, dot in dots.items()}


def _is_wanted(network: HookedTransformer, name: str) -> bool:
    if _HEADS.fullmatch(name):
        cfg = network.cfg
        return not (cfg.use_normalization_before_and_after or cfg.original_architecture in _POST_NORM)
    patterns: Sequence[re.Pattern[str]] = (_PATTERN, _PARTS, _RESIDUAL)
    return name == "blocks.0.hook_resid_pre" or any(pattern.fullmatch(name) for pattern in patterns)


def _project(
    network: HookedTransformer,
    name: str,
    tensor: torch.Tensor,
    directions: torch.Tensor,
    dots: dict[Part, torch.Tensor],
) -> None:
    """Add what a component, or each of its heads, writes along `directions`, `(batch, position)`."""
    if match := _HEADS.fullmatch(name):
        layer = int(match[1])
        # (head, d_head, d_model) by (batch, position, d_model): what a head would have to put into z
        along = torch.einsum("bpd,hed->bphe", directions, network.blocks[layer].attn.W_O)
        for head, dot in enumerate((tensor * along).sum(dim=-1, dtype=torch.float64).unbind(dim=-1)):
            dots["head", layer, head] = dot
        return
    part = _name_part(name)
    dot = (tensor * directions).sum(dim=-1, dtype=torch.float64)
    dots[part] = dots[part] + dot if part in dots else dot


def _name_part(name: str) -> Part:
    match = _PARTS.fullmatch(name)
    if match is None or match[1] is None:
        return "embed", None, None
    return {"attn": "attention", "mlp": "MLP"}[match[2]], int(match[1]), None
