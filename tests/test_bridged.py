"""What only a TransformerBridge can run: registered, measured against its bridge, never given out as anything else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from cli.versions import describe_parity, describe_version
from registry import Registry
from registry.architecture import Architecture
from registry.errors import (
    ArchitectureMismatch,
    ParityFailure,
    UnsupportedBridge,
    UnsupportedConfig,
    UnsupportedFamily,
    UnusableWeights,
    WeightsMismatch,
)
from registry.families import BRIDGED_FAMILIES, FAMILIES
from registry.families.family import Family
from tests.adapters import make_adapted, save_adapter
from tests.checkpoints import edit_config
from tests.contents import read_contents

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
NAMES = [family.name for family in BRIDGED_FAMILIES.values()]
OLD_FALCON: dict[str, Any] = {"new_decoder_architecture": False, "num_kv_heads": None}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("falcon", {**OLD_FALCON, "bias": False}),
    ("falcon", {**OLD_FALCON, "multi_query": False}),
    ("falcon", {**OLD_FALCON, "multi_query": False, "parallel_attn": False}),
    ("falcon", {"num_ln_in_parallel_attn": 1, "num_kv_heads": 1}),
    ("falcon", {"num_kv_heads": 4, "tie_word_embeddings": False, "bias": False}),
    ("mamba", {"use_bias": False, "use_conv_bias": False, "tie_word_embeddings": False}),
    ("qwen3_moe", {"use_sliding_window": True, "norm_topk_prob": False, "attention_bias": True}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": False, "use_qkv_bias": False}),
    ("starcoder2", {"norm_epsilon": 1e-2, "sliding_window": None, "use_bias": False}),
]
IDS = [f"{name}{index if changes else ''}" for index, (name, changes) in enumerate(VARIANTS)]
TOKENS = torch.randint(0, 211, (2, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry with one version of each family."""
    folder = tmp_path_factory.mktemp("bridged")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    for name in NAMES:
        registry.register(name, make_checkpoint(name))
    yield registry
    registry.close()


def log_probs(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        output = network(TOKENS)
    return getattr(output, "logits", output).double().log_softmax(-1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=IDS)
def test_it_is_measured_against_its_bridge(
    name: str, changes: dict[str, Any], registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name, tokenizer=False, **changes)
    assert registry.check(folder).fault is None
    done = registry.register("m", folder)
    parity, version = done.parity, registry.version("m")
    assert parity is not None and parity.passed and version.is_verified
    assert parity.raw is None and parity.processed is None and parity.bridge is not None
    assert parity.bridge <= max(parity.noise_floor, 1e-12) < 1e-4 and parity.n_tokens >= 512
    assert {metric: row.value for metric, row in version.parity.items()} == {"bridge": parity.bridge}
    assert describe_parity(parity.as_dict()).startswith(f"bridge {parity.bridge:.1e}; bound ")
    assert version.architecture["family"] == name
    exact = log_probs(registry.load_hf("m", dtype="float64"))
    expected = log_probs(registry.load_hf("m"))
    noise = difference(expected, exact)
    for compatibility in (False, True):
        bridge = registry.load_bridge("m", compatibility=compatibility)
        assert isinstance(bridge, TransformerBridge)
        assert difference(log_probs(bridge), expected) <= max(1e-4, noise) < 3e-4


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_hooked_transformer_and_the_bridge_is_named(name: str, shared: Registry) -> None:
    card = describe_version(shared.version(name))
    assert str(card["architecture"]).startswith(f"{name}  d_model ") and str(card["parity"]).startswith("bridge ")
    with pytest.raises(UnsupportedFamily, match="cannot be converted to a HookedTransformer") as refused:
        shared.load(name)
    assert f'Registry.load_bridge("{name}@v1")' in str(refused.value.hint)
    assert refused.value.fields["family"] == BRIDGED_FAMILIES[refused.value.fields["family"]].class_name


def dict_of_families() -> dict[str, Family]:
    return cast("dict[str, Family]", BRIDGED_FAMILIES)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("falcon", {}),
        ("falcon", {"num_ln_in_parallel_attn": 1}),
        ("falcon", {"num_kv_heads": 4}),
        ("starcoder2", {"norm_epsilon": 1e-2}),
    ],
)
def test_a_bridge_that_computes_something_else_is_refused(
    name: str,
    changes: dict[str, Any],
    registry: Registry,
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As transformer-lens 3.9 builds it by itself; when it is put right there, this fails and our own goes."""
    family = next(family for family in BRIDGED_FAMILIES.values() if family.name == name)
    monkeypatch.setitem(dict_of_families(), family.class_name, replace(family, adapt_bridge=None))
    folder = make_checkpoint(name, tokenizer=False, **changes)
    before = read_contents(registry)
    with pytest.raises((ParityFailure, UnsupportedBridge), match=r"computes something else|cannot build") as refused:
        registry.register("m", folder)
    assert "fault of transformer-lens" in str(refused.value.hint) or "--parity skip" in str(refused.value.hint)
    assert read_contents(registry) == before
    # what is there without a measurement says so, and its bridge is measured all the same
    registry.register("m", folder, parity="skip")
    assert not registry.version("m").is_verified
    with pytest.warns(UserWarning, match="without verification"), pytest.raises(UnsupportedBridge):
        registry.load_bridge("m")


@pytest.mark.parametrize(
    ("name", "changes", "fields"),
    [
        ("falcon", {"layer_norm_epsilon": 1e-2}, {"config.layer_norm_epsilon"}),
        ("falcon", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rotary_base"}),
        ("falcon", {"activation": "gelu_new"}, {"config.activation"}),
        ("gpt_bigcode", {"n_embd": 128}, {"d_model", "d_mlp"}),
        ("granite", {"logits_scaling": 3.0}, {"config.logits_scaling"}),
        ("mamba", {"residual_in_fp32": False}, {"config.residual_in_fp32"}),
        ("mamba", {"expand": 3}, {"config.intermediate_size"}),
        ("qwen2_moe", {"num_experts_per_tok": 3}, {"experts_per_token"}),
        ("qwen3_moe", {"use_sliding_window": True}, {"use_local_attn", "window_size"}),
        ("stablelm", {"partial_rotary_factor": 0.5}, {"rotary_dim"}),
        ("starcoder2", {"sliding_window": 9}, {"window_size"}),
    ],
)
def test_what_is_not_its_parent_s_is_refused_by_name(
    name: str, changes: dict[str, Any], fields: set[str], shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name, seed=3, tokenizer=False, **changes)
    before = read_contents(shared)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("child", folder, parent=name)
    assert {one.field for one in refused.value.differences} == fields
    assert all(one.config_key for one in refused.value.differences)
    assert read_contents(shared) == before
    assert shared.register("child", folder, parent=name, allow=[*fields], dry_run=True).parity is not None


def test_a_child_with_its_parent_s_architecture_is_taken(shared: Registry, make_checkpoint: MakeCheckpoint) -> None:
    for name in NAMES:
        done = shared.register(f"{name}-tuned", make_checkpoint(name, seed=2, tokenizer=False), parent=name)
        assert done.version is not None and done.version.parents[0].ref == f"{name}@v1"


@pytest.mark.parametrize("other", ["llama", "granite"])
def test_another_family_is_no_parent(other: str, shared: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """And cannot be taken for one, whatever the numbers: a family's name is part of its fingerprint."""
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("child", make_checkpoint(other, tokenizer=False), parent="stablelm")
    assert refused.value.differences[0].field == "family"
    fields = shared.version("stablelm").architecture
    assert Architecture(fields).fingerprint != Architecture({**fields, "family": other}).fingerprint


def test_hooked_weights_cannot_be_of_such_a_family(
    shared: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    shared.register("llama", make_checkpoint("llama"))
    state = tmp_path / "state.pt"
    network = shared.load("llama", processed=False)
    torch.save(network.state_dict(), state)
    with pytest.raises(UnsupportedFamily, match=r"falcon@v1 is no parent of it.*FalconForCausalLM"):
        shared.register("hooked", state, parent="falcon")
    config = make_checkpoint("falcon") / "config.json"
    with pytest.raises(UnsupportedFamily, match="does not describe a HookedTransformer's state dict"):
        shared.register("hooked", state, config=config)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register_network("hooked", network, parent="falcon")
    assert "family" in {one.field for one in refused.value.differences}


@pytest.mark.parametrize("parity", [None, "skip"])
def test_nan_and_what_does_not_fit_are_refused(
    parity: Any, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint("mamba")
    file, name = folder / "model.safetensors", "backbone.layers.1.mixer.A_log"
    tensors = load_file(file)
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, file, metadata={"format": "pt"})
    with pytest.raises(UnusableWeights, match="A_log"):
        registry.register("m", folder, parity=parity)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match="1 missing"):
        registry.register("m", folder, parity=parity)
    assert not registry.models()


@pytest.mark.parametrize("name", NAMES)
def test_adapters_are_merged(name: str, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Into linear layers that the network calls: Mamba does not call dt_proj, and peft's layer there does nothing."""
    targets = {"falcon": ["query_key_value", "dense"], "gpt_bigcode": ["c_attn"], "mamba": ["in_proj", "x_proj"]}
    registry.register("base", make_checkpoint(name))
    adapted = make_adapted(name, target_modules=targets.get(name, ["q_proj", "v_proj"]), r=4)
    expected = log_probs(adapted)
    done = registry.register("m", save_adapter(tmp_path / "adapter", adapted), parent="base")
    assert done.version is not None and "merge" in done.version.provenance and done.parity is not None
    exact = log_probs(registry.load_hf("m", dtype="float64"))
    effect = difference(exact, log_probs(registry.load_hf("base", dtype="float64")))
    bound = max(1e-4, 10 * difference(log_probs(registry.load_hf("m")), exact))
    assert difference(exact, expected) <= bound < effect / 10


def test_a_text_has_no_end_for_mamba(shared: Registry) -> None:
    """It has no context, and transformer-lens's 2,048 would cut it."""
    bridge = shared.load_bridge("mamba")
    text = " ".join(["w1"] * 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = bridge.to_tokens(text)
    assert tokens.shape == (1, 3001)
    tokenizer = shared.tokenizer("mamba")
    assert tokenizer is not None and tokenizer(text)["input_ids"] == tokens[0, 1:].tolist()


PUBLISHED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "falcon",
        "tiiuae/falcon-7b",
        {
            "alibi": False,
            "apply_residual_connection_post_layernorm": False,
            "attention_dropout": 0.0,
            "bias": False,
            "hidden_dropout": 0.0,
            "hidden_size": 64,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 96,
            "multi_query": True,
            "new_decoder_architecture": False,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "parallel_attn": True,
            "vocab_size": 211,
        },
        {**OLD_FALCON, "bias": False},
    ),
    (
        "mamba",
        "state-spaces/mamba-130m-hf",
        {
            "conv_kernel": 4,
            "d_inner": 96,
            "d_model": 48,
            "expand": 2,
            "fused_add_norm": True,
            "hidden_act": "silu",
            "hidden_size": 48,
            "initializer_range": 0.1,
            "intermediate_size": 96,
            "layer_norm_epsilon": 1e-05,
            "n_layer": 2,
            "num_hidden_layers": 2,
            "pad_vocab_size_multiple": 8,
            "rescale_prenorm_residual": False,
            "residual_in_fp32": True,
            "rms_norm": True,
            "ssm_cfg": {},
            "state_size": 8,
            "time_step_floor": 0.0001,
            "time_step_init_scheme": "random",
            "time_step_max": 0.1,
            "time_step_min": 0.001,
            "time_step_rank": 3,
            "time_step_scale": 1.0,
            "use_bias": True,
            "use_conv_bias": True,
            "vocab_size": 211,
        },
        {},
    ),
]


@pytest.mark.parametrize(("name", "after", "config", "told"), PUBLISHED, ids=[after for _, after, _, _ in PUBLISHED])
def test_a_published_config_is_read_as_what_it_is(
    name: str,
    after: str,
    config: dict[str, Any],
    told: dict[str, Any],
    registry: Registry,
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint(name, tokenizer=False, **told)
    plain = registry.check(folder).architecture
    named = {key: json.loads((folder / "config.json").read_text())[key] for key in ("architectures", "model_type")}
    (folder / "config.json").write_text(json.dumps({**config, **named, "torch_dtype": "bfloat16"}))
    found = registry.check(folder)
    assert found.fault is None and plain is not None and found.architecture is not None
    assert found.architecture.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"parallel_attn": False}, "parallel_attn"),
        ("falcon", {"new_decoder_architecture": False, "multi_query": False}, "num_kv_heads"),
        ("mamba", {"d_inner": 64}, "d_inner"),
        ("mamba", {"time_step_rank": "half"}, "time_step_rank"),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("gpt_bigcode", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("granite", {"hidden_act": "xielu"}, "hidden_act"),
    ],
)
def test_what_a_bridge_does_not_compute_is_refused_by_name(
    name: str, changes: dict[str, Any], field: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(UnsupportedConfig) as refused:
        registry.register("m", edit_config(make_checkpoint(name), **changes))
    assert refused.value.field == field


def test_no_family_is_in_both_lists() -> None:
    assert not set(FAMILIES) & set(BRIDGED_FAMILIES)
    assert all(family.convert is not None for family in FAMILIES.values())
    assert all(family.convert is None for family in BRIDGED_FAMILIES.values())
