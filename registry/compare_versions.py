"""Compare two versions: by their records, tensor by tensor, and by what they compute on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from registry.compare.behaviour import Side, compare_behaviour
from registry.compare.results import BehaviourComparison
from registry.compare.weights import WeightComparison, compare_opened
from registry.compare_on import CompareOn, make_spell, read_tokens
from registry.convert import RAW
from registry.diff import RecordedDiff
from registry.errors import (
    HookedTransformerMissing,
    ProcessingConflict,
    RegistryError,
    UnsupportedFamily,
    UnsupportedLayout,
    VocabularyMismatch,
)
from registry.families import find_family_by_name
from registry.load import load_network, open_version
from registry.load_options import LoadOptions
from registry.networks import list_weights, map_weights
from registry.pair import check_tokens, match_options
from registry.progress import Progress, no_progress
from registry.store.derived import DerivedFiles
from registry.versions import Version

_INCOMPARABLE = (
    VocabularyMismatch,
    ProcessingConflict,
    UnsupportedLayout,
    UnsupportedFamily,
    HookedTransformerMissing,
)


@dataclass(frozen=True)
class Comparison:
    """What changed from version `a` to version `b`; `weights` and `behaviour` are None if they were not asked for.

    Where one of them could not be compared, and the other could, `obstacles` has the error that says why.
    """

    a: str
    b: str
    records: RecordedDiff
    weights: WeightComparison | None = None
    behaviour: BehaviourComparison | None = None
    obstacles: tuple[RegistryError, ...] = ()


def compare_what_can_be(records: RecordedDiff, attempts: Mapping[str, Callable[[], Any]]) -> Comparison:
    """Make each attempt, of `weights` and `behaviour`; raise what stands against the first if none succeeds."""
    found: dict[str, Any] = {}
    obstacles: list[RegistryError] = []
    for name, attempt in attempts.items():
        try:
            found[name] = attempt()
        except _INCOMPARABLE as error:
            obstacles.append(error)
    if obstacles and not found:
        raise obstacles[0]
    return Comparison(records.a, records.b, records, **found, obstacles=tuple(obstacles))


def compare_weights(
    derived: DerivedFiles,
    a: Version,
    b: Version,
    *,
    ranks: bool = True,
    heads: bool = True,
    progress: Progress = no_progress,
) -> WeightComparison:
    """Compare the weights of two versions, on TransformerLens's layout and unprocessed where that can be had.

    The tensors are mapped, and read a few rows at a time. Where only a bridge runs a family, or transformer-lens has no
    HookedTransformer, they are compared under transformers's names. Raises UnsupportedLayout if one of the two has none
    of these names.
    """
    dtypes = [*a.dtype.split("+"), *b.dtype.split("+")]
    if _is_bridged(a) or _is_bridged(b) or (_is_huggingface(a, b) and not _has_hooked_transformer()):
        if not _is_huggingface(a, b):
            raise UnsupportedLayout(
                f"{a.ref} is in {a.layout} layout and {b.ref} in {b.layout}, and no HookedTransformer can be made of "
                "one of them.",
                hint="Their records can be compared: lensreg diff A B",
            )
        processing: tuple[str, ...] = ()

        def open_one(version: Version) -> Mapping[str, torch.Tensor]:
            return _map_source(derived, version, progress)
    else:
        kind = torch.float64 if "float64" in dtypes else torch.float32
        options, processing = match_options((a, b), LoadOptions(RAW, kind, "cpu"))

        def open_one(version: Version) -> Mapping[str, torch.Tensor]:
            return list_weights(load_network(derived, version, options, progress))

    return compare_opened(
        lambda: (open_one(a), open_one(b)),
        refs=(a.ref, b.ref),
        dtypes=dtypes,
        processing=processing,
        ranks=ranks,
        heads=heads,
        progress=progress,
    )


def compare_versions_on(
    derived: DerivedFiles,
    a: Version,
    b: Version,
    on: CompareOn,
    wanted: LoadOptions,
    *,
    one_at_a_time: bool | None = None,
    progress: Progress = no_progress,
) -> BehaviourComparison:
    """Compare what two versions compute on prompts and data, whose texts the tokenizer of `a` reads.

    Both come processed alike. Raises VocabularyMismatch if the tokens of the two mean different things, and
    UnsupportedFamily or HookedTransformerMissing if one of them cannot be a HookedTransformer.
    """
    n_shared = check_tokens(derived.store, a, b)
    try:
        options, processing = match_options((a, b), wanted)
        reader = load_network(derived, a, replace(options, device="cpu"), progress)  # mapped, and not run
        load_network(derived, b, replace(options, device="cpu"), progress)
    except (HookedTransformerMissing, UnsupportedFamily) as error:
        hint = "Records and weights can be compared: lensreg diff A B --weights"
        raise type(error)(error.message, hint=f"{hint}. {error.hint or ''}".rstrip(), **error.fields) from error
    n_ctx = min(int(version.architecture["n_ctx"]) for version in (a, b))
    read = read_tokens(on, reader, a.ref, n_shared, n_ctx)
    spell = make_spell(reader.tokenizer.decode if reader.tokenizer is not None else None)
    del reader
    return compare_behaviour(
        _make_side(derived, a, options, progress),
        _make_side(derived, b, options, progress),
        read.prompts,
        n_shared_tokens=n_shared,
        dtype=options.dtype,
        device=options.device,
        one_at_a_time=one_at_a_time,
        processing=processing,
        spell=spell,
        data_digest=read.data_digest,
        notes=read.notes,
        progress=progress,
    )


def _make_side(derived: DerivedFiles, version: Version, options: LoadOptions, progress: Progress) -> Side:
    architecture = version.architecture
    # an unembedding that is the embedding in files is a tensor of its own in a HookedTransformer
    n_parameters = version.n_parameters + int(architecture["d_vocab"]) * int(architecture["d_model"])
    return Side(
        version.ref,
        architecture,
        lambda: load_network(derived, version, options, progress),
        n_parameters * options.dtype.itemsize,
    )


def _is_bridged(version: Version) -> bool:
    return version.layout == "huggingface" and find_family_by_name(version.family).convert is None


def _is_huggingface(*versions: Version) -> bool:
    return all(version.layout == "huggingface" for version in versions)


def _has_hooked_transformer() -> bool:
    try:
        import registry.hooked_transformer  # noqa: F401
    except HookedTransformerMissing:
        return False
    return True


def _map_source(derived: DerivedFiles, version: Version, progress: Progress) -> dict[str, torch.Tensor]:
    opened = open_version(derived.store, version, progress, "changed")
    files = [opened.folder / file.name for file in version.with_role("weights")]
    return map_weights(opened.family, opened.values, files)
