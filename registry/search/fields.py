"""The fields that can be searched by: what each is called, what kind of value it holds, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from registry.architecture import FIELDS as ARCHITECTURE_FIELDS

Kind = Literal["text", "digest", "integer", "size", "number", "boolean", "instant", "names", "list"]

KINDS: Mapping[Kind, str] = {
    "text": "text",
    "digest": "a digest",
    "integer": "a whole number",
    "size": "a size in bytes",
    "number": "a number",
    "boolean": "true or false",
    "instant": "an instant",
    "names": "any number of names",
    "list": "a list",
}


@dataclass(frozen=True)
class Field:
    """A field by its name, the kind of value it holds, and one line about it."""

    name: str
    kind: Kind
    about: str


_OF_VERSIONS = (
    Field("model", "text", "the model's name"),
    Field("model_created_at", "instant", "when the model's first version was registered"),
    Field("version", "integer", "the version's number: 3 of `pirate@v3`"),
    Field("step", "integer", "the training step"),
    Field("family", "text", "the model family: `gpt2`, `llama`, …"),
    Field("layout", "text", "how its tensors are named: `huggingface` or `hooked`"),
    Field("dtype", "text", "the weights' dtype"),
    Field("n_parameters", "integer", "how many parameters; with units: `> 1.5B` (K, M, B, T)"),
    Field("size", "size", "bytes of all its files; with units: `> 1GB` (kB, MB, GB, TB; KiB, MiB, GiB, TiB)"),
    Field("size_bytes", "size", "the same as `size`"),
    Field("fingerprint", "digest", "the architecture's fingerprint"),
    Field("weights_digest", "digest", "the weights digest; null while they are not fetched"),
    Field("vocabulary_digest", "digest", "the vocabulary's digest; null without a tokenizer"),
    Field("source_kind", "text", "what it was registered from"),
    Field("source_location", "text", "the path or Hub id it was registered from"),
    Field("received_as", "text", "the ref it had in the registry that it was received from; null if it was registered"),
    Field("received_from", "text", "the id of that registry: the digest of its first event"),
    Field("note", "text", "the note"),
    Field("created_at", "instant", "when it was registered"),
    Field("retired_at", "instant", "when it was retired; null while it is in use"),
    Field("retired", "boolean", "whether it was retired"),
    Field("verified", "boolean", "whether parity was measured and within its bound"),
    Field("depth", "integer", "generations below its base: the shortest way to a version without registered parents"),
    Field("alias", "names", "its aliases as they stand"),
    Field("relation", "names", "what it is to its parents: `finetuned`, `merged`, …"),
)

_TEXTS = {"act_fn", "attention_dir", "block_variant", "normalization_type", "positional_embedding_type"}
_LISTS = {"attn_types"}
_BOOLEANS = {
    "attn_only",
    "final_rms",
    "gated_mlp",
    "norm_topk_prob",
    "parallel_attn_mlp",
    "post_embedding_ln",
    "rotary_adjacent_pairs",
    "scale_attn_by_inverse_layer_idx",
    "tie_word_embeddings",
    "use_NTK_by_parts_rope",
    "use_attention_sinks",
    "use_dynamic_ntk_rope",
    "use_local_attn",
    "use_logn_attn",
    "use_normalization_before_and_after",
    "use_qk_norm",
    "use_yarn_rope",
    "yarn_global_attn_only",
    "yarn_truncate",
}


def _kind_of(name: str) -> Kind:
    if name in _TEXTS:
        return "text"
    if name in _LISTS:
        return "list"
    return "boolean" if name in _BOOLEANS else "number"


VERSION_FIELDS: Mapping[str, Field] = {field.name: field for field in _OF_VERSIONS}
ARCHITECTURE: Mapping[str, Field] = {
    name: Field(name, _kind_of(name), "a field of the architecture; null where it has none")
    for name in sorted(ARCHITECTURE_FIELDS, key=lambda name: (name.lower(), name))
}
TAG = Field("tag.KEY", "text", "the value of the tag KEY; null without it")
METRIC = Field("metric.NAME", "number", "the newest value of the metric NAME, or SUITE.NAME; null if unmeasured")

FUNCTIONS: Mapping[str, str] = {
    "descends_from": "whether it came, in any number of generations, from the version that the ref means",
    "ancestor_of": "whether the version that the ref means came, in any number of generations, from it",
}
