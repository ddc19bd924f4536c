"""HAZARDS §2.5, the rows about Hugging Face folders: each loads right or is refused, where plain loaders are silent.

Every test is named after its row. The rows about TransformerLens's own state dicts and about adapters are elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from registry import Registry, RegistryError
from registry.errors import (
    MalformedArtifact,
    SourceNotFound,
    UnsafeArtifact,
    UnsupportedConfig,
    UnsupportedFamily,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from registry.sources import open_source
from tests.checkpoints import edit_config, make_network
from tests.contents import read_contents
from tests.hostile.pickled import Call

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"}
    )


def refuse(registry: Registry, folder: Path, error: type[RegistryError], text: str) -> RegistryError:
    """See that registering is refused, verified or not, and leaves nothing."""
    before = read_contents(registry)
    for options in ({}, {"parity": "skip"}) if any(folder.glob("*.safetensors")) else ({},):  # a pickle takes seconds
        with pytest.raises(error) as refused:
            registry.register("refused", folder, **options)  # type: ignore[arg-type]
        assert type(refused.value) is error
        assert text in refused.value.message and refused.value.hint
    assert read_contents(registry) == before
    return refused.value


def read_log_probs(folder: Path) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        log_probs: torch.Tensor = network(TOKENS).logits.log_softmax(-1)
    return log_probs


TOKENS = torch.arange(40)[None] * 5 % 211


def check_network(registry: Registry, name: str, expected: torch.Tensor) -> None:
    """Compare with what transformers computes from a folder that it reads right."""
    with torch.inference_mode():
        assert float((registry.load(name)(TOKENS).log_softmax(-1) - expected).abs().max()) < 1e-4


# --- prefixes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prefixes_in_a_hugging_face_folder(
    family: str, prefix: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """AutoModel does not raise and gives random weights, 26 off."""
    folder = make_checkpoint(family)
    expected = read_log_probs(folder)
    edit_tensors(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    registry.register("base", folder)
    check_network(registry, "base", expected)


def test_a_bin_file_that_nests_its_state_dict(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """`{"model": sd, "step": 3}` loads with random weights, 26 off."""
    folder = make_checkpoint("llama")
    expected = read_log_probs(folder)
    torch.save({"model": load_file(folder / WEIGHTS), "step": 3}, folder / BIN)
    (folder / WEIGHTS).unlink()
    registry.register("base", folder)
    check_network(registry, "base", expected)


# --- partial


@pytest.mark.parametrize(
    ("form", "gone"),
    [
        ("safetensors", "transformer.h.1.mlp.c_fc.weight"),
        ("safetensors", "transformer.h.1."),
        ("safetensors", "transformer.wte.weight"),
        ("safetensors", "transformer.ln_f."),
        ("bin", "transformer.h.1.mlp.c_fc.weight"),
    ],
)
def test_missing_tensors(form: str, gone: str, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """One weight, a layer, the embedding, the last norm: initialised at random, 11, 14, 26 and 9.5 off."""
    folder = make_checkpoint("gpt2")
    edit_tensors(folder, lambda t: {name: tensor for name, tensor in t.items() if not name.startswith(gone)})
    if form == "bin":
        torch.save(load_file(folder / WEIGHTS), folder / BIN)
        (folder / WEIGHTS).unlink()
    error = refuse(registry, folder, WeightsMismatch, "missing")
    assert isinstance(error, WeightsMismatch) and all(name.startswith(gone) for name in error.missing)


def test_index_lacking_keys(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2", max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["transformer.h.1.ln_1.bias"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(registry, folder, MalformedArtifact, "disagree about 1 tensors, such as 'transformer.h.1.ln_1.bias'")


def test_shard_file_missing(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2", max_shard_size="60KB")
    min(folder.glob("model-*.safetensors")).unlink()
    refuse(registry, folder, MalformedArtifact, "is missing")


def test_size_mismatch(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    refuse(registry, edit_config(make_checkpoint("gpt2"), n_embd=128), WeightsMismatch, "of another shape")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_zero_3_empty_tensors(form: str, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2")
    empty = {name: torch.empty(0) for name in load_file(folder / WEIGHTS)}
    save_file(empty, folder / WEIGHTS, {"format": "pt"})
    if form == "bin":
        torch.save(empty, folder / BIN)
        (folder / WEIGHTS).unlink()
    error = refuse(registry, folder, UnusableWeights, "as ZeRO-3 leaves them")
    assert "python zero_to_fp32.py" in str(error.hint)


def test_only_distcp(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """Without their metadata; with them they load, see test_distributed.py."""
    folder = make_checkpoint("gpt2")
    (folder / WEIGHTS).rename(folder / "__0_0.distcp")
    refuse(registry, folder, MalformedArtifact, "without their .metadata")


def test_only_deepspeed_global_step(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2")
    (folder / "global_step7").mkdir()
    (folder / WEIGHTS).rename(folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit")
    error = refuse(registry, folder, UnsupportedSource, "is a DeepSpeed checkpoint")
    assert f"cd {folder} && python zero_to_fp32.py . consolidated --safe_serialization" in str(error.hint)


# --- heads


def test_tied_checkpoint_and_config_that_does_not_tie(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """Loads with a random head, 26 off."""
    folder = edit_config(make_checkpoint("gpt2"), tie_word_embeddings=False)
    refuse(registry, folder, WeightsMismatch, "1 missing, such as lm_head.weight")


def test_untied_tensors_and_config_that_ties(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """Releases of transformers differ in which one they use, so a head of its own is refused and a copy is none."""
    folder = make_checkpoint("gpt2")
    expected = read_log_probs(folder)
    edit_tensors(folder, lambda tensors: {**tensors, HEAD: tensors[WTE]})
    registry.register("copy", folder)
    check_network(registry, "copy", expected)
    edit_tensors(folder, lambda tensors: {**tensors, HEAD: tensors[WTE] * 2})
    refuse(registry, folder, UnsupportedConfig, "ties the word embeddings")


# --- two formats


def test_old_safetensors_next_to_a_new_bin(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """The old one wins without a word elsewhere."""
    folder, newer = make_checkpoint("gpt2"), make_checkpoint("gpt2", seed=1)
    torch.save(load_file(newer / WEIGHTS), folder / BIN)
    error = refuse(registry, folder, UnsupportedSource, "hold different weights")
    assert "--weights" in str(error.hint)
    registry.register("picked", folder, weights="bin")
    check_network(registry, "picked", read_log_probs(newer))


# --- pickles with more than tensors in them


@pytest.mark.parametrize("what", ["argparse.Namespace", "numpy scalar", "whole network", "malicious"])
def test_trainer_checkpoints_with_objects(
    what: str, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    import argparse
    import os

    import numpy

    folder = make_checkpoint("gpt2")
    tensors = load_file(folder / WEIGHTS)
    value: Any = {
        "argparse.Namespace": {"model": tensors, "args": argparse.Namespace(lr=0.1)},
        "numpy scalar": {"model": tensors, "best": numpy.float64(0.1)},
        "whole network": make_network("gpt2"),
        "malicious": {"model": tensors, "x": Call(os.system, f"touch {tmp_path / 'sentinel'}")},
    }[what]
    torch.save(value, folder / BIN)
    (folder / WEIGHTS).unlink()
    error = refuse(registry, folder, UnsafeArtifact, "holds more than tensors")
    assert "If you trust where it comes from" in str(error.hint)
    assert not (tmp_path / "sentinel").exists()


# --- networks of another kind


def test_gpt2_model_and_sequence_classification_folders(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    for name in ("GPT2Model", "GPT2ForSequenceClassification"):
        folder = edit_config(make_checkpoint("gpt2"), architectures=[name])
        refuse(registry, folder, UnsupportedFamily, name)


def test_config_without_architectures(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    refuse(registry, edit_config(make_checkpoint("gpt2"), architectures=None), MalformedArtifact, "architectures")


# --- numbers of another kind


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *(("safetensors", dtype) for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)),
        *(("bin", dtype) for dtype in (torch.int8, torch.float8_e4m3fn)),
    ],
)
def test_int8_and_fp8_tensors_without_quantization_config(
    form: str, dtype: torch.dtype, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Cast without a word, 620 off."""
    folder = make_checkpoint("llama")
    edit_tensors(folder, lambda t: {name: one.to(dtype) if "proj" in name else one for name, one in t.items()})
    if form == "bin":
        torch.save(load_file(folder / WEIGHTS), folder / BIN)
        (folder / WEIGHTS).unlink()
    error = refuse(registry, folder, UnusableWeights, "14 tensors are not floating-point numbers")
    assert "Dequantise it first" in str(error.hint)


METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ".dequantize()"),
    "bitsandbytes of old": ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, ".dequantize()"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "full-precision checkpoint"),
    "awq": ({"quant_method": "awq", "bits": 4}, "full-precision checkpoint"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": ({"quant_method": "mxfp4"}, "Mxfp4Config(dequantize=True)"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "CompressedTensorsConfig(dequantize=True)"),
    "unknown": ({"quant_method": "next-years"}, "full-precision checkpoint"),
    "empty": ({}, "full-precision checkpoint"),
}


@pytest.mark.parametrize(("method", "hint"), METHODS.values(), ids=METHODS)
def test_quantised_folders_with_quantization_config(
    method: dict[str, Any], hint: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = edit_config(make_checkpoint("llama"), quantization_config=method)
    error = refuse(registry, folder, UnsupportedConfig, "the weights are quantised")
    assert hint in str(error.hint)
    assert isinstance(error, UnsupportedConfig) and error.field == "quantization_config"


PROJ = "model.layers.0.self_attn.q_proj"
PACKED: dict[str, tuple[str, dict[str, torch.Tensor]]] = {
    "gptq": (
        "GPTQ or AWQ",
        {
            f"{PROJ}.qweight": torch.ones(8, 64, dtype=torch.int32),
            f"{PROJ}.qzeros": torch.ones(1, 8, dtype=torch.int32),
            f"{PROJ}.scales": torch.ones(1, 64).half(),
            f"{PROJ}.g_idx": torch.ones(64, dtype=torch.int32),
        },
    ),
    "awq": ("GPTQ or AWQ", {f"{PROJ}.qweight": torch.ones(64, 8, dtype=torch.int32)}),
    "bitsandbytes 4 bit": (
        "bitsandbytes",
        {
            f"{PROJ}.weight": torch.ones(2048, 1, dtype=torch.uint8),
            f"{PROJ}.weight.absmax": torch.ones(64),
            f"{PROJ}.weight.quant_map": torch.ones(16),
            f"{PROJ}.weight.quant_state.bitsandbytes__nf4": torch.ones(90, dtype=torch.uint8),
        },
    ),
    "bitsandbytes 8 bit": (
        "bitsandbytes",
        {f"{PROJ}.weight": torch.ones(64, 64, dtype=torch.int8), f"{PROJ}.SCB": torch.ones(64)},
    ),
    "fp8": (
        "fp8 or int8",
        {
            f"{PROJ}.weight": torch.ones(64, 64).to(torch.float8_e4m3fn),
            f"{PROJ}.weight_scale_inv": torch.ones(1, 1),
        },
    ),
    "fp8 whose weights were cast": ("fp8 or int8", {f"{PROJ}.weight_scale": torch.ones(1)}),
    "compressed-tensors": (
        "compressed-tensors",
        {f"{PROJ}.weight_packed": torch.ones(64, 8, dtype=torch.int32), f"{PROJ}.weight_scale": torch.ones(64, 1)},
    ),
    "mxfp4": (
        "MXFP4",
        {
            "model.layers.0.mlp.experts.gate_up_proj_blocks": torch.ones(2, 8, 2, 16, dtype=torch.uint8),
            "model.layers.0.mlp.experts.gate_up_proj_scales": torch.ones(2, 8, 2, dtype=torch.uint8),
        },
    ),
}


@pytest.mark.parametrize(("packing", "tensors"), PACKED.values(), ids=PACKED)
def test_quantised_folders_without_quantization_config(
    packing: str, tensors: Tensors, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Told by the names of the tensors; a wrapper's prefix hides nothing."""
    folder = make_checkpoint("llama")
    for prefix in ("", "module."):
        whole = {prefix + name: tensor for name, tensor in {**load_file(folder / WEIGHTS), **tensors}.items()}
        save_file(whole, folder / WEIGHTS, {"format": "pt"})
        error = refuse(registry, folder, UnusableWeights, f"The weights are quantised, as {packing} does it")
        assert "register the" in str(error.hint).lower()
        shutil.copy(make_checkpoint("llama") / WEIGHTS, folder / WEIGHTS)


def test_quantised_folders_whose_shapes_are_packed(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """With neither config nor tables beside, the dtype tells before the shape does."""
    folder = make_checkpoint("llama")
    edit_tensors(folder, lambda tensors: {**tensors, f"{PROJ}.weight": torch.ones(2048, 1, dtype=torch.uint8)})
    refuse(registry, folder, UnusableWeights, f"not floating-point numbers, such as {PROJ}.weight (U8)")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_and_fp16(family: str, dtype: torch.dtype, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """Half precision is verified upcast on both sides; from a .bin file too."""
    folder = make_checkpoint(family)
    edit_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    expected = read_log_probs(folder)
    torch.save(load_file(folder / WEIGHTS), folder / BIN)
    (folder / WEIGHTS).unlink()
    done = registry.register("half", folder)
    assert done.version is not None and done.version.dtype == str(dtype).removeprefix("torch.")
    assert done.parity is not None and done.parity.passed
    check_network(registry, "half", expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "mlp.c_fc.weight", "ln_1.weight"]
)
def test_nan_and_inf(name: str, value: float, registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """One number in W_Q, W_K or b_Q: HookedTransformer's logits stay finite and are 11 off."""
    folder = make_checkpoint("gpt2")

    def spoil(tensors: Tensors) -> Tensors:
        tensor = tensors[f"transformer.h.1.{name}"].clone()
        tensor.view(-1)[3] = value
        return {**tensors, f"transformer.h.1.{name}": tensor}

    edit_tensors(folder, spoil)
    error = refuse(
        registry, folder, UnusableWeights, f"1 tensors hold NaN or infinite values, such as transformer.h.1.{name}"
    )
    assert isinstance(error, UnusableWeights) and error.tensors == (f"transformer.h.1.{name}",)


# --- adapters among the weights; adapter folders are tested elsewhere


def test_lora_among_the_weights(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """As a PeftModel's state dict has it: the base under base_layer, the adapter beside it; dropped without a word."""
    folder = make_checkpoint("llama")

    def adapt(tensors: Tensors) -> Tensors:
        adapted = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        adapted[f"base_model.model.{PROJ}.base_layer.weight"] = adapted.pop(f"base_model.model.{PROJ}.weight")
        adapted[f"base_model.model.{PROJ}.lora_A.default.weight"] = torch.ones(4, 64)
        adapted[f"base_model.model.{PROJ}.lora_B.default.weight"] = torch.ones(64, 4)
        return adapted

    edit_tensors(folder, adapt)
    error = refuse(registry, folder, UnsupportedSource, "adapter layers in it that are not merged")
    assert "merge_and_unload" in str(error.hint)


def test_extra_layers_and_garbage_keys(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt2", n_layer=3)
    refuse(registry, edit_config(folder, n_layer=2), WeightsMismatch, "12 left over, such as transformer.h.2.")
    folder = make_checkpoint("gpt2")
    edit_tensors(folder, lambda tensors: {**tensors, "garbage": torch.ones(3)})
    refuse(registry, folder, WeightsMismatch, "1 left over, such as transformer.garbage")


def test_no_weights_at_all(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("gpt2")
    (folder / WEIGHTS).rename(folder / "tf_model.h5")
    with pytest.raises(SourceNotFound):
        open_source(folder, tmp_path)


def test_an_integer_buffer_that_no_network_has_is_left_over(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """It is not taken for a sign of quantisation."""
    folder = make_checkpoint("gpt2")
    edit_tensors(folder, lambda tensors: {**tensors, "transformer.position_ids": torch.arange(96)[None]})
    refuse(registry, folder, WeightsMismatch, "1 left over, such as transformer.position_ids")
