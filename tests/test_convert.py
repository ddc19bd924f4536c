"""Conversion: bit-identical to transformer-lens's own recipe, guarded where that would be wrong, and safe to edit."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_apertus_weights,
    convert_bloom_weights,
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_gpt_oss_weights,
    convert_gptj_weights,
    convert_llama_weights,
    convert_mistral_weights,
    convert_mixtral_weights,
    convert_neo_weights,
    convert_neox_weights,
    convert_olmo2_weights,
    convert_olmo3_weights,
    convert_olmo_weights,
    convert_olmoe_weights,
    convert_opt_weights,
    convert_phi3_weights,
    convert_phi_weights,
    convert_qwen2_weights,
    convert_qwen3_weights,
)
from transformers import AutoModelForCausalLM

from registry import Registry
from registry.architecture import Architecture
from registry.convert import RAW, Processing, check_finite, convert_network, convert_weights, guard_processing
from registry.errors import UnusableWeights, WeightsMismatch
from registry.families import FAMILIES
from registry.networks import make_hooked_config, make_hooked_network
from tests.contents import read_contents
from tests.opened import Opened, read_checkpoint

MakeCheckpoint = Callable[..., Path]

NAMES = [family.name for family in FAMILIES.values()]
TOKENS = torch.arange(60).reshape(2, 30) * 3 % 211

# written by hand from the configs in tests/checkpoints.py, as HAZARDS.md §1.2 does it
BY_HAND: dict[str, dict[str, Any]] = {
    "bloom": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN", "original_architecture": "BloomForCausalLM",
        "positional_embedding_type": "alibi", "post_embedding_ln": True,
    },
    "gpt_neo": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN", "original_architecture": "GPTNeoForCausalLM",
        "use_attn_scale": False, "use_local_attn": True, "window_size": 11, "attn_types": ["global", "local"],
    },
    "gpt_neox": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 112, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu", "normalization_type": "LN", "original_architecture": "GPTNeoXForCausalLM",
        "positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_adjacent_pairs": False,
        "parallel_attn_mlp": True,
    },
    "gptj": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN", "original_architecture": "GPTJForCausalLM",
        "positional_embedding_type": "rotary", "rotary_dim": 8, "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
    },
    "opt": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 112, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "relu", "normalization_type": "LN", "original_architecture": "OPTForCausalLM",
    },
    "phi": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 112, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN", "original_architecture": "PhiForCausalLM",
        "positional_embedding_type": "rotary", "rotary_dim": 8, "rotary_adjacent_pairs": False,
        "parallel_attn_mlp": True,
    },
    "phi3": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 112, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "silu", "normalization_type": "RMS", "original_architecture": "Phi3ForCausalLM",
        "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 16, "final_rms": True,
        "gated_mlp": True, "use_local_attn": True, "window_size": 37, "attn_types": ["local", "local"],
    },
    "gpt2": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 256, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN", "original_architecture": "GPT2LMHeadModel",
    },
    "llama": {
        "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_mlp": 112, "d_vocab": 211, "n_ctx": 96,
        "eps": 1e-6, "act_fn": "silu", "normalization_type": "RMS", "original_architecture": "LlamaForCausalLM",
        "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 16, "rotary_base": 10000.0,
        "rotary_adjacent_pairs": False, "final_rms": True, "gated_mlp": True,
    },
}  # fmt: skip
BY_HAND |= {
    "mistral": BY_HAND["llama"] | {
        "original_architecture": "MistralForCausalLM",
        "use_local_attn": True, "attn_types": ["local", "local"], "window_size": 8,
    },
    "qwen2": BY_HAND["llama"] | {"original_architecture": "Qwen2ForCausalLM"},
    "qwen3": BY_HAND["llama"] | {"original_architecture": "Qwen3ForCausalLM", "use_qk_norm": True},
    "gemma": BY_HAND["llama"] | {"original_architecture": "GemmaForCausalLM", "act_fn": "gelu_new"},
    "gemma2": BY_HAND["llama"] | {
        "original_architecture": "Gemma2ForCausalLM", "act_fn": "gelu_new",
        "use_normalization_before_and_after": True, "use_local_attn": True, "attn_types": ["local", "global"],
        "window_size": 8, "attn_scale": math.sqrt(24), "attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 30.0,
    },
    "gemma3": BY_HAND["llama"] | {
        "original_architecture": "Gemma3ForCausalLM", "act_fn": "gelu_new", "n_layers": 3, "use_qk_norm": True,
        "use_normalization_before_and_after": True, "use_local_attn": True, "window_size": 8,
        "attn_types": ["local", "global", "local"], "attn_scale": math.sqrt(24), "rotary_base": 1e6,
        "rotary_base_local": 1e4,
    },
    "apertus": BY_HAND["llama"] | {
        "original_architecture": "ApertusForCausalLM", "act_fn": "xielu", "gated_mlp": False, "use_qk_norm": True,
        "eps": 1e-5, "rotary_base": 12e6, "use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 8.0,
        "NTK_by_parts_low_freq_factor": 1.0, "NTK_by_parts_high_freq_factor": 4.0, "NTK_original_ctx_len": 32,
    },
}  # fmt: skip
# what a gated RMSNorm decoder has beside Llama's, and what is other
_ROPE = {
    "positional_embedding_type": "rotary", "rotary_dim": 16, "rotary_adjacent_pairs": False, "gated_mlp": True,
    "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 16, "d_vocab": 211, "n_ctx": 96, "act_fn": "silu",
}  # fmt: skip
BY_HAND |= {
    "mixtral": _ROPE | {
        "d_mlp": 48, "eps": 1e-5, "normalization_type": "RMS", "original_architecture": "MixtralForCausalLM",
        "n_key_value_heads": 2, "rotary_base": 1e6, "num_experts": 4, "experts_per_token": 2, "norm_topk_prob": True,
    },
    "olmo": _ROPE | {
        "d_mlp": 112, "eps": 1e-5, "normalization_type": "LN", "original_architecture": "OlmoForCausalLM",
        "rotary_base": 10000.0,
    },
    "olmo2": _ROPE | {
        "d_mlp": 112, "eps": 1e-5, "normalization_type": "RMS", "original_architecture": "Olmo2ForCausalLM",
        "rotary_base": 10000.0,
    },
    "olmo3": _ROPE | {
        "d_mlp": 112, "eps": 1e-5, "normalization_type": "RMS", "original_architecture": "Olmo3ForCausalLM",
        "n_key_value_heads": 2, "rotary_base": 500000.0, "use_local_attn": True, "window_size": 12,
        "attn_types": ["local", "global"],
    },
    "olmoe": _ROPE | {
        "d_mlp": 48, "eps": 1e-5, "normalization_type": "RMS", "original_architecture": "OlmoeForCausalLM",
        "n_key_value_heads": 2, "rotary_base": 10000.0, "num_experts": 6, "experts_per_token": 2,
        "norm_topk_prob": False,
    },
    "gpt_oss": _ROPE | {
        "d_mlp": 48, "eps": 1e-5, "normalization_type": "RMS", "original_architecture": "GptOssForCausalLM",
        "n_key_value_heads": 2, "d_head": 24, "rotary_dim": 24, "rotary_base": 150000.0, "use_attention_sinks": True,
        "num_experts": 4, "experts_per_token": 2, "use_local_attn": True, "window_size": 12,
        "attn_types": ["local", "global"], "use_yarn_rope": True, "yarn_factor": 32.0, "yarn_beta_fast": 32.0,
        "yarn_attention_factor": 0.1 * math.log(32) + 1, "yarn_beta_slow": 1.0, "yarn_truncate": False,
        "yarn_original_max_position_embeddings": 4096,
    },
}  # fmt: skip
CONVERTERS = {
    "bloom": convert_bloom_weights,
    "gpt_neo": convert_neo_weights,
    "gpt_neox": convert_neox_weights,
    "gptj": convert_gptj_weights,
    "opt": convert_opt_weights,
    "phi": convert_phi_weights,
    "phi3": convert_phi3_weights,
    "gpt2": convert_gpt2_weights,
    "llama": convert_llama_weights,
    "mistral": convert_mistral_weights,
    "qwen2": convert_qwen2_weights,
    "qwen3": convert_qwen3_weights,
    "gemma": convert_gemma_weights,
    "gemma2": convert_gemma_weights,
    "gemma3": convert_gemma_weights,
    "apertus": convert_apertus_weights,
    "gpt_oss": convert_gpt_oss_weights,
    "mixtral": convert_mixtral_weights,
    "olmo": convert_olmo_weights,
    "olmo2": convert_olmo2_weights,
    "olmo3": convert_olmo3_weights,
    "olmoe": convert_olmoe_weights,
}
# the table of positions of a network with ALiBi is never read, and transformer-lens leaves it uninitialised
NEVER_READ = {"bloom": {"pos_embed.W_pos"}}
PROCESSINGS = {
    "raw": RAW,
    "default": Processing(),
    "folded": Processing(True, False, False, False),
    "writing": Processing(False, True, False, False),
    "unembed": Processing(False, False, True, False),
    "values": Processing(False, False, False, True),
}


@pytest.fixture(scope="module", params=NAMES)
def opened(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Opened:
    """A checkpoint of each family, as registering reads it."""
    return read_checkpoint(make_checkpoint(request.param, tokenizer=False, seed=5))


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("processing", PROCESSINGS.values(), ids=PROCESSINGS)
def test_conversion_is_bit_identical_to_the_recipe_of_transformer_lens(opened: Opened, processing: Processing) -> None:
    """The recipe of HAZARDS.md §1.2: HookedTransformer(cfg), its converter, load_and_process_state_dict."""
    name = opened.family.name
    cfg = HookedTransformerConfig(**BY_HAND[name], device="cpu", dtype=torch.float32)
    theirs = HookedTransformer(cfg, move_to_device=False)
    source = AutoModelForCausalLM.from_pretrained(opened.files[0].parent, dtype=torch.float32)
    theirs.load_and_process_state_dict(CONVERTERS[name](source, cfg), **vars(processing))
    ours = opened.convert(processing)

    with torch.inference_mode():
        expected, cache = theirs.eval().run_with_cache(TOKENS)
        logits, our_cache = ours.run_with_cache(TOKENS)
    assert torch.equal(logits, expected)
    assert set(our_cache) == set(cache)
    for hook, activation in cache.items():
        assert torch.equal(our_cache[hook], activation), hook
    parameters = dict(theirs.named_parameters())
    assert {key for key, _ in ours.named_parameters()} == set(parameters)
    for key, parameter in ours.named_parameters():
        if key in NEVER_READ.get(name, set()):
            assert not parameter.any()
        else:
            assert torch.equal(parameter, parameters[key]), key


def test_every_activation_is_computed_after_processing_too(opened: Opened) -> None:
    """Processing must change weights, not what the network computes."""
    guarded = guard_processing(opened.architecture, Processing())
    raw, processed = opened.convert(RAW), opened.convert(guarded)
    # a norm behind a sublayer (ln1_post, or ln1 of OLMo 2) has nothing to be folded into
    norms_before = re.compile(r".*\b(ln1|ln2|ln_final)\..*")
    has_norms = any(norms_before.fullmatch(name) for name, _ in processed.named_parameters())
    assert has_norms is not guarded.fold_ln
    assert any(norms_before.fullmatch(name) for name, _ in raw.named_parameters())
    with torch.inference_mode():
        one, other = raw(TOKENS).log_softmax(-1), processed(TOKENS).log_softmax(-1)
    assert float((one - other).abs().max()) < 1e-4
    assert not torch.equal(raw.W_U, processed.W_U)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_network_is_cast_whole_after_processing(opened: Opened, dtype: torch.dtype) -> None:
    network = opened.convert(Processing(), dtype)
    assert network.cfg.dtype == dtype
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    reference = dict(opened.convert(Processing()).named_parameters())
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter, reference[key].to(dtype)), key
    with torch.inference_mode():
        assert network(TOKENS).dtype == dtype


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_buffers_are_made_from_the_config_and_none_is_left_empty(opened: Opened) -> None:
    network = opened.convert(RAW)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    fresh = HookedTransformer(HookedTransformerConfig(**BY_HAND[opened.family.name], device="cpu"))
    buffers = dict(network.named_buffers())
    for key, buffer in fresh.named_buffers():
        assert key.endswith(".mask") or torch.equal(buffers[key], buffer), key


# --- strictness


@pytest.fixture
def hooked(opened: Opened) -> tuple[HookedTransformerConfig, dict[str, torch.Tensor]]:
    """A config and the state dict that belongs to it."""
    source = opened.build()
    cfg = make_hooked_config(opened.architecture, opened.family, folded=False, dtype=torch.float32, device="cpu")
    return cfg, convert_weights(source, opened.family, opened.architecture, RAW)


@pytest.mark.sampled
def test_exactly_the_hooked_tensors_are_taken(hooked: tuple[HookedTransformerConfig, dict[str, torch.Tensor]]) -> None:
    """transformer-lens itself fills what is missing with what it has, and drops what it does not know, silently."""
    cfg, tensors = hooked
    make_hooked_network(cfg, tensors)
    for name in tensors:
        with pytest.raises(WeightsMismatch) as refused:
            make_hooked_network(cfg, {other: tensor for other, tensor in tensors.items() if other != name})
        assert refused.value.missing == (name,)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "extra", ["blocks.9.attn.W_Q", "blocks.0.attn.lora_A", "module.embed.W_E", "blocks.0.attn.mask"]
)
def test_a_hooked_tensor_too_many_is_refused(
    hooked: tuple[HookedTransformerConfig, dict[str, torch.Tensor]], extra: str
) -> None:
    cfg, tensors = hooked
    with pytest.raises(WeightsMismatch) as refused:
        make_hooked_network(cfg, {**tensors, extra: torch.zeros(1)})
    assert refused.value.left_over == (extra,)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "change", [lambda tensor: tensor[:-1], lambda tensor: tensor.double(), lambda tensor: tensor.to(torch.int8)]
)
def test_a_hooked_tensor_of_another_shape_or_kind_is_refused(
    hooked: tuple[HookedTransformerConfig, dict[str, torch.Tensor]],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    cfg, tensors = hooked
    with pytest.raises(WeightsMismatch) as refused:
        make_hooked_network(cfg, {**tensors, "blocks.1.attn.W_O": change(tensors["blocks.1.attn.W_O"])})
    assert refused.value.misshapen == ("blocks.1.attn.W_O",)


def test_an_architecture_that_does_not_fit_the_tensors_is_refused(opened: Opened) -> None:
    """Converted with other norms or another MLP than its own, it lacks tensors, or has too many, or of other shapes."""
    source = opened.build()
    other_norm = "RMS" if opened.architecture["normalization_type"] == "LN" else "LN"
    changes: list[dict[str, Any]] = [{"gated_mlp": not opened.architecture["gated_mlp"]}]
    if opened.architecture["num_experts"]:  # which have a gate either way
        changes = [{"use_qk_norm": True}]
    if not opened.architecture["use_normalization_before_and_after"]:  # there is no such block with LayerNorm
        changes.append({"normalization_type": other_norm})
    for change in changes:
        wrong = Architecture({**opened.architecture.fields, **change})
        with pytest.raises(WeightsMismatch):
            convert_network(source, opened.family, wrong, RAW, dtype=torch.float32)


# --- NaN and infinities


BAD_PLACES = [
    # c_attn is Q, K and V side by side: (d_model, 3·d_model)
    ("gpt2", "transformer.h.0.attn.c_attn.weight", (3, 5)),
    ("gpt2", "transformer.h.1.attn.c_attn.weight", (3, 70)),
    ("gpt2", "transformer.h.0.attn.c_attn.bias", (5,)),
    ("gpt2", "transformer.h.1.mlp.c_proj.weight", (0, 0)),
    ("gpt2", "transformer.wpe.weight", (95, 63)),
    ("gpt2", "transformer.ln_f.weight", (0,)),
    ("llama", "model.layers.0.self_attn.q_proj.weight", (1, 1)),
    ("llama", "model.layers.1.self_attn.k_proj.weight", (31, 63)),
    ("llama", "model.layers.1.mlp.gate_proj.weight", (0, 0)),
    ("llama", "lm_head.weight", (210, 0)),
    # of experts, refused under the name that transformers's network has
    ("gpt_oss", "model.layers.0.self_attn.sinks", (3,)),
    ("gpt_oss", "model.layers.1.mlp.experts.gate_up_proj", (3, 0, 0)),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("convert")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


@pytest.mark.sampled
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "tensor", "place"), BAD_PLACES)
def test_a_single_number_that_is_none_is_refused(
    name: str, tensor: str, place: tuple[int, ...], value: float, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """In W_Q and W_K, HookedTransformer would hide it and compute something else (HAZARDS.md §2.5)."""
    file = make_checkpoint(name, tokenizer=False) / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor][place] = value
    save_file(tensors, file, metadata={"format": "pt"})
    before = read_contents(shared)
    for parity in ("float64", "skip"):
        with pytest.raises(UnusableWeights) as refused:
            shared.register("diverged", file.parent, parity=parity)
        assert tensor in refused.value.tensors
    assert read_contents(shared) == before


def test_the_largest_finite_numbers_are_not_refused() -> None:
    check_finite({"a": torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max, 0.0])})


# --- a loaded network is nobody else's


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore:.* would change what .* computes; it was left out:UserWarning")
@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_editing_one_parameter_changes_no_other_and_no_file(
    name: str, dtype: str, processed: bool, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Above all W_E and W_U of tied embeddings, which are one tensor in the file."""
    model = f"tied/{name}"
    shared.register(model, make_checkpoint(name, tie_word_embeddings=True))
    files = {path.resolve(): hashlib.sha256(path.read_bytes()).hexdigest() for path in shared.path(model).iterdir()}
    network, untouched = (shared.load(model, processed=processed, dtype=dtype) for _ in range(2))
    reference = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.add_(1.0)
            for other, value in network.named_parameters():
                assert other == key or torch.equal(value, reference[other]), f"{key} and {other} share memory"
            parameter.copy_(reference[key])
        for parameter in network.parameters():
            parameter.fill_(7.0)
    for key, parameter in untouched.named_parameters():
        assert torch.equal(parameter, reference[key]), key
    for path, digest in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    again = dict(shared.load(model, processed=processed, dtype=dtype).named_parameters())
    assert all(torch.equal(again[key], value) for key, value in reference.items())


def test_hooked_tensors_that_a_converter_makes_of_one_are_parted(opened: Opened) -> None:
    def share(network: Any, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
        tensors = opened.family.convert(network, cfg)
        return {**tensors, "blocks.1.ln1.w": tensors["blocks.0.ln1.w"]}

    family = dataclasses.replace(opened.family, convert=share)
    network = convert_network(opened.build(), family, opened.architecture, RAW, dtype=torch.float32)
    before = network.blocks[1].ln1.w.detach().clone()
    assert torch.equal(network.blocks[0].ln1.w, before)
    with torch.no_grad():
        network.blocks[0].ln1.w.fill_(7.0)
    assert torch.equal(network.blocks[1].ln1.w, before)


def test_a_loaded_network_can_be_trained(shared: Registry, make_checkpoint: MakeCheckpoint) -> None:
    shared.register("trained", make_checkpoint("gpt2"))
    network = shared.load("trained", processed=False)
    before = network.blocks[0].mlp.W_in.detach().clone()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network(TOKENS, return_type="loss").backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimiser.step()
    assert not torch.equal(network.blocks[0].mlp.W_in, before)
    assert torch.equal(shared.load("trained", processed=False).blocks[0].mlp.W_in, before)
