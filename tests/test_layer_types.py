"""Layer types and windows: what transformers hides, HookedTransformer hides, at every distance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers.masking_utils import sliding_window_overlay

from registry.errors import UnsupportedConfig
from registry.families.layer_types import MAX_LAYERS, describe_windows, read_layer_types


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("window", [1, 2, 7, 8, 9, 16])
def test_a_window_is_the_same_number_in_transformers_and_in_hooked_transformer(window: int) -> None:
    fields = describe_windows(["local", "global"], window)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=16, d_head=4, d_vocab=9, act_fn="relu", device="cpu", **fields
    )
    network = HookedTransformer(cfg, move_to_device=False)
    _, cache = network.run_with_cache(torch.arange(16)[None] % 9)
    seen = [cache["pattern", layer][0, 0] > 0 for layer in range(2)]
    hides = sliding_window_overlay(window)
    for query in range(16):
        for key in range(16):
            assert bool(seen[0][query, key]) == (key <= query and bool(hides(0, 0, query, key))), (query, key)
            assert bool(seen[1][query, key]) == (key <= query)


def test_without_a_local_layer_a_window_is_no_part_of_the_architecture() -> None:
    assert describe_windows(["global", "global"], 8) == describe_windows(["global"], None) == {}
    with pytest.raises(UnsupportedConfig) as refused:
        describe_windows(["global", "local"], None)
    assert refused.value.field == "sliding_window"


def test_layer_types_are_read_or_made_from_the_index() -> None:
    given = ["sliding_attention", "full_attention", "attention"]
    assert read_layer_types(given, 3, lambda layer: True) == ["local", "global", "global"]
    assert read_layer_types(None, 3, lambda layer: layer != 1) == ["local", "global", "local"]


@pytest.mark.parametrize(
    ("given", "n_layers", "field"),
    [
        (["full_attention"], 2, "layer_types"),
        ([], 2, "layer_types"),
        (["full_attention", "linear_attention"], 2, "layer_types"),
        (["full_attention", None], 2, "layer_types"),
        (["full_attention", ["full_attention"]], 2, "layer_types"),
        (["local", "global"], 2, "layer_types"),
        (None, MAX_LAYERS + 1, "num_hidden_layers"),
        (None, 2**39, "num_hidden_layers"),
    ],
)
def test_other_layer_types_are_refused(given: list[Any] | None, n_layers: int, field: str) -> None:
    with pytest.raises(UnsupportedConfig) as refused:
        read_layer_types(given, n_layers, lambda layer: True)
    assert refused.value.field == field
