"""Experts: one name and digest in whichever form files hold them, and the same choice in every network compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.convert import RAW, convert_network
from registry.errors import UnsupportedConfig, UnusableWeights, WeightsMismatch
from registry.families import find_family_by_name
from registry.families.experts import ExpertNames, split_header
from registry.networks import check_tensors
from registry.progress import no_progress
from registry.routing import Computed, compute_hooked, compute_source, find_largest_difference
from registry.stage import Weights, digest_staged_weights
from registry.verify import make_probe
from registry.weights import TensorHeader, read_header
from tests.checkpoints import edit_config
from tests.contents import read_contents
from tests.opened import Opened, read_checkpoint

MakeCheckpoint = Callable[..., Path]
UNFUSED = ["mixtral", "olmoe"]  # families whose files hold every expert by itself


def digest(opened: Opened) -> Weights:
    return digest_staged_weights(opened.family, opened.values, opened.files, no_progress)


def fuse(folder: Path) -> Path:
    """Write the tensors as transformers's network has them, as a training script does that saves its state dict."""
    opened = read_checkpoint(folder)
    tensors = opened.build().state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


# --- names, shapes, digests


@pytest.mark.parametrize("name", UNFUSED)
def test_what_save_pretrained_writes_has_the_names_it_is_known_by(name: str, make_checkpoint: MakeCheckpoint) -> None:
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False))
    written = read_header(opened.files[0])
    assert opened.family.canonical_headers(written) == written
    assert sum(".experts." in tensor for tensor in written) == 2 * 3 * opened.architecture["num_experts"]


@pytest.mark.parametrize("name", UNFUSED)
def test_fused_in_shards_or_one_by_one_the_digest_and_the_network_are_the_same(
    name: str, make_checkpoint: MakeCheckpoint
) -> None:
    single = read_checkpoint(make_checkpoint(name, tokenizer=False))
    sharded = read_checkpoint(make_checkpoint(name, tokenizer=False, max_shard_size="40KB"))
    fused = read_checkpoint(fuse(make_checkpoint(name, tokenizer=False)))
    assert len(sharded.files) > 3
    assert any(tensor.endswith("experts.gate_up_proj") for tensor in read_header(fused.files[0]))
    expected = digest(single)
    for opened in (sharded, fused):
        weights = digest(opened)
        assert weights.digest == expected.digest
        assert {key: one.shape for key, one in weights.tensors.items()} == {
            key: one.shape for key, one in expected.tensors.items()
        }
        assert weights.n_parameters == expected.n_parameters == sum(p.numel() for p in single.build().parameters())
        check_tensors(opened.family, opened.values, weights.tensors)
        for one, other in zip(opened.build().parameters(), single.build().parameters(), strict=True):
            assert torch.equal(one, other)
        assert opened.measure().passed


@pytest.mark.parametrize("name", UNFUSED)
@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_a_number_changed_in_one_expert_changes_the_digest(
    name: str, part: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder = fuse(make_checkpoint(name, tokenizer=False))
    before = digest(read_checkpoint(folder)).digest
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.1.mlp.experts.{part}"][2, -1, -1] += 1e-3
    save_file(tensors, folder / "model.safetensors")
    assert digest(read_checkpoint(folder)).digest != before


@pytest.mark.parametrize("name", UNFUSED)
def test_a_file_without_the_prefix_of_the_bare_model_is_read(name: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(name, tokenizer=False, tie_word_embeddings=True)
    before = digest(read_checkpoint(folder))
    tensors = {key.removeprefix("model."): one for key, one in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    opened = read_checkpoint(folder)
    assert digest(opened).digest == before.digest
    assert opened.measure().passed


@pytest.mark.parametrize("name", UNFUSED)
def test_an_expert_by_itself_and_fused_is_refused(
    name: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name)
    single = load_file(folder / "model.safetensors")
    save_file({**load_file(fuse(folder) / "model.safetensors"), **single}, folder / "model.safetensors")
    before = read_contents(registry)
    with pytest.raises(WeightsMismatch, match="names of one tensor"):
        registry.register("twice", folder)
    assert read_contents(registry) == before


@pytest.mark.parametrize("name", UNFUSED)
def test_experts_that_are_missing_or_too_many_are_named(
    name: str, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name)
    names = find_family_by_name(name).experts
    assert names is not None
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = f"model.layers.1.{names.block}.experts.2.{names.down}.weight"
    save_file({key: one for key, one in tensors.items() if key != lost}, file)
    with pytest.raises(WeightsMismatch) as refused:
        registry.register("lost", folder)
    assert refused.value.missing == (lost,)

    save_file(tensors, file)
    key = "num_local_experts" if name == "mixtral" else "num_experts"
    n_experts = json.loads((folder / "config.json").read_text())[key]
    with pytest.raises(WeightsMismatch) as refused:
        registry.register("more", edit_config(folder, **{key: n_experts + 1}))
    assert any(f".experts.{n_experts}." in one for one in refused.value.missing)
    with pytest.raises(WeightsMismatch) as refused:
        registry.register("fewer", edit_config(folder, **{key: n_experts - 1}))
    assert any(f".experts.{n_experts - 1}." in one for one in refused.value.left_over)
    with pytest.raises(WeightsMismatch, match="experts in each of"):
        registry.register("far-more", edit_config(folder, **{key: 10**9}))


def test_only_what_is_surely_fused_is_split() -> None:
    names = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")
    fused = "model.layers.7.mlp.experts.gate_up_proj"
    assert names.split(fused, (2, 6, 5)) == [
        (f"model.layers.7.mlp.experts.{expert}.{part}.weight", (3, 5))
        for expert in (0, 1)
        for part in ("gate_proj", "up_proj")
    ]
    for name, shape in [
        (fused, (2, 5, 5)),
        (fused, (6, 5)),
        (fused, (0, 6, 5)),
        (fused, (10**9, 2, 0)),
        (fused + "_bias", (2, 6, 5)),
        ("model.layers.7.self_attn.q_proj.weight", (4, 4)),
    ]:
        assert names.split(name, shape) == [(name, shape)]
    header = TensorHeader(fused, "BF16", (2, 6, 5), Path("x"), 100, 120)
    parts = list(split_header(names, header))
    assert [(part.start, part.size_bytes, part.n_parameters) for part in parts] == [
        (100 + 30 * index, 30, 15) for index in range(4)
    ]
    assert list(split_header(None, header)) == [header]


# --- GPT-OSS as OpenAI packs it


def test_packed_experts_are_refused_with_what_to_do(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("gpt_oss")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
        del tensors[name]
        tensors[f"{name}_blocks"] = torch.zeros(4, 96, 2, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(4, 96, 2, dtype=torch.uint8)
    save_file(tensors, file)
    with pytest.raises(UnusableWeights, match=r"Mxfp4Config\(dequantize=True\)") as refused:
        registry.register("packed", folder)
    assert any(name.endswith("gate_up_proj_blocks") for name in refused.value.tensors)
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": []})
    with pytest.raises(UnsupportedConfig, match=r"Mxfp4Config\(dequantize=True\)") as unsupported:
        registry.register("packed", folder)
    assert unsupported.value.field == "quantization_config"
    assert hasattr(transformers, "Mxfp4Config")


# --- routing


def nearly_tie(name: str, folder: Path) -> Path:
    """Give every two experts routers that differ by less than any rounding error does."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for key, tensor in tensors.items():
        if key.endswith(("gate.weight", "router.weight", "router.bias")):
            tensor[1::2] = tensor[::2] * (1 + 2**-23)
    save_file(tensors, file)
    return folder


TIES = [
    ("mixtral", {"num_experts_per_tok": 1}),
    ("olmoe", {"num_experts_per_tok": 3}),
    ("gpt_oss", {"num_experts_per_tok": 1}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "config"), TIES)
def test_a_tie_of_experts_that_falls_the_other_way_is_no_fault(
    name: str, config: dict[str, Any], dtype: torch.dtype, make_checkpoint: MakeCheckpoint
) -> None:
    folder = nearly_tie(name, make_checkpoint(name, tokenizer=False, **config))
    opened = read_checkpoint(folder)
    parity = opened.measure(dtype=dtype)
    assert parity.passed
    assert max(parity.raw, parity.processed, parity.noise_floor) < 1e-4
    if dtype == torch.float32:  # each by itself, some tokens go to the other of two experts, and nothing fits
        source, probe = opened.build(dtype), make_probe(opened.architecture)
        reference = compute_source(source, opened.family, probe, "eager")
        network = convert_network(source, opened.family, opened.architecture, RAW, dtype=dtype)
        with torch.inference_mode():
            alone = Computed(network(probe).log_softmax(-1))
        assert find_largest_difference(Computed(reference.log_probs), alone) > 0.01


@pytest.mark.parametrize(("name", "config"), TIES)
def test_a_wrong_router_is_seen_though_the_experts_are_given(
    name: str, config: dict[str, Any], make_checkpoint: MakeCheckpoint
) -> None:
    opened = read_checkpoint(make_checkpoint(name, tokenizer=False, **config))
    source, probe = opened.build(torch.float64), make_probe(opened.architecture)
    reference = compute_source(source, opened.family, probe, "eager")
    assert len(reference.routing) == 2
    network: Any = convert_network(source, opened.family, opened.architecture, RAW, dtype=torch.float64)
    assert find_largest_difference(reference, compute_hooked(network, probe, reference)) < 1e-4
    with torch.no_grad():
        network.blocks[1].mlp.W_gate.weight[0, 0] += 0.01
    assert find_largest_difference(reference, compute_hooked(network, probe, reference)) > 1e-3


def test_not_a_number_counts_as_infinite() -> None:
    good = Computed(torch.zeros(1, 2, 3), ((torch.zeros(2, 4),),))
    bad = Computed(torch.zeros(1, 2, 3), ((torch.full((2, 4), torch.nan),),))
    assert find_largest_difference(good, good) == 0
    assert find_largest_difference(good, bad) == find_largest_difference(bad, good) == float("inf")


# --- loaded by name


@pytest.mark.filterwarnings("ignore:.* would change what .* computes; it was left out:UserWarning")
@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "olmo", "olmo2", "olmo3", "olmoe"])
def test_what_is_loaded_by_name_computes_what_was_registered(
    name: str, processed: bool, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(name, seed=9)
    opened = read_checkpoint(folder)
    if opened.family.experts:
        fuse(folder)
    registry.register("it", folder)
    tokens = torch.arange(90).reshape(2, 45) * 7 % 211
    source = opened.build(torch.float64)
    reference = compute_source(source, opened.family, tokens, "eager")
    for dtype in (torch.float64, torch.float32):
        network = registry.load("it", processed=processed, dtype=dtype)
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
        computed = compute_hooked(network, tokens, reference)
        given = Computed(computed.log_probs.double(), tuple((one.double(),) for (one,) in computed.routing))
        assert find_largest_difference(reference, given) < 1e-4
