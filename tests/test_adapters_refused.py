"""PEFT adapters that cannot be merged right are refused, each by the name of what is wrong."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from registry import Registry, RegistryError
from registry.errors import (
    ArchitectureMismatch,
    InvalidInput,
    MalformedArtifact,
    SourceNotFound,
    UnsafeArtifact,
    UnsupportedConfig,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from registry.sources.adapter import read_adapter
from registry.sources.source import ParentVersion
from tests.adapters import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    Spoil,
    edit_adapter,
    edit_tensors,
    fill,
    make_adapted,
    pickle_tensors,
    register_bases,
    save_adapter,
    save_plain_adapter,
    to_pickle,
)
from tests.checkpoints import edit_config
from tests.contents import read_contents

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
LORA = peft.LoraConfig


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry that holds the bases of all adapters here."""
    with register_bases(tmp_path_factory.mktemp("adapters"), make_checkpoint) as registry:
        yield registry


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A plain adapter of Llama's."""
    return save_plain_adapter(tmp_path / "adapter")


def drop(part: str) -> Spoil:
    return lambda folder: edit_tensors(
        folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}
    )


def add(name: str, tensor: torch.Tensor) -> Spoil:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors | {f"base_model.model.{name}": tensor})


def config(**changes: Any) -> Spoil:
    return lambda folder: edit_adapter(folder, **changes)


def put_code(folder: Path) -> None:
    to_pickle(folder, lambda tensors: tensors | {"more": Path("x")})


Q0 = "model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[type[RegistryError], str, Spoil]] = {
    # --- files
    "pickle beside": (
        UnsupportedSource,
        "both safetensors and adapter_model.bin, and they cannot be compared",
        lambda folder: (folder / PICKLE).write_bytes(b""),
    ),
    "other pickle beside": (
        UnsupportedSource,
        "both safetensors and adapter_model.bin, and they hold different weights: 1 tensors differ",
        lambda folder: pickle_tensors(folder, lambda tensors: tensors | {min(tensors): 2 * tensors[min(tensors)]}),
    ),
    "shortened pickle beside": (
        UnsupportedSource,
        "both safetensors and adapter_model.bin, and they hold different weights",
        lambda folder: pickle_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if Q0 not in n}),
    ),
    "pickle of integers": (
        UnusableWeights,
        "not floating-point",
        lambda folder: to_pickle(folder, lambda tensors: {n: t.to(torch.int8) for n, t in tensors.items()}),
    ),
    "pickle of code": (UnsafeArtifact, "more than tensors: it asks for", lambda folder: put_code(folder)),
    "pickle, a pair missing": (
        WeightsMismatch,
        f"no tensors for 2 .* such as base_model.model.{Q0}.lora_A",
        lambda folder: to_pickle(folder, lambda tensors: {n: t for n, t in tensors.items() if Q0 not in n}),
    ),
    "pickle, wrapped": (
        WeightsMismatch,
        "belong to no layer",
        lambda folder: to_pickle(folder, lambda tensors: {f"module.{n}": t for n, t in tensors.items()}),
    ),
    "no tensors at all": (SourceNotFound, "no adapter_model.safetensors", lambda folder: (folder / WEIGHTS).unlink()),
    "no config": (UnsupportedSource, "no adapter_config.json", lambda folder: (folder / CONFIG).unlink()),
    "config cut": (MalformedArtifact, "not JSON", lambda folder: (folder / CONFIG).write_text('{"r": ')),
    "tensors cut": (
        MalformedArtifact,
        "truncated",
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
    ),
    "no tensors": (UnusableWeights, "holds no tensors", lambda folder: edit_tensors(folder, lambda _: {})),
    # --- tensors
    "a pair missing": (WeightsMismatch, f"no tensors for 2 .* such as base_model.model.{Q0}.lora_A", drop(Q0)),
    "half a pair missing": (WeightsMismatch, "no tensors for 1 ", drop(f"{Q0}.lora_B")),
    "left over": (
        WeightsMismatch,
        "1 of the adapter's tensors belong to no layer",
        add("model.layers.0.mlp.up_proj.lora_A.weight", torch.ones(4, 64)),
    ),
    "of a deeper base": (
        WeightsMismatch,
        "belong to no layer",
        add("model.layers.2.self_attn.q_proj.lora_A.weight", torch.ones(4, 64)),
    ),
    "wrapped": (
        WeightsMismatch,
        "belong to no layer",
        lambda folder: edit_tensors(
            folder, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()}
        ),
    ),
    "other width": (
        WeightsMismatch,
        "do not fit into llama@v1",
        add(f"{Q0}.lora_A.weight", torch.ones(4, 32)),
    ),
    "other rank": (WeightsMismatch, "do not fit into llama@v1", config(r=8)),
    "NaN": (UnusableWeights, "NaN or infinite", fill(float("nan"))),
    "infinity": (UnusableWeights, "NaN or infinite", fill(float("inf"))),
    "integers": (
        UnusableWeights,
        "not floating-point",
        lambda folder: edit_tensors(folder, lambda tensors: {n: t.to(torch.int8) for n, t in tensors.items()}),
    ),
    "8-bit floats": (
        UnusableWeights,
        "not floating-point",
        lambda folder: edit_tensors(folder, lambda ts: {n: t.to(torch.float8_e4m3fn) for n, t in ts.items()}),
    ),
    "an embedding with new rows": (
        WeightsMismatch,
        r"trained on a base whose model.embed_tokens.weight has the shape \(215, 64\)",
        add("model.embed_tokens.weight", torch.zeros(215, 64)),
    ),
    "another base's embedding": (
        WeightsMismatch,
        "holds its base's model.embed_tokens.weight, and it is not that of llama@v1",
        add("model.embed_tokens.weight", torch.zeros(211, 64)),
    ),
    "biases that the config does not train": (
        WeightsMismatch,
        "belong to no layer",
        add(f"{Q0}.base_layer.bias", torch.ones(64)),
    ),
    # --- config
    "no kind": (MalformedArtifact, "peft_type is None", config(peft_type=...)),
    "prompt tuning": (UnsupportedConfig, "kind PROMPT_TUNING, which adds inputs", config(peft_type="PROMPT_TUNING")),
    "prefix tuning": (UnsupportedConfig, "kind PREFIX_TUNING, which adds inputs", config(peft_type="PREFIX_TUNING")),
    "LoHa": (UnsupportedConfig, "'LOHA' cannot be merged here", config(peft_type="LOHA")),
    "no such kind": (UnsupportedConfig, "'NEXT' cannot be merged here", config(peft_type="NEXT")),
    "unknown field": (UnsupportedConfig, "not known for LORA: 'use_next' = True", config(use_next=True)),
    "classifier's": (UnsupportedConfig, "task_type = 'SEQ_CLS'", config(task_type="SEQ_CLS")),
    "PiSSA": (UnsupportedConfig, "init_lora_weights = 'pissa'", config(init_lora_weights="pissa")),
    "PiSSA, fast": (UnsupportedConfig, "'pissa_niter_4'", config(init_lora_weights="pissa_niter_4")),
    "OLoRA": (UnsupportedConfig, "'olora'", config(init_lora_weights="olora")),
    "CorDA": (UnsupportedConfig, "'corda'", config(init_lora_weights="corda")),
    "LoftQ": (UnsupportedConfig, "'loftq'", config(init_lora_weights="loftq")),
    "MiCA": (UnsupportedConfig, "'mica'", config(init_lora_weights="mica")),
    "activated": (UnsupportedConfig, "alora_invocation_tokens", config(alora_invocation_tokens=[1, 2])),
    "deeper": (UnsupportedConfig, "layer_replication", config(layer_replication=[[0, 2], [1, 2]])),
    "of experts": (UnsupportedConfig, "target_parameters", config(target_parameters=["mlp.experts.down_proj"])),
    "no such modules": (UnsupportedConfig, "peft cannot put this adapter into llama@v1", config(target_modules=["x"])),
    "no modules": (UnsupportedConfig, "peft cannot put this adapter", config(target_modules=7)),
    "no rank": (UnsupportedConfig, "peft cannot put this adapter", config(r=0)),
    "rank is text": (UnsupportedConfig, "peft cannot put this adapter", config(r="4")),
    "no such biases": (UnsupportedConfig, "Requested bias: none\ufffd", config(bias="none\0")),
    "no pattern": (UnsupportedConfig, "peft cannot put this adapter", config(target_modules="(")),
    "layers of a pattern": (
        UnsupportedConfig,
        "peft cannot put this adapter",
        config(target_modules=".*q_proj", layers_to_transform=[0]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_right_is_refused(name: str, shared: Registry, adapter: Path) -> None:
    error, text, spoil = REFUSED[name]
    spoil(adapter)
    before = read_contents(shared)
    with pytest.raises(error, match=text) as refused:
        shared.register("refused", adapter, parent="llama")
    assert type(refused.value) is error and refused.value.hint
    assert refused.value.message.isprintable()
    assert read_contents(shared) == before


TIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["wte", "c_attn"]},
    "head": {"target_modules": ["lm_head", "c_attn"]},
    "whole embedding": {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    "whole head": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", TIED)
def test_adapters_of_one_end_of_a_tied_embedding_are_refused(name: str, shared: Registry, tmp_path: Path) -> None:
    """Merged into the one tensor they would change the other end too: log-probs are 5.7 off, and peft only warns."""
    folder = save_adapter(tmp_path / "adapter", make_adapted("gpt2", **TIED[name]))
    with pytest.raises(UnsupportedSource, match="embedding and head are one tensor") as refused:
        shared.register("tied", folder, parent="gpt2")
    assert "--allow tie_word_embeddings" in str(refused.value.hint)


@pytest.mark.parametrize("parents", [(), ("llama", "gpt2")])
def test_exactly_one_parent_is_needed(parents: tuple[str, ...], shared: Registry, adapter: Path) -> None:
    edit_adapter(adapter, base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(
        InvalidInput, match=r"adapter of 'meta-llama/Llama-3\.2-1B'; it is merged into one parent"
    ) as no:
        shared.register("orphan", adapter, parent=parents)
    assert "--parent REF" in str(no.value.hint) and no.value.fields["base"] == "meta-llama/Llama-3.2-1B"


def test_a_parent_of_another_family_is_refused(shared: Registry, adapter: Path) -> None:
    with pytest.raises(UnsupportedConfig, match="peft cannot put this adapter into gpt2@v1"):
        shared.register("wrong", adapter, parent="gpt2")


def test_a_parent_in_hooked_layout_is_refused(shared: Registry, adapter: Path, tmp_path: Path) -> None:
    version = dataclasses.replace(shared.version("llama"), layout="hooked")
    with pytest.raises(UnsupportedSource, match="registered in TransformerLens's layout"):
        read_adapter(adapter, "adapter", tmp_path, [ParentVersion(version, lambda: tmp_path)])


def test_a_config_beside_the_adapter_must_be_the_parent_s(
    shared: Registry, adapter: Path, make_checkpoint: MakeCheckpoint
) -> None:
    """Somebody who trained with a longer context saves it so."""
    shutil.copy(make_checkpoint("llama") / "config.json", adapter)
    shared.register("beside", adapter, parent="llama")
    edit_config(adapter, max_position_embeddings=192)
    with pytest.raises(ArchitectureMismatch, match=r"config.json beside the adapter .* llama@v1") as refused:
        shared.register("beside-other", adapter, parent="llama")
    assert [one.field for one in refused.value.differences] == ["n_ctx"]


def test_code_in_the_config_is_never_run(shared: Registry, adapter: Path) -> None:
    (adapter / "evil.py").write_text("raise SystemExit('the code of the adapter was run')")
    edit_adapter(adapter, auto_mapping={"base_model_class": "Evil", "parent_library": "evil"})
    assert shared.register("auto", adapter, parent="llama").outcome == "registered"
