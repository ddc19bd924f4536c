"""Which layers attend to a window only: from config.json's `layer_types` and windows to architecture fields.

transformers hides keys at a distance of `sliding_window` and more (`sliding_window_overlay` in its masking_utils.py),
and HookedTransformer those at a distance of `window_size` and more (`AbstractAttention._make_causal_mask`): the two
numbers are the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from registry.families.fields import refuse_value

SLIDING = "sliding_attention"
FULL = "full_attention"

# more than any network has; a list of the types of a million million layers would fill the memory
MAX_LAYERS = 10_000

# how transformers 4 and 5 spell the layers that HookedTransformer has, in its own words
_ATTN_TYPES = {SLIDING: "local", FULL: "global", "attention": "global"}


def read_layer_types(given: list[Any] | None, n_layers: int, is_sliding: Callable[[int], bool]) -> list[str]:
    """Return HookedTransformer's type of every layer, "local" or "global".

    Where config.json has no `layer_types`, `is_sliding` says by the layer's index (from 0) what the config class does.
    """
    if n_layers > MAX_LAYERS:
        raise refuse_value("num_hidden_layers", n_layers, "no network has so many layers")
    if given is None:
        return ["local" if is_sliding(layer) else "global" for layer in range(n_layers)]
    if len(given) != n_layers:
        raise refuse_value("layer_types", given, f"it has {len(given)} entries for num_hidden_layers = {n_layers}")
    for kind in given:
        if not isinstance(kind, str) or kind not in _ATTN_TYPES:
            raise refuse_value("layer_types", given, f"HookedTransformer has no layers of type {kind!r}")
    return [_ATTN_TYPES[kind] for kind in given]


def describe_windows(attn_types: Sequence[str], window: int | None) -> dict[str, Any]:
    """Map layer types and the window of the local ones to architecture fields; no field if no layer is local."""
    if "local" not in attn_types:
        return {}
    if window is None:
        raise refuse_value("sliding_window", window, "layers of type sliding_attention (see layer_types) need a window")
    return {"use_local_attn": True, "attn_types": list(attn_types), "window_size": window}
