"""One function, one architecture: configs that compute the same have the same fingerprint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.architecture import find_differences
from registry.families import gpt_oss
from tests.checkpoints import edit_config
from tests.config_grid import (
    LAYERS,
    NO_ROPE,
    TYPED_YARN,
    YARN_128,
    write_nulls,
)
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]
SAME = [
    ("bloom", {}, {"n_embed": 64, "hidden_size": None}),
    ("bloom", {}, {"n_head": None, "num_attention_heads": 4}),
    ("bloom", {}, {"pretraining_tp": 4, "slow_but_exact": True, "n_inner": 17, "offset_alibi": 100}),
    ("bloom", {"seq_length": 2048}, {"seq_length": None}),
    ("gpt_neo", {}, {"intermediate_size": 256}),
    ("gpt_neo", {}, {"num_heads": None, "num_attention_heads": 4}),
    ("gpt_neo", {}, {"attention_layers": None}),
    ("gpt_neo", {}, LAYERS),
    ("gpt_neo", {}, {"attention_types": [[["global"], 1], [["local"], 1]]}),
    ("gpt_neo", {}, {"attention_types": [[["global", "local"], 1], [["local"], 0]]}),
    ("gpt_neo", {"attention_types": [[["global"], 2]]}, {"window_size": 5}),
    ("gpt_neo", {"num_layers": 24, "attention_types": [[["global", "local"], 12]]}, dict.fromkeys(LAYERS)),
    ("gpt_neox", {}, NO_ROPE),
    ("gpt_neox", {}, NO_ROPE | {"rotary_pct": 0.25, "rotary_emb_base": 10000}),
    ("gpt_neox", {}, NO_ROPE | {"rotary_pct": 0.3}),
    ("gpt_neox", {}, {"rotary_pct": 0.25, "partial_rotary_factor": 0.25, "rotary_emb_base": 1e4, "rope_theta": 1e4}),
    (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, "rotary_pct": 0.5},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}
        | {"rotary_pct": 0.5, "rotary_emb_base": 500},
    ),
    ("gptj", {}, {"n_inner": 256, "rotary": True, "scale_attn_weights": True, "n_ctx": 5}),
    ("gptj", {}, {"n_positions": None, "max_position_embeddings": 96}),
    ("opt", {}, {"word_embed_proj_dim": None}),
    ("opt", {}, {"dropout": 0.5, "layerdrop": 0.5, "init_std": 1.0, "pad_token_id": 7}),
    ("phi", {}, NO_ROPE),
    ("phi", {}, NO_ROPE | {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_scaling": None}),
    ("phi", {}, {"num_key_value_heads": None}),
    ("phi3", {}, NO_ROPE),
    ("phi3", {}, NO_ROPE | {"partial_rotary_factor": 1, "rope_theta": 10000.0, "rope_scaling": None}),
    ("phi3", {}, {"original_max_position_embeddings": 12, "attention_bias": False, "head_dim": None}),
    ("phi3", {"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    ("gpt2", {}, {"n_inner": 256}),
    ("gpt2", {}, {"n_head": None, "num_attention_heads": 4}),
    ("gpt2", {}, {"n_positions": None, "max_position_embeddings": 96, "n_ctx": 77}),
    ("gpt2", {}, {"activation_function": "gelu_pytorch_tanh"}),
    ("gpt2", {}, {"activation_function": "gelu_fast"}),
    ("gpt2", {}, {"resid_pdrop": 0.5, "summary_type": "mean", "bos_token_id": 7, "torch_dtype": "float16"}),
    ("gpt2", {}, {"temperature": 0.1, "id2label": {"0": "no"}, "reorder_and_upcast_attn": True}),
    ("gpt2", {"scale_attn_weights": True}, {"scale_attn_weights": None}),
    ("llama", {}, {"head_dim": 16}),
    ("llama", {"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    ("llama", {}, {"hidden_act": "swish"}),
    ("llama", {}, {"rope_parameters": None}),
    ("llama", {}, {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None}),
    ("llama", {}, {"rope_theta": 10000.0}),
    ("llama", {}, {"pretraining_tp": 4, "attention_dropout": 0.1, "attention_bias": False, "mlp_bias": False}),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 500000},
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": None, "truncate": True}},
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 24.0,
                "attention_factor": 0.1 * math.log(4) + 1,
            }
        },
    ),
    ("mistral", {}, {"head_dim": 16, "layer_types": None}),
    ("qwen3", {"num_key_value_heads": 4}, {"num_key_value_heads": "null"}),
    ("mistral", {"sliding_window": None}, {"attention_dropout": 0.1}),
    ("qwen2", {}, {"sliding_window": 8, "max_window_layers": 0}),
    ("qwen2", {}, {"use_sliding_window": True, "sliding_window": "null", "layer_types": None}),
    ("qwen2", {}, {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8, "layer_types": None}),
    ("qwen2", {}, {"layer_types": ["full_attention"] * 2, "use_sliding_window": True, "sliding_window": 8}),
    ("qwen2", {}, {"head_dim": 16, "use_mrope": False}),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"layer_types": ["attention", "sliding_attention"], "max_window_layers": 28},
    ),
    ("qwen3", {}, {"sliding_window": 8, "max_window_layers": 0, "attention_bias": None, "head_dim": 16}),
    (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"layer_types": None},
    ),
    ("gemma", {}, {"hidden_act": "gelu"}),
    ("gemma", {}, {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
    ("gemma", {}, {"use_bidirectional_attention": False, "rope_parameters": None, "rope_theta": 10000}),
    ("gemma2", {}, {"layer_types": None, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, {"sliding_window": 9}),
    ("gemma2", {"final_logit_softcapping": 30.0}, {"final_logit_softcapping": None}),
    ("gemma3", {"layer_types": None}, {"sliding_window_pattern": 6, "_sliding_window_pattern": 3}),
    ("gemma3", {"layer_types": None}, {"layer_types": None, "sliding_window_pattern": 4}),
    (
        "gemma3",
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"layer_types": None, "sliding_window_pattern": 2},
    ),
    ("gemma3", {}, {"rope_parameters": None}),
    ("gemma3", {}, {"rope_parameters": None, "rope_theta": 1000000, "rope_local_base_freq": 10000}),
    ("gemma3", {}, {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": "null"}}),
    (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
        {
            "rope_parameters": None,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 5e5,
            "rope_local_base_freq": 500.0,
        },
    ),
    ("gemma3", {"layer_types": ["full_attention"] * 3}, {"sliding_window": 9, "rope_local_base_freq": None}),
    ("apertus", {}, {"head_dim": 16, "qk_norm": True, "post_norm": False, "mlp_bias": False, "hidden_dropout": 0.1}),
    (
        "apertus",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 12000000},
    ),
]


OSS_ROPE = {**gpt_oss.DEFAULT_ROPE, "rope_theta": 150000.0}
SAME += [
    ("gpt_oss", {}, {"rope_parameters": None}),
    ("gpt_oss", {}, {"rope_parameters": OSS_ROPE | {"attention_factor": 0.1 * math.log(32) + 1}}),
    ("gpt_oss", {}, {"rope_parameters": None, "rope_scaling": gpt_oss.DEFAULT_ROPE, "rope_theta": 150000}),
    ("gpt_oss", {}, {"rope_parameters": None, "rope_theta": 150000}),
    ("gpt_oss", {}, {"layer_types": None}),
    ("gpt_oss", {}, {"hidden_act": "gelu", "experts_per_token": 3, "initial_context_length": 4, "swiglu_limit": 7}),
    ("gpt_oss", {}, {"num_local_experts": None, "num_experts": 4, "output_router_logits": True}),
    ("gpt_oss", {"layer_types": ["full_attention"] * 2}, {"sliding_window": None}),
    ("mixtral", {}, {"head_dim": 16, "rope_parameters": None}),
    ("mixtral", {}, {"rope_parameters": None, "rope_theta": 1e6, "router_jitter_noise": 0.1}),
    ("mixtral", {}, {"num_local_experts": None, "num_experts": 4, "router_aux_loss_coef": 0.1}),
    ("olmo", {}, {"num_key_value_heads": None, "rope_scaling": None, "rope_theta": 10000}),
    ("olmo2", {}, {"num_key_value_heads": None, "attention_dropout": 0.2, "pad_token_id": None}),
    ("olmo3", {}, {"rope_parameters": None}),
    ("olmo3", {}, {"rope_parameters": None, "rope_theta": 500000}),
    ("olmo3", {}, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    (
        "olmo3",
        {"layer_types": None, "num_hidden_layers": 4},
        {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    ("olmo3", {"layer_types": ["full_attention"] * 2}, {"sliding_window": None}),
    (
        "olmo3",
        {"rope_parameters": {"full_attention": YARN_128, "sliding_attention": {"rope_theta": 5e5}}},
        {"rope_parameters": None, "rope_scaling": TYPED_YARN, "rope_theta": 500000},
    ),
    ("olmoe", {}, {"num_experts": None, "num_local_experts": 6, "output_router_logits": True}),
    ("olmoe", {"num_key_value_heads": 4}, {"num_key_value_heads": None, "clip_qkv": None}),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "config", "changes"), SAME)
def test_what_computes_the_same_has_the_same_fingerprint(
    name: str, config: dict[str, Any], changes: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name, tokenizer=False, **config)
    plain = read_checkpoint(folder).architecture
    edited = read_checkpoint(write_nulls(edit_config(folder, **changes))).architecture
    assert find_differences(plain, edited) == ()
    assert plain.fingerprint == edited.fingerprint
