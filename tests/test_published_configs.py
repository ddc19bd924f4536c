"""Checkpoints as they were published: with the keys, tensor names and buffers of older releases of transformers.

Every config has the keys of a published one (named beside it), and the sizes of the tiny networks of tests/checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.errors import WeightsMismatch
from registry.families import find_family_by_name
from registry.families.lending import lend_missing
from tests.checkpoints import make_network
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]

SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
EVERY = {"use_cache": True, "transformers_version": "4.24.0", "torch_dtype": "float16", "bos_token_id": 0}
SIZES = {
    "vocab_size": 211,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
GPT_SIZES = {"vocab_size": 211, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96}

# family, what it is after, its config.json without architectures and model_type, and what transformers 5 is told
PUBLISHED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "gpt_neox",
        "EleutherAI/pythia-70m",
        {
            **SIZES,
            "eos_token_id": 0,
            "hidden_act": "gelu",
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-05,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
        },
        {},
    ),
    (
        "gpt_neox",
        "EleutherAI/gpt-neox-20b",
        {
            **SIZES,
            "attention_probs_dropout_prob": 0,
            "eos_token_id": 0,
            "hidden_act": "gelu_fast",
            "hidden_dropout_prob": 0,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-05,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
        },
        {"hidden_act": "gelu_fast"},
    ),
    (
        "gpt_neox",
        "saved by transformers 4.46",
        {
            **SIZES,
            "attention_bias": True,
            "attention_dropout": 0.0,
            "classifier_dropout": 0.1,
            "eos_token_id": 0,
            "hidden_act": "gelu",
            "hidden_dropout": 0.0,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-05,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
            "rope_theta": 500,
            "rotary_emb_base": 500,
            "rotary_pct": 0.5,
            "tie_word_embeddings": False,
            "use_parallel_residual": False,
        },
        {"rotary_pct": 0.5, "rotary_emb_base": 500, "use_parallel_residual": False},
    ),
    (
        "gpt_neo",
        "EleutherAI/gpt-neo-125m",
        {
            **SUMMARY,
            "vocab_size": 211,
            "max_position_embeddings": 96,
            "hidden_size": 64,
            "intermediate_size": None,
            "num_heads": 4,
            "num_layers": 2,
            "activation_function": "gelu_new",
            "attention_dropout": 0,
            "attention_layers": ["global", "local"],
            "attention_types": [[["global", "local"], 1]],
            "embed_dropout": 0,
            "eos_token_id": 0,
            "gradient_checkpointing": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "resid_dropout": 0,
            "window_size": 11,
        },
        {},
    ),
    (
        "gptj",
        "EleutherAI/gpt-j-6b",
        {
            **SUMMARY,
            **GPT_SIZES,
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "eos_token_id": 0,
            "gradient_checkpointing": False,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "n_inner": None,
            "resid_pdrop": 0.0,
            "rotary": True,
            "rotary_dim": 8,
            "scale_attn_weights": True,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
            "tie_word_embeddings": False,
            "tokenizer_class": "GPT2Tokenizer",
        },
        {},
    ),
    (
        "opt",
        "facebook/opt-125m",
        {
            "vocab_size": 211,
            "max_position_embeddings": 96,
            "hidden_size": 64,
            "ffn_dim": 112,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "attention_dropout": 0.0,
            "do_layer_norm_before": True,
            "dropout": 0.1,
            "eos_token_id": 2,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "pad_token_id": 1,
            "prefix": "</s>",
            "word_embed_proj_dim": 64,
        },
        {},
    ),
    (
        "bloom",
        "bigscience/bloom-560m",
        {
            "vocab_size": 211,
            "n_embed": 64,
            "n_layer": 2,
            "num_attention_heads": 4,
            "seq_length": 96,
            "apply_residual_connection_post_layernorm": False,
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "eos_token_id": 2,
            "hidden_dropout": 0.0,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "masked_softmax_fusion": True,
            "n_inner": None,
            "offset_alibi": 100,
            "pad_token_id": 3,
            "pretraining_tp": 1,
            "skip_bias_add": True,
            "skip_bias_add_qkv": False,
            "slow_but_exact": False,
            "unk_token_id": 0,
        },
        {},
    ),
    (
        "phi",
        "microsoft/phi-2",
        {
            **SIZES,
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "eos_token_id": 0,
            "hidden_act": "gelu_new",
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-05,
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.4,
            "qk_layernorm": False,
            "resid_pdrop": 0.1,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        {"partial_rotary_factor": 0.4},
    ),
    (
        "phi3",
        "microsoft/Phi-3-mini-4k-instruct",
        {
            **SIZES,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "eos_token_id": 32000,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 37,
            "tie_word_embeddings": False,
        },
        {},
    ),
]


@pytest.mark.parametrize(("name", "after", "config", "told"), PUBLISHED, ids=[after for _, after, _, _ in PUBLISHED])
def test_a_published_config_is_read_as_what_it_is(
    name: str, after: str, config: dict[str, Any], told: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name, tokenizer=False, **told)
    modern = read_checkpoint(folder).architecture
    family = find_family_by_name(name)
    published = {**EVERY, **config, "architectures": [family.class_name], "model_type": family.model_type}
    (folder / "config.json").write_text(json.dumps(published))
    opened = read_checkpoint(folder)
    assert opened.architecture.fingerprint == modern.fingerprint
    assert opened.measure().passed


# --- tensor names and buffers


BUFFERS = {
    "gpt_neo": ["transformer.h.0.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias"],
    "gpt_neox": [
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
    ],
    "gptj": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "phi": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    "phi3": ["model.layers.1.self_attn.rotary_emb.inv_freq"],
}
WITHOUT_PREFIX = {"bloom": "transformer.", "opt": "model."}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_that_older_releases_saved_are_no_weights(
    name: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("plain", make_checkpoint(name))
    folder = make_checkpoint(name)
    rewrite(folder, lambda tensors: {**tensors, **{buffer: torch.ones(3) for buffer in BUFFERS[name]}})
    assert registry.register("buffers", folder).outcome == "registered"
    one, other = registry.version("plain"), registry.version("buffers")
    assert one.weights_digest == other.weights_digest
    stray = f"{BUFFERS[name][0]}_of_another_kind"
    rewrite(folder, lambda tensors: {**tensors, stray: torch.ones(3)})
    with pytest.raises(WeightsMismatch) as refused:
        registry.register("stray", folder)
    assert refused.value.left_over == (stray,)


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_names_without_the_prefix_of_the_bare_model_are_the_same_tensors(
    name: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("plain", make_checkpoint(name))
    folder = make_checkpoint(name)
    prefix = WITHOUT_PREFIX[name]
    rewrite(folder, lambda tensors: {key.removeprefix(prefix): value for key, value in tensors.items()})
    registry.register("bare", folder)
    assert registry.version("plain").weights_digest == registry.version("bare").weights_digest
    assert torch.equal(registry.load("plain").W_Q, registry.load("bare").W_Q)


def test_the_head_of_gpt_neox_has_two_names_but_is_one_tensor(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """It was embed_out, and transformers 5.14 calls it lm_head."""
    folder = make_checkpoint("gpt_neox")
    registry.register("old", folder)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: {key.replace("embed_out", "lm_head"): value for key, value in tensors.items()})
    registry.register("new", folder)
    assert registry.version("old").weights_digest == registry.version("new").weights_digest
    rewrite(folder, lambda tensors: {**tensors, "embed_out.weight": tensors["lm_head.weight"].clone()})
    with pytest.raises(WeightsMismatch, match="names of one tensor"):
        registry.register("both", folder)


@pytest.mark.parametrize("missing", ["lm_head.bias", "lm_head.weight"])
@pytest.mark.parametrize("name", ["gptj", "phi"])
def test_a_head_without_its_bias_is_not_whole(
    name: str, missing: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name)
    rewrite(folder, lambda tensors: {key: value for key, value in tensors.items() if key != missing})
    with pytest.raises(WeightsMismatch) as refused:
        registry.register("torn", folder)
    assert refused.value.missing == (missing,)


# --- what is lent to a converter is given back


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt_neox", {"attention_bias": False}),
        ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("opt", {"enable_bias": False}),
    ],
)
def test_what_is_lent_to_a_converter_is_given_back(name: str, config: dict[str, Any]) -> None:
    network = make_network(name, **config)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        logits = network(tokens).logits
        with lend_missing(network):
            lent = {key: value for key, value in network.state_dict().items() if key not in before}
            assert torch.allclose(network(tokens).logits, logits, atol=1e-5)
    assert len(lent) > 4
    assert all(bool((value == float(key.endswith("weight"))).all()) for key, value in lent.items())
    after = network.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)
    with pytest.raises(ZeroDivisionError), lend_missing(network):
        _ = 1 // 0
    assert set(network.state_dict()) == set(before)
