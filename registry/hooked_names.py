"""The names of a HookedTransformer's tensors: what wrappers put before them, and which are buffers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from registry.architecture import Architecture
from registry.errors import UnsupportedSource, WeightsMismatch

BUFFER = re.compile(r"blocks\.(\d+)\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)")
_HOOKED = re.compile(r"embed\.W_E|unembed\.W_U|blocks\.\d+\.attn\.W_Q")
_GROUPED = re.compile(r"(blocks\.\d+\.attn\.)_([Wb]_[KV])")
# what DataParallel, torch.compile, training loops and Lightning put before every name
_WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Map names to those without the prefixes that wrappers put before all of them."""
    stripped = {name: name for name in names}
    while stripped:
        wrapper = next((one for one in _WRAPPERS if all(name.startswith(one) for name in stripped.values())), None)
        if wrapper is None:
            break
        stripped = {name: one.removeprefix(wrapper) for name, one in stripped.items()}
    return stripped


def are_hooked(names: Iterable[str]) -> bool:
    """Say whether these are the names of a HookedTransformer's tensors, wrapped or not."""
    return any(_HOOKED.fullmatch(name) for name in strip_wrappers(names).values())


def refuse_adapters(names: Iterable[str]) -> None:
    """Raise UnsupportedSource for an adapter that is not merged: without it this would be another network."""
    adapters = sorted(name for name in names if "lora_" in name)
    if adapters:
        raise UnsupportedSource(
            f"The state dict holds an adapter that is not merged: {len(adapters)} tensors such as {adapters[0][:80]}.",
            hint="Merge it into the weights first, and save the state dict again.",
        )


def ungroup_names(names: Mapping[str, str], architecture: Architecture) -> dict[str, str]:
    """Give keys and values their plain names, without `_`, where every head has keys and values of its own.

    transformer-lens keeps the others when n_key_value_heads is given although it is n_heads.
    """
    if architecture["n_key_value_heads"] != architecture["n_heads"]:
        return dict(names)
    renamed = {name: _GROUPED.sub(r"\1\2", one) for name, one in names.items()}
    if len(set(renamed.values())) < len(renamed):
        raise WeightsMismatch(
            "The state dict holds both W_K and _W_K, or W_V and _W_V, and they are one tensor.",
            hint="Save the state dict again, from one network.",
        )
    return renamed
