"""Whether hooked tensors fit an architecture, and whether saved buffers contradict it.

Buffers are made from the config. A state dict holds them too, and transformer-lens lets those win over the config
(HAZARDS.md §2.4); here they are compared with what the config makes of them, and left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from registry.architecture import Architecture
from registry.errors import UnsupportedConfig, WeightsMismatch
from registry.hooked_names import BUFFER
from registry.hooked_transformer import HookedTransformer
from registry.networks import (
    list_weights,
    make_empty_hooked_network,
    make_hooked_config,
    refuse_mismatch,
    refuse_packed,
)
from registry.plain_text import quote_error
from registry.processing import POST_NORM_BLOCKS, tell_folded
from registry.weights import TensorHeader

# older releases of transformer-lens filled masked scores with -1e5 instead of minus infinity
_MASKED = -6e4
_TABLE_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def check_hooked_weights(architecture: Architecture, found: Mapping[str, TensorHeader], config: str) -> bool:
    """Return whether norms are folded; raise what does not fit the architecture, as `check_tensors` does."""
    refuse_packed(found)
    if architecture["n_layers"] > len(found):
        raise WeightsMismatch(
            f"{config} describes {architecture['n_layers']:,} layers, and the files hold {len(found):,} tensors."
        )
    raw = _expect_weights(architecture, folded=False)
    with_folded = (
        raw if architecture["block_variant"] in POST_NORM_BLOCKS else _expect_weights(architecture, folded=True)
    )
    norms = [name for name in raw if name not in with_folded]
    refuse_mismatch({name: one for name, one in found.items() if name not in norms}, with_folded, set(), config)
    folded = tell_folded(found, norms)
    refuse_mismatch(found, with_folded if folded else raw, set(), config)
    return folded


def check_buffers(buffers: Mapping[str, torch.Tensor], architecture: Architecture) -> None:
    """Raise WeightsMismatch if a saved buffer contradicts the architecture, which is then not the one of training."""
    if not buffers:
        return
    network = _make_empty(architecture, folded=False)
    wrong = sorted(name for name, buffer in buffers.items() if not _agrees(network, name, buffer))
    if wrong:
        raise WeightsMismatch(
            f"{len(wrong)} saved buffers, such as {wrong[0]}, are not what the architecture makes of them, "
            "so the network was trained or saved with another one.",
            left_over=wrong,
            hint="rotary_sin and rotary_cos tell of another rotary_base or scaling; mask and IGNORE of masking that "
            "HookedTransformer does not do. Give the config that the network had, or take these buffers out.",
        )


def _agrees(network: HookedTransformer, name: str, buffer: torch.Tensor) -> bool:
    match = BUFFER.fullmatch(name)
    if match is None or int(match[1]) >= len(network.blocks):
        return False
    attention = network.blocks[int(match[1])].attn
    if match[2] == "IGNORE":
        return buffer.numel() == 1 and float(buffer) <= _MASKED
    if match[2] == "mask":
        return _agrees_mask(buffer, network.cfg.window_size if attention.attn_type == "local" else None)
    return _agrees_rotary(attention, match[2], buffer)


def _agrees_mask(mask: torch.Tensor, window: int | None) -> bool:
    """Compare with the causal mask, cut to the window, which older releases of transformer-lens saved whole."""
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        return False
    expected = torch.ones(mask.shape, dtype=torch.bool).tril()
    return torch.equal(mask.cpu().bool(), expected if window is None else expected.triu(1 - window))


def _agrees_rotary(attention: Any, which: str, table: torch.Tensor) -> bool:
    """Compare with a table of as many rows; how many there are depends on the longest text it was run on."""
    cfg = attention.cfg
    if cfg.positional_embedding_type != "rotary" or table.ndim != 2 or table.dtype not in _TABLE_TOLERANCE:
        return False
    if cfg.use_dynamic_ntk_rope:  # the table is that of the last text
        return True
    with torch.device("cpu"):
        sin, cos = attention.calculate_sin_cos_rotary(
            cfg.rotary_dim, table.shape[0], base=attention._rotary_base(), dtype=torch.float32
        )
    expected = sin if which == "rotary_sin" else cos
    if expected.shape != table.shape:
        return False
    return bool(((expected - table.cpu().float()).abs() <= _TABLE_TOLERANCE[table.dtype]).all())


def _expect_weights(architecture: Architecture, folded: bool) -> Mapping[str, tuple[int, ...]]:
    return _list_shapes(json.dumps(dict(architecture.fields), sort_keys=True), folded)


@functools.lru_cache(maxsize=8)  # building a network takes most of a registration, and a run has many of one kind
def _list_shapes(fields: str, folded: bool) -> Mapping[str, tuple[int, ...]]:
    weights = list_weights(_make_empty(Architecture(json.loads(fields)), folded))
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in weights.items()})


def _make_empty(architecture: Architecture, folded: bool) -> HookedTransformer:
    try:
        cfg = make_hooked_config(architecture, None, folded=folded, dtype=torch.float32, device="cpu")
        return make_empty_hooked_network(cfg)
    except Exception as error:  # transformer-lens asserts, and torch raises whatever the numbers lead to
        reason = quote_error(error)
        raise UnsupportedConfig(
            f"transformer-lens cannot build the network that the architecture describes: {reason}", field="architecture"
        ) from error
