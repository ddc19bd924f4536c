"""What an adapter_config.json may say: every field of peft's config classes is used, neutral, or refused.

A field that nobody declared is refused, as in config.json: peft leaves what it does not know unread, with a warning.
Source: peft 0.21, `tuners/lora/config.py` and `tuners/ia3/config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.errors import MalformedArtifact, UnsupportedConfig, WeightsMismatch
from registry.families.fields import shorten
from registry.refs import find_similar
from registry.weights import TensorHeader

CONFIG = "adapter_config.json"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BOOKKEEPING = _names(
    "auto_mapping base_model_name_or_path revision peft_type peft_version inference_mode runtime_config"
)
# peft matches these as regular expressions with every module's name
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_REPEATS = re.compile(r"[*+{]")
_MAX_REPEATS = 8
# what these leave out of the base is in no file, or no base can be made that does without them
_VIRTUAL_TOKENS = _names("PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT CPT CARTRIDGE")
_MERGE_IT = "Merge it where it was trained, model.merge_and_unload().save_pretrained(folder), and register that folder."


@dataclass(frozen=True)
class AdapterKind:
    """One of peft's methods whose adapters can be merged: what the fields of its config may be."""

    used: frozenset[str]
    neutral: frozenset[str]
    only: Mapping[str, tuple[tuple[Any, ...], str]]
    """Field -> the values that it may have, and why it may have no other."""


_OTHER_HEAD = ((None, "CAUSAL_LM"), "the adapter belongs to another head than the language model's")
_INITIALISED = (
    (True, False, "gaussian", "eva", "orthogonal"),
    "that way to begin changes the base too, and what it made of it is not in the folder; "
    "save_pretrained(folder, path_initial_model_for_weight_conversion=…) writes a plain LoRA",
)
KINDS: Mapping[str, AdapterKind] = {
    "LORA": AdapterKind(
        used=_names("""
            r lora_alpha target_modules exclude_modules fan_in_fan_out bias use_rslora modules_to_save
            layers_to_transform layers_pattern rank_pattern alpha_pattern trainable_token_indices use_dora lora_bias
            """),
        neutral=_names("lora_dropout eva_config qalora_group_size megatron_core"),
        only={
            "task_type": _OTHER_HEAD,
            "init_lora_weights": _INITIALISED,
            "megatron_config": ((None,), "its layers are Megatron's"),
            "loftq_config": ((None, {}), "it belongs to a base that LoftQ quantised"),
            "corda_config": ((None,), "CorDA changes the base too"),
            "lora_ga_config": ((None,), "LoRA-GA changes the base too"),
            "kasa_config": ((None,), "KaSA changes the base too"),
            "velora_config": ((None,), "it is another kind of layer than LoRA's"),
            "monteclora_config": ((None,), "it is another kind of layer than LoRA's"),
            "use_bdlora": ((None, False), "it is another kind of layer than LoRA's"),
            "arrow_config": ((None,), "it chooses among adapters for every token, which no merged weight can"),
            "alora_invocation_tokens": ((None,), "it acts on some of the tokens only, which no merged weight can"),
            "use_qalora": ((False,), "it belongs to a quantised base"),
            "layer_replication": ((None,), "it makes a deeper network than the parent"),
            "target_parameters": ((None, []), "adapters of bare parameters, such as experts', are not merged yet"),
            "ensure_weight_tying": ((False,), "tied weights are not merged yet"),
        },
    ),
    "IA3": AdapterKind(
        used=_names("target_modules exclude_modules feedforward_modules fan_in_fan_out modules_to_save"),
        neutral=frozenset({"init_ia3_weights"}),
        only={"task_type": _OTHER_HEAD},
    ),
}


def check_adapter_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are used, or raise UnsupportedConfig naming the one that cannot be."""
    name = config.get("peft_type")
    if not isinstance(name, str):
        raise MalformedArtifact(
            f"{CONFIG} does not say what kind of adapter it describes: peft_type is {shorten(name)}.",
            hint="Save the adapter again with save_pretrained.",
        )
    if name in _VIRTUAL_TOKENS:
        raise UnsupportedConfig(
            f"The adapter is of the kind {name}, which adds inputs of its own to every layer or text.",
            field="peft_type",
            hint="No weights of the base can stand for it, so it can be neither merged nor a HookedTransformer.",
        )
    if name not in KINDS:
        raise UnsupportedConfig(
            f"Adapters of the kind {name[:80]!r} cannot be merged here, only {' and '.join(KINDS)}.",
            field="peft_type",
            hint=_MERGE_IT,
        )
    kind = KINDS[name]
    for field, value in config.items():
        if field in kind.only:
            _check_only(field, value, *kind.only[field])
        elif field not in kind.used | kind.neutral | _BOOKKEEPING:
            similar = find_similar(field, kind.used | set(kind.only))
            raise UnsupportedConfig(
                f"{CONFIG} has a field that is not known for {name}: {shorten(field)} = {shorten(value)}.",
                field=field,
                hint=(f"Did you mean {similar[0]}? " if similar else "")
                + f"A field nobody knows could change the network; if this one does not, remove it from {CONFIG}.",
            )
    for field in _PATTERNS:
        _check_patterns(field, config.get(field))
    return {field: value for field, value in config.items() if field in kind.used}


def check_ranks(used: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> None:
    """Raise WeightsMismatch for a rank that no tensor has: peft would make matrices of it before it saw that."""
    largest = max((length for tensor in tensors.values() for length in tensor.shape), default=0)
    pattern = used.get("rank_pattern")
    ranks = [used.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if type(rank) is int and rank > largest:
            raise WeightsMismatch(
                f"{CONFIG} has a rank of {shorten(rank)}, and no tensor of the adapter is that large.",
                hint="Copy the adapter_config.json that was saved with these tensors.",
            )


def _check_patterns(field: str, value: Any) -> None:
    """Refuse regular expressions that may take for ever: a group repeated, or too much else."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, dict)) else []
    for text in texts:
        if isinstance(text, str) and (_REPEATED_GROUP.search(text) or len(_REPEATS.findall(text)) > _MAX_REPEATS):
            raise UnsupportedConfig(
                f"{CONFIG} has {field} = {shorten(text)}, a pattern that may take for ever to be matched.",
                field=field,
                hint="List the modules by name, or write a pattern without a repeated group.",
            )


def _check_only(field: str, value: Any, allowed: tuple[Any, ...], reason: str) -> None:
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise UnsupportedConfig(
            f"{CONFIG} has {field} = {shorten(value)}, with which it cannot be merged: {reason}.",
            field=field,
            hint=_MERGE_IT,
        )
