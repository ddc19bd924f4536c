"""The suite `structure`: whether training left the network in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from registry.architecture import Architecture
from registry.errors import UnusableTokenizer
from registry.progress import Counter
from registry.validation.metric import Measured, Metric
from registry.validation.subject import Subject

N_NAMED = 20


@dataclass(frozen=True)
class Structure:
    """Shapes as registered, no NaN or infinities, no matrix that is dead (all zero) or constant, a tokenizer that fits.

    Loading has checked already that blobs are whole, that config.json means the registered architecture, that every
    tensor is there and that a tied head is the embedding; an error of it is a failure here.
    """

    name: ClassVar[str] = "structure"
    version: ClassVar[str] = "1"

    def run(self, subject: Subject) -> Measured:
        """Count what is not in order; each count has to be 0."""
        tensors = _load_tensors(subject)
        counter = Counter(subject.progress, "looking at tensors", len(tensors))
        nonfinite: list[str] = []
        dead: list[str] = []
        constant: list[str] = []
        for name, tensor in tensors.items():
            low, high = (float(extreme) for extreme in torch.aminmax(tensor.detach())) if tensor.numel() else (0.0, 0.0)
            if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN compares with nothing
                nonfinite.append(name)
            elif tensor.ndim > 1 and tensor.numel() > 1 and low == high and not _is_bias(name):
                (dead if low == 0 else constant).append(name)
            counter.advance()
        metrics = [
            _count("n_nonfinite", nonfinite, len(tensors)),
            _count("n_dead", dead, len(tensors)),
            _count("n_constant", constant, len(tensors)),
        ]
        return Measured([*metrics, *_check_tokenizer(subject)])


def _load_tensors(subject: Subject) -> Mapping[str, torch.Tensor]:
    from registry.errors import UnsupportedFamily

    try:
        network: Any = subject.load(processed=not _is_raw(subject))
    except UnsupportedFamily:  # only a bridge runs it
        network = subject.load_source()
    return dict(network.named_parameters())


def _is_raw(subject: Subject) -> bool:
    """Whether the weights can be had as they were trained, where folding has not made norms and biases up."""
    return "fold_ln" not in (subject.version.processing or ())


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].lstrip("_").startswith("b_") or name.endswith("bias")


def _count(name: str, names: list[str], n_tensors: int) -> Metric:
    details: dict[str, Any] = {"tensors": names[:N_NAMED]}
    return Metric(name, float(len(names)), "tensors", "lower", n_tensors, bound=0.0, passed=not names, details=details)


def _check_tokenizer(subject: Subject) -> list[Metric]:
    from registry.tokenizers import check_tokenizer

    if not subject.version.with_role("tokenizer"):
        return []
    tokenizer, said = subject.load_tokenizer(), ""
    try:
        fits = tokenizer is not None and (
            check_tokenizer(tokenizer, Architecture(subject.version.architecture)["d_vocab"])
            == subject.version.vocabulary_digest
        )
    except UnusableTokenizer as error:
        fits, said = False, error.message
    details = {"message": said} if said else {}
    return [Metric("tokenizer_fits", float(fits), None, "higher", 1, bound=1.0, passed=fits, details=details)]
