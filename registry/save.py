"""Save a HookedTransformer in memory as a folder that describes itself, and that `lensreg add` reads back.

A folder can hold a config and weights. What else may decide what a network computes (hooks, exchanged modules, an
adapter, a patched `forward`) is refused, and then the network is run against one that is built of what was saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from registry.architecture import Architecture
from registry.convert import check_finite
from registry.errors import InvalidInput, UnsupportedSource, UnusableTokenizer, UnusableWeights
from registry.families import FAMILIES
from registry.hooked_config import describe_hooked_config
from registry.hooked_names import ungroup_names
from registry.hooked_transformer import HookedTransformer, HookedTransformerConfig, RegisteredHookedTransformer
from registry.hooked_weights import check_buffers
from registry.networks import list_weights, make_empty_hooked_network, make_hooked_config, make_hooked_network
from registry.processing import tell_processing
from registry.quiet import quiet
from registry.routing import Computed, find_largest_difference
from registry.sources.hooked_files import WEIGHTS
from registry.sources.hooked_json import HOOKED_CONFIG, HookedDescription
from registry.sources.huggingface import TOKENIZER_FILES, has_vocabulary
from registry.verify import make_probe

# hook points that can be switched on; they change the order of additions, so both networks get the same
_SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens",
             "ungroup_grouped_query_attention")  # fmt: skip


def save_network(network: HookedTransformer, folder: str | Path) -> Path:
    """Save a HookedTransformer's weights, config and tokenizer in `folder`, which must be new or empty; return it.

    The weights are saved as they are, raw or processed, in their dtype; the network is not changed.

    Raises:
        UnsupportedSource: it is more than its config and weights: hooks, foreign modules, an adapter, edits.
        UnsupportedConfig: its config has something that cannot be registered, with the field's name.
        UnusableWeights: NaN, infinities, or weights in another dtype than the config's.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(
            f"{folder} exists and is no empty folder; what is in it could be mistaken for a part of the network.",
            hint="Give a new folder.",
        )
    _refuse_other_classes(network)
    architecture = describe_hooked_config(network.cfg)
    cfg = _copy_config(network, architecture)
    _refuse_foreign_parts(network, make_empty_hooked_network(cfg))
    tensors = {name: tensor.detach() for name, tensor in list_weights(network).items()}
    _check_weights(tensors, cfg.dtype)
    check_buffers(dict(network.named_buffers()), architecture)
    _compare(network, make_hooked_network(cfg, tensors), architecture)
    kept = {one: tensors[name] for name, one in ungroup_names({name: name for name in tensors}, architecture).items()}
    told = tell_processing(kept, architecture, folded=_is_folded(network))
    described = HookedDescription(
        architecture, told.flags, _name_family(network), bool(network.cfg.default_prepend_bos)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(network, folder)
    save_file(_part(kept), folder / WEIGHTS, metadata={"format": "pt"})
    described.write(folder / HOOKED_CONFIG)  # last: a folder without it is not taken for a whole one
    return folder


def _refuse_other_classes(network: object) -> None:
    if type(network) not in (HookedTransformer, RegisteredHookedTransformer):
        raise UnsupportedSource(
            f"A {type(network).__module__}.{type(network).__name__} cannot be saved: it may compute something else "
            "than a HookedTransformer of the same weights.",
            hint="Give the HookedTransformer itself: take it out of torch.compile (._orig_mod) or DataParallel. "
            "A Hugging Face model is saved with save_pretrained.",
        )


def _is_folded(network: HookedTransformer) -> bool:
    return str(network.cfg.normalization_type).endswith("Pre")


def _copy_config(network: HookedTransformer, architecture: Architecture) -> HookedTransformerConfig:
    """Make the config that the registered architecture gives, with what makes it compute in the same order."""
    given = network.cfg
    cfg = make_hooked_config(
        architecture,
        None,
        folded=_is_folded(network),
        dtype=given.dtype,
        device=str(given.device),
        n_devices=given.n_devices,
    )
    for name in (*_SWITCHES, "act_fn", "n_key_value_heads"):
        setattr(cfg, name, getattr(given, name))
    return cfg


def _refuse_foreign_parts(network: HookedTransformer, plain: HookedTransformer) -> None:
    """Refuse modules, parameters and hooks that a HookedTransformer of this config does not have."""
    wrong: list[str] = []
    modules, expected = dict(network.named_modules(remove_duplicate=False)), dict(plain.named_modules())
    wrong += [f"{name} is no module of its" for name in sorted(set(modules) - set(expected))]
    wrong += [f"{name} is missing" for name in sorted(set(expected) - set(modules))]
    for name in sorted(set(modules) & set(expected)):
        module = modules[name]
        if name and type(module) is not type(expected[name]):  # what the whole is was asked before
            wrong.append(f"{name} is a {type(module).__name__}")
        if "forward" in vars(module):
            wrong.append(f"{name} has a forward of its own")
        if module._forward_hooks or module._forward_pre_hooks:
            wrong.append(f"{name} has hooks")
    names = set(list_weights(network)) ^ set(list_weights(plain))
    wrong += [f"the parameter {name} is in one of the two only" for name in sorted(names)]
    if wrong:
        raise UnsupportedSource(
            f"The network is more than its config and its weights: {'; '.join(wrong[:5])}.",
            hint="Hooks: network.reset_hooks(including_permanent=True). Adapters and parametrizations: merge them into "
            "the weights. Other modules cannot be registered.",
        )


def _check_weights(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    other = sorted(name for name, tensor in tensors.items() if tensor.dtype != dtype)
    if other:
        raise UnusableWeights(
            f"{other[0]} is in {tensors[other[0]].dtype}, and the network's config says {dtype}.",
            tensors=other,
            hint="Cast the whole network with network.to(dtype), which tells the config.",
        )
    check_finite(tensors)


def _compare(network: HookedTransformer, rebuilt: HookedTransformer, architecture: Architecture) -> None:
    """Run both on the probe: nothing may differ, but for what differs when the same network is run twice."""
    probe = make_probe(architecture)
    rebuilt.train(network.training)
    with torch.no_grad(), _forget_alibi(network):
        once, again, ours = (one(probe).log_softmax(-1) for one in (network, network, rebuilt))
    difference, noise = (find_largest_difference(Computed(once), Computed(other)) for other in (ours, again))
    if not difference <= 10 * noise:
        raise UnsupportedSource(
            f"The network computes something else than its config and its weights say: log-probs differ by "
            f"{difference:.1e} (run twice, by {noise:.1e}).",
            hint="Something was changed after it was built: a field of its cfg, a buffer, an attribute of a module. "
            "Build a HookedTransformer with the right config and load the state dict into it.",
        )


@contextlib.contextmanager
def _forget_alibi(network: HookedTransformer) -> Iterator[None]:
    """Take away, for the length of a `with`, the biases that attention keeps of the longest text it has seen.

    They are the same up to a constant that softmax takes out, but not up to rounding.
    """
    attentions: list[Any] = [block.attn for block in network.blocks]
    kept = [getattr(attention, "alibi", None) for attention in attentions]
    try:
        for attention, alibi in zip(attentions, kept, strict=True):
            if alibi is not None:
                attention.alibi = None
        yield
    finally:
        for attention, alibi in zip(attentions, kept, strict=True):
            if hasattr(attention, "alibi"):
                attention.alibi = alibi


def _name_family(network: HookedTransformer) -> str | None:
    family = FAMILIES.get(network.cfg.original_architecture or "")
    return family.name if family else None


def _save_tokenizer(network: HookedTransformer, folder: Path) -> None:
    if network.tokenizer is None:
        return
    with quiet(), _forget_lengths(network.tokenizer):
        network.tokenizer.save_pretrained(str(folder))
    if not has_vocabulary([name for name in TOKENIZER_FILES if (folder / name).is_file()]):
        raise UnusableTokenizer(
            f"The network's {type(network.tokenizer).__name__} saves no files that it could be read from again.",
            hint="Set network.tokenizer to None, or to a tokenizer that save_pretrained saves whole.",
        )


@contextlib.contextmanager
def _forget_lengths(tokenizer: Any) -> Iterator[None]:
    """Take away, for the length of a `with`, how the last text was cut and padded, which would be saved as well.

    transformers sets both anew for every text.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer remembers nothing
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def _part(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Lay tensors out in order, each in memory of its own, as safetensors wants them."""
    parted: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        mine = tensor.contiguous()
        if mine.untyped_storage().data_ptr() in seen:
            mine = mine.clone()
        seen.add(mine.untyped_storage().data_ptr())
        parted[name] = mine
    return parted
