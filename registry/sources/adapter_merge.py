"""Merge an adapter into a network with peft, and measure that the merged network computes what the adapted one did.

It is done in float64, or in float32 if that is how parity is to be measured, and kept in float32: on small networks
that is 2e-6 off the adapted network's log-probs, merging in float32 1e-5, and bfloat16 0.1 to 0.3, as the adapter is in
the low bits that bfloat16 has not (measured over LoRA, DoRA and IA3, GPT-2 and Llama).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from registry.convert import check_finite
from registry.errors import UnsupportedConfig, UnsupportedSource, WeightsMismatch
from registry.families.family import Family
from registry.networks import build_source_network
from registry.plain_text import quote_error
from registry.quiet import quiet
from registry.sources.source import Finding
from registry.verify import measure_reference

_PREFIX = "base_model.model."
_CONFIGS: Mapping[str, Any] = {"LORA": peft.LoraConfig, "IA3": peft.IA3Config}
# how the tensors begin does not matter once they are read, and some ways to begin change the base
_BEGIN: Mapping[str, Mapping[str, Any]] = {"LORA": {"init_lora_weights": True}, "IA3": {}}
_OTHER_BASE = "Name the version that the adapter was trained on as its parent."


@dataclass(frozen=True)
class Merge:
    """What was measured: the largest difference of log-probs, in nats, between the adapted network and the merged.

    None was not measured; `dtype` is that in which it was merged.
    """

    difference: float | None
    bound: float | None
    dtype: str
    n_tokens: int | None
    versions: Mapping[str, str]
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give the measurement as plain data."""
        names = ("difference", "bound", "dtype", "n_tokens", "versions")
        return {name: getattr(self, name) for name in names}


def merge_adapter(
    *,
    config: Mapping[str, Any],
    weights: Path,
    family: Family,
    values: Mapping[str, Any],
    parent_files: Sequence[Path],
    parent_ref: str,
    parent_dtype: str,
    parity: str | None,
    folder: Path,
) -> Merge:
    """Merge the adapter in `weights` into the parent's network, and save that in `folder` as Hugging Face does.

    With the parity `float32` it is merged and measured in that, unless the parent has more bits; with `skip` it is
    merged so and not measured, and NaN and infinities are refused all the same. Every tensor of the adapter must have
    its place and every place its tensor: peft itself leaves a tensor unread, or a place without one, in silence.

    Raises UnsupportedConfig, WeightsMismatch, UnusableWeights or UnsupportedSource.
    """
    kept_dtype = torch.float64 if "float64" in parent_dtype else torch.float32
    dtype = kept_dtype if parity in ("float32", "skip") else torch.float64
    tensors = load_file(weights)
    check_finite(tensors)
    network = build_source_network(family, values, parent_files, dtype)
    base = dict(network.state_dict())
    adapted = _adapt(network, config, parent_ref)
    tied = family.tied if values.get("tie_word_embeddings") else ()
    _place(adapted, tensors, base, tied, parent_ref)
    reference = None if parity == "skip" else measure_reference(network, family, family.describe(values))
    with quiet():
        try:
            merged = adapted.merge_and_unload(safe_merge=True)
        except Exception as error:  # peft raises whatever a layer that cannot be merged leads to
            raise _refuse_merge(error) from error
    with quiet():
        merged.to(kept_dtype).save_pretrained(folder)
    del merged, adapted, network
    difference = None
    if reference is not None:
        saved = build_source_network(family, values, sorted(folder.glob("*.safetensors")), dtype)
        difference = reference.measure(lambda tokens: saved(tokens).logits)
        _refuse_disparity(difference, reference.bound)
    return Merge(
        difference=difference,
        bound=reference.bound if reference else None,
        dtype=_name_dtype(dtype),
        n_tokens=reference.probe.numel() if reference else None,
        versions={name: version(name) for name in ("peft", "torch", "transformers")},
        findings=_describe_dtype(parent_dtype, _name_dtype(kept_dtype)),
    )


def _adapt(network: PreTrainedModel, config: Mapping[str, Any], parent_ref: str) -> peft.PeftModel:
    """Put empty adapter layers into the network, as the config says."""
    kind = config["peft_type"]
    fields = {name: value for name, value in config.items() if name != "peft_type"}
    with quiet():
        try:
            built = _CONFIGS[kind](**fields, **_BEGIN[kind], inference_mode=True)
            adapted = peft.PeftModel(network, built, autocast_adapter_dtype=False)
        except Exception as error:  # peft raises ValueError, TypeError, re.error … for what does not fit
            reason = quote_error(error)
            raise UnsupportedConfig(
                f"peft cannot put this adapter into {parent_ref}: {reason}",
                field="adapter_config.json",
                hint=_OTHER_BASE,
            ) from error
    return adapted.eval()


def _place(
    adapted: peft.PeftModel,
    tensors: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    tied: Sequence[str],
    parent_ref: str,
) -> None:
    """Give every adapter layer its tensor, and see that each arrived; `base` are the network's own tensors."""
    with quiet():
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    copies = set(tensors) - set(expected)
    _check_copies({name: tensors[name] for name in copies}, base, parent_ref)
    own = {name: tensor for name, tensor in tensors.items() if name not in copies}
    _refuse_misfits(expected, own, parent_ref)
    _refuse_tied(own, tied)
    with quiet():
        set_peft_model_state_dict(adapted, own)
        placed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lost = sorted(name for name, tensor in own.items() if not torch.equal(placed[name], tensor.to(placed[name].dtype)))
    if lost:
        raise WeightsMismatch(
            f"peft did not take {len(lost)} of the adapter's tensors, such as {lost[0]}.",
            left_over=lost,
            hint="This is a fault of peft's or of lens-registry's; please report it.",
        )


def _check_copies(copies: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], parent_ref: str) -> None:
    """Check tensors that are no adapter's: copies of the base's, such as the embedding that peft saves on the side.

    They were not trained, so they say which base it was.
    """
    left_over = []
    for name, tensor in sorted(copies.items()):
        own = base.get(name.removeprefix(_PREFIX).replace(".base_layer.", "."))
        if own is None:
            left_over.append(name)
        elif own.shape != tensor.shape:
            raise WeightsMismatch(
                f"The adapter was trained on a base whose {name.removeprefix(_PREFIX)} has the shape "
                f"{tuple(tensor.shape)}; that of {parent_ref} has {tuple(own.shape)}.",
                misshapen=[name],
                hint="If tokens were added for the training, save the base with its resized embedding too, register it "
                f"with --parent {parent_ref} --allow d_vocab, and name that as the adapter's parent.",
            )
        elif not torch.equal(own.to(tensor.dtype), tensor):
            raise WeightsMismatch(
                f"The adapter holds its base's {name.removeprefix(_PREFIX)}, and it is not that of {parent_ref}.",
                left_over=[name],
                hint=_OTHER_BASE,
            )
    if left_over:
        raise WeightsMismatch(
            f"{len(left_over)} of the adapter's tensors belong to no layer that its config describes, "
            f"such as {left_over[0]}.",
            left_over=left_over,
            hint=f"They would be left out. Either the config is not the one that was saved with them, or {parent_ref} "
            "is not the base that it was trained on.",
        )


def _refuse_misfits(expected: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], parent_ref: str) -> None:
    missing = sorted(set(expected) - set(own))
    misshapen = sorted(name for name in own if own[name].shape != expected[name].shape)
    if missing:
        raise WeightsMismatch(
            f"The adapter has no tensors for {len(missing)} of the places that its config describes in {parent_ref}, "
            f"such as {missing[0]}.",
            missing=missing,
            hint="The file may not be whole, or the parent is not the base that the adapter was trained on.",
        )
    if misshapen:
        name = misshapen[0]
        raise WeightsMismatch(
            f"{len(misshapen)} of the adapter's tensors do not fit into {parent_ref}, such as {name}: "
            f"{tuple(own[name].shape)} instead of {tuple(expected[name].shape)}.",
            misshapen=misshapen,
            hint=_OTHER_BASE,
        )


def _refuse_tied(names: Iterable[str], tied: Sequence[str]) -> None:
    """Refuse adapters of a tied embedding or head: merged, they would change the one and the other.

    Tokens that were trained by themselves are no such case: peft changes them in both.
    """
    modules = tuple(_PREFIX + name.removesuffix("weight") for name in tied)
    changed = sorted(name for name in names if name.startswith(modules) and ".token_adapter." not in name)
    if modules and changed:
        raise UnsupportedSource(
            f"The adapter has {changed[0].removeprefix(_PREFIX)}, and in the parent embedding and head are one tensor.",
            hint="Untie them where it was trained (tie_word_embeddings=False), merge it there, "
            "model.merge_and_unload().save_pretrained(folder), and register that folder with "
            "--allow tie_word_embeddings.",
        )


def _refuse_merge(error: Exception) -> UnsupportedSource:
    reason = quote_error(error)
    return UnsupportedSource(
        f"peft cannot merge this adapter: {reason}",
        hint="Merge it where it was trained, and register the folder of the merged model.",
    )


def _refuse_disparity(difference: float, bound: float) -> None:
    if not difference <= bound:
        raise UnsupportedSource(
            f"The adapter cannot be merged: the merged network's log-probs are {difference:.1e} off those of the base "
            f"with the adapter in it, bound {bound:.1e}.",
            hint="Not every adapter has a merged form: what it does may not come down to other weights.",
        )


def _name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe_dtype(parent: str, kept: str) -> tuple[Finding, ...]:
    if parent == kept:
        return ()
    message = f"The parent's weights are {parent}, the merged ones {kept}: in fewer bits the adapter would be lost."
    return (Finding("merged-dtype", message),)
