"""Compare two versions: by their records, tensor by tensor, and by what they compute on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from registry.compare.behaviour import compare_behaviour
from registry.compare.results import BehaviourComparison
from registry.compare.weights import WeightComparison, compare_tensors
from registry.convert import RAW
from registry.diff import RecordedDiff
from registry.errors import InvalidInput, UnsupportedLayout
from registry.families import find_family_by_name
from registry.load import load_network, open_version
from registry.load_options import LoadOptions
from registry.networks import list_weights, map_weights
from registry.pair import check_tokens, match_options
from registry.progress import Progress, no_progress
from registry.store.derived import DerivedFiles
from registry.versions import Version


@dataclass(frozen=True)
class Comparison:
    """What changed from version `a` to version `b`; `weights` and `behaviour` are None if they were not asked for.

    `error` says why they are None although they were: of several comparisons one may fail, and the others go on.
    """

    a: str
    b: str
    records: RecordedDiff
    weights: WeightComparison | None = None
    behaviour: BehaviourComparison | None = None
    error: str | None = None


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

    The tensors are mapped, and read a few rows at a time. Where only a bridge runs a family, the tensors are compared
    under transformers's names. Raises UnsupportedLayout if the two have no names in common.
    """
    dtypes = [*a.dtype.split("+"), *b.dtype.split("+")]
    if _is_bridged(a) or _is_bridged(b):
        if a.layout != b.layout:
            raise UnsupportedLayout(
                f"{a.ref} is in {a.layout} layout and {b.ref} in {b.layout}, and no HookedTransformer can be made of "
                "one of them.",
                hint="Their records can be compared: lensreg diff A B",
            )
        old, new = (_map_source(derived, version, progress) for version in (a, b))
        processing: tuple[str, ...] = ()
    else:
        kind = torch.float64 if "float64" in dtypes else torch.float32
        options, processing = match_options((a, b), LoadOptions(RAW, kind, "cpu"))
        old, new = (list_weights(load_network(derived, version, options, progress)) for version in (a, b))
    return compare_tensors(
        old,
        new,
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
    prompts: Sequence[str | Sequence[int]],
    wanted: LoadOptions,
    progress: Progress = no_progress,
) -> BehaviourComparison:
    """Compare what two versions compute on prompts: texts, which the tokenizer of `a` reads, or lists of tokens.

    Both come processed alike. Raises VocabularyMismatch if the tokens of the two mean different things.
    """
    n_shared = check_tokens(derived.store, a, b)
    options, processing = match_options((a, b), wanted)
    one, other = (load_network(derived, version, options, progress) for version in (a, b))
    if one.tokenizer is None and any(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInput(
            f"{a.ref} was registered without a tokenizer, so it reads no texts.", hint="Give lists of token numbers."
        )
    tokens = [
        one.to_tokens(prompt)[0] if isinstance(prompt, str) else torch.tensor(list(prompt), dtype=torch.long)
        for prompt in prompts
    ]
    return compare_behaviour(
        one, other, tokens, refs=(a.ref, b.ref), n_shared_tokens=n_shared, processing=processing, progress=progress
    )


def _is_bridged(version: Version) -> bool:
    return version.layout == "huggingface" and find_family_by_name(version.family).convert is None


def _map_source(derived: DerivedFiles, version: Version, progress: Progress) -> dict[str, torch.Tensor]:
    opened = open_version(derived.store, version, progress, "changed")
    files = [opened.folder / file.name for file in version.with_role("weights")]
    return map_weights(opened.family, opened.values, files)
