"""The config of a HookedTransformer: every field counts, is neutral or is refused; and `hooked_config.json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformer_lens import HookedTransformerConfig

from registry import ArchitectureMismatch, Registry, RegistryError, save_network
from registry.architecture import FIELDS
from registry.errors import MalformedArtifact, UnsupportedConfig, WeightsMismatch
from registry.hooked_config import KNOWN, NEUTRAL, ONLY, describe_hooked_config
from tests.networks import CUSTOM, make_hooked

FAMILIES = ["gpt2", "llama"]


def test_every_field_of_the_config_is_declared() -> None:
    theirs = {field.name for field in dataclasses.fields(HookedTransformerConfig)}
    assert theirs == KNOWN
    groups = [FIELDS - {"block_variant"}, set(ONLY), {"use_attn_scale", "original_architecture"}, *NEUTRAL.values()]
    assert sum(map(len, groups)) == len(theirs) == 87


OTHER_VALUES: dict[str, Any] = {
    "act_fn": "relu", "attention_dir": "bidirectional", "normalization_type": "RMS",
    "positional_embedding_type": "standard", "attn_types": ["local", "local"],
    "original_architecture": "Olmo3ForCausalLM",
    "clip_qkv": 3.0, "num_experts": 8, "rotary_base_local": 77.0, "attn_scores_soft_cap": 9.0,
    "output_logits_soft_cap": 9.0, "n_key_value_heads": 1, "d_vocab_out": 99,
}  # fmt: skip
FULL: dict[str, Any] = {
    **CUSTOM, "n_key_value_heads": 2, "positional_embedding_type": "rotary", "use_local_attn": True, "window_size": 5,
    "attn_types": ["global", "local"], "num_experts": 4, "experts_per_token": 2, "use_yarn_rope": True,
    "use_NTK_by_parts_rope": True, "use_logn_attn": True, "use_dynamic_ntk_rope": True, "train_seq_length": 16,
    "rotary_base_local": 10.0, "rotary_dim": 8,
}  # fmt: skip


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_field_of_the_config_is_seen_neutral_or_refused(name: str) -> None:
    cfg = HookedTransformerConfig(**FULL)
    before = describe_hooked_config(cfg)
    value = getattr(cfg, name)
    if name in OTHER_VALUES:
        other = OTHER_VALUES[name]
    elif isinstance(value, bool):
        other = not value
    else:
        other = value + 1 if isinstance(value, (int, float)) else "something"
    cfg = dataclasses.replace(cfg)
    setattr(cfg, name, other)
    if name in ONLY:
        with pytest.raises(UnsupportedConfig) as refused:
            describe_hooked_config(cfg)
        assert refused.value.field == name
    elif any(name in names for names in NEUTRAL.values()):
        assert describe_hooked_config(cfg) == before
    elif name == "n_heads":  # 5 heads have no 2 groups
        with pytest.raises(UnsupportedConfig, match="n_key_value_heads"):
            describe_hooked_config(cfg)
    elif name == "use_normalization_before_and_after":  # not for LayerNorm
        with pytest.raises(UnsupportedConfig, match=name):
            describe_hooked_config(cfg)
    elif name == "n_layers":
        with pytest.raises(UnsupportedConfig, match="attn_types"):
            describe_hooked_config(cfg)
    else:
        assert describe_hooked_config(cfg).fingerprint != before.fingerprint


def test_a_config_that_transformer_lens_made_has_its_familys_architecture(families: Registry) -> None:
    """The way from cfg to architecture is the way back from architecture to cfg."""
    for family in FAMILIES:
        for processed in (True, False):
            cfg = families.load(family, processed=processed).cfg
            assert describe_hooked_config(cfg).fingerprint == families.version(family).fingerprint


# --- hooked_config.json ----------------------------------------------------------------------------------------


def break_config(folder: Path, **changes: Any) -> None:
    path = folder / "hooked_config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        target = config if name in config else config["architecture"]
        if value is ...:
            target.pop(name)
        else:
            target[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"format": "other"}, Exception, "architectures"),
        ({"format_version": 2}, MalformedArtifact, "version 2"),
        ({"processing": ["fold_ln"]}, MalformedArtifact, "says that the weights have gone through fold_ln"),
        ({"processing": ["melted"]}, MalformedArtifact, "melted"),
        ({"processing": None}, MalformedArtifact, "processing"),
        ({"family": 3}, MalformedArtifact, "family"),
        ({"default_prepend_bos": "yes"}, MalformedArtifact, "default_prepend_bos"),
        ({"architecture": []}, MalformedArtifact, "architecture"),
        ({"versions": ...}, MalformedArtifact, "versions"),
        ({"eps": ...}, UnsupportedConfig, "eps"),
        ({"n_heads": "4"}, UnsupportedConfig, "n_heads"),
        ({"n_heads": 3}, UnsupportedConfig, "n_key_value_heads"),
        ({"act_fn": "tanh"}, UnsupportedConfig, "tanh"),
        ({"attn_scale": 0}, UnsupportedConfig, "attn_scale"),
        ({"n_layers": 10**9}, WeightsMismatch, "1,000,000,000 layers"),
        ({"n_layers": 3}, WeightsMismatch, "missing"),
        ({"d_model": 10**12}, RegistryError, None),
        ({"positional_embedding_type": "rotary"}, UnsupportedConfig, "rotary"),
        ({"act_fn": "gelu_fast"}, MalformedArtifact, "canonical"),
        ({"eps": 1e400}, RegistryError, None),
    ],
    ids=str,
)
def test_a_hooked_config_that_makes_no_sense_is_refused(
    registry: Registry, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str | None
) -> None:
    folder = save_network(make_hooked(), tmp_path / "saved")
    break_config(folder, **changes)
    with pytest.raises(RegistryError, match=text) as refused:
        registry.register("mine", folder)
    assert isinstance(refused.value, error)
    assert registry.models() == []


def test_an_edited_folder_is_another_architecture_to_its_parent(families: Registry, tmp_path: Path) -> None:
    folder = save_network(make_hooked(), tmp_path / "saved")
    break_config(folder, eps=0.1)
    with pytest.raises(ArchitectureMismatch) as refused:
        families.register("edited", folder, parent="custom")
    assert [one.field for one in refused.value.differences] == ["eps"]
