"""The families that can be converted, by the architecture class that config.json names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.errors import MalformedArtifact, UnsupportedFamily
from registry.families import apertus, gemma, gemma2, gemma3, gpt2, llama, mistral, qwen2, qwen3
from registry.families.family import Family
from registry.refs import find_similar

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.class_name: module.FAMILY
    for module in (gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, apertus)
}

# classes that cannot be converted for a reason that their name does not tell
_REFUSED: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "It sees images, and HookedTransformer reads tokens only. "
    "Save its language model as a Gemma3ForCausalLM, and register that.",
}


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json, by its architecture class and never by a name or a path."""
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1 or not isinstance(classes[0], str):
        raise MalformedArtifact(
            f"config.json does not say which network it describes: architectures is {classes!r}.",
            hint='It must name one class, as in "architectures": ["GPT2LMHeadModel"]; '
            "save_pretrained on the model (not on the config alone) writes it.",
        )
    family = FAMILIES.get(classes[0])
    if family is None:
        similar = find_similar(classes[0], FAMILIES)
        raise UnsupportedFamily(
            f"{classes[0]!r} cannot be converted to a HookedTransformer yet.",
            hint=_REFUSED.get(classes[0])
            or (f"Did you mean {similar[0]}? " if similar else "")
            + f"What can be converted: {', '.join(sorted(FAMILIES))}.",
            family=classes[0],
        )
    if config.get("model_type", family.model_type) != family.model_type:
        raise MalformedArtifact(
            f"config.json names {family.class_name} but has model_type {config['model_type']!r}.",
            hint=f"A {family.class_name} has model_type {family.model_type!r}; put the right config.json back.",
        )
    return family


def find_family_by_name(name: str) -> Family:
    """Return the family that a version's record names."""
    for family in FAMILIES.values():
        if family.name == name:
            return family
    raise UnsupportedFamily(
        f"This version belongs to the family {name!r}, which this lens-registry does not know.",
        hint="Update lens-registry.",
        family=name,
    )
