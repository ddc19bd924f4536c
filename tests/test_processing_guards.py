"""Processing that would change what a network computes is turned off, and what is left on keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.components import GatedMLP

from registry import Registry
from registry.architecture import describe_architecture
from registry.convert import RAW, Processing, convert_network, guard_processing
from registry.networks import make_hooked_config
from registry.routing import compute_hooked, compute_source, find_largest_difference
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]
TOKENS = torch.arange(60).reshape(2, 30) * 3 % 211


PLAIN: dict[str, Any] = {
    "d_model": 8, "n_layers": 1, "n_heads": 1, "d_head": 8, "d_mlp": 8, "d_vocab": 9, "n_ctx": 8, "act_fn": "relu",
    "normalization_type": "RMS", "eps": 1e-5, "positional_embedding_type": "standard", "tie_word_embeddings": False,
}  # fmt: skip
EVERYTHING = Processing(refactor_factored_attn_matrices=True)


@pytest.mark.parametrize(
    ("fields", "turned_off"),
    [
        ({}, set()),
        ({"block_variant": "olmo2"}, {"fold_ln", "center_writing_weights"}),
        ({"block_variant": "olmo3"}, {"fold_ln", "center_writing_weights"}),
        ({"output_logits_soft_cap": 30.0}, {"center_unembed"}),
        ({"attn_scores_soft_cap": 50.0}, set()),
        ({"use_attention_sinks": True}, {"fold_value_biases"}),
        ({"clip_qkv": 8.0}, {"fold_value_biases"}),
        ({"clip_qkv": 0.0}, {"fold_value_biases"}),
        (
            {"positional_embedding_type": "rotary", "rotary_base": 1e4},
            {"refactor_factored_attn_matrices"},
        ),
        (
            {"block_variant": "olmo2", "output_logits_soft_cap": 30.0, "use_attention_sinks": True},
            {"fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"},
        ),
    ],
)
def test_processing_that_would_change_the_function_is_turned_off(fields: dict[str, Any], turned_off: set[str]) -> None:
    architecture = describe_architecture(**PLAIN | fields)
    guarded = guard_processing(architecture, EVERYTHING)
    assert set(EVERYTHING.active) - set(guarded.active) == turned_off
    assert guard_processing(architecture, RAW) == RAW
    assert guard_processing(architecture, guarded) == guarded


# every architecture in which something stands between a weight and what it does
GUARDED = [
    ("gpt_oss", {}),
    ("mixtral", {"sliding_window": 9}),
    ("olmo", {"attention_bias": True, "clip_qkv": 0.5}),
    ("olmo2", {"attention_bias": True}),
    ("olmo3", {"attention_bias": True}),
    ("olmoe", {"attention_bias": True, "clip_qkv": 0.5}),
]


@pytest.mark.parametrize(("name", "config"), GUARDED)
def test_each_processing_that_is_left_on_keeps_the_function(
    name: str, config: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, seed=5, **config))
    source = opened.build(torch.float64)
    reference = compute_source(source, opened.family, TOKENS, "eager")
    guarded = guard_processing(opened.architecture, EVERYTHING)
    assert len(guarded.active) >= 2
    for flag in guarded.active:
        alone = dataclasses.replace(RAW, **{flag: True})
        network = convert_network(source, opened.family, opened.architecture, alone, dtype=torch.float64)
        assert find_largest_difference(reference, compute_hooked(network, TOKENS, reference)) < 1e-4, flag


@pytest.mark.parametrize(
    ("name", "config", "flag"),
    [
        ("gpt_oss", {}, "fold_value_biases"),
        ("olmo", {"attention_bias": True, "clip_qkv": 0.5}, "fold_value_biases"),
        ("olmoe", {"attention_bias": True, "clip_qkv": 0.5}, "fold_value_biases"),
        ("olmo2", {}, "fold_ln"),
        ("olmo3", {}, "fold_ln"),
    ],
)
def test_processing_that_is_turned_off_would_have_changed_the_function(
    name: str, config: dict[str, Any], flag: str, make_checkpoint: MakeCheckpoint
) -> None:
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, seed=5, **config))
    assert flag not in guard_processing(opened.architecture, EVERYTHING).active
    raw, changed = opened.convert(RAW), opened.convert(dataclasses.replace(RAW, **{flag: True}))
    with torch.inference_mode():
        assert float((raw(TOKENS).log_softmax(-1) - changed(TOKENS).log_softmax(-1)).abs().max()) > 0.5


def test_refactoring_is_done_for_learned_positions_and_left_out_for_rotary_ones(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("gpt2", make_checkpoint("gpt2"))
    registry.register("llama", make_checkpoint("llama"))
    plain = registry.load("gpt2")
    refactored = registry.load("gpt2", refactor_factored_attn_matrices=True)
    assert not torch.allclose(plain.W_Q, refactored.W_Q)
    with torch.inference_mode():
        difference = plain(TOKENS).log_softmax(-1) - refactored(TOKENS).log_softmax(-1)
    assert float(difference.abs().max()) < 1e-4
    with pytest.warns(UserWarning, match=r"refactor_factored_attn_matrices would change what llama@v1 computes"):
        left_alone = registry.load("llama", refactor_factored_attn_matrices=True)
    assert torch.equal(left_alone.W_Q, registry.load("llama").W_Q)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "opt", "bloom"])
def test_refactoring_costs_no_precision(name: str, make_checkpoint: MakeCheckpoint) -> None:
    """In float32, as transformer-lens does it, GPT-Neo's unscaled attention is 2e-4 to 5e-4 off, the others 4e-5."""
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, seed=5))
    source = opened.build(torch.float64)
    alone = dataclasses.replace(RAW, refactor_factored_attn_matrices=True)
    raw, refactored = (
        convert_network(source, opened.family, opened.architecture, one, dtype=torch.float64) for one in (RAW, alone)
    )
    assert not torch.allclose(raw.W_Q, refactored.W_Q)
    with torch.inference_mode():
        difference = raw(TOKENS).log_softmax(-1) - refactored(TOKENS).log_softmax(-1)
    assert float(difference.abs().max()) < 1e-10


def test_a_gated_mlp_has_no_place_for_the_biases_of_llama_s_gate() -> None:
    """Why `mlp_bias` is refused: there is none for the gate, and `b_in` is added behind it, where the gate is shut too.

    If this fails for a newer transformer-lens, see whether its gated MLP can compute what Llama's does.
    """
    fields = PLAIN | {"gated_mlp": True, "act_fn": "silu"}
    cfg = make_hooked_config(describe_architecture(**fields), None, folded=False, dtype=torch.float64, device="cpu")
    mlp = GatedMLP(cfg)
    assert {name for name, _ in mlp.named_parameters()} == {"W_in", "W_gate", "W_out", "b_in", "b_out"}
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
        mlp.W_gate.zero_()  # silu(0) = 0: nothing of W_in and its bias would come through in Llama
        mlp.b_out.zero_()
        assert float(mlp(torch.ones(1, 1, 8, dtype=torch.float64)).abs().max()) > 0.01
