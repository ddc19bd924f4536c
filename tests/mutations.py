"""Change one field of a family's config.json, and judge what comes of it: refused by name, or the same function.

The judge is a network that transformers alone builds from the changed config.json. Ours is read from the same file:

- refused: a typed error that names the field;
- unchanged: it reads as the config before the change, and transformers's network computes what it did before;
- converted: it reads as another config, and is within the parity bound of transformers's network.

Anything else is a silently wrong network, and `judge_mutation` raises AssertionError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from registry.errors import SourceError
from registry.families.family import Family
from registry.families.fields import SHARED, Field
from registry.networks import check_tensors
from registry.verify import MAX_NOISE, refuse_disparity
from registry.weights import read_header
from tests.checkpoints import CLASSES, randomise
from tests.opened import read_checkpoint

Outcome = Literal["refused", "unchanged", "converted"]

ACTIVATIONS = [
    "relu",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "silu",
    "quick_gelu",
    "tanh",
    "xielu",
    "no",
]
# on top of what the kind of a field suggests
MORE_VALUES: dict[str, list[Any]] = {
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 777.5},
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 24},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "truncate": False},
        {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
         "original_max_position_embeddings": 48},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_type": "proportional", "rope_theta": 1e4},
        {"rope_type": "default", "rope_theta": 1e4, "what_is_this": 2.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 5e5},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}},
        {"full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}},
        {"full_attention": {"rope_type": "linear", "factor": 4.0}, "sliding_attention": {"rope_type": "default"}},
        {"sliding_attention": {"rope_type": "linear", "factor": 4.0}},
        {kind: {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32} for kind in ("full_attention", "sliding_attention")},
    ],
    "rope_scaling": [
        {"type": "linear", "factor": 4.0},
        {"type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
    ],
    "rope_theta": [500.0, 777.5, 10000, 1e6],
    "rotary_emb_base": [500, 777.5, 1e6],
    "rope_local_base_freq": [500.0, 777.5, 1e6],
    "partial_rotary_factor": [0.25, 0.5, 0.75, 1.0],
    "rotary_pct": [0.25, 0.5, 0.75, 1.0],
    "rotary_dim": [4, 6, 16, None],
    "layer_types": [["full_attention"], ["full_attention"] * 2, ["sliding_attention"] * 2, ["nonsense"] * 2],
    "attention_layers": [["global"], ["global"] * 2, ["local", "global"], ["nonsense"] * 2],
    "attention_types": [[[["global"], 2]], [[["local"], 2]], [[["local", "global"], 1]], [[["nonsense"], 2]]],
    "sliding_window": [1, 4, 8, 31, 95, 4096, None],
    "window_size": [1, 4, 8, 31, 256],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "clip_qkv": [0.5, 8.0, None],
    "final_logit_softcapping": [5.0, 30.0, None],
    "attn_logit_softcapping": [5.0, 50.0, None],
}  # fmt: skip
# legal values of fields that are neutral, where one is not easily made up
LEGAL: dict[str, Any] = {
    "id2label": {"0": "no", "1": "yes", "2": "maybe"},
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "problem_type": "regression",
    "cache_implementation": "hybrid",
    "summary_type": "mean",
    "summary_activation": "tanh",
    "eos_token_id": [5, 6],
}
# these say how bytes are kept or how a result is wrapped; with them transformers itself answers otherwise or not at all
NOT_JUDGED = {"return_dict", "use_return_dict", "dtype", "torch_dtype", "label2id", "architectures", "model_type"}


_LEGACY_ROPE = {
    "rope_scaling",
    "rope_theta",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "rotary_pct",
    "rotary_emb_base",
}


@dataclass(frozen=True)
class Mutation:
    """One field of one family's tiny config.json, with another value."""

    family: Family
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.family.name}.{self.key} = {self.value!r}"[:120]


def list_mutations(family: Family) -> Iterator[Mutation]:
    """List the mutations of every field that the family declares, and of some that it does not."""
    base = _read_base(family.name)
    for key, rule in {**SHARED, **family.fields}.items():
        if key in NOT_JUDGED:
            continue
        now = base.get(key, rule.default)
        tried: list[Any] = []
        for value in [*MORE_VALUES.get(key, []), *_suggest_values(key, rule, now)]:
            same_kind = [other for other in tried if type(other) is type(value)]
            if value not in same_kind and not (type(value) is type(now) and value == now):
                tried.append(value)
                yield Mutation(family, key, value)
    for key in ("a_field_nobody_knows", "embedding_multiplier", "use_mup"):
        yield Mutation(family, key, 2.0)


def mutate_config(mutation: Mutation) -> dict[str, Any]:
    """Return the changed config.json; what transformers 4 wrote of rope takes the place of what transformers 5 does."""
    config = {**_read_base(mutation.family.name), mutation.key: mutation.value}
    if mutation.key in _LEGACY_ROPE:
        config.pop("rope_parameters", None)
    return config


def judge_mutation(mutation: Mutation, folder: Path) -> Outcome:
    """Say what came of a mutation; `folder` is empty. Raises AssertionError for a silently wrong network."""
    family = mutation.family
    config = mutate_config(mutation)
    (folder / "config.json").write_text(json.dumps(config))
    source = _build(family, config)
    if source is None:  # transformers cannot build it; then nobody must think that we can
        _save(_reference(family.name)[0], folder)
        (folder / "config.json").write_text(json.dumps(config))
        return _expect_refusal(mutation, folder)
    _save(source, folder)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        opened = read_checkpoint(folder)
        headers = {name: header for path in opened.files for name, header in read_header(path).items()}
        check_tensors(family, opened.values, family.canonical_headers(headers))
    except SourceError as error:
        return _check_naming(mutation, error)
    reference, fingerprint, expected = _reference(family.name)
    logits = _run(source)
    if opened.architecture.fingerprint == fingerprint and not _differ_in_biases(source, reference):
        assert _shapes(source) == _shapes(reference), f"{mutation}: the same fingerprint for other shapes"
        difference = float((logits - expected).abs().max())
        assert difference < 1e-4, f"{mutation}: the same fingerprint for another function, {difference:.1e} apart"
        return "unchanged"
    ours = _run(opened.build(torch.float32))
    difference = float((logits - ours).abs().max())
    assert difference < 1e-3, f"{mutation}: transformers reads another network from this config, {difference:.1e} apart"
    parity = opened.measure()
    if parity.noise_floor > MAX_NOISE[torch.float64]:  # then it is refused, since nobody could tell
        return "refused"
    refuse_disparity(parity, str(mutation))
    return "converted"


def _suggest_values(key: str, rule: Field, now: Any) -> list[Any]:
    if key in LEGAL:
        return [LEGAL[key]]
    if rule.role == "used" and rule.kind is str:
        return [*ACTIVATIONS, None, 3]
    if rule.role == "used" and rule.kind is dict:
        return [{}, None, 3]
    kind = bool if isinstance(now, bool) else rule.kind or type(now)
    if kind is bool:
        return [not now, None] if rule.role == "used" else [not now]
    if kind is int:
        known = now if isinstance(now, int) else 8
        return [1, 2, 3, known + 1, known * 2, 0, "8", None] if rule.role == "used" else [known + 1]
    if kind is float:
        known = now if isinstance(now, int | float) else 1.0
        return [known * 2, known / 3, 0.3, 1e-12, 777.5, -1.0, "x", None] if rule.role == "used" else [known * 2 + 0.5]
    return [{"None": 5, "str": "other", "list": [7], "dict": {"0": [1]}}.get(type(now).__name__, 5)]


def _check_naming(mutation: Mutation, error: SourceError) -> Outcome:
    named = {mutation.key, *(other for other, one in mutation.family.spellings.items() if one == mutation.key)}
    assert any(name in str(error) for name in named), f"{mutation}: refused without its name: {error}"
    return "refused"


def _expect_refusal(mutation: Mutation, folder: Path) -> Outcome:
    try:
        opened = read_checkpoint(folder)
        headers = {name: header for path in opened.files for name, header in read_header(path).items()}
        check_tensors(mutation.family, opened.values, mutation.family.canonical_headers(headers))
    except SourceError as error:
        return _check_naming(mutation, error)
    raise AssertionError(f"{mutation}: transformers builds no network from this, and it was read all the same")


@lru_cache(maxsize=4)
def _read_base(name: str) -> dict[str, Any]:
    class_name, config_name, values = CLASSES[name]
    config = getattr(transformers, config_name)(**values)
    written: dict[str, Any] = json.loads(config.to_json_string())
    return {**written, "architectures": [class_name]}


@lru_cache(maxsize=4)
def _reference(name: str) -> tuple[PreTrainedModel, str, torch.Tensor]:
    """Return the network before any change, its fingerprint and its log-probs."""
    from registry.families import find_family
    from registry.families.family import check_config

    config = _read_base(name)
    family = find_family(config)
    network = _build(family, config)
    assert network is not None
    return network, family.describe(check_config(family, config)).fingerprint, _run(network)


def _build(family: Family, config: dict[str, Any]) -> PreTrainedModel | None:
    """Let transformers build the network of a config.json; None if it cannot, or if the network cannot run."""
    try:
        read = getattr(transformers, family.config_class_name).from_dict(json.loads(json.dumps(config)))
        network: PreTrainedModel = getattr(transformers, family.class_name)(read)
        randomise(network, family.name, seed=4)
        logits = _run(network)
    except Exception:  # noqa: BLE001 transformers, torch and huggingface_hub raise whatever the value leads to
        return None
    return network if bool(logits.isfinite().all()) else None


def _run(network: PreTrainedModel) -> torch.Tensor:
    length = min(60, getattr(network.config, "max_position_embeddings", 60))
    tokens = torch.arange(2 * length).reshape(2, length) * 7 % min(211, network.config.vocab_size)
    network.eval().set_attn_implementation("eager")
    if hasattr(network.config, "num_experts_per_tok"):  # transformers's default takes sizes that fit in 16 bytes only
        network.set_experts_implementation("eager")
    with torch.inference_mode():
        log_probs: torch.Tensor = network(tokens, use_cache=False).logits.log_softmax(-1)
    return log_probs


def _save(network: PreTrainedModel, folder: Path) -> None:
    network.config.output_attentions = False  # transformers saves no Falcon with it; config.json says it afterwards
    network.save_pretrained(folder)


def _differ_in_biases(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """HookedTransformer has every bias and gain always; what transformers's network lacks is zero, or one, there."""
    differing = set(_shapes(one)) ^ set(_shapes(other))
    return bool(differing) and all(name.endswith((".bias", "layer_norm.weight")) for name in differing)


def _shapes(network: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
