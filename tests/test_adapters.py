"""PEFT adapters: merged into the registered parent they compute what they did in it, or they are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from registry import Registry
from registry.errors import (
    SourceNotFound,
    UnsupportedSource,
    UnusableWeights,
)
from registry.families import FAMILIES, find_family_by_name
from registry.sources.adapter import read_adapter
from registry.sources.adapter_config import KINDS, check_adapter_config
from registry.sources.source import ParentVersion
from tests.adapters import (
    CONFIG,
    PICKLE,
    WEIGHTS,
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
from tests.checkpoints import make_tokenizer
from tests.contents import read_contents

pytestmark = pytest.mark.usefixtures("pickles_in_forks")

MakeCheckpoint = Callable[..., Path]
BOUND = 1e-4  # DESIGN.md §7, for float64
PROBE = torch.randint(0, 211, (2, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: MakeCheckpoint) -> Iterator[Registry]:
    """A registry that holds the bases of all adapters here."""
    with register_bases(tmp_path_factory.mktemp("adapters"), make_checkpoint) as registry:
        yield registry


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A plain adapter of Llama's."""
    return save_plain_adapter(tmp_path / "adapter")


def log_probs(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        output = network(PROBE)
    return getattr(output, "logits", output).double().log_softmax(-1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


LORA, IA3 = peft.LoraConfig, peft.IA3Config
GOOD: dict[str, tuple[str, type[peft.PeftConfig], dict[str, Any]]] = {
    "Conv1D": ("gpt2", LORA, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "linear": ("llama", LORA, {"target_modules": "all-linear", "r": 4, "lora_alpha": 16}),
    "pattern": ("llama", LORA, {"target_modules": r".*\.(q|v)_proj$"}),
    "rsLoRA": ("llama", LORA, {"target_modules": ["q_proj"], "r": 4, "use_rslora": True}),
    "DoRA of Conv1D": ("gpt2", LORA, {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    "DoRA": ("llama", LORA, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "biases of its layers": ("gpt2", LORA, {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "all biases": ("gpt2", LORA, {"target_modules": ["c_attn"], "bias": "all"}),
    "bias of LoRA's own": ("gpt2", LORA, {"target_modules": ["c_attn"], "lora_bias": True}),
    "rank and alpha by layer": (
        "llama",
        LORA,
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"v_proj": 40},
        },
    ),
    "some layers": ("llama", LORA, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "but some modules": ("llama", LORA, {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}),
    "orthogonal": ("llama", LORA, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
    "whole norm": ("gpt2", LORA, {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}),
    "whole embedding and head": (
        "llama",
        LORA,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "embedding and head": ("llama", LORA, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "tokens": ("llama", LORA, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}),
    "tokens, head tied": ("gpt2", LORA, {"target_modules": ["c_attn"], "trainable_token_indices": [1, 5]}),
    "IA3": ("llama", IA3, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "IA3 of Conv1D": (
        "gpt2",
        IA3,
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_merged_adapter_computes_what_it_did_in_its_base(name: str, shared: Registry, tmp_path: Path) -> None:
    family, kind, fields = GOOD[name]
    adapted = make_adapted(family, kind, **fields)
    expected = log_probs(adapted)
    assert difference(expected, log_probs(shared.load_hf(family))) > 0.01, "this adapter does nothing"
    folder = save_adapter(tmp_path / "adapter", adapted)
    done = shared.register(f"good/{list(GOOD).index(name)}", folder, parent=family)
    assert done.version is not None and done.parity is not None and done.parity.passed
    assert difference(log_probs(shared.load(done.version.ref, dtype="float64")), expected) <= BOUND
    merge = done.version.provenance["merge"]
    assert 0 < merge["difference"] <= merge["bound"] and merge["dtype"] == "float64" and "peft" in merge["versions"]


def test_what_is_recorded_and_kept(registry: Registry, make_checkpoint: MakeCheckpoint, adapter: Path) -> None:
    base = make_checkpoint("llama")
    (base / "generation_config.json").write_text('{"eos_token_id": 3}')
    registry.register("base", base)
    edit_adapter(adapter, base_model_name_or_path="somewhere/base")
    version = registry.register("m", adapter, parent="base", step=7).version
    assert version is not None
    assert (version.source_kind, version.layout, version.step, version.dtype) == ("peft", "huggingface", 7, "float32")
    assert [(parent.ref, parent.relation) for parent in version.parents] == [("base@v1", "adapter-merged")]
    assert version.provenance["adapter"] == {
        "peft_type": "LORA",
        "base_model_name_or_path": "somewhere/base",
        "revision": None,
    }
    assert [finding["code"] for finding in version.findings] == []
    names = {file.name: file.role for file in version.files}
    assert names == {
        "config.json": "config",
        "generation_config.json": "generation",
        "model.safetensors": "weights",
        "original_adapter_config.json": "original",
        "original_adapter_model.safetensors": "original",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }
    folder = registry.path("m")
    for kept, source in (("config.json", base), (f"original_{CONFIG}", adapter), (f"original_{WEIGHTS}", adapter)):
        assert (folder / kept).read_bytes() == (source / kept.removeprefix("original_")).read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_registering_it_again_changes_nothing(shared: Registry, adapter: Path) -> None:
    assert shared.register("again", adapter, parent="llama", dry_run=True).outcome == "would-register"
    assert shared.register("again", adapter, parent="llama").outcome == "registered"
    assert shared.register("again", adapter, parent="llama").outcome == "unchanged"


def test_the_tokenizer_beside_the_adapter_comes_before_the_parent_s(shared: Registry, adapter: Path) -> None:
    make_tokenizer(200).save_pretrained(adapter)
    done = shared.register("own-tokenizer", adapter, parent="llama")
    assert "other-vocabulary" in [finding.code for finding in done.findings]
    tokenizer = shared.tokenizer("own-tokenizer")
    assert tokenizer is not None and len(tokenizer) == 200


def test_an_adapter_of_a_merged_adapter(shared: Registry, adapter: Path, tmp_path: Path) -> None:
    shared.register("first", adapter, parent="llama")
    second = save_adapter(tmp_path / "second", make_adapted("llama", target_modules=["down_proj"], seed=5))
    shared.register("second", second, parent="first")
    one, two = (
        load_file(shared.path("first") / "model.safetensors"),
        load_file(shared.path("second") / "model.safetensors"),
    )
    changed = {name.split(".")[-2] for name in one if not torch.equal(one[name], two[name])}
    assert changed == {"down_proj"}
    assert [node.version.ref for node in shared.lineage("second").ancestors()] == ["first@v1", "llama@v1"]


@pytest.mark.parametrize(
    ("dtype", "kept", "codes"), [("bfloat16", "float32", ["merged-dtype"]), ("float64", "float64", [])]
)
def test_a_merge_is_kept_in_float32_at_least(
    dtype: str, kept: str, codes: list[str], registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """In bfloat16 the adapter would be lost: the difference to what was trained is there a thousand times the bound."""
    base = make_checkpoint("llama", tokenizer=False)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    network.save_pretrained(base)
    registry.register("base", base)
    with torch.no_grad():
        adapted = make_adapted("llama", target_modules="all-linear")
        weights = {name: tensor.float() for name, tensor in network.state_dict().items()}
        for name, parameter in adapted.base_model.model.named_parameters():
            if "lora_" not in name:
                parameter.copy_(weights[name.replace(".base_layer", "")])
    expected = log_probs(adapted)
    folder = edit_adapter(save_adapter(tmp_path / "adapter", adapted), base_model_name_or_path="base")
    done = registry.register("m", folder, parent="base")
    assert done.version is not None and done.version.dtype == kept
    assert [finding.code for finding in done.findings if finding.code != "no-tokenizer"] == codes
    assert difference(log_probs(registry.load("m", dtype="float64")), expected) <= BOUND
    assert difference(log_probs(registry.load_hf("m").to(torch.bfloat16).float()), expected) > 100 * BOUND


def test_an_untied_head_may_have_an_adapter(shared: Registry, tmp_path: Path) -> None:
    adapted = make_adapted("gpt2", base={"tie_word_embeddings": False}, target_modules=["lm_head", "wte"])
    folder = save_adapter(tmp_path / "adapter", adapted)
    shared.register("untied-head", folder, parent="untied")
    assert difference(log_probs(shared.load("untied-head", dtype="float64")), log_probs(adapted)) <= BOUND


# --- in the precision that was asked for


@pytest.mark.parametrize("name", ["linear", "DoRA", "IA3", "bias of LoRA's own"])
def test_it_is_merged_in_float32_if_that_is_how_parity_is_measured(name: str, shared: Registry, tmp_path: Path) -> None:
    family, kind, fields = GOOD[name]
    adapted = make_adapted(family, kind, **fields)
    folder = save_adapter(tmp_path / "adapter", adapted)
    number = list(GOOD).index(name)
    done = shared.register(f"float32/{number}", folder, parent=family, parity="float32")
    assert done.version is not None and done.parity is not None and done.parity.dtype == "float32"
    merge = done.version.provenance["merge"]
    assert merge["dtype"] == "float32" and merge["n_tokens"] >= 512
    assert 0 < merge["difference"] <= merge["bound"] == 1e-3
    skipped = shared.register(f"skip/{number}", folder, parent=family, parity="skip")
    assert skipped.version is not None and not skipped.version.is_verified
    assert skipped.weights_digest == done.weights_digest
    unmeasured = skipped.version.provenance["merge"]
    assert (unmeasured["dtype"], unmeasured["difference"], unmeasured["bound"], unmeasured["n_tokens"]) == (
        "float32",
        None,
        None,
        None,
    )
    assert difference(log_probs(shared.load(done.version.ref, dtype="float64")), log_probs(adapted)) <= BOUND


def test_a_parent_in_float64_keeps_its_bits(registry: Registry, make_checkpoint: MakeCheckpoint, adapter: Path) -> None:
    base = make_checkpoint("llama", tokenizer=False)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).save_pretrained(base)
    registry.register("base", base)
    done = registry.register("m", adapter, parent="base", parity="float32")
    assert done.version is not None and done.version.dtype == "float64"
    assert done.version.provenance["merge"]["dtype"] == "float64"
    assert registry.register("exact", adapter, parent="base").weights_digest == done.weights_digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("parity", ["float32", "skip"])
def test_unmeasured_or_not_what_is_not_finite_is_refused(
    value: float, parity: Any, shared: Registry, adapter: Path
) -> None:
    fill(value)(adapter)
    with pytest.raises(UnusableWeights, match="NaN or infinite"):
        shared.register("not-finite", adapter, parent="llama", parity=parity)


def test_what_becomes_infinite_by_merging_is_refused_unmeasured(shared: Registry, adapter: Path) -> None:
    edit_tensors(adapter, lambda tensors: {name: tensor * 1e30 for name, tensor in tensors.items()})
    with pytest.raises(UnsupportedSource, match="peft cannot merge this adapter"):
        shared.register("overflow", adapter, parent="llama", parity="skip")


# --- as peft saved it before safetensors


def test_a_pickled_adapter_is_the_same_network(shared: Registry, adapter: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    to_pickle(pickled)
    content = (pickled / PICKLE).read_bytes()
    plain = shared.register("from-safetensors", adapter, parent="llama")
    done = shared.register("from-pickle", pickled, parent="llama")
    assert done.version is not None and done.weights_digest == plain.weights_digest
    assert [finding.code for finding in done.findings] == ["from-pickle", "base-not-confirmed", "identical-weights"]
    assert done.version.provenance["pickles"] == {PICKLE: hashlib.sha256(content).hexdigest()}
    assert [file.name for file in done.version.with_role("original")] == [
        f"original_{CONFIG}",
        f"original_{WEIGHTS}",
    ]
    kept = load_file(shared.path("from-pickle") / f"original_{WEIGHTS}")
    given = load_file(adapter / WEIGHTS)
    assert kept.keys() == given.keys() and all(torch.equal(kept[name], given[name]) for name in given)
    assert {path.name for path in pickled.iterdir()} == {path.name for path in adapter.iterdir()} - {WEIGHTS} | {PICKLE}


def test_a_pickle_beside_the_adapter_is_the_same_or_one_is_picked(
    shared: Registry, adapter: Path, tmp_path: Path
) -> None:
    pickle_tensors(adapter)
    done = shared.register("both-same", adapter, parent="llama")
    assert "both-formats" in [finding.code for finding in done.findings]
    pickle_tensors(adapter, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(UnsupportedSource, match="different weights") as refused:
        shared.register("both-other", adapter, parent="llama")
    assert "--weights safetensors or --weights bin" in str(refused.value.hint)
    picked = shared.register("both-safetensors", adapter, parent="llama", weights="safetensors")
    assert picked.weights_digest == done.weights_digest
    other = shared.register("both-bin", adapter, parent="llama", weights="bin")
    doubled = edit_tensors(adapter, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    (doubled / PICKLE).unlink()
    assert other.weights_digest == shared.register("doubled", doubled, parent="llama").weights_digest
    with pytest.raises(SourceNotFound, match=PICKLE):
        shared.register("no-bin", doubled, parent="llama", weights="bin")


# --- hazards (HAZARDS.md §2.5): ways in which an adapter silently is its base


def test_hazard_an_adapter_folder_is_not_loaded_as_its_base(shared: Registry, adapter: Path) -> None:
    base = log_probs(shared.load_hf("llama"))
    shared.register("not-base", adapter, parent="llama")
    for network in (shared.load("not-base"), shared.load_bridge("not-base"), shared.load_hf("not-base")):
        assert difference(log_probs(network), base) > 0.1


def test_hazard_the_adapter_is_not_merged_twice_by_who_reads_the_version_s_folder(
    shared: Registry, adapter: Path
) -> None:
    """Transformers would read an adapter_config.json beside the weights, and add the adapter once more."""
    shared.register("folder", adapter, parent="llama")
    network = AutoModelForCausalLM.from_pretrained(shared.path("folder"))
    assert difference(log_probs(network), log_probs(shared.load_hf("folder"))) < BOUND


def test_hazard_base_weights_and_adapter_in_one_folder(
    shared: Registry, adapter: Path, make_checkpoint: MakeCheckpoint
) -> None:
    shutil.copytree(make_checkpoint("llama"), adapter, dirs_exist_ok=True)
    before = read_contents(shared)
    for parent in ((), "llama"):
        with pytest.raises(UnsupportedSource, match=r"an adapter and a model \(model.safetensors\)"):
            shared.register("both", adapter, parent=parent)
    assert read_contents(shared) == before


def test_hazard_adapter_layers_inside_a_model_s_weights(
    shared: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """As torch.save(model.state_dict()) of a PeftModel leaves them."""
    folder = make_checkpoint("llama")
    adapted = make_adapted("llama", target_modules=["q_proj"])
    tensors = {name: tensor.contiguous() for name, tensor in adapted.base_model.model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedSource, match="adapter layers in it that are not merged") as refused:
        shared.register("inside", folder)
    assert "merge_and_unload" in str(refused.value.hint)


def test_hazard_merged_by_hand_it_is_a_model_like_any_other(shared: Registry, tmp_path: Path) -> None:
    adapted = make_adapted("llama", target_modules=["q_proj"])
    expected = log_probs(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    shared.register("by-hand", tmp_path / "merged", parent="llama")
    assert difference(log_probs(shared.load("by-hand", dtype="float64")), expected) <= BOUND


# --- which base it was

BASES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "same model": ({"base_model_name_or_path": "org/base"}, {"repo": "org/base"}, None),
    "a mirror of it": ({"base_model_name_or_path": "mirror/Base"}, {"repo": "org/base"}, None),
    "a copy on disk": ({"base_model_name_or_path": "/models/base/"}, {"repo": "org/base"}, None),
    "same commit": ({"base_model_name_or_path": "org/base", "revision": "a" * 40}, {"commit": "a" * 40}, None),
    "a branch": ({"base_model_name_or_path": "org/base", "revision": "main"}, {"commit": "a" * 40}, None),
    "the parent's name": ({"base_model_name_or_path": "llama"}, {}, None),
    "another path": ({"base_model_name_or_path": "/scratch/run7"}, {}, "base-not-confirmed"),
    "another path, from the Hub": ({"base_model_name_or_path": "/scratch/run7"}, {"repo": "o/b"}, "base-not-confirmed"),
    "a model, parent on disk": ({"base_model_name_or_path": "org/other"}, {}, "base-not-confirmed"),
    "none": ({"base_model_name_or_path": None}, {}, "base-not-confirmed"),
}


def open_with(
    config: dict[str, Any], provenance: dict[str, Any], registry: Registry, folder: Path, scratch: Path
) -> Any:
    version = registry.version("llama")
    origin = {"repo": "org/base", "commit": "b" * 40, **provenance} if provenance else {}
    parent = ParentVersion(dataclasses.replace(version, provenance=origin), lambda: registry.path("llama"))
    return read_adapter(edit_adapter(folder, **config), "adapter", scratch, [parent])


@pytest.mark.parametrize("name", BASES)
def test_the_base_that_the_adapter_names_is_compared(
    name: str, shared: Registry, adapter: Path, tmp_path: Path
) -> None:
    config, provenance, code = BASES[name]
    source = open_with(config, provenance, shared, adapter, tmp_path / "scratch")
    assert [finding.code for finding in source.findings] == ([code] if code else [])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"base_model_name_or_path": "org/other"}, "trained on org/other, and llama@v1 is org/base"),
        (
            {"base_model_name_or_path": "org/base", "revision": "a" * 40},
            "at commit aaaaaaaaaaaa, and llama@v1 is commit",
        ),
    ],
)
def test_another_model_of_the_hub_is_a_contradiction(
    config: dict[str, Any], text: str, shared: Registry, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedSource, match=text) as refused:
        open_with(config, {"repo": "org/base"}, shared, adapter, tmp_path / "scratch")
    assert refused.value.hint and refused.value.fields["parent"] == "llama@v1"


# --- the fields of peft's configs


@pytest.mark.parametrize(("name", "kind"), [("LORA", LORA), ("IA3", IA3)])
def test_every_field_of_peft_s_config_is_declared(name: str, kind: type[peft.PeftConfig]) -> None:
    """So that a new release cannot slip a new meaning in; and what peft itself saves by default is taken."""
    saved = json.loads(json.dumps(kind(target_modules=["q_proj"]).to_dict(), default=list))
    assert set(saved) - {"runtime_config"} == {field.name for field in dataclasses.fields(kind)} - {"runtime_config"}
    used = check_adapter_config(saved)
    assert set(used) == KINDS[name].used
    assert not KINDS[name].used & KINDS[name].neutral and not KINDS[name].used & set(KINDS[name].only)


# --- families


@pytest.mark.parametrize("family", [family.name for family in FAMILIES.values()])
@pytest.mark.filterwarnings("ignore:.* would change what .* computes; it was left out")
def test_adapters_of_every_family(
    family: str, registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Of every linear layer but the head, as most are; experts are parameters to peft, and are left alone."""
    registry.register("base", make_checkpoint(family))
    targets = ["q_proj", "v_proj"] if find_family_by_name(family).experts else "all-linear"
    adapted = make_adapted(family, target_modules=targets, r=4)
    expected = log_probs(adapted)
    done = registry.register("m", save_adapter(tmp_path / "adapter", adapted), parent="base")
    assert done.version is not None and "merge" in done.version.provenance and done.parity is not None
    exact = log_probs(registry.load_hf("m", dtype="float64"))
    effect = difference(exact, log_probs(registry.load_hf("base", dtype="float64")))
    # the adapted network runs in float32 here, in which the merged one is as far from itself in float64
    bound = max(BOUND, 10 * difference(log_probs(registry.load_hf("m")), exact))
    assert difference(exact, expected) <= bound < effect / 10, "or else this could not tell it from the base"
    assert difference(log_probs(registry.load("m", dtype="float64")), exact) <= done.parity.bound
