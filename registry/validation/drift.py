"""The suite `drift`: how far a version's predictions are from its parent's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from registry.compare.divergence import compare_logits
from registry.errors import VocabularyMismatch
from registry.progress import Counter, Progress, no_progress
from registry.validation.batches import run_batches
from registry.validation.data import PATH, REF, Data, digest_again
from registry.validation.metric import Measured, Metric
from registry.validation.subject import Subject
from registry.validation.windows import Window, by_length, cut_windows

if TYPE_CHECKING:
    from registry.pair import Pair


@dataclass(frozen=True)
class Drift:
    """KL of the parent's next-token distribution from the version's, and how often their top-1 tokens agree.

    Args:
        data: a .txt or .jsonl file, or a dataset that `datasets` saved.
        column: which column holds the texts.
        parent: the ref to compare with; None: the only registered parent.
        length: of the windows, in tokens; None: n_ctx.
        max_tokens: stop after so many.
        batch_size: how many windows run at once; halved where memory runs out.
    """

    name: ClassVar[str] = "drift"
    version: ClassVar[str] = "1"

    data: str = field(metadata=PATH)
    column: str = "text"
    parent: str | None = field(default=None, metadata=REF)
    length: int | None = None
    max_tokens: int | None = None
    batch_size: int = 4

    def digest_data(self, extent: Mapping[str, Any] | None) -> str | None:
        """Return the digest of the data as they are now."""
        return digest_again(self.data, extent)

    def run(self, subject: Subject) -> Measured:
        """Measure `kl` and `top1_agreement`."""
        pair = subject.load_pair(self.parent)
        data = Data(self.data)
        windows = cut_windows(pair.child, data.read_texts(self.column), length=self.length, max_tokens=self.max_tokens)
        found = measure_drift(pair, windows, self.batch_size, subject.progress, self.max_tokens or 0)
        against = {"parent": pair.parent_ref, "processing": list(pair.processing)}
        return Measured(
            [
                Metric("kl", found.kl, "nats", "lower", found.n_tokens, details={**against, "largest": found.largest}),
                Metric("top1_agreement", found.top1_agreement, "share", "higher", found.n_tokens, details=against),
            ],
            data.digest,
            extent=data.extent,
        )


@dataclass(frozen=True)
class Divergence:
    """How far two networks' predictions are apart: mean and largest KL in nats, and the share of equal top-1 tokens."""

    kl: float
    largest: float
    top1_agreement: float
    n_tokens: int


def measure_drift(
    pair: Pair, windows: Iterable[Window], batch_size: int, progress: Progress = no_progress, n_expected: int = 0
) -> Divergence:
    """Run both on the same windows. Raises VocabularyMismatch for a token that only one of them has."""
    n_shared = min(pair.child.cfg.d_vocab, pair.parent.cfg.d_vocab)
    counter = Counter(progress, "measuring the drift", n_expected)
    kls: list[float] = []
    n_agreed, n_tokens = 0.0, 0
    for _, group in groupby(by_length(windows), key=lambda window: len(window.tokens)):
        for batch, (kl, agreed) in run_batches(group, lambda part: _compare(pair, part, n_shared), batch_size):
            kls += kl.flatten().tolist()
            n_agreed += float(agreed.sum())
            n_tokens += agreed.numel()
            counter.advance(sum(len(window.tokens) for window in batch))
    return Divergence(math.fsum(kls) / n_tokens, max(kls), n_agreed / n_tokens, n_tokens)


def _compare(pair: Pair, windows: Sequence[Window], n_shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.stack([window.tokens for window in windows]).to(pair.child.cfg.device)
    largest = int(tokens.max())
    if largest >= n_shared:
        raise VocabularyMismatch(
            f"The texts hold the token {largest:,}, and {pair.child_ref} and {pair.parent_ref} have only the first "
            f"{n_shared:,} in common.",
            hint="Leave out the texts with it.",
        )
    with torch.inference_mode():
        return compare_logits(pair.parent(tokens), pair.child(tokens), n_shared)
