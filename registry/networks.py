"""The two networks: Hugging Face's, built from checked files, and TransformerLens's, built from hooked tensors.

The Hugging Face class comes from our own table of families, with a config object rebuilt from checked values, and gets
memory-mapped tensors: `from_pretrained(None, config=…, state_dict=…)`. Nothing here reads a name, a path, or code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformer_lens  # noqa: F401 (it teaches transformers's configs to take 10000 for 10000.0: always or never)
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from registry.architecture import Architecture
from registry.errors import UnsupportedConfig, UnusableWeights, WeightsMismatch
from registry.families.family import Family
from registry.hooked_config import BLOCK_CLASSES
from registry.lazy_copies import copy_lazily
from registry.quiet import quiet
from registry.weights import TensorHeader

if TYPE_CHECKING:  # it takes seconds to import, which checking tensors can do without
    from transformer_lens import HookedTransformer, HookedTransformerConfig

_FLOATS = {"F16", "BF16", "F32", "F64"}
# of an architecture's fields, those that HookedTransformerConfig does not have under that name
_NOT_HOOKED = {"block_variant", "n_key_value_heads"}
# Apertus's files hold these among the weights
_FILED_BUFFERS = re.compile(r"blocks\.\d+\.mlp\.act_fn\.(beta|eps)")
_WRONG_CONFIG = "Either the checkpoint was not saved whole, or config.json is not the one it was trained with."


def make_config(family: Family, values: Mapping[str, Any]) -> PreTrainedConfig:
    """Rebuild the Hugging Face config object from checked values only."""
    config_class = getattr(transformers, family.config_class_name)
    try:
        # which token pads matters in training only; a default beyond a small vocabulary could not be built
        with quiet():
            config: PreTrainedConfig = config_class(**{"pad_token_id": None, **family.arguments(values)})
    except Exception as error:  # huggingface_hub's strict dataclasses raise a type of their own for each rule
        raise _refuse_config("refuses this config.json", error) from error
    return config


def make_empty_network(family: Family, values: Mapping[str, Any], n_tensors: int) -> PreTrainedModel:
    """Build the Hugging Face network on the meta device: shapes without memory.

    Raises WeightsMismatch if there are fewer tensors than layers, before spending minutes on a million layers, and
    UnsupportedConfig for numbers that no network can be built from.
    """
    n_layers = family.describe(values)["n_layers"]
    if n_layers > n_tensors:
        raise WeightsMismatch(
            f"config.json describes {n_layers:,} layers, and the files hold {n_tensors:,} tensors.", hint=_WRONG_CONFIG
        )
    config = make_config(family, values)
    with torch.device("meta"), quiet():
        try:
            network: PreTrainedModel = getattr(transformers, family.class_name)(config)
        except Exception as error:  # torch and transformers raise whatever the numbers lead to
            raise _refuse_config("cannot build the network that config.json describes", error) from error
    return network


def check_tensors(family: Family, values: Mapping[str, Any], found: Mapping[str, TensorHeader]) -> None:
    """Raise what does not fit the config; the tensors have the names that transformers uses today.

    Raises WeightsMismatch for tensors that are missing, left over or of another shape, and UnusableWeights for
    integers and 8-bit floats, which transformer-lens would read as if they were weights.
    """
    empty = make_empty_network(family, values, len(found))
    architecture = family.describe(values)
    if family.experts and architecture["n_layers"] * architecture["num_experts"] > len(found):
        raise WeightsMismatch(
            f"config.json describes {architecture['num_experts']:,} experts in each of {architecture['n_layers']:,} "
            f"layers, and the files hold {len(found):,} tensors.",
            hint=_WRONG_CONFIG,
        )
    expected = family.canonical_shapes({name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()})
    # before shapes, which packing changes too
    refuse_packed({name: found[name] for name in expected if name in found})
    optional = {family.tied[1]} if values.get("tie_word_embeddings") else set()
    refuse_mismatch(found, expected, optional, "config.json")


def build_source_network(
    family: Family, values: Mapping[str, Any], files: Sequence[Path], dtype: torch.dtype | None
) -> PreTrainedModel:
    """Build the Hugging Face network on memory-mapped tensors, in `dtype`, ready to be read (eval mode).

    Tensors that are already in `dtype` are not copied.
    """
    tensors = map_weights(family, values, files)
    network_class = getattr(transformers, family.class_name)
    with quiet():
        # transformers's default for experts, grouped_mm, cannot compute in float64; eager is its plainest
        network, info = network_class.from_pretrained(
            None,
            config=make_config(family, values),
            state_dict=tensors,
            dtype=dtype,
            experts_implementation="eager",
            output_loading_info=True,
        )
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        raise WeightsMismatch(
            f"transformers could not place every tensor: {wrong}.",
            missing=wrong.get("missing_keys", ()),
            left_over=wrong.get("unexpected_keys", ()),
            misshapen=wrong.get("mismatched_keys", ()),
        )
    network.requires_grad_(False)
    built: PreTrainedModel = network.eval()
    return built


def map_weights(family: Family, values: Mapping[str, Any], files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Map the files' tensors by canonical name, without ignored buffers and without a head that is the embedding."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    tensors = {canonical: tensors[name] for name, canonical in family.canonical_names(tensors).items()}
    embedding, head = family.tied
    if values.get("tie_word_embeddings") and head in tensors:
        if not torch.equal(tensors[embedding], tensors[head]):
            raise UnsupportedConfig(
                "config.json ties the word embeddings, but the files hold a head that is not the embedding.",
                field="tie_word_embeddings",
                hint="Set tie_word_embeddings to false if the head was trained by itself; "
                "releases of transformers differ in which one they would use.",
            )
        del tensors[head]
    return tensors


def make_hooked_config(
    architecture: Architecture,
    family: Family | None,
    *,
    folded: bool,
    dtype: torch.dtype,
    device: str,
    n_devices: int = 1,
) -> HookedTransformerConfig:
    """Build the HookedTransformerConfig from canonical fields; `folded`: the norms have no weights of their own.

    Raises HookedTransformerMissing where transformer-lens has none.
    """
    from registry.hooked_transformer import HookedTransformerConfig

    block_class = BLOCK_CLASSES.get(architecture["block_variant"])
    fields = {name: value for name, value in architecture.fields.items() if name not in _NOT_HOOKED}
    n_key_value_heads = architecture["n_key_value_heads"]
    if folded and architecture["normalization_type"] in ("LN", "RMS"):
        fields["normalization_type"] = architecture["normalization_type"] + "Pre"
    return HookedTransformerConfig(
        **fields,
        n_key_value_heads=None if n_key_value_heads == architecture["n_heads"] else n_key_value_heads,
        original_architecture=family.class_name if family else block_class,
        init_weights=False,
        dtype=dtype,
        device=device,
        n_devices=n_devices,
    )


def make_empty_hooked_network(cfg: HookedTransformerConfig) -> HookedTransformer:
    """Build a HookedTransformer on the meta device: shapes without memory."""
    from registry.hooked_transformer import RegisteredHookedTransformer

    with torch.device("meta"), quiet():
        return RegisteredHookedTransformer(cfg, move_to_device=False)


def list_weights(network: HookedTransformer) -> dict[str, torch.Tensor]:
    """Return what a HookedTransformer learns, by name; its buffers but those of xIELU are made from its config."""
    filed = {name: buffer for name, buffer in network.named_buffers() if _FILED_BUFFERS.fullmatch(name)}
    return {**dict(network.named_parameters(remove_duplicate=False)), **filed}


def make_hooked_network(cfg: HookedTransformerConfig, tensors: Mapping[str, torch.Tensor]) -> HookedTransformer:
    """Build a HookedTransformer that owns `tensors` (hooked layout, already in `cfg.dtype`), in eval mode.

    Every parameter must be given and nothing else but the two buffers of xIELU, which belong to the weights:
    transformer-lens's own loader drops unknown keys and fills missing ones without a word. The other buffers (`mask`,
    `IGNORE`, `rotary_sin`, `rotary_cos`) are rebuilt from `cfg`.
    """
    network = make_empty_hooked_network(cfg)
    expected = list_weights(network)
    missing, left_over = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    misshapen = sorted(
        name
        for name, tensor in expected.items()
        if name in tensors and (tensor.shape, cfg.dtype) != (tensors[name].shape, tensors[name].dtype)
    )
    if missing or left_over or misshapen:
        raise WeightsMismatch(
            "The converted tensors are not those of the HookedTransformer.",
            missing=missing,
            left_over=left_over,
            misshapen=misshapen,
            hint="This is a fault in lens-registry or in transformer-lens; please report it.",
        )
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    rebuild_buffers(network)
    _refuse_empty(network)
    with quiet():
        if cfg.n_devices > 1 or cfg.device != "cpu":
            network.move_model_modules_to_device()
    return network.eval()


def rebuild_buffers(network: HookedTransformer) -> None:
    """Make the buffers that the meta device left empty, from the config and never from a file."""
    cfg = network.cfg
    alike: dict[tuple[Any, str], list[Any]] = {}
    for block in network.blocks:
        attention: Any = block.attn
        attention.mask = torch.empty((0, 0), dtype=torch.bool)
        attention.IGNORE = torch.tensor(-torch.inf)
        if cfg.positional_embedding_type == "rotary":  # of the layer, the tables depend on these two alone
            alike.setdefault((attention._rotary_base(), attention.attn_type), []).append(attention)
    for (base, _), attentions in alike.items():
        n_rows = min(cfg.n_ctx, attentions[0].ROTARY_INITIAL_CACHE_SIZE)
        tables = attentions[0].calculate_sin_cos_rotary(cfg.rotary_dim, n_rows, base=base, dtype=cfg.dtype)
        copies = [copy_lazily(table, len(attentions)) for table in tables]
        for attention, sin, cos in zip(attentions, *copies, strict=True):
            attention.rotary_sin, attention.rotary_cos = sin, cos


def _refuse_empty(network: HookedTransformer) -> None:
    empty = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    if empty:
        raise WeightsMismatch("Some tensors of the HookedTransformer were left without values.", missing=empty)


def _refuse_config(what: str, error: Exception) -> UnsupportedConfig:
    reason = str(error).strip().split("\n")[-1].strip()
    return UnsupportedConfig(
        f"transformers {what}: {reason}",
        field="config.json",
        hint="Put back the config.json that the checkpoint was trained with.",
    )


def refuse_mismatch(
    found: Mapping[str, TensorHeader], expected: Mapping[str, tuple[int, ...]], optional: set[str], config: str
) -> None:
    """Raise WeightsMismatch for tensors that are missing, left over, or of another shape than `config` describes."""
    missing = sorted(set(expected) - set(found) - optional)
    left_over = sorted(set(found) - set(expected))
    misshapen = sorted(name for name in found if name in expected and found[name].shape != expected[name])
    if missing or left_over or misshapen:
        raise WeightsMismatch(
            _describe_mismatch(missing, left_over, misshapen, found, expected, config),
            missing=missing,
            left_over=left_over,
            misshapen=misshapen,
            hint=f"Either the checkpoint was not saved whole, or {config} is not the one it was trained with.",
        )


def refuse_packed(found: Mapping[str, TensorHeader]) -> None:
    """Raise UnusableWeights for integers and 8-bit floats, which transformer-lens would take for weights."""
    packed = sorted(name for name, tensor in found.items() if tensor.dtype not in _FLOATS)
    if packed:
        raise UnusableWeights(
            f"{len(packed)} tensors are not floating-point numbers, such as {packed[0]} ({found[packed[0]].dtype}).",
            tensors=packed,
            hint="The checkpoint seems quantised. Dequantise it first, and save it in float32 or bfloat16.",
        )


def _describe_mismatch(
    missing: list[str],
    left_over: list[str],
    misshapen: list[str],
    found: Mapping[str, TensorHeader],
    expected: Mapping[str, tuple[int, ...]],
    config: str,
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing, such as {missing[0]}")
    if left_over:
        parts.append(f"{len(left_over)} left over, such as {left_over[0]}")
    if misshapen:
        name = misshapen[0]
        parts.append(
            f"{len(misshapen)} of another shape, such as {name}: {found[name].shape} instead of {expected[name]}"
        )
    return f"The tensors are not those that {config} describes: {'; '.join(parts)}."
