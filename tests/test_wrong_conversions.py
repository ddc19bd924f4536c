"""A wrong conversion is caught by parity, and noise that would hide one is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.architecture import describe_architecture
from registry.errors import ParityFailure
from registry.verify import refuse_disparity
from tests.config_grid import (
    LONG,
    YARN_128,
    YARN_FACTORS,
    layered,
    partial,
    per_type,
    scaled,
)
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]

YARN = scaled("yarn", factor=4.0, original_max_position_embeddings=128)
SMOOTH_YARN = scaled("yarn", factor=4.0, original_max_position_embeddings=1000, truncate=False)
LLAMA3 = scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)
PARTIAL_YARN = partial("yarn", 0.5, **YARN_FACTORS)
ALL_LOCAL = {"use_local_attn": True, "attn_types": ["local", "local"]}
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
WRONG = [
    ("bloom", {}, {"act_fn": "gelu"}, 1e-4),
    ("bloom", {}, {"eps": 1e-6}, 1e-4),
    ("bloom", {}, {"attn_scale": 1.0}, 0.1),
    ("bloom", {}, {"parallel_attn_mlp": True}, 0.1),
    ("gpt_neo", {}, {"attn_scale": 4.0}, 0.1),
    ("gpt_neo", {}, {"window_size": 10}, 0.01),
    ("gpt_neo", {}, {"window_size": 12}, 0.01),
    ("gpt_neo", {}, {"attn_types": ["local", "global"]}, 0.1),
    ("gpt_neo", {}, {"use_local_attn": False}, 0.1),
    ("gpt_neox", {}, {"rotary_dim": 16}, 0.01),
    ("gpt_neox", {}, {"rotary_base": 500.0}, 1e-3),
    ("gpt_neox", {}, {"rotary_adjacent_pairs": True}, 0.01),
    ("gpt_neox", {}, {"rotary_scaling_factor": 2.0}, 0.01),
    ("gpt_neox", {}, {"parallel_attn_mlp": False}, 0.1),
    ("gpt_neox", {}, {"eps": 1e-12}, 1e-4),
    ("gpt_neox", {}, {"act_fn": "gelu_new"}, 1e-4),
    ("gpt_neox", PARTIAL_YARN, {"rotary_dim": 16}, 0.01),
    ("gpt_neox", PARTIAL_YARN, {"yarn_attention_factor": 1.0}, 0.01),
    ("gptj", {}, {"eps": 1e-12}, 1e-4),
    ("gptj", {}, {"rotary_adjacent_pairs": False}, 0.1),
    ("gptj", {}, {"rotary_dim": 16}, 0.1),
    ("gptj", {}, {"rotary_base": 10100.0}, 1e-4),
    ("gptj", {}, {"parallel_attn_mlp": False}, 0.1),
    ("opt", {}, {"eps": 1e-12}, 1e-4),
    ("opt", {}, {"act_fn": "gelu"}, 0.1),
    ("opt", {}, {"attn_scale": 1.0}, 0.1),
    ("phi", {}, {"rotary_dim": 16}, 0.01),
    ("phi", {}, {"parallel_attn_mlp": False}, 0.1),
    ("phi", {}, {"act_fn": "gelu"}, 1e-4),
    ("phi3", {}, {"window_size": 36}, 1e-3),
    ("phi3", {}, {"window_size": 38}, 1e-3),
    ("phi3", {}, {"use_local_attn": False}, 0.01),
    ("phi3", {"sliding_window": None}, ALL_LOCAL | {"window_size": 60}, 1e-3),
    ("phi3", {"partial_rotary_factor": 0.5}, {"rotary_dim": 16}, 0.1),
    # as far off as a wrong conversion may be to be seen: HAZARDS.md §2.7 measured these as the smallest
    ("gpt2", {}, {"act_fn": "gelu"}, 1e-3),
    ("gpt2", {}, {"eps": 1e-12}, 1e-4),
    ("gpt2", {}, {"eps": 0.1}, 0.1),
    ("gpt2", {}, {"act_fn": "relu"}, 0.1),
    ("gpt2", {}, {"n_heads": 2, "n_key_value_heads": 2, "d_head": 32, "attn_scale": math.sqrt(32)}, 1.0),
    ("gpt2", {}, {"attn_scale": 1.0}, 1.0),
    ("gpt2", {}, {"attn_scale": math.sqrt(15)}, 0.01),
    ("gpt2", {}, {"scale_attn_by_inverse_layer_idx": True}, 0.1),
    ("gpt2", {}, {"attention_dir": "bidirectional"}, 0.1),
    ("gpt2", {}, {"parallel_attn_mlp": True}, 0.1),
    ("gpt2", {}, {"output_logits_soft_cap": 30.0}, 0.01),
    ("gpt2", {}, {"attn_scores_soft_cap": 50.0}, 0.01),
    ("llama", {}, {"eps": 1e-5}, 1e-4),
    ("llama", {}, {"act_fn": "gelu"}, 0.1),
    ("llama", {}, {"rotary_base": 10100.0}, 1e-3),
    ("llama", {}, {"rotary_base": 5e5}, 0.1),
    ("llama", {}, {"rotary_adjacent_pairs": True}, 0.1),
    ("llama", {}, {"rotary_scaling_factor": 2.0}, 0.1),
    ("llama", {}, {"attn_scale": 8.0}, 0.1),
    ("llama", {}, {"use_local_attn": True, "window_size": 60, "attn_types": ["local", "local"]}, 1e-3),
    ("llama", YARN, {"use_yarn_rope": False}, 0.1),
    ("llama", YARN, {"yarn_attention_factor": 1.0}, 0.1),
    ("llama", YARN, {"yarn_factor": 4.1}, 1e-3),
    ("llama", SMOOTH_YARN, {"yarn_beta_fast": 16.0}, 1e-3),
    ("llama", YARN, {"yarn_original_max_position_embeddings": 1024}, 0.01),
    ("llama", LLAMA3, {"use_NTK_by_parts_rope": False}, 0.1),
    ("llama", LLAMA3, {"NTK_by_parts_factor": 7.0}, 1e-3),
    ("llama", LLAMA3, {"NTK_original_ctx_len": 256}, 1e-2),
    ("mistral", {}, {"use_local_attn": False}, 0.1),
    ("mistral", {}, {"window_size": 7}, 0.01),
    ("mistral", {}, {"window_size": 9}, 0.01),
    ("mistral", {}, {"attn_types": ["local", "global"]}, 0.01),
    ("qwen2", WINDOW, {"attn_types": ["local", "global"]}, 0.01),
    ("qwen2", WINDOW, {"use_local_attn": False}, 0.01),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.5}}, {"rotary_base": 777.0}, 1e-3),
    ("qwen3", WINDOW, {"use_local_attn": False}, 0.01),
    ("gemma", {}, {"act_fn": "gelu"}, 1e-4),
    ("gemma2", {}, {"attn_scores_soft_cap": -1.0}, 0.01),
    ("gemma2", {}, {"output_logits_soft_cap": -1.0}, 0.01),
    ("gemma2", {}, {"output_logits_soft_cap": 31.0}, 1e-3),
    ("gemma2", {}, {"attn_scale": 4.0}, 0.01),
    ("gemma2", {}, {"attn_types": ["global", "local"]}, 0.01),
    ("gemma3", {}, {"rotary_base_local": None}, 0.01),
    ("gemma3", {}, {"rotary_base": 1e4}, 0.01),
    ("gemma3", layered(full={"rope_type": "linear", "factor": 8.0}), {"rotary_scaling_factor": 1.0}, 0.01),
    ("gemma3", {}, {"attn_types": ["global"] * 3}, 0.01),
    ("apertus", {}, {"use_NTK_by_parts_rope": False}, 0.01),
    ("apertus", {}, {"eps": 1e-6}, 1e-4),
]


WRONG += [
    *(("gpt_oss", {}, {"window_size": window}, 1e-3) for window in (11, 13)),
    ("gpt_oss", {}, {"attn_types": ["global", "local"]}, 0.1),
    ("gpt_oss", {}, {"use_yarn_rope": False}, 0.1),
    ("gpt_oss", {}, {"yarn_global_attn_only": True}, 0.1),
    ("gpt_oss", LONG | {"rope_parameters": {**YARN_128, "truncate": False}}, {"yarn_truncate": True}, 1e-3),
    ("gpt_oss", {}, {"rotary_base": 1e4}, 0.1),
    ("gpt_oss", {}, {"experts_per_token": 3}, 0.1),
    ("gpt_oss", {}, {"eps": 1e-6}, 1e-4),
    *(("mixtral", {"sliding_window": 12}, {"window_size": window}, 1e-3) for window in (11, 13)),
    ("mixtral", {"sliding_window": 12}, {"use_local_attn": False}, 0.1),
    ("mixtral", {}, {"norm_topk_prob": False}, 0.1),
    ("mixtral", {}, {"experts_per_token": 1}, 0.1),
    ("mixtral", {}, {"rotary_base": 1e4}, 0.1),
    ("mixtral", {}, {"act_fn": "gelu"}, 0.1),
    ("olmo", {}, {"clip_qkv": 1.0}, 0.1),
    ("olmo", {"clip_qkv": 1.0}, {"clip_qkv": None}, 0.1),
    ("olmo", {}, {"eps": 1e-6}, 1e-4),
    ("olmo", {}, {"parallel_attn_mlp": True}, 0.1),
    ("olmo2", {}, {"eps": 1e-4}, 1e-4),
    ("olmo2", {}, {"rotary_base": 5e5}, 0.1),
    *(("olmo3", {}, {"window_size": window}, 1e-3) for window in (11, 13)),
    ("olmo3", {}, {"attn_types": ["global", "local"]}, 0.1),
    ("olmo3", {}, {"rotary_base": 1e4}, 0.01),
    ("olmo3", {}, {"rotary_base_local": 1e4}, 0.01),
    ("olmo3", per_type(YARN_128, {}), {"yarn_global_attn_only": False}, 1e-2),
    ("olmoe", {}, {"norm_topk_prob": True}, 0.1),
    ("olmoe", {"norm_topk_prob": True}, {"norm_topk_prob": False}, 0.1),
    ("olmoe", {}, {"experts_per_token": 3}, 0.1),
    ("olmoe", {}, {"clip_qkv": 1.0}, 0.1),
    ("olmoe", {}, {"eps": 1e-4}, 1e-4),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "config", "changes", "at_least"), WRONG)
def test_a_wrong_conversion_is_caught(
    name: str, config: dict[str, Any], changes: dict[str, Any], at_least: float, make_checkpoint: MakeCheckpoint
) -> None:
    """The network is converted with an architecture that is not its own, as by a converter that ignores a field."""
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, seed=3, **config))
    wrong = describe_architecture(**{**opened.architecture.fields, **changes})
    parity = opened.measure(wrong)
    assert not parity.passed
    assert min(parity.raw, parity.processed) > max(at_least, parity.bound)
    with pytest.raises(ParityFailure, match="computes something else") as refused:
        refuse_disparity(parity, "here")
    assert refused.value.parity == parity
    assert refused.value.fields["parity"]["raw"] == parity.raw


def test_noise_that_would_hide_a_wrong_conversion_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    parity = read_checkpoint(make_checkpoint("gpt2", tokenizer=False)).measure()
    for noise_floor in (2e-3, math.inf, math.nan):
        noisy = dataclasses.replace(parity, noise_floor=noise_floor, bound=10 * noise_floor)
        with pytest.raises(ParityFailure, match="its own two ways"):
            refuse_disparity(noisy, "here")
