"""config.json as it was published with Mistral, Qwen, Gemma and Apertus: every key is known, and read as it was meant.

The keys are those of the file named beside each; the sizes are those of the tiny networks of tests/checkpoints.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from registry.families import find_family
from registry.verify import refuse_disparity
from tests.checkpoints import CLASSES, randomise
from tests.opened import read_checkpoint

# what every file has that transformers 4 wrote
EVERY = {
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
    "use_cache": True,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}
SIZES = {
    "vocab_size": 211,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
    "type": "llama3",
}
GEMMA3_1B = {
    "attention_bias": False, "attn_logit_softcapping": None, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0,
    "query_pre_attn_scalar": 24, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": 8, "sliding_window_pattern": 6, "num_hidden_layers": 7,
}  # fmt: skip
LOCAL5_GLOBAL1 = ["local"] * 5 + ["global", "local"]
PUBLISHED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "mistral",
        "mistralai/Mistral-7B-v0.1",
        {"hidden_act": "silu", "rope_theta": 10000.0, "sliding_window": 8, "tie_word_embeddings": False},
        {"window_size": 8, "attn_types": ["local", "local"], "rotary_base": 1e4, "d_head": 16, "act_fn": "silu"},
    ),
    (
        "mistral",
        "mistralai/Mistral-Nemo-Base-2407",
        {
            "hidden_act": "silu", "head_dim": 24, "rope_theta": 1000000.0, "sliding_window": None,
            "tie_word_embeddings": False,
        },
        {"use_local_attn": False, "d_head": 24, "rotary_dim": 24, "rotary_base": 1e6},
    ),
    (
        "qwen2",
        "Qwen/Qwen2.5-7B",
        {
            "hidden_act": "silu", "max_window_layers": 28, "rope_theta": 1000000.0, "sliding_window": 131072,
            "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
        },
        {"use_local_attn": False, "rotary_base": 1e6},
    ),
    (
        "qwen3",
        "Qwen/Qwen3-0.6B",
        {
            "attention_bias": False, "head_dim": 32, "hidden_act": "silu", "max_window_layers": 28,
            "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        {"use_local_attn": False, "use_qk_norm": True, "d_head": 32, "tie_word_embeddings": True},
    ),
    (
        "gemma",
        "google/gemma-2b",
        {
            "attention_bias": False, "head_dim": 32, "hidden_act": "gelu", "hidden_activation": None, "pad_token_id": 0,
            "rope_scaling": None, "rope_theta": 10000.0, "num_key_value_heads": 1,
        },
        {"act_fn": "gelu_new", "tie_word_embeddings": True, "n_key_value_heads": 1, "attn_scale": 32**0.5},
    ),
    (
        "gemma2",
        "google/gemma-2-2b",
        {
            "attention_bias": False, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0, "head_dim": 32, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "query_pre_attn_scalar": 16,
            "rope_theta": 10000.0, "sliding_window": 8,
        },
        {
            "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0, "attn_scale": 4.0, "window_size": 8,
            "attn_types": ["local", "global"], "act_fn": "gelu_new", "use_normalization_before_and_after": True,
        },
    ),
    (
        "gemma3",
        "google/gemma-3-1b-pt",
        GEMMA3_1B,
        {
            "attn_types": LOCAL5_GLOBAL1, "rotary_base": 1e6, "rotary_base_local": 1e4, "window_size": 8,
            "attn_scale": 24**0.5, "attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0,
        },
    ),
    (
        "gemma3",
        "the text network of google/gemma-3-4b-pt, saved by itself",
        GEMMA3_1B | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        {"attn_types": LOCAL5_GLOBAL1, "rotary_scaling_factor": 8.0, "rotary_base_local": 1e4},
    ),
    (
        "gemma3",
        "google/gemma-3-270m",
        {key: value for key, value in GEMMA3_1B.items() if key != "sliding_window_pattern"} | {
            "_sliding_window_pattern": 6, "use_bidirectional_attention": False, "cache_implementation": None,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
        {"attn_types": LOCAL5_GLOBAL1, "attention_dir": "causal"},
    ),
    (
        "apertus",
        "swiss-ai/Apertus-8B-2509",
        {
            "attention_bias": False, "hidden_act": "xielu", "hidden_dropout": 0.0, "mlp_bias": False,
            "pad_token_id": 3, "post_norm": False, "qk_norm": True, "rope_scaling": LLAMA3_SCALING,
            "rope_theta": 12000000, "tie_word_embeddings": False,
        },
        {"act_fn": "xielu", "rotary_base": 12e6, "NTK_by_parts_factor": 8.0, "use_qk_norm": True, "gated_mlp": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "after", "config", "told"), PUBLISHED, ids=[after for _, after, _, _ in PUBLISHED])
def test_a_published_config_is_read_as_what_it_is(
    name: str, after: str, config: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    class_name, config_name, _ = CLASSES[name]
    published = {**EVERY, **SIZES, **config, "architectures": [class_name]}
    published["model_type"] = find_family({"architectures": [class_name]}).model_type
    network = getattr(transformers, class_name)(getattr(transformers, config_name).from_dict(dict(published)))
    randomise(network, name, seed=8)
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(published))

    opened = read_checkpoint(tmp_path)
    assert {field: opened.architecture[field] for field in told} == told
    tokens = torch.arange(90).reshape(2, 45) * 3 % 211
    ours = opened.build()
    # Apertus builds the numbers of its activation in the dtype that config.json names
    for one in (network.eval().float(), ours):
        one.set_attn_implementation("eager")
    with torch.inference_mode():
        assert torch.equal(ours(tokens, use_cache=False).logits, network(tokens, use_cache=False).logits)
    refuse_disparity(opened.measure(), after)
