"""The canonical architecture: its fingerprint, its differences, and what --allow admits."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import HookedTransformerConfig

from registry.architecture import (
    ALWAYS,
    CONDITIONAL,
    FIELDS,
    Architecture,
    check_allowed,
    describe_architecture,
    find_differences,
    refuse_differences,
)
from registry.errors import ArchitectureMismatch, UnknownField

MINIMAL: dict[str, Any] = {
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "d_head": 16,
    "d_mlp": 256,
    "d_vocab": 211,
    "n_ctx": 96,
    "act_fn": "gelu_new",
    "normalization_type": "LN",
    "eps": 1e-5,
    "positional_embedding_type": "standard",
    "tie_word_embeddings": False,
}
# every condition holds, so that every field counts
MAXIMAL: dict[str, Any] = MINIMAL | {
    "positional_embedding_type": "rotary",
    "rotary_base": 10000.0,
    "use_local_attn": True,
    "window_size": 8,
    "attn_types": ["local", "global"],
    "use_NTK_by_parts_rope": True,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_factor": 8.0,
    "NTK_original_ctx_len": 32,
    "use_yarn_rope": True,
    "yarn_factor": 4.0,
    "yarn_attention_factor": 1.1,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_original_max_position_embeddings": 32,
    "use_logn_attn": True,
    "use_dynamic_ntk_rope": True,
    "train_seq_length": 64,
    "num_experts": 4,
    "experts_per_token": 2,
}

CHANGES: dict[str, Any] = {
    "d_model": 128, "n_layers": 3, "n_heads": 8, "n_key_value_heads": 2, "d_head": 8, "d_mlp": 128, "d_vocab": 212,
    "d_vocab_out": 1, "n_ctx": 97, "act_fn": "relu", "normalization_type": "RMS", "eps": 1e-6, "attn_scale": 1.0,
    "tie_word_embeddings": True, "attention_dir": "bidirectional", "clip_qkv": 8.0, "attn_scores_soft_cap": 50.0,
    "output_logits_soft_cap": 30.0, "num_experts": 8, "block_variant": "olmo2", "window_size": 9,
    "attn_types": ["global", "local"], "rotary_dim": 8, "rotary_base": 5e5, "rotary_base_local": 10000.0,
    "rotary_scaling_factor": 2.0, "NTK_by_parts_low_freq_factor": 2.0, "NTK_by_parts_high_freq_factor": 3.0,
    "NTK_by_parts_factor": 4.0, "NTK_original_ctx_len": 48, "yarn_factor": 2.0, "yarn_attention_factor": 1.2,
    "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_original_max_position_embeddings": 48,
    "yarn_truncate": False, "train_seq_length": 65, "experts_per_token": 1,
}  # fmt: skip
FLAGS = sorted(name for name in FIELDS - set(CHANGES) if name != "positional_embedding_type")
# what a field's value is made of when it is not given
DERIVED = {
    "n_heads": {"n_key_value_heads"},
    "d_head": {"attn_scale", "rotary_dim"},
    "d_vocab": {"d_vocab_out"},
}
CONDITIONS = {
    "use_local_attn": {"window_size", "attn_types"},
    "use_NTK_by_parts_rope": {name for name in FIELDS if name.startswith("NTK_")},
    "use_yarn_rope": {name for name in FIELDS if name.startswith("yarn_")},
}

sizes = st.integers(1, 2**20)
numbers = st.floats(1e-12, 1e9)
fields = st.fixed_dictionaries(
    {
        **dict.fromkeys(["d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx"], sizes),
        "act_fn": st.sampled_from(["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"]),
        "normalization_type": st.sampled_from(["LN", "RMS"]),
        "eps": numbers,
        "positional_embedding_type": st.sampled_from(["standard", "rotary"]),
        "tie_word_embeddings": st.booleans(),
        "rotary_base": numbers,
        "train_seq_length": sizes,
    },
    optional={
        "attn_scale": numbers,
        "n_key_value_heads": sizes,
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "rotary_scaling_factor": numbers,
        "rotary_adjacent_pairs": st.booleans(),
        "use_dynamic_ntk_rope": st.booleans(),
        "use_logn_attn": st.booleans(),
        "output_logits_soft_cap": numbers,
        "gated_mlp": st.booleans(),
    },
)


@settings(deadline=None)
@given(fields, st.randoms(use_true_random=False))
def test_the_fingerprint_does_not_depend_on_the_order_in_which_fields_are_given(
    given_fields: dict[str, Any], chance: Any
) -> None:
    shuffled = list(given_fields.items())
    chance.shuffle(shuffled)
    one, other = describe_architecture(**given_fields), describe_architecture(**dict(shuffled))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint == Architecture(dict(reversed(one.fields.items()))).fingerprint
    assert len(one.fingerprint) == 64 and int(one.fingerprint, 16) >= 0


@settings(deadline=None)
@given(fields)
def test_an_architecture_survives_json(given_fields: dict[str, Any]) -> None:
    """It is kept as JSON in the database, and must come back as the same."""
    architecture = describe_architecture(**given_fields)
    again = Architecture(json.loads(json.dumps(dict(architecture.fields))))
    assert again == architecture
    assert again.fingerprint == architecture.fingerprint
    assert find_differences(architecture, again) == ()


@settings(deadline=None)
@given(fields, fields)
def test_fingerprints_are_equal_exactly_when_nothing_differs(one: dict[str, Any], other: dict[str, Any]) -> None:
    parent, child = describe_architecture(**one), describe_architecture(**other)
    there, back = find_differences(parent, child), find_differences(child, parent)
    assert (parent.fingerprint == child.fingerprint) is (there == ())
    assert [(d.field, d.parent, d.checkpoint) for d in there] == [(d.field, d.checkpoint, d.parent) for d in back]
    assert all(d.parent == parent.get(d.field) != child.get(d.field) == d.checkpoint for d in there)


@pytest.mark.parametrize("name", [*CHANGES, *FLAGS])
def test_every_field_changes_the_fingerprint_and_is_named(name: str) -> None:
    parent = describe_architecture(**MAXIMAL)
    child = describe_architecture(**MAXIMAL | {name: CHANGES[name] if name in CHANGES else not parent[name]})
    assert child.fingerprint != parent.fingerprint
    named = {difference.field for difference in find_differences(parent, child)}
    gone = CONDITIONS.get(name, set())
    assert named == {name} | DERIVED.get(name, set()) | gone
    assert all(child.get(one) is None for one in gone)


def test_these_tests_know_every_field() -> None:
    assert {*CHANGES, *FLAGS, "positional_embedding_type"} == FIELDS
    assert set(describe_architecture(**MAXIMAL).fields) == FIELDS


def test_the_fields_and_their_defaults_are_those_of_transformer_lens() -> None:
    """`block_variant` is the one that HookedTransformerConfig does not have: it looks at the class name there."""
    theirs = {field.name: field.default for field in dataclasses.fields(HookedTransformerConfig)}
    assert FIELDS - set(theirs) == {"block_variant"}
    ours = {name: value for names in (ALWAYS, *(names for _, _, names in CONDITIONAL)) for name, value in names.items()}
    given_by_default = {name: value for name, value in ours.items() if value is not ... and name in theirs}
    assert given_by_default == {name: theirs[name] for name in given_by_default}


def test_what_is_not_given_is_derived() -> None:
    architecture = describe_architecture(**MINIMAL | {"positional_embedding_type": "rotary", "rotary_base": 1e4})
    assert architecture["n_key_value_heads"] == 4
    assert architecture["d_vocab_out"] == 211
    assert architecture["attn_scale"] == math.sqrt(16)
    assert architecture["rotary_dim"] == 16


@pytest.mark.parametrize(
    ("condition", "idle"),
    [
        ({}, {"rotary_base": 5e5, "rotary_scaling_factor": 2.0, "rotary_adjacent_pairs": True, "use_yarn_rope": True}),
        ({}, {"window_size": 8, "attn_types": ["local"], "train_seq_length": 64}),
        ({}, {"experts_per_token": 2, "norm_topk_prob": True, "yarn_factor": 4.0}),
        ({"positional_embedding_type": "rotary", "rotary_base": 1e4}, {"yarn_factor": 4.0, "NTK_by_parts_factor": 8.0}),
        ({"positional_embedding_type": "alibi"}, {"rotary_base": 5e5}),
    ],
)
def test_a_field_whose_condition_does_not_hold_is_left_out(condition: dict[str, Any], idle: dict[str, Any]) -> None:
    plain = describe_architecture(**MINIMAL | condition)
    assert describe_architecture(**MINIMAL | condition | idle).fingerprint == plain.fingerprint
    assert not set(idle) - {"rotary_scaling_factor", "rotary_adjacent_pairs", "use_yarn_rope"} & set(plain.fields)


@pytest.mark.parametrize("same", ["gelu_fast", "gelu_pytorch_tanh", "gelu_new"])
def test_activations_that_compute_the_same_are_one(same: str) -> None:
    assert describe_architecture(**MINIMAL | {"act_fn": same}) == describe_architecture(**MINIMAL)


@pytest.mark.parametrize("other", ["gelu", "relu", "silu"])
def test_activations_that_do_not_are_not(other: str) -> None:
    assert (
        describe_architecture(**MINIMAL | {"act_fn": other}).fingerprint != describe_architecture(**MINIMAL).fingerprint
    )


@pytest.mark.parametrize(
    ("given_fields", "message"),
    [
        (MINIMAL | {"d_modle": 64}, "d_modle"),
        ({name: value for name, value in MINIMAL.items() if name != "eps"}, "needs eps"),
        (MINIMAL | {"positional_embedding_type": "rotary"}, "needs rotary_base"),
        (MINIMAL | {"use_local_attn": True}, "needs window_size"),
        (MINIMAL | {"num_experts": 4}, "needs experts_per_token"),
    ],
)
def test_a_family_that_says_too_little_or_too_much_is_a_fault(given_fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe_architecture(**given_fields)


def test_nan_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = describe_architecture(**MINIMAL | {"eps": math.nan}).fingerprint


def test_differences_come_with_the_key_of_config_json() -> None:
    parent, child = describe_architecture(**MINIMAL), describe_architecture(**MINIMAL | {"eps": 1e-6})
    (difference,) = find_differences(parent, child, {"eps": "layer_norm_epsilon"})
    assert difference.as_dict() == {
        "field": "eps",
        "config_key": "layer_norm_epsilon",
        "parent": 1e-5,
        "checkpoint": 1e-6,
    }


# --- --allow


def test_fields_can_be_allowed_by_name() -> None:
    assert check_allowed(["d_vocab", "n_ctx", "d_vocab"]) == {"d_vocab", "n_ctx"}
    assert check_allowed(FIELDS) == FIELDS
    assert check_allowed([]) == frozenset()


@pytest.mark.parametrize(
    ("name", "meant"), [("d_vocb", "d_vocab"), ("epsilon", "eps"), ("n_head", "n_heads"), ("rotarybase", "rotary_base")]
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(UnknownField) as refused:
        check_allowed(["n_ctx", name])
    assert refused.value.code == "unknown-field"
    assert refused.value.fields["name"] == name
    assert meant in refused.value.fields["candidates"]
    assert f"Did you mean {refused.value.fields['candidates'][0]}?" == refused.value.hint


def test_a_field_like_no_other_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownField) as refused:
        check_allowed(["*"])
    assert all(name in str(refused.value.hint) for name in FIELDS)


ROTARY = MINIMAL | {"positional_embedding_type": "rotary", "rotary_base": 1e4}
YARN = {name: value for name, value in MAXIMAL.items() if "yarn" in name}


@pytest.mark.parametrize(
    ("before", "after", "allow", "refused"),
    [
        (MINIMAL, MINIMAL, [], []),
        (MINIMAL, MINIMAL, ["eps"], []),
        (MINIMAL, MINIMAL | {"eps": 1e-6, "n_ctx": 128}, [], ["n_ctx", "eps"]),
        (MINIMAL, MINIMAL | {"eps": 1e-6, "n_ctx": 128}, ["eps"], ["n_ctx"]),
        (MINIMAL, MINIMAL | {"eps": 1e-6, "n_ctx": 128}, ["eps", "n_ctx"], []),
        # what says the same again follows
        (MINIMAL, MINIMAL | {"d_vocab": 216}, ["d_vocab"], []),
        (MINIMAL, MINIMAL | {"d_vocab": 216}, ["d_vocab_out"], ["d_vocab"]),
        (MINIMAL, MINIMAL | {"d_vocab_out": 216}, ["d_vocab"], ["d_vocab_out"]),
        # and so do the factors of a rope scaling that comes or goes, but not those of one that stays
        (ROTARY, ROTARY | YARN, ["use_yarn_rope"], []),
        (ROTARY | YARN, ROTARY, ["use_yarn_rope"], []),
        (
            ROTARY,
            ROTARY | YARN,
            ["yarn_factor"],
            ["use_yarn_rope", *sorted({*CONDITIONS["use_yarn_rope"]} - {"yarn_factor"})],
        ),
        (ROTARY | YARN, ROTARY | YARN | {"yarn_factor": 8.0}, ["use_yarn_rope"], ["yarn_factor"]),
        (ROTARY | YARN, ROTARY | YARN | {"rotary_base": 5e5}, ["use_yarn_rope"], ["rotary_base"]),
        (MINIMAL, MINIMAL | {"num_experts": 4, "experts_per_token": 2}, ["num_experts"], []),
        # a kind of position embedding says too much to be admitted with all that follows
        (MINIMAL, ROTARY, ["positional_embedding_type", "rotary_dim"], None),
    ],
)
def test_only_what_is_named_is_admitted(
    before: dict[str, Any], after: dict[str, Any], allow: list[str], refused: list[str] | None
) -> None:
    differences = find_differences(describe_architecture(**before), describe_architecture(**after))
    if refused == []:
        assert refuse_differences("base@v1", "runs/x", differences, check_allowed(allow)) == differences
        return
    with pytest.raises(ArchitectureMismatch) as mismatch:
        refuse_differences("base@v1", "runs/x", differences, check_allowed(allow))
    names = [difference.field for difference in mismatch.value.differences]
    assert "rotary_base" in names if refused is None else names == refused
    assert str(mismatch.value.hint).endswith(" ".join(f"--allow {name}" for name in names))
    assert mismatch.value.fields["parent"] == "base@v1" and mismatch.value.fields["source"] == "runs/x"
