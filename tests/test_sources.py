"""What people hand in and is good: many forms, one network, of which only what belongs to it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from registry import Registry
from registry.sources import open_source
from tests.contents import read_contents

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

WEIGHTS = "model.safetensors"
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def old_names(tensors: Tensors) -> Tensors:
    """As the first GPT-2 files were: no prefix, and the causal mask among the weights."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(96, 96).tril()[None, None] for layer in range(2)}
    return named | masks | {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}


FORMS: dict[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors]]] = {
    "old names and masks": ("gpt2", {}, old_names),
    "integer masks": ("gpt2", {}, lambda t: {**t, "transformer.h.0.attn.bias": torch.ones(4, dtype=torch.uint8)}),
    "tied head spelled out": ("gpt2", {}, lambda t: {**t, HEAD: t[WTE].clone()}),
    "inverse frequencies": (
        "llama",
        {},
        lambda t: {**t, "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(8)},
    ),
    "tied llama head spelled out": (
        "llama",
        {"tie_word_embeddings": True},
        lambda t: {**t, HEAD: t["model.embed_tokens.weight"].clone()},
    ),
}


@pytest.mark.parametrize(("family", "config", "change"), FORMS.values(), ids=FORMS)
def test_the_same_weights_in_another_form_have_the_same_digest_and_load(
    family: str,
    config: dict[str, Any],
    change: Callable[[Tensors], Tensors],
    registry: Registry,
    make_checkpoint: MakeCheckpoint,
) -> None:
    plain = registry.register("plain", make_checkpoint(family, **config))
    folder = make_checkpoint(family, **config)
    edit_tensors(folder, change)
    other = registry.register("other", folder)
    assert other.weights_digest == plain.weights_digest
    assert other.n_parameters == plain.n_parameters
    assert other.parity is not None and other.parity.passed
    assert [finding.code for finding in other.findings] == ["identical-weights"]
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(registry.load("plain")(tokens), registry.load("other")(tokens))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_file_and_shards_are_one_network(family: str, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    whole = registry.register("whole", make_checkpoint(family))
    folder = make_checkpoint(family, max_shard_size="60KB")
    assert len([*folder.glob("model-*.safetensors")]) > 3 and not (folder / WEIGHTS).exists()
    shards = registry.register("shards", folder)
    assert shards.weights_digest == whole.weights_digest
    assert shards.version is not None and len(shards.version.with_role("weights")) > 3
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(registry.load("whole")(tokens), registry.load("shards")(tokens))
    # and the same network under the same name is no new version, in whatever files it comes
    assert registry.register("whole", folder).outcome == "unchanged"


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_files_pass_parity_and_load(
    family: str, dtype: torch.dtype, name: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(family)
    edit_tensors(folder, lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()})
    done = registry.register("half", folder)
    assert done.parity is not None and done.parity.passed and done.parity.bound == 1e-4
    assert done.version is not None and done.version.dtype == name
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        expected = source(tokens).logits.log_softmax(-1)
        assert float((registry.load("half")(tokens).log_softmax(-1) - expected).abs().max()) < 1e-4


def test_norms_may_be_kept_in_more_bits_than_matrices(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama")
    edit_tensors(folder, lambda t: {k: v if "norm" in k else v.bfloat16() for k, v in t.items()})
    done = registry.register("mixed", folder)
    assert done.parity is not None and done.parity.passed
    assert done.version is not None and done.version.dtype == "bfloat16+float32"


@pytest.mark.parametrize("form", ["folder", "links"])
def test_only_what_belongs_to_the_version_is_kept(
    form: str, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Also from a cache of the Hub, where each file is a link to a blob."""
    folder = make_checkpoint("gpt2")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "README.md", "modeling_evil.py", "tf_model.h5"):
        (folder / name).write_bytes(b"not a part of the network")
    if form == "links":
        home = tmp_path / "models--org--name"
        snapshot = home / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        folder = folder.rename(home / "blobs")
        for file in folder.iterdir():
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
        folder = snapshot
    done = registry.register("base", folder)
    assert done.version is not None
    roles = {file.name: file.role for file in done.version.files}
    assert roles == {
        "config.json": "config",
        "generation_config.json": "generation",
        "model.safetensors": "weights",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }
    for path in registry.path("base").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_dry_run_finds_everything_out_and_changes_nothing(
    family: str, tmp_path: Path, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(family)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    done = registry.register("base", folder, dry_run=True)
    assert done.outcome == "would-register" and done.version is None
    assert done.parity is not None and done.parity.passed
    assert read_contents(registry) == (frozenset(), (), 0)
    assert not registry.store.root.exists()
    assert files == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    real = registry.register("base", folder)
    assert (real.weights_digest, real.architecture) == (done.weights_digest, done.architecture)


def test_opening_reads_headers_only(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = open_source(make_checkpoint("gpt2"), tmp_path)
    assert source.kind == "huggingface"
    assert source.tensors[WTE].shape == (211, 64)
    assert source.size_bytes == sum(file.path.stat().st_size for file in source.files)
    assert [file.name for file in source.with_role("weights")] == [WEIGHTS]


def test_the_file_that_names_an_architecture_by_accident_decides_nothing(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """transformer-lens takes the architecture from the path if that has `llama`, `bert` or `gemma` in it."""
    folder = tmp_path / "robert" / "Meta-Llama-3-8B" / "gemma-t5"
    shutil.copytree(make_checkpoint("gpt2"), folder)
    done = registry.register("meta-llama/llama-2-7b", folder)
    assert done.version is not None and done.version.family == "gpt2"
    assert registry.load("meta-llama/llama-2-7b").cfg.original_architecture == "GPT2LMHeadModel"
