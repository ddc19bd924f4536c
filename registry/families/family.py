"""What a model family is: which config.json fields it knows, and how they become a canonical architecture.

Every field of the Hugging Face config class is declared (see fields.py). A field that nobody declared is refused, so
that a new release of transformers cannot slip a new meaning in.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture
from registry.errors import UnsupportedConfig, WeightsMismatch
from registry.families.experts import ExpertNames, split_header
from registry.families.fields import SHARED, Field, shorten
from registry.refs import find_similar
from registry.weights import TensorHeader

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture class and its way into TransformerLens.

    `describe` maps the checked fields to the canonical architecture; `convert` is transformer-lens's own weight
    converter, from the Hugging Face network to a state dict in hooked layout. Without one there is no HookedTransformer
    of this family, and a TransformerBridge is what can be had.
    """

    name: str
    class_name: str
    config_class_name: str
    model_type: str
    fields: Mapping[str, Field]
    describe: Callable[[Mapping[str, Any]], Architecture]
    convert: Callable[[torch.nn.Module, HookedTransformerConfig], dict[str, torch.Tensor]] | None
    config_keys: Mapping[str, str]
    """Which config.json key an architecture field is read from, for people who read a refusal."""
    base_prefix: str
    """What transformers puts before the tensors of the bare model; older files leave it out."""
    tied: tuple[str, str]
    """The tensors that are one when word embeddings are tied: embedding, head."""
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """From the checked fields to the arguments of the Hugging Face config class."""
    absent: tuple[str, ...] = ()
    """Hooked tensors that the converter leaves out because they are zero in this family."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Other names under which config.json may give a field: transformers's `attribute_map`, turned round."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Names that other releases of transformers give a tensor, and the one that it has today."""
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    """Buffers that older releases saved among the weights; they are no weights."""
    experts: ExpertNames | None = None
    """What files call the matrices of an expert, where transformers's network has them fused and files do not."""
    router: str = ""
    """Which module of a layer chooses the experts, in transformers's network."""
    adapt_bridge: Callable[[Any, PreTrainedConfig], None] | None = None
    """Puts right what transformer-lens's adapter, which it changes, gets wrong of a network with this config."""

    def canonical_names(self, names: Iterable[str]) -> dict[str, str]:
        """Map the names of a checkpoint's tensors to those that transformers writes today, without ignored buffers.

        Raises WeightsMismatch for two names of one tensor, of which nobody can say which one counts.
        """
        canonical = {name: self._canonical_name(name) for name in names}
        kept = {name: one for name, one in canonical.items() if not self.ignored.fullmatch(one)}
        times = Counter(kept.values())
        twice = sorted(name for name, one in kept.items() if times[one] > 1)
        if twice:
            raise _refuse_twice(twice)
        return kept

    def canonical_headers(self, headers: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
        """Give the tensors of a checkpoint as transformers would write them today: renamed, and experts one by one.

        Raises WeightsMismatch if the files hold a tensor under two names, or an expert by itself and fused.
        """
        canonical: dict[str, TensorHeader] = {}
        for name, renamed in self.canonical_names(headers).items():
            for part in split_header(self.experts, replace(headers[name], name=renamed)):
                if part.name in canonical:
                    raise _refuse_twice([part.name, renamed])
                canonical[part.name] = part
        return canonical

    def canonical_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Give the shapes of a network's tensors by the names that transformers writes today."""
        canonical: dict[str, tuple[int, ...]] = {}
        for name, renamed in self.canonical_names(shapes).items():
            canonical |= self.experts.split(renamed, shapes[name]) if self.experts else {renamed: shapes[name]}
        return canonical

    def _canonical_name(self, name: str) -> str:
        name = self.renamed.get(name, name)
        head = self.tied[1].removesuffix("weight")  # some families have a bias there too
        full = name if name.startswith((self.base_prefix, head)) else self.base_prefix + name
        return self.experts.rename(full) if self.experts else full


def _refuse_twice(names: Sequence[str]) -> WeightsMismatch:
    return WeightsMismatch(
        f"{names[0]!r} and {names[1]!r} are names of one tensor, and the files hold both.",
        left_over=names,
        hint="Save the model again with save_pretrained, which writes each tensor once.",
    )


def check_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every used field's value, defaults filled in, or raise UnsupportedConfig naming the field."""
    declared = {**SHARED, **family.fields}
    given: dict[str, Any] = {}
    for key, value in config.items():
        name = family.spellings.get(key, key)
        if name not in declared:
            raise _refuse_unknown(family, key, value, declared)
        if name in given and given[name] != value:
            raise UnsupportedConfig(
                f"config.json gives {name} twice, as {given[name]!r} and (as {key}) {value!r}.",
                field=key,
                hint="Keep the one that the checkpoint was trained with.",
            )
        given[name] = value
    for name, value in given.items():
        rule = declared[name]
        if rule.role == "only" and value != rule.default:
            raise UnsupportedConfig(
                f"config.json has {name} = {shorten(value)}, only {rule.default!r} can be converted: {rule.reason}.",
                field=name,
                hint=rule.hint.replace("{class_name}", family.class_name),
                value=repr(value)[:200],
            )
    return {
        name: _check_value(name, rule, given[name]) if name in given else rule.default
        for name, rule in family.fields.items()
        if rule.role == "used"
    }


def _check_value(name: str, rule: Field, value: Any) -> Any:
    if value is None and rule.optional:
        return None
    if type(value) is str and value == rule.default:
        return value  # Mamba's time_step_rank is "auto" or a number
    kind = rule.kind
    legal = False
    if kind in (bool, str, dict, list):
        legal = type(value) is kind
    elif kind is int:
        legal = type(value) is int and rule.at_least <= value < 2**40
    elif kind is float and type(value) in (int, float):
        value = float(value) if abs(value) < 1e300 else math.inf
        legal = math.isfinite(value) and value >= 0
    if not legal:
        raise UnsupportedConfig(
            f"config.json has {name} = {shorten(value)}, which makes no sense there.",
            field=name,
            hint="Put back the config.json that the checkpoint was trained with.",
        )
    return value


def _refuse_unknown(family: Family, key: str, value: Any, declared: Mapping[str, Field]) -> UnsupportedConfig:
    similar = find_similar(key, declared)
    return UnsupportedConfig(
        f"config.json has a field that is not known for {family.class_name}: {shorten(key)} = {shorten(value)}.",
        field=key,
        hint=(f"Did you mean {similar[0]}? " if similar else "")
        + "A field nobody knows could change the network; if this one does not, remove it from config.json.",
    )
