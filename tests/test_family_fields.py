"""Families know every field of transformers, so that a new release cannot slip a new meaning in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import ApertusConfig, Gemma3TextConfig, GenerationConfig, LlamaConfig, PreTrainedConfig

from registry.families import BRIDGED_FAMILIES, FAMILIES, apertus, find_family_by_name, gemma3
from registry.families.family import Family
from registry.families.fields import SHARED
from registry.families.rope import DEFAULT_THETA
from registry.networks import make_config
from tests.checkpoints import edit_config, make_network
from tests.config_grid import (
    GRID,
)
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]

NAMES = [family.name for family in [*FAMILIES.values(), *BRIDGED_FAMILIES.values()]]


def config_class(family: Family) -> type[PreTrainedConfig]:
    found: type[PreTrainedConfig] = getattr(transformers, family.config_class_name)
    return found


def declared(family: Family) -> set[str]:
    return {*SHARED, *family.fields, *family.spellings}


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_config_class_is_declared(name: str) -> None:
    family = find_family_by_name(name)
    fields = {field.name for field in dataclasses.fields(config_class(family))}
    assert {field.name for field in dataclasses.fields(PreTrainedConfig)} <= fields
    assert fields <= declared(family)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_transformers_writes_is_declared(name: str, tmp_path: Path) -> None:
    family = find_family_by_name(name)
    config = config_class(family)()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {*written, *config.to_dict(), *config.to_diff_dict()} <= declared(family)
    # older releases wrote how to sample into config.json
    assert {*GenerationConfig._get_default_generation_params()} <= declared(family)


KEYWORDS = {
    "bloom": {"n_embed", "seq_length"},
    "gpt_neo": {"attention_layers"},
    "gpt_neox": {"partial_rotary_factor", "rotary_emb_base", "rotary_pct"},
    "mamba": {"intermediate_size", "d_model", "n_layer", "d_inner"},
    "phi": {"partial_rotary_factor"},
    "phi3": {"partial_rotary_factor"},
    "qwen3_moe": {"num_local_experts"},  # there it is num_experts, and written so
    "stablelm": {"partial_rotary_factor"},
}
# transformers does not read it in Falcon's newer kind; transformer-lens does
REWRITTEN = {"falcon": {"multi_query"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_is_left_out_means_what_it_means_to_transformers(name: str) -> None:
    family = find_family_by_name(name)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class(family))}
    ours = {key: rule.default for key, rule in family.fields.items() if rule.role == "used" and key in defaults}
    assert ours == {key: defaults[key] for key in ours}
    # what is no field of transformers any more, it takes among its keyword arguments, or does not read at all
    rest = {key for key, rule in family.fields.items() if rule.role == "used"} - set(defaults)
    assert rest <= KEYWORDS.get(name, set()) | {
        "rope_scaling",
        "rope_theta",
        "rope_local_base_freq",
        "sliding_window_pattern",
    } | {
        # each family of these reads the other's name for its activation; a network may read what its config lacks
        "hidden_act",
        "hidden_activation",
        "head_dim",
    }
    assert LlamaConfig.default_theta == DEFAULT_THETA
    assert ApertusConfig.default_theta == apertus.DEFAULT_THETA
    assert Gemma3TextConfig.default_theta == {"global": gemma3.FULL_THETA, "local": gemma3.SLIDING_THETA}
    assert Gemma3TextConfig()._sliding_window_pattern == gemma3.SLIDING_WINDOW_PATTERN


@pytest.mark.parametrize("name", NAMES)
def test_a_field_with_one_legal_value_has_it_in_transformers(name: str) -> None:
    """Or transformers does not have the field at all, and what it does is what the value says."""
    family = find_family_by_name(name)
    defaults = config_class(family)().to_dict()
    for key, rule in {**SHARED, **family.fields}.items():
        if rule.role == "only" and key in defaults:
            assert defaults[key] == rule.default, key


@pytest.mark.parametrize("name", NAMES)
def test_other_spellings_are_those_of_transformers(name: str) -> None:
    family = find_family_by_name(name)
    assert dict(family.spellings) == config_class(family).attribute_map


@pytest.mark.parametrize("name", NAMES)
def test_the_rebuilt_config_is_the_one_that_was_read(name: str, make_checkpoint: MakeCheckpoint) -> None:
    """Only checked values go into it; whatever else config.json says stays outside."""
    folder = edit_config(make_checkpoint(name), _attn_implementation_internal="evil/kernel", use_cache=False)
    opened = read_checkpoint(folder)
    rebuilt = make_config(opened.family, opened.values).to_dict()
    original = config_class(opened.family).from_pretrained(folder).to_dict()
    used = {key for key, rule in opened.family.fields.items() if rule.role == "used"} & set(original)
    used -= REWRITTEN.get(name, set())
    assert {key: rebuilt[key] for key in used} == {key: original[key] for key in used}
    assert rebuilt["use_cache"] is True
    assert "evil" not in json.dumps(rebuilt)


OTHER_VALUES: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel", "Other"],
    "transformers_version": "4.2.0",
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
    "problem_type": "regression",
    "summary_type": "mean",
    "summary_activation": "tanh",
    "bos_token_id": 5,
    "eos_token_id": [5, 6],
    "pad_token_id": 5,
    "tie_last_hidden_states": False,
}
# dtype says in which numbers the weights were kept, and the files say so themselves; label2id follows id2label; and
# without return_dict, transformers 5.23 cannot run a Llama; Qwen2MoeConfig makes sliding_window 0 whatever it is given
NOT_TRIED = {"dtype", "label2id", "return_dict", "sliding_window"}


def change_value(now: Any) -> Any:
    return not now if isinstance(now, bool) else 2 * now or 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_neutral_field_changes_nothing_that_transformers_computes(name: str) -> None:
    """Whoever declares a field neutral that is not will hear of it here."""
    family = find_family_by_name(name)
    source = make_network(name, seed=6)
    tokens = torch.arange(30)[None]
    defaults = {field.name: getattr(source.config, field.name) for field in dataclasses.fields(config_class(family))}
    rules = {**SHARED, **family.fields}
    neutral = {key for key in defaults if key in rules and rules[key].role == "neutral"} - NOT_TRIED
    assert len(neutral) > 10
    with torch.inference_mode():
        expected = source(tokens).logits
        for key in sorted(neutral):
            now = defaults[key]
            other = OTHER_VALUES[key] if key in OTHER_VALUES else change_value(now)
            changed = make_network(name, seed=6, **{key: other})
            assert getattr(changed.config, key) != now, key
            assert torch.allclose(changed(tokens).logits, expected, atol=1e-4), key


def test_what_the_converters_drop_is_never_neutral() -> None:
    """Transformer-lens converts these away without a word (HAZARDS.md §2.1)."""
    dropped = {"attention_bias", "mlp_bias", "partial_rotary_factor", "rope_interleaved", "add_cross_attention"}
    dropped |= {"auto_map", "quantization_config", "pruned_heads", "per_layer_config", "is_encoder_decoder"}
    for family in FAMILIES.values():
        rules = {**SHARED, **family.fields}
        for key in dropped & set(rules):
            assert rules[key].role in ("only", "used"), key
            # what the converter drops, and the family puts back, has its parity measured
            configs = [
                {**config, **(config.get("rope_parameters") or {})} for name, config in GRID if name == family.name
            ]
            measured = [config[key] != rules[key].default for config in configs if key in config]
            assert rules[key].role == "only" or any(measured), (family.name, key)
    assert dropped <= {*SHARED, *(key for family in FAMILIES.values() for key in family.fields)}
