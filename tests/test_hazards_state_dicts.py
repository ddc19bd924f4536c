"""Every way in which a TransformerLens state dict gives a wrong network without an error: HAZARDS.md §2.3, §2.4, §2.5.

Each test is named after a row. "Silent" is what transformer-lens 3.9 does; here the network that was registered comes
back, or there is a typed error with the reason, and nothing is stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer

from registry import ArchitectureMismatch, Registry, RegistryError, save_network
from registry.errors import (
    SourceError,
    UnsupportedConfig,
    UnsupportedSource,
    UnusableWeights,
    WeightsMismatch,
)
from tests.contents import read_contents
from tests.networks import assert_identical, compare, make_hooked, save_state_dict, train

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
FAMILIES = ["gpt2", "llama"]
BOUND = 1e-4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry with a raw base of each family, whose norms are learned."""
    folder = tmp_path_factory.mktemp("hazards")
    one = Registry(str(folder / "registry.db"), folder / "store")
    for family in FAMILIES:
        one.register(family, make_checkpoint(family))
    yield one
    one.close()


@pytest.fixture(scope="module")
def tuned(shared: Registry) -> dict[tuple[str, str], HookedTransformer]:
    """Networks of each family that were loaded raw or processed, and trained a few steps."""
    networks = {}
    for family in FAMILIES:
        for form in ("raw", "processed"):
            network = shared.load(family, processed=form == "processed")
            train(network)
            networks[family, form] = network
    return networks


def tensors_of(network: HookedTransformer) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


# --- §2.3 raw and processed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["base no_processing", "base processed"])
@pytest.mark.parametrize("form", ["raw", "processed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_state_dict_into_any_base(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], family: str, form: str, base: str, tmp_path: Path
) -> None:
    """All of RAW and PROCESSED into LN and LNPre; transformer-lens is wrong by 18 to 21 in five of these, silently."""
    parent = family
    if base == "base processed":
        shared.register_network(parent := f"{family}-processed", shared.load(family), parent=family)
    network = tuned[family, form]
    done = shared.register("any", save_state_dict(tmp_path / "x.safetensors", tensors_of(network)), parent=parent)
    assert done.version is not None
    assert compare(shared.load(done.version.ref), network) < BOUND
    assert_identical(shared.load(done.version.ref, processed=form == "processed"), network)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tutorial_recipe(shared: Registry, family: str, tmp_path: Path) -> None:
    """`torch.save(model.state_dict())` of a processed network: right in transformer-lens, too."""
    network = shared.load(family)
    train(network, n_steps=1)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    done = shared.register("tutorial", tmp_path / "mine.pt", parent=family)
    assert done.version is not None
    assert_identical(shared.load(done.version.ref), network)


def test_fill_missing_keys_takes_no_norms_from_the_base(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    """Folded weights have no norms; the base's learned ones must not come back (double folding, 18 off)."""
    network = tuned["gpt2", "processed"]
    done = shared.register("once", save_state_dict(tmp_path / "x.safetensors", tensors_of(network)), parent="gpt2")
    assert done.version is not None
    loaded = shared.load(done.version.ref)
    assert loaded.cfg.normalization_type == "LNPre"
    assert not any("ln" in name for name, _ in loaded.named_parameters())


@pytest.mark.parametrize("n_kept", [1, 5, 9])
def test_some_but_not_all_norms_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], n_kept: int, tmp_path: Path
) -> None:
    tensors = tensors_of(tuned["gpt2", "raw"])
    norms = [name for name in tensors if ".ln" in name or name.startswith("ln_final")]
    assert len(norms) == 10
    for name in norms[n_kept:]:
        del tensors[name]
    refuse(shared, tensors, tmp_path, WeightsMismatch, "neither all folded", parent="gpt2")


GUARDED: dict[str, tuple[dict[str, Any], str]] = {
    "Gemma2": ({"output_logits_soft_cap": 3.0, "normalization_type": "RMS"}, "center_unembed"),
    "OLMo2": ({"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS", "gated_mlp": True}, "fold_ln"),
    "GPT-OSS": ({"use_attention_sinks": True, "normalization_type": "RMS"}, "fold_value_biases"),
}


@pytest.mark.parametrize("name", GUARDED)
def test_guards_live_where_weights_are_processed(registry: Registry, name: str) -> None:
    """`load_and_process_state_dict` with its defaults: Gemma2 0.38, OLMo2 4.6, GPT-OSS 1.2 off, all silent."""
    config, flag = GUARDED[name]
    network = make_hooked(positional_embedding_type="rotary", **config)
    with torch.no_grad():
        for block in network.blocks:
            if name == "GPT-OSS":
                block.attn.sinks.normal_()
    registry.register_network("mine", network)
    assert compare(registry.load("mine"), network) < BOUND
    with pytest.warns(UserWarning, match=f"{flag} would change what mine@v1 computes"):
        assert compare(registry.load("mine", **{flag: True}), network) < BOUND


def test_the_callers_state_dict_is_not_consumed(shared: Registry, tmp_path: Path) -> None:
    """`load_and_process_state_dict` empties the dict it is given, and processing must not write to the file either."""
    network = shared.load("gpt2", processed=False)
    before = tensors_of(network)
    shared.register_network("kept", network)
    one, other = shared.load("kept"), shared.load("kept")
    one.W_E.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert compare(other, network) < BOUND and compare(shared.load("kept"), network) < BOUND


# --- §2.4 the same tensors with a wrong config: strict=True passes ------------------------------------------------

LOCAL = {"use_local_attn": True, "window_size": 4, "attn_types": ["local", "local"]}
ROTARY = {"positional_embedding_type": "rotary"}
WRONG_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "eps": ({}, {"eps": 0.1}, "eps"),
    "act_fn": ({}, {"act_fn": "gelu"}, "act_fn"),
    "local window": (
        {},
        {"use_local_attn": True, "window_size": 4, "attn_types": ["local", "local"]},
        "use_local_attn",
    ),
    "attn_scale": ({}, {"attn_scale": 1.0}, "attn_scale"),
    "rotary_adjacent_pairs": (ROTARY, {"rotary_adjacent_pairs": True}, "rotary_adjacent_pairs"),
    "parallel_attn_mlp": ({}, {"parallel_attn_mlp": True}, "parallel_attn_mlp"),
    "bidirectional": ({}, {"attention_dir": "bidirectional"}, "attention_dir"),
    "normalization None": ({"normalization_type": "LNPre"}, {"normalization_type": None}, "normalization_type"),
    "shortformer": ({}, {"positional_embedding_type": "shortformer"}, "positional_embedding_type"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_the_same_tensors_with_a_wrong_config(registry: Registry, name: str, tmp_path: Path) -> None:
    """All silent in transformer-lens; the config is compared with the parent's, field by field."""
    base, change, field = WRONG_CONFIGS[name]
    right, wrong = make_hooked(**base), make_hooked(**{**base, **change})
    wrong.load_state_dict({**wrong.state_dict(), **dict(right.named_parameters())}, strict=True)
    assert compare(right, wrong) > BOUND
    registry.register_network("right", right)
    before = read_contents(registry)
    with pytest.raises(ArchitectureMismatch) as refused:
        registry.register_network("wrong", wrong, parent="right")
    assert field in {one.field for one in refused.value.differences}
    with pytest.raises(ArchitectureMismatch):
        registry.register("wrong", save_network(wrong, tmp_path / "saved"), parent="right")
    assert read_contents(registry) == before


THETAS: dict[str, dict[str, Any]] = {
    "theta 500": {"rotary_base": 500.0},
    "linear": {"rotary_scaling_factor": 4.0},
    "pairs": {"rotary_adjacent_pairs": True},
}


@pytest.mark.parametrize("name", THETAS)
def test_rotary_buffers_of_another_theta_are_refused(registry: Registry, name: str, tmp_path: Path) -> None:
    """transformer-lens lets them win over the config: then the config lies."""
    registry.register_network("right", make_hooked(**ROTARY))
    other = make_hooked(**ROTARY, **THETAS[name])
    refuse(registry, tensors_of(other), tmp_path, WeightsMismatch, r"rotary_(sin|cos)", parent="right")


@pytest.mark.parametrize("n_rows", [10, 40, 100])
def test_rotary_buffers_of_another_length_never_override_the_config(
    registry: Registry, n_rows: int, tmp_path: Path
) -> None:
    """Of another n_ctx, transformer-lens drops them without a word; of the right theta they say nothing new."""
    network = make_hooked(**ROTARY)
    registry.register_network("right", network)
    for theta, is_right in ((10000.0, True), (500.0, False)):
        tensors = tensors_of(make_hooked(**{**ROTARY, "rotary_base": theta, "n_ctx": n_rows}))
        if is_right:
            done = registry.register(
                "child", save_state_dict(tmp_path / f"{n_rows}.safetensors", tensors), parent="right"
            )
            assert done.version is not None
            assert_identical(registry.load(done.version.ref, processed=False), network)
        else:
            refuse(registry, tensors, tmp_path, WeightsMismatch, r"rotary_(sin|cos)", parent="right")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rotary_buffers_in_another_dtype_are_the_same(registry: Registry, dtype: torch.dtype, tmp_path: Path) -> None:
    network = make_hooked(**ROTARY)
    registry.register_network("right", network)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors_of(network).items()
    }
    assert registry.register("child", save_state_dict(tmp_path / "x.pt", tensors), parent="right").version is not None
    other = tensors_of(make_hooked(**ROTARY, rotary_base=500.0))
    tensors |= {name: tensor.to(dtype) for name, tensor in other.items() if "rotary" in name}
    refuse(registry, tensors, tmp_path, WeightsMismatch, "rotary", parent="right")


def test_without_rotary_buffers_the_config_decides(registry: Registry, tmp_path: Path) -> None:
    """Nothing in the tensors tells: 5.7 off in transformer-lens, even with strict=True. The parent's theta is taken."""
    network = make_hooked(**ROTARY, rotary_base=500.0)
    registry.register_network("right", network)
    parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
    registry.register("child", save_state_dict(tmp_path / "x.safetensors", parameters), parent="right")
    assert_identical(registry.load("child", processed=False), network)


# --- §2.5 what is in the file ----------------------------------------------------------------------------------


def refuse(
    registry: Registry,
    tensors: Tensors,
    folder: Path,
    error: type[RegistryError],
    text: str | None,
    *,
    suffix: str = ".safetensors",
    **options: Any,
) -> RegistryError:
    """Register the tensors, see it refused with a reason, dry or not, and see that nothing was stored."""
    path = folder / f"refused{suffix}"
    save_state_dict(path, tensors)
    before = read_contents(registry)
    with pytest.raises(error, match=text) as refused:
        registry.register("refused", path, **options)
    with pytest.raises(error, match=text):
        registry.register("refused", path, dry_run=True, parity="skip", **options)
    assert read_contents(registry) == before
    assert refused.value.hint
    return refused.value


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_hugging_face_state_dict_is_no_hooked_one(
    shared: Registry, make_checkpoint: MakeCheckpoint, prefix: str, suffix: str, tmp_path: Path
) -> None:
    """strict=False gives the untouched base, silently."""
    from safetensors.torch import load_file

    tensors = load_file(make_checkpoint("gpt2") / "model.safetensors")
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    refuse(shared, named, tmp_path, UnsupportedSource, "HookedTransformer's tensors", suffix=suffix, parent="gpt2")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "state_dict.model."])
def test_prefixes_of_wrappers_are_taken_off(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], prefix: str, tmp_path: Path
) -> None:
    """strict=False gives the untouched base, silently."""
    network = tuned["llama", "processed"]
    path = save_state_dict(tmp_path / "x.safetensors", tensors_of(network), prefix)
    done = shared.register("prefixed", path, parent="llama")
    assert done.version is not None
    assert_identical(shared.load(done.version.ref), network)


def test_a_prefix_on_some_of_the_tensors_is_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    tensors = tensors_of(tuned["gpt2", "raw"])
    tensors["module.unembed.W_U"] = tensors.pop("unembed.W_U")
    refuse(shared, tensors, tmp_path, WeightsMismatch, "unembed.W_U", parent="gpt2")


def test_a_nest_with_a_step_beside_it(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    network = tuned["gpt2", "processed"]
    torch.save({"model": network.state_dict(), "step": 3}, tmp_path / "x.bin")
    done = shared.register("nested", tmp_path / "x.bin", parent="gpt2")
    assert done.version is not None
    assert_identical(shared.load(done.version.ref), network)


MISSING = {
    "all b_*": lambda name: name.rpartition(".")[2].lstrip("_").startswith("b_"),
    "mlp.b_*": lambda name: ".mlp.b_" in name,
    "embed": lambda name: name == "embed.W_E",
    "unembed": lambda name: name.startswith("unembed."),
    "pos_embed": lambda name: name == "pos_embed.W_pos",
    "W_Q": lambda name: name.endswith("W_Q"),
    "W_K": lambda name: name.endswith("W_K"),
    "W_V": lambda name: name.endswith("W_V"),
    "W_O": lambda name: name.endswith("W_O"),
    "W_in": lambda name: name.endswith("W_in"),
    "W_out": lambda name: name.endswith("W_out"),
    "W_gate": lambda name: name.endswith("W_gate"),
    "one bias": lambda name: name == "blocks.1.mlp.b_out",
}


@pytest.mark.parametrize("form", ["raw", "processed"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MISSING)
def test_missing_tensors_are_refused(
    shared: Registry,
    tuned: dict[tuple[str, str], HookedTransformer],
    name: str,
    family: str,
    form: str,
    tmp_path: Path,
) -> None:
    """transformer-lens fills them from the base, with zeros, or with memory that nobody initialised."""
    tensors = tensors_of(tuned[family, form])
    gone = [one for one in tensors if MISSING[name](one)]
    if not gone:
        pytest.skip(f"{family} has no {name}")
    for one in gone:
        del tensors[one]
    error = ArchitectureMismatch if name == "W_gate" else WeightsMismatch
    refused = refuse(shared, tensors, tmp_path, error, None, parent=family)
    if isinstance(refused, WeightsMismatch):
        assert set(gone) <= set(refused.missing)


@pytest.mark.parametrize("family", FAMILIES)
def test_extra_layers_and_fewer_layers_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], family: str, tmp_path: Path
) -> None:
    """transformer-lens drops the layers that the config does not have, or trains what is missing from scratch."""
    tensors = tensors_of(tuned[family, "raw"])
    more = tensors | {
        name.replace("blocks.1.", "blocks.2."): one for name, one in tensors.items() if "blocks.1." in name
    }
    fewer = {name: one for name, one in tensors.items() if "blocks.1." not in name}
    for changed, found in ((more, 3), (fewer, 1)):
        refused = refuse(shared, changed, tmp_path, ArchitectureMismatch, "n_layers|1 field differs", parent=family)
        assert isinstance(refused, ArchitectureMismatch)
        assert [(one.field, one.parent, one.checkpoint) for one in refused.differences] == [("n_layers", 2, found)]
    done = shared.register(
        "deeper", save_state_dict(tmp_path / "x.safetensors", more), parent=family, allow=["n_layers"]
    )
    assert done.version is not None and shared.load(done.version.ref).cfg.n_layers == 3


EXTRA = {
    "LoRA keys": ("blocks.0.attn.W_Q.lora_A", (4, 64), UnsupportedSource, "adapter"),
    "LoRA modules": ("blocks.0.attn.lora_B.default.weight", (4, 64), UnsupportedSource, "adapter"),
    "garbage": ("garbage", (3,), WeightsMismatch, "left over"),
    "another head": ("value_head.weight", (1, 64), WeightsMismatch, "left over"),
    "a layer's stray tensor": ("blocks.0.attn.W_X", (3, 3), WeightsMismatch, "left over"),
    "GPTQ": ("blocks.0.attn.W_Q.qweight", (3, 3), UnusableWeights, "quantised"),
    "ZeRO-3": ("blocks.0.mlp.W_new", (0,), UnusableWeights, "empty"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", EXTRA)
def test_extra_tensors_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], name: str, suffix: str, tmp_path: Path
) -> None:
    """transformer-lens drops them silently."""
    extra, shape, error, text = EXTRA[name]
    tensors = tensors_of(tuned["gpt2", "raw"]) | {extra: torch.ones(shape)}
    refuse(shared, tensors, tmp_path, error, text, suffix=suffix, parent="gpt2")


@pytest.mark.parametrize(
    "content",
    [{"args": argparse.Namespace(lr=1), "model": {"embed.W_E": torch.zeros(2, 2)}}, make_hooked()],
    ids=["argparse.Namespace", "whole pickled HookedTransformer"],
)
def test_pickles_of_more_than_tensors_are_refused(registry: Registry, content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="more than tensors"):
        registry.register("mine", tmp_path / "x.pt")
    assert read_contents(registry) == (frozenset(), (), 0)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool], ids=str
)
@pytest.mark.parametrize("form", ["raw", "processed"])
def test_int8_and_fp8_tensors_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """transformer-lens casts them to float: 640 and 4 off, and strict=True passes."""
    tensors = tensors_of(tuned["gpt2", form])
    name = "blocks.1.mlp.W_in"
    tensors[name] = (tensors[name] * 50).to(dtype)
    refused = refuse(shared, tensors, tmp_path, UnusableWeights, "not floating-point", parent="gpt2")
    assert isinstance(refused, UnusableWeights) and refused.tensors == (name,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["raw", "processed"])
def test_bf16_and_fp16_lose_nothing_more(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """They are cast up, never down: the float32 network computes with exactly the numbers of the file."""
    short = {name: one.to(dtype) for name, one in tuned["gpt2", form].named_parameters()}
    done = shared.register("short", save_state_dict(tmp_path / "x.safetensors", short), parent="gpt2")
    assert done.version is not None and done.version.dtype == str(dtype).removeprefix("torch.")
    expected = shared.load("gpt2", processed=form == "processed")
    expected.load_state_dict({name: one.float() for name, one in short.items()}, strict=False)
    loaded = shared.load(done.version.ref, processed=form == "processed")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_identical(loaded, expected)
    assert compare(shared.load(done.version.ref), expected) < BOUND


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["W_Q", "W_K", "b_Q", "W_V", "W_E", "ln1.w", "W_U", "W_pos"])
def test_nan_and_inf_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], name: str, value: float, tmp_path: Path
) -> None:
    """In W_Q and W_K they stay hidden: logits are finite, and 11 to 12 off."""
    tensors = tensors_of(tuned["gpt2", "raw"])
    one = next(key for key in tensors if key.endswith(name))
    tensors[one].view(-1)[7] = value
    refused = refuse(shared, tensors, tmp_path, UnusableWeights, "NaN or infinite", parent="gpt2")
    assert isinstance(refused, UnusableWeights) and refused.tensors == (one,)


@pytest.mark.parametrize("value", [0.0, 5.0, -1.0, -100.0, float("nan"), float("inf")], ids=str)
def test_a_corrupted_ignore_buffer_is_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], value: float, tmp_path: Path
) -> None:
    """transformer-lens loads it as it is: 14 to 23 off, and finite."""
    tensors = tensors_of(tuned["gpt2", "processed"])
    tensors["blocks.1.attn.IGNORE"] = torch.tensor(value)
    refuse(shared, tensors, tmp_path, WeightsMismatch, "IGNORE", parent="gpt2")


def test_buffers_of_older_releases_say_the_same(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    """They saved the causal mask whole, and -1e5 instead of minus infinity."""
    network = tuned["gpt2", "raw"]
    tensors = tensors_of(network)
    for layer in range(2):
        tensors[f"blocks.{layer}.attn.mask"] = torch.ones(96, 96).tril().bool()
        tensors[f"blocks.{layer}.attn.IGNORE"] = torch.tensor(-1e5)
    done = shared.register("old", save_state_dict(tmp_path / "x.safetensors", tensors), parent="gpt2")
    assert done.version is not None
    assert_identical(shared.load(done.version.ref, processed=False), network)
    for mask in (torch.ones(96, 96).bool(), torch.ones(96, 96).tril().triu(-4).bool(), torch.ones(3, 4).bool()):
        tensors["blocks.0.attn.mask"] = mask
        refuse(shared, tensors, tmp_path, WeightsMismatch, "mask", parent="gpt2")


def test_an_old_mask_of_a_window_is_that_window(registry: Registry, tmp_path: Path) -> None:
    network = make_hooked(use_local_attn=True, window_size=4, attn_types=["global", "local"])
    registry.register_network("right", network)
    tensors = tensors_of(network)
    tensors["blocks.0.attn.mask"] = torch.ones(40, 40).tril().bool()
    tensors["blocks.1.attn.mask"] = torch.ones(40, 40).tril().triu(-3).bool()
    done = registry.register("old", save_state_dict(tmp_path / "x.safetensors", tensors), parent="right")
    assert done.version is not None
    tensors["blocks.1.attn.mask"] = torch.ones(40, 40).tril().triu(-2).bool()
    refuse(registry, tensors, tmp_path, WeightsMismatch, "mask", parent="right")


def test_buffers_of_layers_that_are_not_there_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    tensors = tensors_of(tuned["gpt2", "processed"])
    tensors["blocks.7.attn.IGNORE"] = torch.tensor(-torch.inf)
    refuse(shared, tensors, tmp_path, RegistryError, None, parent="gpt2")


def test_rotary_buffers_in_a_network_without_rotary_positions_are_refused(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    tensors = tensors_of(tuned["gpt2", "processed"])
    tensors["blocks.0.attn.rotary_sin"] = torch.zeros(96, 16)
    refuse(shared, tensors, tmp_path, WeightsMismatch, "rotary_sin", parent="gpt2")


def test_expanded_keys_and_values_are_not_the_grouped_ones(
    shared: Registry, tuned: dict[tuple[str, str], HookedTransformer], tmp_path: Path
) -> None:
    """`network.W_K` of grouped attention has a key for every head; the state dict has one for every group."""
    network = tuned["llama", "raw"]
    tensors = tensors_of(network)
    for layer, block in enumerate(network.blocks):
        for name in ("W_K", "W_V", "b_K", "b_V"):
            del tensors[f"blocks.{layer}.attn._{name}"]
            tensors[f"blocks.{layer}.attn.{name}"] = getattr(block.attn, name).detach()
    refused = refuse(shared, tensors, tmp_path, ArchitectureMismatch, None, parent="llama")
    assert isinstance(refused, ArchitectureMismatch)
    assert [one.field for one in refused.differences] == ["n_key_value_heads"]


def test_both_names_of_one_tensor_are_refused(registry: Registry, tmp_path: Path) -> None:
    network = make_hooked()
    registry.register_network("right", network)
    tensors = tensors_of(network)
    tensors["blocks.0.attn._W_K"] = tensors["blocks.0.attn.W_K"].clone()
    refuse(registry, tensors, tmp_path, WeightsMismatch, "one tensor", parent="right")


def test_a_config_of_another_kind_is_refused(registry: Registry, tmp_path: Path) -> None:
    """T5's and quantised networks' config fields: HookedTransformerConfig has them, and they mean other weights."""
    network = make_hooked()
    for name, value in (("quantization_method", "mxfp4"), ("relative_attention_num_buckets", 8)):
        setattr(network.cfg, name, value)
        with pytest.raises(UnsupportedConfig, match=name):
            registry.register_network("mine", network)
        setattr(network.cfg, name, None)


def test_a_file_of_tensors_that_are_nothing_is_refused(registry: Registry, tmp_path: Path) -> None:
    for tensors in ({"w": torch.zeros(2)}, {}):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(SourceError, match="HookedTransformer's tensors"):
            registry.register("mine", tmp_path / "x.safetensors")
