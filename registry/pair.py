"""Two versions as a matched pair: processed alike, in one dtype, reading tokens alike, equal tensors mapped once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from registry.architecture import Architecture
from registry.convert import Processing, choose_hooked_processing, guard_processing
from registry.errors import InvalidInput, ProcessingConflict, VocabularyMismatch
from registry.load import load_network, load_registered_tokenizer, refuse_bridged
from registry.load_options import LoadOptions
from registry.processing import can_center_writing
from registry.progress import Progress, no_progress
from registry.store import LocalStore
from registry.store.derived import DerivedFiles
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_FLAGS = tuple(one.name for one in fields(Processing))


@dataclass(frozen=True)
class Pair:
    """A version and the one that it is compared with; `processing` is what the weights of both went through."""

    child: HookedTransformer
    parent: HookedTransformer
    child_ref: str
    parent_ref: str
    processing: tuple[str, ...]
    n_shared: int
    """How many tensors are equal, and mapped from one file."""


def choose_parent(version: Version) -> str:
    """Return the ref of the parent that a version is compared with: its only one. Raises InvalidInput."""
    refs = [parent.ref for parent in version.parents]
    if len(refs) == 1:
        return refs[0]
    hint = f"Name the other version: one of {', '.join(refs)}." if refs else "Name the version to compare it with."
    raise InvalidInput(f"{version.ref} has {len(refs) or 'no'} registered parents.", hint=hint)


def match_options(versions: Sequence[Version], wanted: LoadOptions) -> tuple[LoadOptions, tuple[str, ...]]:
    """Return options under which all versions come processed alike, as near to `wanted` as can be, and what is done.

    Some were registered folded, and some architectures forbid a processing. Raises ProcessingConflict if no choice of
    flags makes them alike, and UnsupportedFamily if only a bridge can run one of them.
    """
    for version in versions:
        refuse_bridged(version)
    values = [getattr(wanted.processing, name) for name in _FLAGS]
    choices = sorted(
        itertools.product((False, True), repeat=len(_FLAGS)),
        key=lambda choice: sum(one != other for one, other in zip(choice, values, strict=True)),
    )
    for choice in choices:
        processing = Processing(**dict(zip(_FLAGS, choice, strict=True)))
        done = {tell_effect(version, processing) for version in versions}
        if len(done) == 1 and None not in done:
            return replace(wanted, processing=processing, asked={}), tuple(sorted(done.pop() or ()))
    listed = "; ".join(f"{version.ref}: {', '.join(version.processing or ()) or 'nothing'}" for version in versions)
    raise ProcessingConflict(
        f"The weights of {' and '.join(version.ref for version in versions)} cannot be processed alike.",
        applied=sorted({name for version in versions for name in version.processing or ()}),
        hint=f"They were registered after ({listed}), which cannot be undone. Compare what they compute instead.",
    )


def tell_effect(version: Version, wanted: Processing) -> frozenset[str] | None:
    """Return what a version's weights have gone through when `wanted` is asked for; None if that is refused."""
    architecture = Architecture(version.architecture)
    allowed = guard_processing(architecture, wanted)
    applied = set(version.processing or ())
    if version.layout == "hooked":
        if "fold_ln" in applied and not wanted.fold_ln:
            return None
        return frozenset(applied | set(choose_hooked_processing(architecture, sorted(applied), allowed).active))
    if not can_center_writing(architecture):
        allowed = replace(allowed, center_writing_weights=False)
    return frozenset(allowed.active)


def load_pair(
    derived: DerivedFiles, child: Version, parent: Version, wanted: LoadOptions, progress: Progress = no_progress
) -> Pair:
    """Load both, processed alike. Raises ProcessingConflict, or VocabularyMismatch if tokens mean other things."""
    check_tokens(derived.store, child, parent)
    options, done = match_options((child, parent), wanted)
    network = load_network(derived, child, options, progress)
    other = load_network(derived, parent, options, progress)
    n_shared = _share_equal(network, load_network(derived, parent, options, progress))
    return Pair(network, other, child.ref, parent.ref, done, n_shared)


def check_tokens(store: LocalStore, a: Version, b: Version) -> int:
    """Return how many tokens, from the first on, mean the same in both versions.

    Raises VocabularyMismatch if some that both have do not; a version without a tokenizer is taken at its d_vocab.
    """
    n_tokens = min(int(a.architecture["d_vocab"]), int(b.architecture["d_vocab"]))
    if a.vocabulary_digest == b.vocabulary_digest or not (a.vocabulary_digest and b.vocabulary_digest):
        return n_tokens
    one, other = (load_registered_tokenizer(store, version, verify="changed") for version in (a, b))
    if one is None or other is None:
        return n_tokens
    old, new = ({index: token for token, index in it.get_vocab().items()} for it in (one, other))
    differing = sorted(index for index in old.keys() & new.keys() if old[index] != new[index])
    if differing:
        index = differing[0]
        raise VocabularyMismatch(
            f"{len(differing):,} tokens of {a.ref} and {b.ref} mean different things: {index} is {old[index]!r} in one "
            f"and {new[index]!r} in the other.",
            hint="What they predict cannot be compared token by token; compare their weights.",
        )
    return n_tokens


def _share_equal(network: HookedTransformer, other: HookedTransformer) -> int:
    """Map the tensors of `network` that are equal from the file of `other`; both stay free to write to their own.

    `other` has maps of its own, which nobody else holds: a private map copies what is written to.
    """
    mine, others = dict(network.named_parameters()), dict(other.named_parameters())
    equal = [name for name in mine if name in others and _is_equal(mine[name], others[name])]
    for name in equal:
        mine[name].data = others[name].data
    return len(equal)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)
