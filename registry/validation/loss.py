"""The suite `loss`: next-token loss and perplexity on texts, with a confidence interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from registry.progress import Counter
from registry.validation.batches import run_batches
from registry.validation.data import PATH, Data, digest_again
from registry.validation.metric import Measured, Metric
from registry.validation.subject import Subject
from registry.validation.windows import Window, by_length, cut_windows

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True)
class Loss:
    """Next-token loss on the texts of `data`, cut into windows of `length` tokens (None: n_ctx).

    Args:
        data: a .txt or .jsonl file, or a dataset that `datasets` saved.
        column: which column holds the texts.
        length: of the windows.
        max_tokens: stop after so many predicted tokens.
        batch_size: how many windows run at once; halved where memory runs out.
    """

    name: ClassVar[str] = "loss"
    version: ClassVar[str] = "1"

    data: str = field(metadata=PATH)
    column: str = "text"
    length: int | None = None
    max_tokens: int | None = None
    batch_size: int = 8

    def digest_data(self, extent: Mapping[str, Any] | None) -> str | None:
        """Return the digest of the data as they are now."""
        return digest_again(self.data, extent)

    def run(self, subject: Subject) -> Measured:
        """Measure `loss`, `perplexity` and `bits_per_byte`."""
        network = subject.load()
        data = Data(self.data)
        totals: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # by text: loss, predicted tokens
        n_bytes = 0
        windows = cut_windows(network, data.read_texts(self.column), length=self.length, max_tokens=self.max_tokens)
        counter = Counter(subject.progress, "measuring the loss", self.max_tokens or 0)
        for batch, losses in run_same_length(network, windows, self.batch_size):
            for window, loss in zip(batch, losses, strict=True):
                totals[window.text][0] += loss
                totals[window.text][1] += len(window.tokens) - 1
                n_bytes += window.n_bytes
                counter.advance(len(window.tokens) - 1)
        n_tokens = int(sum(count for _, count in totals.values()))
        total = sum(loss for loss, _ in totals.values())
        mean = total / n_tokens
        error = estimate_error(list(totals.values()))
        low, high = (None, None) if error is None else (mean - _Z * error, mean + _Z * error)
        interval = {"low": low, "high": high, "confidence": 0.95, "n_texts": len(totals)}
        perplexity = {
            **interval,
            "low": None if low is None else _exp(low),
            "high": None if high is None else _exp(high),
        }
        metrics = [
            Metric("loss", mean, "nats per token", "lower", n_tokens, details=interval),
            Metric("perplexity", _exp(mean), None, "lower", n_tokens, details=perplexity),
        ]
        if self.max_tokens is None:  # else it is not known how many bytes the tokens are
            metrics.append(Metric("bits_per_byte", total / math.log(2) / n_bytes, "bits per byte", "lower", n_bytes))
        return Measured(metrics, data.digest, extent=data.extent)


def run_same_length(
    network: HookedTransformer, windows: Iterable[Window], batch_size: int
) -> Iterator[tuple[Sequence[Window], list[float]]]:
    """Run windows in batches of one length and give each batch with its summed losses, in nats."""
    for _, group in groupby(by_length(windows), key=lambda window: len(window.tokens)):
        yield from run_batches(group, lambda batch: sum_losses(network, batch), batch_size)


def sum_losses(network: HookedTransformer, windows: Sequence[Window]) -> list[float]:
    """Return the summed loss of each window's predicted tokens, in nats, added up in float64."""
    tokens = torch.stack([window.tokens for window in windows]).to(network.cfg.device)
    with torch.inference_mode():
        logits = network(tokens)
        return [
            float(torch.nn.functional.cross_entropy(row[:-1].double(), targets[1:], reduction="sum"))
            for row, targets in zip(logits, tokens, strict=True)
        ]


def estimate_error(totals: Sequence[Sequence[float]]) -> float | None:
    """Return the standard error of the mean loss per token; `totals` are (loss, tokens) of each text.

    Tokens of one text are not independent, texts are: the error of a ratio estimator over texts (Cochran, Sampling
    Techniques, 1977, eq. 6.13). None for fewer than two texts.
    """
    n_texts = len(totals)
    if n_texts < 2:
        return None
    n_tokens = sum(count for _, count in totals)
    mean = sum(loss for loss, _ in totals) / n_tokens
    squares = sum((loss - mean * count) ** 2 for loss, count in totals)
    return math.sqrt(n_texts / (n_texts - 1) * squares) / n_tokens


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
