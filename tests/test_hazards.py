"""HAZARDS.md §1, §2.1, §2.2 and §2.7, row by row: each loads right, or is refused with a reason.

Files, state dicts, adapters and tokenizers (§2.3 to §2.6) have tests of their own: tests/test_hazards_*.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from registry import ArchitectureMismatch, Registry
from registry.architecture import describe_architecture
from registry.errors import UnsupportedConfig
from registry.verify import refuse_disparity
from tests.checkpoints import CLASSES, edit_config, save_checkpoint
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]
TOKENS = torch.arange(60).reshape(2, 30) * 3 % 211


def rope(kind: str = "default", theta: float = 1e4, **factors: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **factors}}


LINEAR = rope("linear", factor=4.0)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=24)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry for all rows."""
    folder = tmp_path_factory.mktemp("hazards")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


# --- §1.1: the path and the name decide nothing

MAGIC = ["llama", "Llama-3.2-1B", "Meta-Llama-3-8B", "gemma", "home/robert", "albert", "ft5run", "hubert", "gpt2"]


@pytest.mark.parametrize("word", MAGIC)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_1_1_magic_words_in_the_path(family: str, word: str, tmp_path: Path, shared: Registry) -> None:
    folder = save_checkpoint(tmp_path / word, family, seed=5)
    name = f"{family}/{word.replace('/', '-')}".lower()
    done = shared.register(name, folder)
    assert done.parity is not None and done.parity.passed
    source = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected = source(TOKENS).logits.log_softmax(-1)
        assert float((shared.load(name)(TOKENS).log_softmax(-1) - expected).abs().max()) < 1e-4


def test_1_1_a_folder_named_like_a_model_in_the_working_directory(
    tmp_path: Path, shared: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformer-lens loads ./gpt2 when it is asked for gpt2-small; a registered name means what was registered."""
    shared.register("small", save_checkpoint(tmp_path / "first", "gpt2", seed=1))
    save_checkpoint(tmp_path / "gpt2", "gpt2", seed=2)
    save_checkpoint(tmp_path / "small", "gpt2", seed=2)
    before = shared.load("small").W_E
    monkeypatch.chdir(tmp_path)
    assert torch.equal(shared.load("small").W_E, before)


def test_1_1_no_network_is_asked(make_checkpoint: MakeCheckpoint, registry: Registry, monkeypatch: Any) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for family in ("gpt2", "llama"):
        registry.register(family, make_checkpoint(family))
        network = registry.load(family)
        assert network.to_tokens("w1 w2").tolist() == [[0, 1, 2]]


def test_1_1_no_tokenizer_files(make_checkpoint: MakeCheckpoint, registry: Registry) -> None:
    """Transformers makes up a tokenizer of one token, and every text becomes [[0]]."""
    registry.register("mute", make_checkpoint("gpt2", tokenizer=False))
    assert registry.load("mute").tokenizer is None


# --- §1.3: what is special about a family; parity of all is in tests/test_family_parity.py and docs/families.md


def test_1_3_gpt2_config_without_n_ctx(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2", tokenizer=False)
    assert "n_ctx" not in json.loads((folder / "config.json").read_text())
    assert read_checkpoint(folder).architecture["n_ctx"] == 96


@pytest.mark.parametrize("family", ["mistral", "qwen3", "llama"])
def test_1_3_n_ctx_is_not_capped_at_2048(family: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(family, tokenizer=False, max_position_embeddings=8192)
    assert read_checkpoint(folder).architecture["n_ctx"] == 8192


def test_1_3_gemma_s_activation(make_checkpoint: MakeCheckpoint) -> None:
    """transformer-lens hard-codes gelu, which is 2.3e-3 off."""
    opened = read_checkpoint(make_checkpoint("gemma", tokenizer=False))
    assert opened.architecture["act_fn"] == "gelu_new"
    assert opened.measure().passed
    assert not opened.measure(describe_architecture(**{**opened.architecture.fields, "act_fn": "gelu"})).passed


def test_1_3_gemma3_attention_scale_is_the_config_s(make_checkpoint: MakeCheckpoint) -> None:
    """For gemma-3-27b, transformer-lens has 128 where the public config says 168."""
    opened = read_checkpoint(make_checkpoint("gemma3", tokenizer=False, query_pre_attn_scalar=168))
    assert opened.architecture["attn_scale"] == pytest.approx(168**0.5)
    assert opened.measure().passed


def test_1_3_bloom_s_unused_positions_are_not_uninitialised(
    make_checkpoint: MakeCheckpoint, registry: Registry
) -> None:
    """They are uninitialised memory, and differ between two loads of the same files."""
    registry.register("bloom", make_checkpoint("bloom"))
    one, other = (registry.load("bloom").state_dict() for _ in range(2))
    assert not one["pos_embed.W_pos"].any()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items() if tensor.numel())


def test_1_3_gpt_oss_value_biases_are_not_folded(make_checkpoint: MakeCheckpoint, registry: Registry) -> None:
    """With attention sinks the patterns do not sum to 1: 1.19 off in transformer-lens."""
    done = registry.register("sinks", make_checkpoint("gpt_oss"))
    assert done.parity is not None and done.parity.passed
    assert "fold_value_biases" not in done.parity.processing
    with pytest.warns(UserWarning, match="fold_value_biases would change"):
        registry.load("sinks", fold_value_biases=True)


# --- §2.1: config.json says it, and transformer-lens does not read it


@dataclass(frozen=True)
class Unread:
    """A field that transformer-lens leaves unread; `refused` names it where HookedTransformer cannot compute it."""

    name: str
    family: str
    config: dict[str, Any]
    refused: str | None = None

    def __str__(self) -> str:
        return self.name


UNREAD = [
    Unread("GPT-NeoX rope_theta=500", "gpt_neox", rope(theta=500.0)),
    Unread("GPT-NeoX rope linear x4", "gpt_neox", LINEAR),
    Unread("GPT-J layer_norm_epsilon=.1", "gptj", {"layer_norm_epsilon": 0.1}),
    Unread("Llama rope linear x4", "llama", LINEAR),
    Unread("Llama yarn x4", "llama", YARN),
    Unread("Llama attention_bias", "llama", {"attention_bias": True}),
    Unread("Llama mlp_bias", "llama", {"mlp_bias": True}, refused="mlp_bias"),
    Unread("Mistral rope yarn", "mistral", YARN),
    Unread("Mistral rope linear", "mistral", LINEAR | {"sliding_window": None}),
    Unread("Qwen2 rope yarn", "qwen2", YARN),
    Unread("Qwen2 rope linear", "qwen2", LINEAR),
    Unread(
        "Qwen2 use_sliding_window", "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    ),
    Unread("Qwen2 rope_theta=777.5", "qwen2", rope(theta=777.5)),
    Unread("Qwen3 yarn", "qwen3", YARN),
    Unread("Qwen3 sliding window", "qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    Unread("Qwen3 attention_bias", "qwen3", {"attention_bias": True}),
    Unread("Phi3 partial_rotary_factor=.5", "phi3", {"partial_rotary_factor": 0.5}),
    Unread(
        "Phi3 longrope",
        "phi3",
        rope(
            "longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=48, factor=2.0
        ),
        refused="rope",
    ),
    Unread(
        "BLOOM apply_residual_connection_post_layernorm",
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        refused="apply_residual_connection_post_layernorm",
    ),
    Unread("BLOOM n_head not a power of two", "bloom", {"n_head": 12, "hidden_size": 96}, refused="n_head"),
    Unread("Olmo3 attention_bias", "olmo3", {"attention_bias": True}),
    Unread("Apertus attention_bias", "apertus", {"attention_bias": True}),
    Unread("OLMoE rope yarn", "olmoe", YARN),
    Unread("Apertus rope yarn", "apertus", YARN),
    Unread("GPT-OSS default", "gpt_oss", {}),
]


@pytest.mark.parametrize("row", UNREAD, ids=str)
def test_2_1_a_field_that_transformer_lens_leaves_unread(row: Unread, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(row.family, tokenizer=False, seed=3, **row.config)
    if row.refused:
        with pytest.raises(UnsupportedConfig, match=row.refused):
            read_checkpoint(folder)
        return
    opened = read_checkpoint(folder)
    refuse_disparity(opened.measure(), row.name)


# --- §2.2: from_pretrained(BASE, hf_model=fine_tune) takes everything from the base's name


@dataclass(frozen=True)
class Tuned:
    """A fine-tune that is not what its base is, and an architecture field that tells."""

    name: str
    family: str
    base: dict[str, Any]
    tuned: dict[str, Any]
    field: str | None

    def __str__(self) -> str:
        return self.name


TUNED = [
    Tuned("nothing (control)", "gpt2", {}, {}, None),
    Tuned("GPT-2 n_head 4 to 8", "gpt2", {}, {"n_head": 8}, "n_heads"),
    Tuned("GPT-2 n_head 4 to 2", "gpt2", {}, {"n_head": 2}, "n_heads"),
    Tuned("GPT-2 eps 1e-5 to 1e-1", "gpt2", {}, {"layer_norm_epsilon": 0.1}, "eps"),
    Tuned("GPT-2 eps 1e-5 to 1e-12", "gpt2", {}, {"layer_norm_epsilon": 1e-12}, "eps"),
    Tuned("GPT-2 gelu_new to relu", "gpt2", {}, {"activation_function": "relu"}, "act_fn"),
    Tuned("GPT-2 gelu_new to gelu", "gpt2", {}, {"activation_function": "gelu"}, "act_fn"),
    Tuned("GPT-2 scale_attn_weights=False", "gpt2", {}, {"scale_attn_weights": False}, "attn_scale"),
    Tuned(
        "GPT-2 scale_attn_by_inverse_layer_idx",
        "gpt2",
        {},
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    Tuned("GPT-2 n_layer 2 to 3", "gpt2", {}, {"n_layer": 3}, "n_layers"),
    Tuned("GPT-2 n_layer 2 to 1", "gpt2", {}, {"n_layer": 1}, "n_layers"),
    Tuned("GPT-2 n_positions 64 to 128", "gpt2", {"n_positions": 64}, {"n_positions": 128}, "n_ctx"),
    Tuned("GPT-2 n_positions 64 to 48", "gpt2", {"n_positions": 64}, {"n_positions": 48}, "n_ctx"),
    Tuned("GPT-2 n_inner", "gpt2", {}, {"n_inner": 128}, "d_mlp"),
    Tuned("GPT-2 +5 vocab", "gpt2", {}, {"vocab_size": 216}, "d_vocab"),
    Tuned("GPT-2 untied head", "gpt2", {}, {"tie_word_embeddings": False}, "tie_word_embeddings"),
    Tuned("NeoX rope_theta", "gpt_neox", {}, rope(theta=500.0), "rotary_base"),
    Tuned("NeoX rotary_pct", "gpt_neox", {}, rope(partial_rotary_factor=0.5), "rotary_dim"),
    Tuned("NeoX parallel_residual", "gpt_neox", {}, {"use_parallel_residual": False}, "parallel_attn_mlp"),
    Tuned("NeoX eps", "gpt_neox", {}, {"layer_norm_eps": 0.1}, "eps"),
    Tuned("NeoX heads 4 to 8", "gpt_neox", {}, {"num_attention_heads": 8}, "n_heads"),
    Tuned("Mistral rope_theta 1e4 to 1e6", "mistral", {}, rope(theta=1e6), "rotary_base"),
    Tuned("Mistral window 8 to None", "mistral", {"sliding_window": 8}, {"sliding_window": None}, "use_local_attn"),
    Tuned("Mistral window 8 to 4", "mistral", {"sliding_window": 8}, {"sliding_window": 4}, "window_size"),
    Tuned("Mistral heads", "mistral", {}, {"num_attention_heads": 8}, "n_heads"),
    Tuned("Mistral eps", "mistral", {}, {"rms_norm_eps": 0.1}, "eps"),
    Tuned("Qwen2 rope_theta", "qwen2", {}, rope(theta=500.0), "rotary_base"),
    Tuned("Qwen2 eps", "qwen2", {}, {"rms_norm_eps": 0.1}, "eps"),
    Tuned("Qwen3 rope_theta", "qwen3", {}, rope(theta=500.0), "rotary_base"),
]


@pytest.mark.parametrize("row", TUNED, ids=str)
def test_2_2_a_fine_tune_that_differs_from_its_base(
    row: Tuned, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    name = f"base/{row.family}-{TUNED.index(row)}"
    shared.register(name, make_checkpoint(row.family, seed=1, **row.base), parity="skip")
    tuned = make_checkpoint(row.family, seed=2, **row.base | row.tuned)
    if row.field is None:
        shared.register("control", tuned, parent=name)
        return
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("tuned", tuned, parent=name)
    assert row.field in {difference.field for difference in refused.value.differences}


def test_2_2_every_row_is_there() -> None:
    assert len({row.name for row in TUNED}) == len(TUNED) >= 29
    assert {row.family for row in TUNED} | {row.family for row in UNREAD} <= set(CLASSES)


# --- §2.7: what a probe can see


def test_2_7_an_ignored_window_is_seen_because_the_probe_is_longer(make_checkpoint: MakeCheckpoint) -> None:
    opened = read_checkpoint(make_checkpoint("mistral", tokenizer=False, sliding_window=8))
    everywhere = {
        key: value for key, value in opened.architecture.fields.items() if key not in ("window_size", "attn_types")
    }
    ignored = opened.measure(describe_architecture(**{**everywhere, "use_local_attn": False}))
    assert not ignored.passed and ignored.raw > 0.1


def test_2_7_ignored_llama3_scaling_is_seen_because_the_probe_is_long(make_checkpoint: MakeCheckpoint) -> None:
    scaling = rope(
        "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    opened = read_checkpoint(make_checkpoint("llama", tokenizer=False, max_position_embeddings=16384, **scaling))
    plain = {key: value for key, value in opened.architecture.fields.items() if not key.startswith("NTK_")}
    ignored = opened.measure(describe_architecture(**{**plain, "use_NTK_by_parts_rope": False}))
    assert not ignored.passed and ignored.raw > 0.1


def test_2_7_a_config_that_lies_about_theta_beside_the_same_tensors(
    shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """The tensors fit any theta; only the comparison with the parent can tell."""
    shared.register("honest", make_checkpoint("llama", seed=4), parity="skip")
    liar = edit_config(make_checkpoint("llama", seed=4), **rope(theta=5e5))
    with pytest.raises(ArchitectureMismatch, match="rotary_base"):
        shared.register("liar", liar, parent="honest")
