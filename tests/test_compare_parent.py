"""A child has its parent's parameters, also those that leave no trace in the architecture: biases, mostly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry import ArchitectureMismatch, Registry
from registry.architecture import FIELDS, PARAMETER_FIELDS
from registry.errors import UnsupportedConfig, WeightsMismatch
from registry.families import FAMILIES
from registry.families.family import Family, check_config
from registry.networks import make_empty_network
from registry.sources.json_file import read_json_object
from tests.adapters import make_adapted, save_adapter
from tests.checkpoints import edit_config
from tests.hub_server import FakeHub

MakeCheckpoint = Callable[..., Path]


def list_tensors(family: Family, values: dict[str, Any]) -> set[str]:
    return set(make_empty_network(family, values, 10**6).state_dict())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_switch_that_adds_tensors_is_in_the_architecture_or_compared_by_itself(
    family: Family, make_checkpoint: MakeCheckpoint
) -> None:
    """Every field that is true or false, turned round: other tensors with the same fingerprint must not go unseen."""
    values = check_config(family, read_json_object(make_checkpoint(family.name, tokenizer=False) / "config.json"))
    switches = [name for name, rule in family.fields.items() if rule.role == "used" and rule.kind is bool]
    unseen = set()
    for name in switches:
        turned = values | {name: not values[name]}
        try:
            same = family.describe(turned).fingerprint == family.describe(values).fingerprint
        except UnsupportedConfig:
            continue
        if same and list_tensors(family, turned) != list_tensors(family, values):
            unseen.add(name)
    assert unseen == set(PARAMETER_FIELDS) & set(switches)
    assert not set(PARAMETER_FIELDS) & FIELDS


CASES = [
    ("llama", "attention_bias", False),
    ("qwen3", "attention_bias", False),
    ("gpt_neox", "attention_bias", True),
    ("opt", "enable_bias", True),
    ("opt", "layer_norm_elementwise_affine", True),
]


@pytest.mark.parametrize(("family", "field", "value"), CASES)
def test_a_child_with_other_biases_than_its_parent_is_refused(
    family: str, field: str, value: bool, registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """The architecture is the same in every canonical field, and so is the fingerprint."""
    registry.register("base", make_checkpoint(family, **{field: value}), parity="skip")
    child = make_checkpoint(family, seed=1, **{field: not value})
    alone = registry.register("alone", child, parity="skip")
    assert alone.architecture.fingerprint == registry.version("base").fingerprint
    with pytest.raises(ArchitectureMismatch) as refused:
        registry.register("child", child, parent="base")
    (found,) = refused.value.differences
    assert (found.field, found.config_key, found.parent, found.checkpoint) == (field, field, value, not value)
    assert f"--allow {field}" in str(refused.value.hint)
    assert isinstance(registry.check(child, parent="base").fault, ArchitectureMismatch)
    admitted = registry.register("child", child, parent="base", allow=[field, "unrelated-parent"], parity="skip")
    assert [one.field for one in admitted.admitted_differences] == [field]
    (parent,) = registry.version("child").parents
    assert parent.admitted_differences[0]["field"] == field
    same = registry.register("same", make_checkpoint(family, seed=2, **{field: value}), parent="base", parity="skip")
    assert same.admitted_differences == ()


def test_a_parent_of_another_family_has_as_many_parameters(registry: Registry, make_checkpoint: MakeCheckpoint) -> None:
    """Qwen2 has biases on Q, K and V, and no field says so; otherwise it is Llama."""
    same = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    registry.register("base", make_checkpoint("llama", **same), parity="skip")
    child = make_checkpoint("qwen2", **same)
    alone = registry.register("alone", child, parity="skip")
    assert alone.architecture.fingerprint == registry.version("base").fingerprint
    with pytest.raises(ArchitectureMismatch) as refused:
        registry.register("child", child, parent="base")
    (found,) = refused.value.differences
    more = 2 * (4 + 2 + 2) * 16  # 2 layers; 4 heads with queries, 2 with keys and values; d_head 16
    assert (found.field, found.checkpoint - found.parent) == ("n_parameters", more)
    done = registry.register("child", child, parent="base", allow=["n_parameters", "unrelated-parent"], parity="skip")
    assert [one.field for one in done.admitted_differences] == ["n_parameters"]
    registry.register("mistral", make_checkpoint("mistral", sliding_window=None, **same), parent="base", parity="skip")


def test_a_parent_that_was_left_on_the_hub_is_compared_without_fetching_it(
    registry: Registry, hub: FakeHub, make_checkpoint: MakeCheckpoint
) -> None:
    hub.push("org/base", make_checkpoint("llama"))
    registry.register("base", "org/base", lazy=True)
    before = hub.fetched("model.safetensors")
    with pytest.raises(ArchitectureMismatch):
        registry.register("child", make_checkpoint("llama", attention_bias=True), parent="base")
    assert registry.register("same", make_checkpoint("llama", seed=1), parent="base", parity="skip").version
    assert hub.fetched("model.safetensors") == before


def test_a_network_in_memory_has_every_bias_and_may_train_it(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint("llama"))
    network = registry.load("base")
    with torch.no_grad():
        network.blocks[0].attn.b_Q += 0.1
    done = registry.register_network("trained", network, parent="base", parity="skip")
    assert done.admitted_differences == () and done.outcome == "registered"


def test_a_config_beside_an_adapter_with_other_biases_is_refused(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    base = make_checkpoint("llama")
    registry.register("base", base, parity="skip")
    adapter = save_adapter(tmp_path / "adapter", make_adapted("llama", target_modules=["q_proj"]))
    shutil.copy(base / "config.json", adapter)
    edit_config(adapter, attention_bias=True)
    with pytest.raises(ArchitectureMismatch, match=r"config\.json beside the adapter") as refused:
        registry.register("m", adapter, parent="base")
    assert [one.field for one in refused.value.differences] == ["attention_bias"]


def test_missing_tensors_are_called_missing_and_no_difference(
    registry: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    registry.register("base", make_checkpoint("llama"), parity="skip")
    child = make_checkpoint("llama", seed=1)
    tensors = load_file(child / "model.safetensors")
    tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, child / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMismatch, match="1 missing"):
        registry.register("child", child, parent="base")
