"""The suite `drift`: how far a version's predictions are from its parent's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import torch

from registry.compare.divergence import compare_logits
from registry.progress import Counter
from registry.validation.batches import run_batches
from registry.validation.data import Data
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

    data: str
    column: str = "text"
    parent: str | None = None
    length: int | None = None
    max_tokens: int | None = None
    batch_size: int = 4

    def run(self, subject: Subject) -> Measured:
        """Measure `kl` and `top1_agreement`."""
        pair = subject.load_pair(self.parent)
        data = Data(self.data)
        n_shared = min(pair.child.cfg.d_vocab, pair.parent.cfg.d_vocab)
        windows = cut_windows(pair.child, data.read_texts(self.column), length=self.length, max_tokens=self.max_tokens)
        counter = Counter(subject.progress, "measuring the drift", self.max_tokens or 0)
        kls: list[float] = []
        n_agreed, n_tokens = 0.0, 0
        for _, group in groupby(by_length(windows), key=lambda window: len(window.tokens)):
            for batch, (kl, agreed) in run_batches(group, lambda part: _compare(pair, part, n_shared), self.batch_size):
                kls += kl.flatten().tolist()
                n_agreed += float(agreed.sum())
                n_tokens += agreed.numel()
                counter.advance(sum(len(window.tokens) for window in batch))
        mean = math.fsum(kls) / n_tokens
        agreement = n_agreed / n_tokens
        against = {"parent": pair.parent_ref, "processing": list(pair.processing)}
        return Measured(
            [
                Metric("kl", mean, "nats", "lower", n_tokens, details={**against, "largest": max(kls)}),
                Metric("top1_agreement", agreement, "share", "higher", n_tokens, details=against),
            ],
            data.digest,
        )


def _compare(pair: Pair, windows: Sequence[Window], n_shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.stack([window.tokens for window in windows]).to(pair.child.cfg.device)
    with torch.inference_mode():
        return compare_logits(pair.parent(tokens), pair.child(tokens), n_shared)
