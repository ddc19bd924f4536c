"""The families that can be registered, by the architecture class that config.json names.

FAMILIES can be converted to HookedTransformers. Those in BRIDGED_FAMILIES cannot; a TransformerBridge runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.errors import MalformedArtifact, UnsupportedFamily
from registry.families import (
    apertus,
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    mamba,
    mistral,
    mixtral,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    stablelm,
    starcoder2,
)
from registry.families.family import Family
from registry.families.unsupported import refuse_architecture

_MODULES = (
    apertus,
    bloom,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    llama,
    mistral,
    mixtral,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
)
_BRIDGED_MODULES = (falcon, gpt_bigcode, granite, mamba, qwen2_moe, qwen3_moe, stablelm, starcoder2)
FAMILIES: Mapping[str, Family] = {module.FAMILY.class_name: module.FAMILY for module in _MODULES}
BRIDGED_FAMILIES: Mapping[str, Family] = {module.FAMILY.class_name: module.FAMILY for module in _BRIDGED_MODULES}


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json, by its architecture class and never by a name or a path."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1 or not isinstance(classes[0], str):
        raise MalformedArtifact(
            f"config.json does not say which network it describes: architectures is {classes!r}.",
            hint='It must name one class, as in "architectures": ["GPT2LMHeadModel"]; '
            "save_pretrained on the model (not on the config alone) writes it.",
        )
    family = FAMILIES.get(classes[0]) or BRIDGED_FAMILIES.get(classes[0])
    if family is None:
        raise refuse_architecture(classes[0], FAMILIES, BRIDGED_FAMILIES)
    if config.get("model_type", family.model_type) != family.model_type:
        raise MalformedArtifact(
            f"config.json names {family.class_name} but has model_type {config['model_type']!r}.",
            hint=f"A {family.class_name} has model_type {family.model_type!r}; put the right config.json back.",
        )
    return family


def find_family_by_name(name: str) -> Family:
    """Return the family that a version's record names."""
    for family in (*FAMILIES.values(), *BRIDGED_FAMILIES.values()):
        if family.name == name:
            return family
    raise UnsupportedFamily(
        f"This version belongs to the family {name!r}, which this lens-registry does not know.",
        hint="Update lens-registry.",
        family=name,
    )
