"""Refusal, field by field: whatever in config.json decides the function is compared with the parent's.

Every case is a real pair of checkpoints. The child is refused with exactly the architecture fields that differ, and
both values; when those are named it is admitted, recorded so, and its conversion passes parity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers.modeling_rope_utils import RopeParameters

from registry import ArchitectureMismatch, Registry, RegistryError
from registry.errors import UnsupportedConfig, WeightsMismatch
from registry.families import BRIDGED_FAMILIES, FAMILIES, find_family_by_name
from registry.families.fields import SHARED
from tests.checkpoints import edit_config
from tests.contents import read_contents

MakeCheckpoint = Callable[..., Path]


@dataclass(frozen=True)
class Case:
    """A child that differs from its parent in `change`, and what that makes of the architecture."""

    family: str
    name: str
    change: dict[str, Any]
    differences: dict[str, tuple[Any, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    legacy: dict[str, Any] = field(default_factory=dict)
    """Keys that only config.json has, as transformers 4 wrote them; `change` says the same to transformers 5."""

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


def rope(kind: str, **factors: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **factors}}


LINEAR = rope("linear", factor=2.0)
LLAMA3_FACTORS = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = rope("llama3", **LLAMA3_FACTORS)
YARN_FACTORS = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 24}
YARN = rope("yarn", **YARN_FACTORS)
MSCALE_FACTORS = {**YARN_FACTORS, "mscale": 1.5, "mscale_all_dim": 1.2}
MSCALE = rope("yarn", **MSCALE_FACTORS)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """0.1·mscale·ln(factor) + 1, as in https://arxiv.org/abs/2309.00071."""
    return 0.1 * mscale * math.log(factor) + 1.0


MSCALE_RATIO = yarn_scale(4.0, 1.5) / yarn_scale(4.0, 1.2)

GPT2_CASES = [
    Case("gpt2", "vocab_size", {"vocab_size": 216}, {"d_vocab": (211, 216), "d_vocab_out": (211, 216)}),
    Case("gpt2", "n_positions", {"n_positions": 128}, {"n_ctx": (96, 128)}),
    Case(
        "gpt2",
        "n_embd",
        {"n_embd": 32},
        {"d_model": (64, 32), "d_head": (16, 8), "d_mlp": (256, 128), "attn_scale": (4.0, math.sqrt(8))},
    ),
    Case("gpt2", "n_layer-more", {"n_layer": 3}, {"n_layers": (2, 3)}),
    Case("gpt2", "n_layer-fewer", {"n_layer": 1}, {"n_layers": (2, 1)}),
    Case(
        "gpt2",
        "n_head",
        {"n_head": 8},
        {"n_heads": (4, 8), "n_key_value_heads": (4, 8), "d_head": (16, 8), "attn_scale": (4.0, math.sqrt(8))},
    ),
    Case("gpt2", "n_inner", {"n_inner": 128}, {"d_mlp": (256, 128)}),
    Case("gpt2", "relu", {"activation_function": "relu"}, {"act_fn": ("gelu_new", "relu")}),
    Case("gpt2", "gelu", {"activation_function": "gelu"}, {"act_fn": ("gelu_new", "gelu")}),
    Case("gpt2", "silu", {"activation_function": "silu"}, {"act_fn": ("gelu_new", "silu")}),
    Case("gpt2", "eps", {"layer_norm_epsilon": 1e-12}, {"eps": (1e-5, 1e-12)}),
    Case("gpt2", "scale_attn_weights", {"scale_attn_weights": False}, {"attn_scale": (4.0, 1.0)}),
    Case(
        "gpt2",
        "scale_attn_by_inverse_layer_idx",
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": (False, True)},
    ),
    Case("gpt2", "untied", {"tie_word_embeddings": False}, {"tie_word_embeddings": (True, False)}),
]

LLAMA_CASES = [
    Case("llama", "vocab_size", {"vocab_size": 216}, {"d_vocab": (211, 216), "d_vocab_out": (211, 216)}),
    Case(
        "llama",
        "hidden_size",
        {"hidden_size": 32},
        {"d_model": (64, 32), "d_head": (16, 8), "attn_scale": (4.0, math.sqrt(8)), "rotary_dim": (16, 8)},
    ),
    Case("llama", "intermediate_size", {"intermediate_size": 80}, {"d_mlp": (112, 80)}),
    Case("llama", "num_hidden_layers", {"num_hidden_layers": 3}, {"n_layers": (2, 3)}),
    Case(
        "llama",
        "num_attention_heads",
        {"num_attention_heads": 8},
        {"n_heads": (4, 8), "d_head": (16, 8), "attn_scale": (4.0, math.sqrt(8)), "rotary_dim": (16, 8)},
    ),
    Case("llama", "multi-query", {"num_key_value_heads": 1}, {"n_key_value_heads": (2, 1)}),
    Case("llama", "multi-head", {"num_key_value_heads": 4}, {"n_key_value_heads": (2, 4)}),
    Case(
        "llama",
        "head_dim",
        {"head_dim": 24},
        {"d_head": (16, 24), "attn_scale": (4.0, math.sqrt(24)), "rotary_dim": (16, 24)},
    ),
    Case("llama", "hidden_act", {"hidden_act": "gelu_pytorch_tanh"}, {"act_fn": ("silu", "gelu_new")}),
    Case("llama", "max_position_embeddings", {"max_position_embeddings": 128}, {"n_ctx": (96, 128)}),
    Case("llama", "eps", {"rms_norm_eps": 1e-5}, {"eps": (1e-6, 1e-5)}),
    Case("llama", "tied", {"tie_word_embeddings": True}, {"tie_word_embeddings": (False, True)}),
    Case(
        "llama",
        "theta",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rotary_base": (1e4, 5e5)},
    ),
    Case(
        "llama",
        "theta-of-transformers-4",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rotary_base": (1e4, 5e5)},
        legacy={"rope_theta": 5e5},
    ),
    Case("llama", "linear", LINEAR, {"rotary_scaling_factor": (1.0, 2.0)}),
    Case(
        "llama",
        "linear-of-transformers-4",
        LINEAR,
        {"rotary_scaling_factor": (1.0, 2.0)},
        legacy={"rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    Case("llama", "linear-factor", rope("linear", factor=3.0), {"rotary_scaling_factor": (2.0, 3.0)}, base=LINEAR),
    Case(
        "llama",
        "llama3",
        LLAMA3,
        {
            "use_NTK_by_parts_rope": (False, True),
            "NTK_by_parts_factor": (None, 8.0),
            "NTK_by_parts_low_freq_factor": (None, 1.0),
            "NTK_by_parts_high_freq_factor": (None, 4.0),
            "NTK_original_ctx_len": (None, 32),
        },
    ),
    Case(
        "llama",
        "yarn",
        YARN,
        {
            "use_yarn_rope": (False, True),
            "yarn_factor": (None, 4.0),
            "yarn_attention_factor": (None, yarn_scale(4.0)),
            "yarn_beta_fast": (None, 32.0),
            "yarn_beta_slow": (None, 1.0),
            "yarn_original_max_position_embeddings": (None, 24),
            "yarn_truncate": (None, True),
            "yarn_global_attn_only": (None, False),
        },
    ),
    Case(
        "llama",
        "linear-to-llama3",
        LLAMA3,
        {
            "rotary_scaling_factor": (2.0, 1.0),
            "use_NTK_by_parts_rope": (False, True),
            "NTK_by_parts_factor": (None, 8.0),
            "NTK_by_parts_low_freq_factor": (None, 1.0),
            "NTK_by_parts_high_freq_factor": (None, 4.0),
            "NTK_original_ctx_len": (None, 32),
        },
        base=LINEAR,
    ),
    *(
        Case("llama", f"llama3-{name}", rope("llama3", **{**LLAMA3_FACTORS, name: after}), differences, base=LLAMA3)
        for name, after, differences in [
            ("factor", 4.0, {"NTK_by_parts_factor": (8.0, 4.0)}),
            ("low_freq_factor", 2.0, {"NTK_by_parts_low_freq_factor": (1.0, 2.0)}),
            ("high_freq_factor", 3.0, {"NTK_by_parts_high_freq_factor": (4.0, 3.0)}),
            ("original_max_position_embeddings", 48, {"NTK_original_ctx_len": (32, 48)}),
            ("rope_theta", 2e4, {"rotary_base": (1e4, 2e4)}),
        ]
    ),
    *(
        Case("llama", f"yarn-{name}", rope("yarn", **{**YARN_FACTORS, name: after}), differences, base=YARN)
        for name, after, differences in [
            (
                "factor",
                2.0,
                {"yarn_factor": (4.0, 2.0), "yarn_attention_factor": (yarn_scale(4.0), yarn_scale(2.0))},
            ),
            ("attention_factor", 1.25, {"yarn_attention_factor": (yarn_scale(4.0), 1.25)}),
            ("beta_fast", 16.0, {"yarn_beta_fast": (32.0, 16.0)}),
            ("beta_slow", 2.0, {"yarn_beta_slow": (1.0, 2.0)}),
            ("original_max_position_embeddings", 48, {"yarn_original_max_position_embeddings": (24, 48)}),
            ("truncate", False, {"yarn_truncate": (True, False)}),
        ]
    ),
    *(
        Case("llama", f"yarn-{name}", rope("yarn", **{**MSCALE_FACTORS, name: 1.0}), differences, base=MSCALE)
        for name, differences in [
            ("mscale", {"yarn_attention_factor": (MSCALE_RATIO, yarn_scale(4.0) / yarn_scale(4.0, 1.2))}),
            ("mscale_all_dim", {"yarn_attention_factor": (MSCALE_RATIO, yarn_scale(4.0, 1.5) / yarn_scale(4.0))}),
        ]
    ),
]
CASES = [*GPT2_CASES, *LLAMA_CASES]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry for all cases, so that a parent need be registered only once."""
    folder = tmp_path_factory.mktemp("refusals")
    registry = Registry(str(folder / "registry.db"), folder / "store")
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def parent_of(shared: Registry, make_checkpoint: MakeCheckpoint) -> Callable[[Case], str]:
    """Return a function that gives the ref of a case's parent, registering it when it is first asked for."""
    names: dict[str, str] = {}

    def get(case: Case) -> str:
        key = f"{case.family} {case.base}"
        if key not in names:
            names[key] = f"base/{case.family}-{len(names)}"
            done = shared.register(names[key], make_checkpoint(case.family, seed=1, **case.base))
            assert done.parity is not None and done.parity.passed
        return names[key]

    return get


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_decides_the_function_is_refused_and_admitted_only_by_name(
    case: Case, shared: Registry, parent_of: Callable[[Case], str], make_checkpoint: MakeCheckpoint
) -> None:
    parent = parent_of(case)
    child = make_checkpoint(case.family, seed=2, **case.base | case.change)
    if case.legacy:
        edit_config(child, rope_parameters=None, **case.legacy)
    name = f"child/{case}".lower()
    before = read_contents(shared)

    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register(name, child, parent=parent)
    found = {one.field: (one.parent, one.checkpoint) for one in refused.value.differences}
    assert found == case.differences
    assert refused.value.fields["differences"] == [one.as_dict() for one in refused.value.differences]
    assert all(f"--allow {field}" in str(refused.value) for field in case.differences)
    assert read_contents(shared) == before

    # where shapes differ, the random weights are others, too
    done = shared.register(name, child, parent=parent, allow=[*case.differences, "unrelated-parent"])
    assert done.outcome == "registered" and done.version is not None
    assert done.parity is not None and done.parity.passed
    edge = done.version.parents[0].admitted_differences
    assert {one["field"]: (one["parent"], one["checkpoint"]) for one in edge} == case.differences


@pytest.mark.parametrize("left_out", ["n_heads", "n_key_value_heads", "d_head", "attn_scale"])
def test_naming_all_but_one_difference_is_not_enough(
    left_out: str, shared: Registry, parent_of: Callable[[Case], str], make_checkpoint: MakeCheckpoint
) -> None:
    case = next(case for case in GPT2_CASES if case.name == "n_head")
    child = make_checkpoint("gpt2", seed=2, **case.change)
    before = read_contents(shared)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("short", child, parent=parent_of(case), allow=[*case.differences.keys() - {left_out}])
    assert [one.field for one in refused.value.differences] == [left_out]
    assert read_contents(shared) == before


def test_every_parent_is_compared(
    shared: Registry, parent_of: Callable[[Case], str], make_checkpoint: MakeCheckpoint
) -> None:
    """A merge of two, of which only one has the child's architecture, names the other."""
    same, other = (parent_of(case) for case in (LLAMA_CASES[0], next(one for one in LLAMA_CASES if one.base)))
    before = read_contents(shared)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("merge", make_checkpoint("llama", seed=3), parent=[same, other])
    assert refused.value.fields["parent"].startswith(other)
    assert [one.field for one in refused.value.differences] == ["rotary_scaling_factor"]
    assert read_contents(shared) == before


def test_another_family_is_refused(
    shared: Registry, parent_of: Callable[[Case], str], make_checkpoint: MakeCheckpoint
) -> None:
    before = read_contents(shared)
    with pytest.raises(ArchitectureMismatch) as refused:
        shared.register("other-family", make_checkpoint("llama", seed=2), parent=parent_of(GPT2_CASES[0]))
    assert {"normalization_type", "positional_embedding_type", "gated_mlp", "rotary_base"} <= {
        one.field for one in refused.value.differences
    }
    assert read_contents(shared) == before


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_used_field_has_a_case(name: str) -> None:
    """A field that one of these learns has a case here; tests/test_mutations.py mutates the fields of all families."""
    family = find_family_by_name(name)
    cases = [case for case in CASES if case.family == family.name]
    covered = {key for case in cases for key in [*case.change, *case.legacy]}
    used = {key for key, rule in family.fields.items() if rule.role == "used"}
    # attention_bias brings tensors that HookedTransformer always has: see tests/test_parents.py
    assert used - {"attention_bias"} <= covered
    # and every field of the architecture that config.json can change, in words for people
    assert {field for case in cases for field in case.differences} - {"yarn_global_attn_only"} <= {*family.config_keys}


def test_biases_that_the_parent_has_not_come_in_when_they_are_admitted(
    shared: Registry, parent_of: Callable[[Case], str], make_checkpoint: MakeCheckpoint
) -> None:
    """HookedTransformer has b_Q, b_K, b_V and b_O always; where config.json is wrong about them, tensors do not fit."""
    folder = make_checkpoint("llama", seed=2, attention_bias=True)
    done = shared.register(
        "biased", folder, parent=parent_of(LLAMA_CASES[0]), allow=["attention_bias", "unrelated-parent"]
    )
    assert done.version is not None and done.parity is not None and done.parity.passed
    assert [one["field"] for one in done.version.parents[0].admitted_differences] == ["attention_bias"]
    network = shared.load("biased", processed=False)
    assert all(bool(bias.any()) for bias in (network.b_Q, network.b_K, network.b_V, network.b_O))
    with pytest.raises(WeightsMismatch, match="8 left over"):
        shared.register("unbiased", edit_config(folder, attention_bias=False))
    with pytest.raises(WeightsMismatch, match="8 missing"):
        shared.register("unbiased", edit_config(make_checkpoint("llama"), attention_bias=True))


def test_every_factor_of_rope_has_a_case_or_is_refused(make_checkpoint: MakeCheckpoint, shared: Registry) -> None:
    """Guard against a transformers that learns a new one."""
    covered = {key for case in LLAMA_CASES for key in case.change.get("rope_parameters", {})}
    for key in {*RopeParameters.__annotations__, "a_factor_nobody_knows"} - covered:
        folder = edit_config(make_checkpoint("llama"), **rope("yarn", **{**YARN_FACTORS, key: 0.5}))
        with pytest.raises(UnsupportedConfig) as refused:
            shared.register("unknown-factor", folder)
        assert refused.value.field == "rope_parameters" and key in refused.value.message


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "proportional", "axial", "", ["linear"], {}, 3])
def test_other_kinds_of_rope_are_refused(kind: object, make_checkpoint: MakeCheckpoint, shared: Registry) -> None:
    folder = edit_config(make_checkpoint("llama"), rope_scaling={"type": kind, "factor": 2.0}, rope_parameters=None)
    before = read_contents(shared)
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("other-rope", folder)
    assert refused.value.field == "rope_scaling"
    assert read_contents(shared) == before


def other_value(value: object) -> object:
    """Give a value that a field may not have beside `value`."""
    others: dict[str, object] = {"bool": not value, "NoneType": {"a": 1}, "int": 64, "float": 0.5, "dict": {"0": [1]}}
    others["list"] = [0]
    return others[type(value).__name__]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("family_name", "key"),
    [
        (family.name, key)
        for family in (*FAMILIES.values(), *BRIDGED_FAMILIES.values())
        for key, rule in {**SHARED, **family.fields}.items()
        if rule.role == "only"
    ],
)
def test_a_field_with_one_legal_value_is_refused_with_another(
    family_name: str, key: str, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    family = find_family_by_name(family_name)
    legal = {**SHARED, **family.fields}[key].default
    before = read_contents(shared)
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("only", edit_config(make_checkpoint(family_name), **{key: other_value(legal)}))
    assert refused.value.code == "unsupported-config"
    assert refused.value.field == refused.value.fields["field"] == key
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling_evil.Evil"}),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantization_config", {}),
        ("is_causal", False),
        ("sliding_window", 8),
        ("layer_types", ["sliding_attention", "full_attention"]),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("embedding_multiplier", 12.0),
        ("qk_norm", None),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_field_that_could_change_the_function_is_refused(
    family: str, key: str, value: object, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Known and other than the one legal value, or not known at all."""
    folder = make_checkpoint(family)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", f'{{"{key}": {json.dumps(value)}, ', 1))
    (folder / "modeling_evil.py").write_text("raise SystemExit('the code of the checkpoint was run')")
    before = read_contents(shared)
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("odd", folder)
    assert refused.value.field == key
    assert read_contents(shared) == before


@pytest.mark.parametrize(
    ("family", "key", "meant"),
    [("gpt2", "n_heads", "n_head"), ("gpt2", "n_layers", "n_layer"), ("llama", "rms_norm_epsilon", "rms_norm_eps")],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(
    family: str, key: str, meant: str, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("misspelt", edit_config(make_checkpoint(family), **{key: 8}))
    assert refused.value.field == key
    assert f"Did you mean {meant}?" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("gpt2", {"n_head": 4, "num_attention_heads": 8}, "num_attention_heads"),
        ("gpt2", {"n_positions": 96, "max_position_embeddings": 128}, "max_position_embeddings"),
        ("llama", {"rope_theta": 5e5}, "rope_theta"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope_parameters"),
    ],
)
def test_two_keys_that_contradict_each_other_are_refused(
    family: str, changes: dict[str, Any], key: str, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("twice", edit_config(make_checkpoint(family), **changes))
    assert refused.value.field == key


@pytest.mark.parametrize("name", ["phi3", "falcon"])
def test_code_of_a_checkpoint_s_own_is_refused_with_what_to_do(
    name: str, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    folder = edit_config(make_checkpoint(name), auto_map={"AutoModelForCausalLM": "modeling.Model"})
    with pytest.raises(UnsupportedConfig) as refused:
        shared.register("own-code", folder)
    class_name = find_family_by_name(name).class_name
    assert f"transformers's own {class_name} (without trust_remote_code), remove auto_map" in str(refused.value.hint)
    assert shared.register("own-code", edit_config(folder, auto_map=None), dry_run=True).parity is not None


NONSENSE = [None, True, "8", "gelu_new", 0, -1, 1.5, 2**70, 1e300, math.inf, [], [4], {}, {"a": 1}]
PLACES = [
    *(
        (name, key, None)
        for name in ("gpt2", "llama")  # tests/test_mutations.py does it for all
        for key, rule in find_family_by_name(name).fields.items()
        if rule.kind
    ),
    *(("llama", "rope_parameters", rope("llama3", **{**LLAMA3_FACTORS, key: ...})) for key in LLAMA3_FACTORS),
    *(("llama", "rope_parameters", rope("yarn", **{**MSCALE_FACTORS, key: ...})) for key in MSCALE_FACTORS),
    *(("llama", "rope_parameters", rope("yarn", **{**YARN_FACTORS, key: ...})) for key in ["truncate", "rope_theta"]),
]


@pytest.mark.parametrize(("family", "key", "around"), PLACES)
def test_no_value_of_a_used_field_gives_an_untyped_error(
    family: str, key: str, around: dict[str, Any] | None, shared: Registry, make_checkpoint: MakeCheckpoint
) -> None:
    """Nonsense is refused; what is let through converts to a network that computes the same."""
    folder = make_checkpoint(family)
    config = json.loads((folder / "config.json").read_text())
    before = read_contents(shared)
    for value in NONSENSE:
        nested = around and {name: value if old is ... else old for name, old in around["rope_parameters"].items()}
        text = json.dumps({**config, key: nested or value}).replace("Infinity", "1e999")
        (folder / "config.json").write_text(text)
        try:
            done = shared.register("nonsense", folder, dry_run=True)
        except RegistryError as error:
            codes = ("unsupported-config", "weights-mismatch", "parity-failure")
            # a number that no float holds is refused as JSON already
            assert error.code in codes or (error.code == "malformed-artifact" and value == math.inf), value
        else:
            assert done.parity is not None and done.parity.passed, value
    assert read_contents(shared) == before
