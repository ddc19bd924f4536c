"""Which architecture a hooked state dict has: from a config, or from its parent, and never guessed.

Shapes say little: HookedTransformers of the same shapes can compute anything. With a parent, what shapes do say is held
against it, so that a difference is named as a difference of architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.architecture import FAMILY, Architecture, Difference
from registry.errors import ArchitectureMismatch, UnsupportedSource
from registry.families import find_family, find_family_by_name
from registry.families.family import check_config
from registry.families.unsupported import refuse_hooked_transformer
from registry.sources.hooked_json import HookedDescription, is_hooked_config, read_description
from registry.sources.json_file import read_json_object
from registry.sources.source import ParentVersion
from registry.weights import TensorHeader

# what a version's record calls the family of a network that is of none
CUSTOM_FAMILY = "custom"
# other fields are independent of these, so the parent's stay right when one of them was changed on purpose
_RESIZABLE = {"d_vocab", "d_vocab_out", "n_ctx", "d_mlp", "n_layers"}
_HUGGINGFACE = "Register the checkpoint as a Hugging Face folder, as save_pretrained writes it."
_LAYER = re.compile(r"blocks\.(\d+)\.")


def read_hooked_description(
    config: Path | None, parents: Sequence[ParentVersion], found: Mapping[str, TensorHeader], location: str
) -> HookedDescription:
    """Return what the config file says, or what the first parent is; the processing is left empty in the latter.

    Raises UnsupportedSource if there is neither, and ArchitectureMismatch for shapes that cannot come from the parent.
    """
    if config is not None:
        described = _read_config(config)
    elif parents:
        described = _describe_from_parent(parents[0], found, location)
    else:
        raise UnsupportedSource(
            f"{location} is a state dict alone: it does not say which architecture it has, and that is never guessed.",
            hint="Name the version that it was trained from (--parent REF), or the config that it was trained with "
            "(--config FILE: a config.json or a hooked_config.json). registry.save_network saves a network with it.",
            path=location,
        )
    if not parents:
        return described
    # it says nothing of a HookedTransformer, whose unembedding is a tensor of its own
    fields = {
        **described.architecture.fields,
        "tie_word_embeddings": parents[0].version.architecture["tie_word_embeddings"],
    }
    return HookedDescription(
        Architecture(fields), described.processing, described.family, described.default_prepend_bos
    )


def _read_config(path: Path) -> HookedDescription:
    config = read_json_object(path)
    if is_hooked_config(config):
        return read_description(config)
    family = find_family(config)
    if family.convert is None:
        what = f"{path} does not describe a HookedTransformer's state dict"
        raise refuse_hooked_transformer(family, what, _HUGGINGFACE)
    return HookedDescription(family.describe(check_config(family, config)), (), family.name)


def _describe_from_parent(parent: ParentVersion, found: Mapping[str, TensorHeader], location: str) -> HookedDescription:
    known = parent.version.architecture
    if FAMILY in known:
        what = f"{location} holds a HookedTransformer's tensors, and {parent.version.ref} is no parent of it"
        raise refuse_hooked_transformer(find_family_by_name(parent.version.family), what, _HUGGINGFACE)
    read = {name: value for name, value in read_shapes(found).items() if known.get(name) != value}
    resizable = _RESIZABLE - ({"n_layers"} if known["use_local_attn"] else set())
    if set(read) - resizable:
        raise ArchitectureMismatch(
            f"The tensors of {location} cannot be those of a network of the architecture of {parent.version.ref}.",
            differences=[Difference(name, known.get(name), value) for name, value in sorted(read.items())],
            hint="If it has another parent, name that one. If the difference is meant, give the config that the "
            "network was trained with (--config FILE): shapes do not say what else it changed.",
            parent=parent.version.ref,
            source=location,
        )
    family = parent.version.family if parent.version.family != CUSTOM_FAMILY else None
    return HookedDescription(Architecture({**known, **read}), (), family)


def read_shapes(found: Mapping[str, TensorHeader]) -> dict[str, Any]:
    """Return the architecture fields that the shapes of hooked tensors say for certain."""
    shapes = {name: tensor.shape for name, tensor in found.items()}
    read: dict[str, Any] = {}
    for name, axis, *fields in (
        ("embed.W_E", 0, "d_vocab"),
        ("embed.W_E", 1, "d_model"),
        ("unembed.W_U", 1, "d_vocab_out"),
        ("pos_embed.W_pos", 0, "n_ctx"),
        ("blocks.0.attn.W_Q", 0, "n_heads"),
        ("blocks.0.attn.W_Q", 2, "d_head"),
        ("blocks.0.attn.W_K", 0, "n_key_value_heads"),
        ("blocks.0.attn._W_K", 0, "n_key_value_heads"),
        ("blocks.0.mlp.W_in", 1, "d_mlp"),
    ):
        shape = shapes.get(str(name), ())
        if int(axis) < len(shape):
            read |= dict.fromkeys(map(str, fields), shape[int(axis)])
    layers = {int(match[1]) for match in map(_LAYER.match, shapes) if match}
    if layers:
        read["n_layers"] = max(layers) + 1
    if "blocks.0.mlp.W_in" in shapes:
        read["gated_mlp"] = "blocks.0.mlp.W_gate" in shapes
    if {"blocks.0.ln1.w", "ln_final.w"} <= set(shapes):
        read["normalization_type"] = "LN" if "blocks.0.ln1.b" in shapes else "RMS"
    return read
