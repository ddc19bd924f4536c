"""Verify what was staged: tensors, tokenizer, and that the converted network computes what the source does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.checkpoint import Checkpoint
from registry.networks import check_tensors
from registry.progress import Progress
from registry.registration import Request
from registry.sketch import Sketch
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.stage import Files, Weights
from registry.tokenizer_files import check_tokenizer_files
from registry.tokenizers import check_tokenizer, load_tokenizer
from registry.verify import Parity
from registry.verify_weights import verify_weights

_CHECKED: dict[tuple[int, tuple[tuple[str, str], ...]], str] = {}
_N_CHECKED = 100


@dataclass(frozen=True)
class Verified:
    """What was found out: None is what was not measured, or cannot be had."""

    vocabulary_digest: str | None
    parity: Parity | None
    sketch: Sketch | None


def verify_checkpoint(
    request: Request, checkpoint: Checkpoint, weights: Weights, files: Files, progress: Progress
) -> Verified:
    """Check tensors and tokenizer, then convert and measure parity. Raises a SourceError or ParityFailure."""
    if request.parity != "skip" and not checkpoint.is_bridged_only:
        import registry.hooked_transformer  # noqa: F401 (raises HookedTransformerMissing)
    _check_tensors(checkpoint, weights)
    vocabulary_digest = _check_tokenizer(files, checkpoint.architecture["d_vocab"])
    if weights.digest is None:
        return Verified(vocabulary_digest, None, None)
    return Verified(vocabulary_digest, *_measure_parity(request, checkpoint, files.paths("weights"), progress))


def _check_tokenizer(files: Files, d_vocab: int) -> str | None:
    """Load the tokenizer, if there is one, and return the digest of its vocabulary; once for all with the same files.

    A run's checkpoints have them in common, and reading one takes longer than all else about a small checkpoint.
    """
    if not files.paths("tokenizer"):
        return None
    read = sorted((file.name, file.digest) for file in files.stored if file.role in ("tokenizer", "config"))
    known = (d_vocab, tuple(read))
    if known not in _CHECKED:
        check_tokenizer_files(files.paths("tokenizer"), d_vocab)
        digest = check_tokenizer(load_tokenizer(files.folder), d_vocab)
        if not all(one for _, one in read):  # a dry run digests nothing
            return digest
        if len(_CHECKED) >= _N_CHECKED:
            _CHECKED.clear()
        _CHECKED[known] = digest
    return _CHECKED[known]


def _check_tensors(checkpoint: Checkpoint, weights: Weights) -> None:
    """Check the staged tensors' names, shapes and dtypes against the architecture."""
    if checkpoint.family is None:
        from registry.hooked_weights import check_hooked_weights  # it needs a HookedTransformer, the others do not

        check_hooked_weights(checkpoint.architecture, weights.tensors, HOOKED_CONFIG)
    else:
        check_tensors(checkpoint.family, checkpoint.values, weights.tensors)


def _measure_parity(
    request: Request, checkpoint: Checkpoint, paths: Sequence[Path], progress: Progress
) -> tuple[Parity | None, Sketch | None]:
    """Measure parity and refuse disparity, or with `skip` look for NaN and infinities; take the sketch either way."""
    choice, location = request.parity, request.source
    if checkpoint.family is None:
        from registry.verify_hooked import verify_hooked_weights

        applied = checkpoint.processing or ()
        return verify_hooked_weights(
            checkpoint.architecture, applied, paths, choice=choice, location=location, progress=progress
        )
    return verify_weights(
        checkpoint.family,
        checkpoint.values,
        checkpoint.architecture,
        paths,
        choice=choice,
        location=location,
        progress=progress,
    )
