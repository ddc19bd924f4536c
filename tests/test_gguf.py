"""GGUF files: dequantised to the function that llama.cpp computes with them, or refused."""

from __future__ import annotations

import errno
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from registry import Registry, RegistryError
from registry.errors import (
    MalformedArtifact,
    UnsupportedConfig,
    UnsupportedFamily,
    UnusableTokenizer,
    UnusableWeights,
    WeightsMismatch,
)
from registry.sources.written_weights import write_weights
from tests.checkpoints import make_network
from tests.contents import read_contents
from tests.gguf_files import TOKENIZERS, write_gguf

TOKENS = torch.arange(40).reshape(2, 20) * 5 % 211
TEXTS = {"llama": "w7 w42 w1", "gpt2": " abe! cat", "qwen2": " abe! cat", "qwen3": " abe! cat"}
NO_TOKENIZER: dict[str, Any] = {}

NETWORKS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"head_dim": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-5}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 24, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("gpt2", {}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt2", {"n_inner": 100, "n_head": 2, "layer_norm_epsilon": 1e-3}),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry for all that is refused: it must stay as it is."""
    folder = tmp_path_factory.mktemp("gguf")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


@pytest.mark.parametrize(("family", "config"), NETWORKS)
def test_the_network_in_a_gguf_file_is_the_one_it_was_made_from(
    family: str, config: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    source = make_network(family, seed=4, **config)
    file = write_gguf(tmp_path / "model.gguf", source)
    done = registry.register("base", file)
    assert done.parity is not None and done.parity.passed
    assert [finding.code for finding in done.findings] == ["dequantised"]
    assert "GGUF (F32)" in done.findings[0].message
    assert done.version is not None and done.version.source_kind == "gguf"
    with torch.inference_mode():
        expected = source(TOKENS).logits.log_softmax(-1)
        for processed in (True, False):
            network = registry.load("base", processed=processed)
            assert float((network(TOKENS).log_softmax(-1) - expected).abs().max()) < 1e-4

    # the file itself is kept beside what came out of it
    roles = {stored.name: stored.role for stored in registry.version("base").files}
    assert roles == {
        "config.json": "config",
        "model.safetensors": "weights",
        "model.gguf": "original",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }
    assert (registry.path("base") / "model.gguf").read_bytes() == file.read_bytes()
    assert registry.register("base", file).outcome == "unchanged"


@pytest.mark.parametrize(("family", "config"), NETWORKS)
def test_the_architecture_is_that_of_the_checkpoint_it_was_made_from(
    family: str, config: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    """So the one can be registered as made from the other, and epsilon is 1e-5 again, not 9.99e-6."""
    source = make_network(family, seed=4, **config)
    source.save_pretrained(tmp_path / "folder")
    whole = registry.register("whole", tmp_path / "folder")
    file = write_gguf(tmp_path / "model.gguf", source)
    done = registry.register("gguf", file, parent="whole", relation="converted")
    assert done.architecture == whole.architecture
    assert done.weights_digest == whole.weights_digest


@pytest.mark.parametrize("name", ["mistral", "Mistral 7B"])
def test_what_a_file_calls_itself_changes_nothing(name: str, registry: Registry, tmp_path: Path) -> None:
    """Transformers takes a llama file of the name "mistral" for another architecture."""
    plain = registry.register("plain", write_gguf(tmp_path / "plain.gguf", make_network("llama")))
    named = write_gguf(tmp_path / "named.gguf", make_network("llama"), metadata={"general.name": name})
    done = registry.register("named", named)
    assert (done.architecture, done.weights_digest) == (plain.architecture, plain.weights_digest)


@pytest.mark.parametrize("packing", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16])
def test_packed_weights_are_what_the_file_computes_with(
    packing: gguf.GGMLQuantizationType, registry: Registry, tmp_path: Path
) -> None:
    source = make_network("llama", seed=4, intermediate_size=128)
    done = registry.register("packed", write_gguf(tmp_path / "model.gguf", source, packing=packing))
    assert done.parity is not None and done.parity.passed
    assert f"GGUF ({', '.join(sorted(['F32', packing.name]))})" in done.findings[0].message
    with torch.inference_mode():
        difference = registry.load("packed")(TOKENS).log_softmax(-1) - source(TOKENS).logits.log_softmax(-1)
    assert 1e-4 < float(difference.abs().max()) < 1.0


@pytest.mark.parametrize("family", TEXTS)
def test_the_tokenizer_comes_with_it(family: str, registry: Registry, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_network(family))
    # what lies beside the file is none of its business
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<evil>": 5}))
    registry.register("base", file)
    network = registry.load("base")
    alone = tmp_path / "alone"
    alone.mkdir()
    file.rename(alone / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
    assert network.tokenizer is not None and network.tokenizer.get_vocab() == tokenizer.get_vocab()
    ids = tokenizer(TEXTS[family], add_special_tokens=False)["input_ids"]
    assert len(set(ids)) >= 3
    assert network.to_tokens(TEXTS[family]).tolist() == [[tokenizer.bos_token_id, *ids]]


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer.ggml.model": "none"}, {"tokenizer.ggml.model": "no_vocab"}])
def test_without_a_tokenizer_none_is_made_up(
    family: str, tokenizer: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_network(family), tokenizer=tokenizer)
    done = registry.register("base", file)
    assert [finding.code for finding in done.findings] == ["dequantised", "no-tokenizer"]
    assert done.architecture["d_vocab"] == 211
    assert registry.load("base").tokenizer is None


# --- what would be another function


IGNORED_BY_TRANSFORMERS = [
    ("rope.scaling.type", "linear"),
    ("rope.scaling.type", "yarn"),
    ("rope.scaling.factor", 2.0),
    ("rope.scale_linear", 2.0),
    ("attention.sliding_window", 8),
    ("attention.scale", 0.5),
    ("attention.clamp_kqv", 0.5),
    ("attention.causal", False),
    ("attention.key_length", 8),
    ("attention.value_length", 8),
    ("attn_logit_softcapping", 5.0),
    ("final_logit_softcapping", 5.0),
    ("logit_scale", 0.5),
    ("residual_scale", 0.5),
    ("embedding_scale", 2.0),
    ("use_parallel_residual", True),
    ("expert_count", 2),
    ("a_key_nobody_knows", 1),
]


@pytest.mark.parametrize(("key", "value"), IGNORED_BY_TRANSFORMERS)
def test_what_transformers_leaves_unread_is_refused(key: str, value: Any, shared: Registry, tmp_path: Path) -> None:
    """llama.cpp computes something else with each of these, and the tensors show nothing of it."""
    file = write_gguf(tmp_path / "model.gguf", make_network("llama"), metadata={f"llama.{key}": value})
    before = read_contents(shared)
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("unread", file)
    assert refused.value.field == f"llama.{key}"
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llama", "context_length"),
        ("llama", "embedding_length"),
        ("llama", "block_count"),
        ("llama", "feed_forward_length"),
        ("llama", "attention.head_count"),
        # without it, transformers leaves Q and K in llama.cpp's order: a wrong network, and no error
        ("llama", "attention.head_count_kv"),
        ("llama", "attention.layer_norm_rms_epsilon"),
        ("qwen2", "attention.head_count_kv"),
        ("qwen2", "attention.layer_norm_rms_epsilon"),
        ("qwen3", "attention.head_count_kv"),
        ("gpt2", "context_length"),
        ("gpt2", "attention.head_count"),
        ("gpt2", "attention.layer_norm_epsilon"),
    ],
)
def test_what_is_left_out_is_not_guessed(family: str, key: str, shared: Registry, tmp_path: Path) -> None:
    network = make_network(family, **{"num_key_value_heads": 4} if family == "llama" else {})
    file = write_gguf(tmp_path / "model.gguf", network, metadata={f"{family}.{key}": None})
    before = read_contents(shared)
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("guessed", file)
    assert refused.value.field == f"{family}.{key}"
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("qwen2", "attention.sliding_window", 8),
        ("qwen2", "rope.scaling.type", "yarn"),
        ("qwen2", "attention.key_length", 8),
        ("qwen3", "attention.sliding_window", 8),
        ("qwen3", "expert_count", 2),
        ("qwen3", "attention.value_length", 8),
    ],
)
def test_what_no_qwen_has_is_refused(family: str, key: str, value: Any, shared: Registry, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", make_network(family), metadata={f"{family}.{key}": value})
    with pytest.raises((UnsupportedConfig, WeightsMismatch)):
        shared.register("qwen", file)


def test_a_width_of_heads_that_differs_by_program_is_not_guessed(shared: Registry, tmp_path: Path) -> None:
    """Left out, llama.cpp takes embedding_length / head_count, and Qwen3Config takes 128."""
    gone = {f"qwen3.attention.{key}": None for key in ("key_length", "value_length")}
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("qwen", write_gguf(tmp_path / "model.gguf", make_network("qwen3"), metadata=gone))
    assert refused.value.field == "qwen3.attention.key_length"


@pytest.mark.parametrize("key", ["rope.dimension_count", "rope.freq_base", "vocab_size"])
def test_what_has_one_default_everywhere_may_be_left_out(key: str, registry: Registry, tmp_path: Path) -> None:
    whole = registry.register("whole", write_gguf(tmp_path / "model.gguf", make_network("llama")))
    file = write_gguf(tmp_path / "short.gguf", make_network("llama"), metadata={f"llama.{key}": None})
    assert registry.register("short", file).architecture == whole.architecture


REFUSED: list[tuple[str, type[RegistryError], str, dict[str, Any]]] = [
    ("rope-freqs", MalformedArtifact, "22 tensors, and transformers can place 21", {"rope_freqs.weight": np.ones(8)}),
    ("bias", MalformedArtifact, "transformers can place 21", {"blk.0.attn_q.bias": np.ones(64)}),
    ("adapter", MalformedArtifact, "transformers can place 21", {"blk.0.ffn_up.weight.lora_a": np.ones((2, 64))}),
    (
        "tensor-missing",
        WeightsMismatch,
        "1 missing, such as model.layers.1.mlp.up_proj.weight",
        {"blk.1.ffn_up.weight": None},
    ),
    ("wrong-shape", WeightsMismatch, "of another shape", {"blk.1.ffn_up.weight": np.ones((64, 64))}),
    ("no-embedding", WeightsMismatch, "missing", {"token_embd.weight": None}),
    (
        "nan",
        UnusableWeights,
        "model.layers.0.self_attn.q_proj.weight",
        {"blk.0.attn_q.weight": np.full((64, 64), np.nan)},
    ),
]


@pytest.mark.parametrize(("name", "error", "text", "tensors"), REFUSED, ids=[case[0] for case in REFUSED])
def test_tensors_that_do_not_fit_are_refused(
    name: str, error: type[RegistryError], text: str, tensors: dict[str, Any], shared: Registry, tmp_path: Path
) -> None:
    arrays = {key: array if array is None else array.astype(np.float32) for key, array in tensors.items()}
    file = write_gguf(tmp_path / "model.gguf", make_network("llama"), tensors=arrays)
    before = read_contents(shared)
    with pytest.raises(error, match=text):
        shared.register("tensors", file)
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"general.architecture": "mamba"}, UnsupportedFamily),
        ({"general.architecture": 7}, UnsupportedFamily),
        ({"llama.block_count": 10**6}, WeightsMismatch),
        ({"llama.block_count": 0}, UnsupportedConfig),
        ({"llama.attention.head_count": 5}, UnsupportedConfig),
        ({"llama.attention.head_count": [4, 4]}, UnsupportedConfig),
        ({"llama.attention.head_count_kv": "two"}, UnsupportedConfig),
        ({"llama.rope.freq_base": -1.0}, UnsupportedConfig),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, UnsupportedConfig),
        ({"llama.vocab_size": 200}, WeightsMismatch),
        ({"tokenizer.ggml.model": "wordpiece"}, UnusableTokenizer),
        ({"tokenizer.ggml.tokens": None}, UnusableTokenizer),
        ({"tokenizer.ggml.tokens": ["▁"] * 300}, UnusableTokenizer),
        ({"tokenizer.ggml.bos_token_id": 10**6}, UnusableTokenizer),
        (TOKENIZERS["llama"](230), UnusableTokenizer),
    ],
)
def test_metadata_that_make_no_sense_are_refused(
    metadata: dict[str, Any], error: type[RegistryError], shared: Registry, tmp_path: Path
) -> None:
    network = make_network("llama")
    if "general.architecture" in metadata:  # the writer has written it already
        file = write_gguf(tmp_path / "model.gguf", network)
        content = file.read_bytes()
        value = metadata["general.architecture"]
        start = content.index(b"general.architecture") + len(b"general.architecture")
        text = struct.pack("<IQ", 8, len(str(value))) + str(value).encode() if isinstance(value, str) else b""
        old_end = start + 4 + 8 + len("llama")
        file.write_bytes(content[:start] + (text or struct.pack("<II", 4, value)) + content[old_end:])
    else:
        file = write_gguf(tmp_path / "model.gguf", network, metadata=metadata)
    before = read_contents(shared)
    with pytest.raises(RegistryError) as refused:
        shared.register("senseless", file)
    assert type(refused.value) is error
    assert read_contents(shared) == before


# --- damaged files


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    return write_gguf(tmp_path_factory.mktemp("good") / "model.gguf", make_network("llama")).read_bytes()


@pytest.mark.parametrize("part", [0, 3, 4, 10, 24, 30, 100, 1000, 3000, 0.1, 0.5, 0.9, -1])
def test_a_file_that_is_cut_short_is_refused(part: float, content: bytes, shared: Registry, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content[: int(len(content) * part) if isinstance(part, float) else part])
    before = read_contents(shared)
    with pytest.raises(MalformedArtifact) as refused:
        shared.register("cut", file)
    assert refused.value.message.isprintable() and "model.gguf" in refused.value.message
    assert read_contents(shared) == before


@pytest.mark.parametrize("other", [b"GGML" + bytes(100), b"PK\x03\x04" + bytes(100), b"<html>", b"GGUF" + bytes(100)])
def test_a_file_of_another_kind_is_refused(other: bytes, shared: Registry, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(other)
    before = read_contents(shared)
    with pytest.raises(MalformedArtifact):
        shared.register("other", tmp_path / "model.gguf")
    assert read_contents(shared) == before


def hostile(*entries: bytes, n_tensors: int = 0, n_metadata: int | None = None, version: int = 3) -> bytes:
    return struct.pack(
        "<4sIQQ", b"GGUF", version, n_tensors, len(entries) if n_metadata is None else n_metadata
    ) + b"".join(entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(hostile(version=1), id="an old version"),
        pytest.param(struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), id="the other byte order"),
        pytest.param(hostile(n_metadata=2**60), id="endless metadata"),
        pytest.param(hostile(n_tensors=2**60), id="endless tensors"),
        pytest.param(hostile(text(b"a") + struct.pack("<IIQ", 9, 0, 2**40)), id="an endless array of bytes"),
        pytest.param(hostile(text(b"a") + struct.pack("<IIQ", 9, 6, 2**62)), id="an endless array of floats"),
        pytest.param(hostile(text(b"a") + struct.pack("<IIQ", 9, 8, 2**60)), id="an endless array of texts"),
        pytest.param(hostile(text(b"a") + struct.pack("<IIQ", 9, 9, 1)), id="an array of arrays"),
        pytest.param(hostile(text(b"a") + struct.pack("<I", 99)), id="a type that is none"),
        pytest.param(hostile(struct.pack("<Q", 2**63)), id="an endless key"),
        pytest.param(hostile(text(b"\xff\xfe") + struct.pack("<IB", 7, 1)), id="a key that is no text"),
        pytest.param(hostile(*[text(b"a") + struct.pack("<IB", 7, 1)] * 2), id="a key twice"),
        pytest.param(
            hostile(text(b"t") + struct.pack("<I", 2**31), n_tensors=1, n_metadata=0), id="endless dimensions"
        ),
        pytest.param(
            hostile(*[text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)] * 2, n_tensors=2, n_metadata=0),
            id="a tensor twice",
        ),
    ],
)
def test_a_header_made_to_hurt_is_refused_at_once(damaged: bytes, shared: Registry, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(damaged)
    with pytest.raises(MalformedArtifact):
        shared.register("hostile", tmp_path / "model.gguf")


def test_no_damage_gives_an_untyped_error(content: bytes, shared: Registry, tmp_path: Path) -> None:
    """Flip bytes in the header; most of it is the vocabulary, so some of these are still whole networks."""
    chance = random.Random(7)
    end = content.index(b"output_norm.weight")
    before, outcomes = read_contents(shared), set()
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(end)] = chance.randrange(256)
        (tmp_path / "model.gguf").write_bytes(damaged)
        try:
            done = shared.register("fuzzed", tmp_path / "model.gguf", dry_run=True)
        except RegistryError as error:
            outcomes.add(error.code)
        else:
            assert done.parity is not None and done.parity.passed
            outcomes.add("whole")
    assert {"malformed-artifact", "whole"} <= outcomes
    assert read_contents(shared) == before


def test_what_cannot_be_written_is_said_as_everywhere(tmp_path: Path) -> None:
    """As an OSError with its number: a full disk is told by it."""
    with pytest.raises(OSError) as failed:
        write_weights({"w": torch.zeros(3)}, tmp_path / "gone" / "model.safetensors")
    assert failed.value.errno == errno.ENOENT
    assert str(failed.value.filename) == str(tmp_path / "gone" / "model.safetensors")
