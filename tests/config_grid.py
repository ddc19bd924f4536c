"""Configs of every family over which parity is measured, and the rope scalings that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINEAR = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
TYPED_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
YARN_128 = {**TYPED_YARN, "rope_theta": 5e5}
LLAMA3_128 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LAYERS = {"attention_types": None, "attention_layers": ["global", "local"]}
NO_ROPE = {"rope_parameters": None}
LONG = {"max_position_embeddings": 1024}


def scaled(kind: str, theta: float = 1e4, **factors: float) -> dict[str, Any]:
    return LONG | {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **factors}}


def partial(kind: str, part: float, **factors: float) -> dict[str, Any]:
    return LONG | {"rope_parameters": {"rope_type": kind, "partial_rotary_factor": part, **factors}}


LLAMA3_FACTORS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN_FACTORS = {"factor": 4.0, "original_max_position_embeddings": 128}


def layered(full: dict[str, Any] | None = None, sliding: dict[str, Any] | None = None) -> dict[str, Any]:
    """Gemma 3's rotation, one for each type of layers."""
    return LONG | {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e5, **(full or {})},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0, **(sliding or {})},
        }
    }


SMOOTH_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

GRID = [
    ("bloom", {}),
    *(("bloom", {"n_head": n_heads}) for n_heads in (1, 2, 8, 16)),
    ("bloom", {"n_embed": 32, "n_layer": 3}),
    ("bloom", {"tie_word_embeddings": False}),
    ("bloom", {"layer_norm_epsilon": 0.3}),
    ("bloom", {"layer_norm_epsilon": 1e-12}),
    ("bloom", {"pretraining_tp": 4, "slow_but_exact": True}),
    ("bloom", {"seq_length": 8}),
    ("gpt_neo", {}),
    *(("gpt_neo", {"window_size": window}) for window in (1, 2, 31, 32, 33, 95, 96, 97)),
    ("gpt_neo", {"attention_types": [[["local"], 2]]}),
    ("gpt_neo", {"attention_types": [[["global"], 2]]}),
    ("gpt_neo", {"attention_types": [[["local"], 1], [["global", "local"], 1]], "num_layers": 3}),
    ("gpt_neo", {"intermediate_size": 100}),
    ("gpt_neo", {"num_heads": 8, "activation_function": "gelu"}),
    ("gpt_neo", {"tie_word_embeddings": False}),
    ("gpt_neo", {"layer_norm_epsilon": 0.3}),
    ("gpt_neo", {"max_position_embeddings": 8}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"attention_bias": False}),
    ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False, "tie_word_embeddings": True}),
    ("gpt_neox", {"tie_word_embeddings": True}),
    ("gpt_neox", {"layer_norm_eps": 0.3}),
    ("gpt_neox", {"num_attention_heads": 1, "hidden_act": "gelu_new"}),
    ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 500}),
    ("gpt_neox", {"rotary_pct": 0.4}),
    ("gpt_neox", {"rope_parameters": {"rope_theta": 777.5, "partial_rotary_factor": 0.5}}),
    ("gpt_neox", partial("linear", 0.25, factor=4.0)),
    ("gpt_neox", partial("linear", 1.0, factor=2.5, rope_theta=500.0)),
    ("gpt_neox", partial("llama3", 0.5, original_max_position_embeddings=128, **LLAMA3_FACTORS)),
    ("gpt_neox", partial("yarn", 0.5, **YARN_FACTORS)),
    ("gpt_neox", partial("yarn", 1.0, truncate=False, **YARN_FACTORS)),
    ("gptj", {}),
    *(("gptj", {"rotary_dim": rotary_dim}) for rotary_dim in (2, 14, 16)),
    ("gptj", {"n_inner": 100, "n_layer": 3}),
    ("gptj", {"activation_function": "relu"}),
    ("gptj", {"tie_word_embeddings": True}),
    ("gptj", {"layer_norm_epsilon": 0.3}),
    ("gptj", {"layer_norm_epsilon": 1e-12}),
    ("opt", {}),
    ("opt", {"enable_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"tie_word_embeddings": False}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"num_attention_heads": 8, "ffn_dim": 50, "num_hidden_layers": 3}),
    ("opt", {"max_position_embeddings": 8}),
    ("phi", {}),
    ("phi", {"num_key_value_heads": 2}),
    ("phi", {"num_key_value_heads": 1, "partial_rotary_factor": 0.4}),
    ("phi", {"partial_rotary_factor": 1.0}),
    ("phi", {"rope_parameters": {"rope_theta": 777.5, "partial_rotary_factor": 0.25}}),
    ("phi", {"hidden_act": "relu"}),
    ("phi", {"tie_word_embeddings": True}),
    ("phi", {"layer_norm_eps": 0.3}),
    ("phi", partial("linear", 0.5, factor=4.0)),
    ("phi", partial("llama3", 1.0, original_max_position_embeddings=128, **LLAMA3_FACTORS)),
    ("phi", partial("yarn", 0.5, **YARN_FACTORS)),
    ("phi3", {}),
    *(("phi3", {"sliding_window": window}) for window in (None, 2, 31, 32, 33, 95, 96, 97)),
    ("phi3", {"num_key_value_heads": 4}),
    ("phi3", {"num_key_value_heads": 1}),
    ("phi3", {"rope_parameters": {"rope_theta": 777.5, "partial_rotary_factor": 0.75}}),
    ("phi3", {"partial_rotary_factor": 0.4}),
    ("phi3", {"hidden_act": "gelu"}),
    ("phi3", {"tie_word_embeddings": True}),
    ("phi3", {"rms_norm_eps": 0.3}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 100}),
    ("gpt2", {"n_head": 1, "n_embd": 48}),
    ("gpt2", {"n_head": 16, "n_layer": 3}),
    *(("gpt2", {"activation_function": name}) for name in ("gelu", "gelu_new", "gelu_fast", "relu", "silu", "swish")),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4}),
    ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt2", {"layer_norm_epsilon": 0.3}),
    ("gpt2", {"layer_norm_epsilon": 1e-12}),
    ("gpt2", {"n_positions": 8}),
    ("gpt2", {"vocab_size": 17}),
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"head_dim": 8}),
    ("llama", {"head_dim": 40, "num_key_value_heads": 4}),
    ("llama", {"intermediate_size": 50, "num_hidden_layers": 3}),
    *(("llama", {"hidden_act": name}) for name in ("gelu", "gelu_pytorch_tanh", "relu")),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"rms_norm_eps": 0.3}),
    ("llama", {"rms_norm_eps": 1e-12}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.5}}),
    ("llama", scaled("linear", factor=4.0)),
    ("llama", scaled("linear", factor=2.5, theta=5e5) | {"num_key_value_heads": 1}),
    (
        "llama",
        scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128),
    ),
    (
        "llama",
        scaled(
            "llama3",
            theta=5e5,
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=256,
        ),
    ),
    ("llama", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    ("llama", scaled("yarn", factor=4.0) | {"head_dim": 24}),
    ("llama", scaled("yarn", factor=8.0, original_max_position_embeddings=128, truncate=False)),
    ("llama", scaled("yarn", factor=8.0, original_max_position_embeddings=128, attention_factor=0.8)),
    (
        "llama",
        scaled("yarn", factor=8.0, original_max_position_embeddings=128, beta_fast=20.0, beta_slow=3.0, theta=5e4),
    ),
    (
        "llama",
        scaled("yarn", factor=8.0, original_max_position_embeddings=128, mscale=1.3, mscale_all_dim=0.7),
    ),
    *((name, {"attention_bias": True}) for name in ("llama", "qwen3", "gemma", "gemma2", "gemma3", "apertus")),
    *(
        (name, {"num_key_value_heads": n, "tie_word_embeddings": n == 1})
        for name in ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "apertus")
        for n in (1, 2, 4)
    ),
    *(
        (name, {"head_dim": 24, "rms_norm_eps": 0.3, "max_position_embeddings": 40})
        for name in ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "apertus")
    ),
    ("llama", {"attention_bias": True, "num_key_value_heads": 4}),
    ("mistral", {"head_dim": 16, "num_attention_heads": 6}),
    *(("mistral", {"sliding_window": window}) for window in (None, 1, 40, 95, 96, 97, 1000)),
    ("mistral", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    ("mistral", scaled("linear", factor=4.0) | {"sliding_window": None}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.5}}),
    ("qwen2", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    ("qwen2", scaled("linear", factor=4.0)),
    *(
        (name, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": n})
        for name in ("qwen2", "qwen3")
        for n in (0, 1, 2)
    ),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    ("qwen3", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    *(("gemma", {"hidden_act": name}) for name in ("gelu", "gelu_new", "silu", "relu")),
    ("gemma", scaled("linear", factor=4.0)),
    *(("gemma2", {"hidden_activation": name}) for name in ("gelu", "gelu_new", "silu")),
    *(("gemma2", {"attn_logit_softcapping": cap}) for cap in (None, 0.5, 50.0)),
    *(("gemma2", {"final_logit_softcapping": cap}) for cap in (None, 0.5, 50.0)),
    ("gemma2", {"query_pre_attn_scalar": 256}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma2", {"layer_types": ["full_attention"] * 2, "attention_bias": True}),
    ("gemma2", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    ("gemma3", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 5}),
    ("gemma3", {"layer_types": None, "num_hidden_layers": 7}),
    ("gemma3", {"layer_types": ["sliding_attention"] * 3}),
    ("gemma3", {"layer_types": ["full_attention"] * 3, "use_bidirectional_attention": True}),
    ("gemma3", layered()),
    ("gemma3", layered(full={"rope_theta": 1e4}, sliding={"rope_theta": 1e4})),
    ("gemma3", layered(full={"rope_type": "linear", "factor": 8.0})),
    ("gemma3", layered(full={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128})),
    (
        "gemma3",
        layered(
            full={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128},
            sliding={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128},
        ),
    ),
    ("gemma3", layered(full=SMOOTH_LLAMA3, sliding=SMOOTH_LLAMA3)),
    ("gemma3", layered(full=SMOOTH_LLAMA3) | {"layer_types": ["full_attention"] * 3}),
    ("gemma3", layered(sliding=SMOOTH_LLAMA3) | {"layer_types": ["sliding_attention"] * 3}),
    *(("apertus", {"hidden_act": name}) for name in ("xielu", "relu", "gelu", "silu")),
    ("apertus", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.5}}),
    ("apertus", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
]


SLIDING, FULL = ["sliding_attention"], ["full_attention"]


def per_type(full: dict[str, Any], sliding: dict[str, Any], **config: Any) -> dict[str, Any]:
    return LONG | {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}, **config}


THETA = {"rope_type": "default", "rope_theta": 2e4}
BIASED = {"attention_bias": True}
GRID += [
    *(("gpt_oss", {"num_key_value_heads": n_heads}) for n_heads in (1, 4)),
    *(("gpt_oss", {"num_experts_per_tok": n_chosen}) for n_chosen in (1, 3, 4)),
    ("gpt_oss", {}),
    ("gpt_oss", {"num_local_experts": 1, "num_experts_per_tok": 1}),
    ("gpt_oss", BIASED),
    ("gpt_oss", {"attention_bias": False}),
    ("gpt_oss", {"tie_word_embeddings": True, "rms_norm_eps": 0.3}),
    ("gpt_oss", {"sliding_window": 1}),
    ("gpt_oss", {"layer_types": FULL * 2, "head_dim": 8}),
    ("gpt_oss", {"layer_types": None, "num_hidden_layers": 3}),
    ("gpt_oss", LONG | {"rope_parameters": None}),
    ("gpt_oss", {"rope_parameters": THETA}),
    ("gpt_oss", LONG | {"rope_parameters": {**YARN_128, "truncate": False}}),
    ("gpt_oss", LONG | {"rope_parameters": LINEAR, "layer_types": FULL * 2}),
    ("mixtral", {}),
    *(("mixtral", {"num_key_value_heads": n_heads}) for n_heads in (1, 4)),
    *(("mixtral", {"head_dim": d_head}) for d_head in (8, 40)),
    *(("mixtral", {"num_experts_per_tok": n_chosen}) for n_chosen in (1, 3, 4)),
    ("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
    ("mixtral", {"num_local_experts": 9, "intermediate_size": 33, "num_hidden_layers": 3}),
    *(("mixtral", {"hidden_act": name}) for name in ("gelu", "gelu_pytorch_tanh", "relu")),
    ("mixtral", {"tie_word_embeddings": True, "rms_norm_eps": 0.3}),
    *(("mixtral", {"sliding_window": window}) for window in (1, 12, 63)),
    ("mixtral", scaled("linear", factor=4.0)),
    ("mixtral", LONG | {"rope_parameters": YARN_128, "head_dim": 16}),
    ("mixtral", LONG | {"rope_parameters": YARN_128, "head_dim": 16, "sliding_window": 50}),
    ("mixtral", LONG | {"rope_parameters": LLAMA3_128, "sliding_window": 50}),
    ("olmo", {}),
    *(("olmo", {"num_key_value_heads": n_heads}) for n_heads in (1, 2)),
    ("olmo", {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 48}),
    ("olmo", BIASED),
    ("olmo", BIASED | {"clip_qkv": 0.7, "num_key_value_heads": 1}),
    *(("olmo", {"clip_qkv": limit}) for limit in (0.0, 0.5, 8.0)),
    *(("olmo", {"hidden_act": name}) for name in ("gelu", "relu")),
    ("olmo", {"tie_word_embeddings": True, "num_hidden_layers": 3}),
    ("olmo", scaled("linear", factor=4.0)),
    ("olmo2", {}),
    *(("olmo2", {"num_key_value_heads": n_heads}) for n_heads in (1, 2)),
    ("olmo2", BIASED),
    ("olmo2", BIASED | {"num_key_value_heads": 2, "hidden_act": "gelu"}),
    ("olmo2", {"tie_word_embeddings": True, "rms_norm_eps": 0.3}),
    ("olmo2", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
    ("olmo3", {}),
    *(("olmo3", {"num_key_value_heads": n_heads}) for n_heads in (1, 4)),
    *(("olmo3", {"sliding_window": window}) for window in (1, 63)),
    ("olmo3", BIASED),
    ("olmo3", {"layer_types": None, "num_hidden_layers": 5}),
    ("olmo3", {"layer_types": FULL * 2, "tie_word_embeddings": True}),
    ("olmo3", {"layer_types": SLIDING * 2, "rms_norm_eps": 0.3}),
    ("olmo3", per_type(YARN_128, {})),
    ("olmo3", per_type(YARN_128, THETA, layer_types=FULL + SLIDING)),
    ("olmo3", per_type(YARN_128, YARN_128)),
    ("olmo3", per_type(YARN_128, {**YARN_128, "rope_theta": 3e4})),
    ("olmo3", per_type({}, YARN_128, layer_types=SLIDING * 2)),
    ("olmo3", per_type(YARN_128, LINEAR, layer_types=FULL * 2)),
    ("olmo3", per_type(LLAMA3_128, LLAMA3_128)),
    ("olmo3", per_type(LINEAR, {})),
    ("olmo3", per_type(LINEAR, THETA)),
    ("olmo3", per_type(THETA, {})),
    ("olmoe", {}),
    *(("olmoe", {"num_key_value_heads": n_heads}) for n_heads in (1, 4)),
    *(("olmoe", {"num_experts_per_tok": n_chosen, "norm_topk_prob": True}) for n_chosen in (1, 3, 6)),
    *(("olmoe", {"num_experts_per_tok": n_chosen}) for n_chosen in (1, 6)),
    ("olmoe", BIASED),
    ("olmoe", BIASED | {"clip_qkv": 0.7}),
    ("olmoe", {"clip_qkv": 0.5, "num_key_value_heads": 4}),
    ("olmoe", {"hidden_act": "gelu", "intermediate_size": 33, "num_hidden_layers": 3}),
    ("olmoe", {"tie_word_embeddings": True, "rms_norm_eps": 0.3}),
    ("olmoe", scaled("yarn", factor=4.0, original_max_position_embeddings=128)),
]


def write_nulls(folder: Path) -> Path:
    """Write null for "null" in config.json, since edit_config takes a field away for None."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"null"', "null"))
    return folder
