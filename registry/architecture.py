"""The canonical architecture: all but the weights that decides the computed function; its fingerprint, its differences.

The fields are `HookedTransformerConfig`'s, in the words of transformer-lens 3.9. Of its 87 fields these are kept that
change the computed function (found by changing each one over 15 families: HAZARDS.md §3). What only matters under a
condition (`rotary_base` without rotary embeddings, `window_size` without local attention) is left out when the
condition does not hold, so that equal functions have equal fingerprints.

Of a network that no HookedTransformer can be, those words say some of it only. Its architecture names its family, and
has all else that decides the function in the words of that family's own config.json, as `config.NAME`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from registry.errors import ArchitectureMismatch, UnknownField
from registry.refs import find_similar

_ABSENT = None

# field -> the value that stands when a family does not say (HookedTransformerConfig's own default)
ALWAYS: dict[str, Any] = {
    "d_model": ...,
    "n_layers": ...,
    "n_heads": ...,
    "n_key_value_heads": ...,
    "d_head": ...,
    "d_mlp": ...,
    "d_vocab": ...,
    "d_vocab_out": ...,
    "n_ctx": ...,
    "act_fn": ...,
    "normalization_type": ...,
    "eps": ...,
    "positional_embedding_type": ...,
    "tie_word_embeddings": ...,
    "attn_scale": ...,
    "scale_attn_by_inverse_layer_idx": False,
    "attention_dir": "causal",
    "attn_only": False,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "final_rms": False,
    "post_embedding_ln": False,
    "use_qk_norm": False,
    "use_attention_sinks": False,
    "use_normalization_before_and_after": False,
    "use_local_attn": False,
    "use_logn_attn": False,
    "clip_qkv": None,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "num_experts": None,
    "block_variant": None,
}

# (condition on the fields, the fields that count only then, with their defaults)
CONDITIONAL: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("use_local_attn", True, {"window_size": ..., "attn_types": ...}),
    (
        "positional_embedding_type",
        "rotary",
        {
            "rotary_dim": ...,
            "rotary_base": ...,
            "rotary_base_local": None,
            "rotary_adjacent_pairs": False,
            "rotary_scaling_factor": 1.0,
            "use_NTK_by_parts_rope": False,
            "use_yarn_rope": False,
            "use_dynamic_ntk_rope": False,
        },
    ),
    (
        "use_NTK_by_parts_rope",
        True,
        {
            "NTK_by_parts_low_freq_factor": ...,
            "NTK_by_parts_high_freq_factor": ...,
            "NTK_by_parts_factor": ...,
            "NTK_original_ctx_len": ...,
        },
    ),
    (
        "use_yarn_rope",
        True,
        {
            "yarn_factor": ...,
            "yarn_attention_factor": ...,
            "yarn_beta_fast": ...,
            "yarn_beta_slow": ...,
            "yarn_original_max_position_embeddings": ...,
            "yarn_truncate": True,
            "yarn_global_attn_only": False,
        },
    ),
    ("use_logn_attn", True, {"train_seq_length": ...}),
    ("use_dynamic_ntk_rope", True, {"train_seq_length": ...}),
)
# what every architecture has, whatever it cannot say otherwise
_SIZES = ("d_model", "n_layers", "d_vocab", "n_ctx", "positional_embedding_type", "tie_word_embeddings")
_EXPERTS: dict[str, Any] = {"experts_per_token": ..., "norm_topk_prob": False}

# field -> those that are admitted with it: they are there because of it, or say the same again
_FOLLOWERS: Mapping[str, Iterable[str]] = {
    "d_vocab": ["d_vocab_out"],
    "num_experts": _EXPERTS,
    **{condition: names for condition, _, names in CONDITIONAL if condition.startswith("use_")},
}

# which family it is whose own words are the fields `config.NAME`; none where HookedTransformerConfig's words say all
FAMILY = "family"
_OWN_WORD = re.compile(r"config\.[A-Za-z_0-9]+")

FIELDS: frozenset[str] = frozenset([*ALWAYS, *_EXPERTS, *(name for _, _, fields in CONDITIONAL for name in fields)])

# config.json fields that add parameters which every HookedTransformer has anyway, as zeros or ones: they leave no trace
# in an architecture, and are compared with a parent's all the same
PARAMETER_FIELDS = ("attention_bias", "enable_bias", "layer_norm_elementwise_affine")
N_PARAMETERS = "n_parameters"

UNRELATED_PARENT = "unrelated-parent"
"""Not a field, but allowed like one: a parent that the weights do not come from."""

# HookedTransformer computes the same for each of these (tanh approximations of GELU, written differently).
_SAME_ACTIVATION = {"gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}


@dataclass(frozen=True)
class Difference:
    """One field in which a checkpoint differs from its parent; None stands for "has no such field"."""

    field: str
    parent: Any
    checkpoint: Any
    config_key: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the difference as plain data."""
        return {
            "field": self.field,
            "config_key": self.config_key,
            "parent": self.parent,
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True)
class Architecture:
    """Canonical fields, as `describe_architecture` makes them; equal architectures have equal fingerprints."""

    fields: Mapping[str, Any] = field(hash=False)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the canonical JSON of the fields."""
        text = json.dumps(dict(self.fields), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default` where this architecture has no such field."""
        return self.fields.get(name, default)


def describe_architecture(**fields: Any) -> Architecture:
    """Build the canonical architecture from HookedTransformerConfig fields.

    Left-out fields take transformer-lens's default where it has one. `n_key_value_heads` defaults to `n_heads`,
    `d_vocab_out` to `d_vocab`, `rotary_dim` to `d_head`, and `attn_scale`, the number that attention scores are
    divided by, to sqrt(d_head).
    """
    unknown = set(fields) - FIELDS
    if unknown:
        raise ValueError(f"not fields of an architecture: {sorted(unknown)}")
    given = dict(fields)
    given.setdefault("n_key_value_heads", given["n_heads"])
    given.setdefault("d_vocab_out", given["d_vocab"])
    given.setdefault("attn_scale", math.sqrt(given["d_head"]))
    if given["normalization_type"] == "RMS":
        given["final_rms"] = False  # the last norm is RMS in any case
    given["act_fn"] = _SAME_ACTIVATION.get(given["act_fn"], given["act_fn"])
    if given["positional_embedding_type"] == "rotary":
        given.setdefault("rotary_dim", given["d_head"])
    canonical = _take(ALWAYS, given)
    for condition, value, names in CONDITIONAL:
        if canonical.get(condition) == value:
            canonical |= _take(names, given)
    if canonical["num_experts"] is not None:
        canonical |= _take(_EXPERTS, given)
    return Architecture(canonical)


def describe_bridged_architecture(family: str, config: Mapping[str, Any], **fields: Any) -> Architecture:
    """Build the architecture of a network that no HookedTransformer can be, for want of words.

    `fields` are in HookedTransformerConfig's words; all else that decides the function is in `config`, in the family's.
    Two families never have equal fingerprints, since each gives the words of its config a meaning of its own.
    """
    unknown = set(fields) - FIELDS
    if unknown:
        raise ValueError(f"not fields of an architecture: {sorted(unknown)}")
    sizes = {name: fields[name] for name in _SIZES}
    own = {f"config.{name}": value for name, value in config.items()}
    return Architecture({FAMILY: family, "d_vocab_out": fields["d_vocab"], **sizes, **fields, **own})


def find_differences(
    parent: Architecture, checkpoint: Architecture, config_keys: Mapping[str, str] | None = None
) -> tuple[Difference, ...]:
    """List the fields in which `checkpoint` differs from `parent`; `config_keys` names the config.json keys."""
    names = [
        name
        for name in [FAMILY, *ALWAYS, *sorted({*parent.fields, *checkpoint.fields} - {FAMILY, *ALWAYS})]
        if parent.get(name, _ABSENT) != checkpoint.get(name, _ABSENT)
    ]
    keys = config_keys or {}
    return tuple(Difference(name, parent.get(name), checkpoint.get(name), keys.get(name)) for name in names)


def find_parameter_differences(parent: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[Difference, ...]:
    """List the fields of PARAMETER_FIELDS in which two checked configs differ, as far as both have them."""
    return tuple(
        Difference(name, parent[name], checkpoint[name], name)
        for name in PARAMETER_FIELDS
        if name in parent and name in checkpoint and parent[name] != checkpoint[name]
    )


def check_allowed(allow: Iterable[str]) -> frozenset[str]:
    """Return the names in `allow` as a set, refusing any that is no field in which a checkpoint can differ."""
    allowed = frozenset(allow)
    known = FIELDS.union(PARAMETER_FIELDS, [N_PARAMETERS, FAMILY, UNRELATED_PARENT])
    for name in sorted(allowed - known):
        if _OWN_WORD.fullmatch(name):
            continue
        similar = find_similar(name, known)
        raise UnknownField(
            f"--allow names {name!r}, which is no architecture field.",
            hint=f"Did you mean {similar[0]}?" if similar else f"The fields are: {', '.join(sorted(known))}.",
            name=name,
            candidates=similar,
        )
    return allowed


def refuse_differences(
    parent_ref: str,
    checkpoint: str,
    differences: tuple[Difference, ...],
    allowed: frozenset[str],
) -> tuple[Difference, ...]:
    """Return the admitted differences, or raise ArchitectureMismatch if any was not named in `allowed`.

    Fields that exist only because an admitted field differs (the factors of an admitted rope scaling) are admitted
    with it, and so is `d_vocab_out` with `d_vocab`.
    """
    differing = {difference.field for difference in differences}
    admitted = allowed.union(*(_FOLLOWERS.get(name, ()) for name in allowed & differing))
    refused = tuple(difference for difference in differences if difference.field not in admitted)
    if refused:
        flags = " ".join(f"--allow {difference.field}" for difference in refused)
        raise ArchitectureMismatch(
            f"{checkpoint} does not have the architecture of its parent {parent_ref}: "
            f"{len(refused)} field{'s differ' if len(refused) > 1 else ' differs'}. Nothing was stored.",
            differences=refused,
            hint="If the checkpoint was really trained from this parent, its config.json is not the one it was trained "
            "with: put the right one back. If it has another parent, name that one. "
            f"If the difference is meant, admit it by name: {flags}",
            parent=parent_ref,
            source=checkpoint,
        )
    return differences


def _take(names: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    taken = {}
    for name, default in names.items():
        if name not in given and default is ...:
            raise ValueError(f"an architecture needs {name}")
        taken[name] = given.get(name, default)
    return taken
