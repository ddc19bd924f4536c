"""Cut texts into windows of tokens that fit into the context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from registry.errors import InvalidInput

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True)
class Window:
    """Tokens of one text, `(n_positions,)`: all but the first are predicted. `text` counts the texts from 0."""

    tokens: torch.Tensor
    text: int
    n_bytes: int
    """How many bytes of UTF-8 the text that it was cut from has, on its first window; 0 on the others."""


def cut_windows(
    network: HookedTransformer, texts: Iterable[str], *, length: int | None = None, max_tokens: int | None = None
) -> Iterator[Window]:
    """Tokenize each text as `to_tokens` does, and cut it into windows of `length` (None: n_ctx).

    The next begins where the last one ended, and each with BOS where texts do. Stops after `max_tokens` predicted ones.
    Raises InvalidInput if no text has two tokens.
    """
    length = choose_length(network, length)
    n_predicted = 0
    bos = network.tokenizer.bos_token_id if network.tokenizer is not None else None
    for index, text in enumerate(texts):
        tokens = network.to_tokens(text, truncate=False, move_to_device=False)[0]
        begins_with_bos = bos is not None and len(tokens) > 0 and int(tokens[0]) == bos
        start = tokens[:1] if begins_with_bos else tokens[:0]
        rest = tokens[len(start) :]
        step = length - len(start)
        for offset in range(0, len(rest), step):
            window = torch.cat([start, rest[offset : offset + step]])
            if max_tokens is not None:
                window = window[: max_tokens - n_predicted + 1]
            if len(window) < 2:
                continue
            n_predicted += len(window) - 1
            yield Window(window, index, len(text.encode(errors="replace")) if offset == 0 else 0)
            if max_tokens is not None and n_predicted >= max_tokens:
                return
    if not n_predicted:
        raise InvalidInput("The data hold no text of two tokens or more.", hint="There is nothing to predict in them.")


def run_tokens(network: HookedTransformer, tokens: torch.Tensor, **given: Any) -> torch.Tensor:
    """Return the logits of tokens none of which is padding to the left of others.

    Where a tokenizer pads on the left, transformer-lens would take tokens that begin a text for padding if they are
    equal to PAD, as BOS and EOS often are; so it is told that none is.
    """
    tokens = tokens.to(network.cfg.device)
    with torch.inference_mode():
        logits: torch.Tensor = network(tokens, attention_mask=torch.ones_like(tokens), **given)
    return logits


def choose_length(network: HookedTransformer, length: int | None) -> int:
    """Return how long windows are, or raise InvalidInput."""
    n_ctx = network.cfg.n_ctx
    if length is None:
        return int(n_ctx)
    if not 2 <= length <= n_ctx:
        raise InvalidInput(f"Windows of {length:,} tokens cannot be run.", hint=f"Give 2 to {n_ctx:,}, which is n_ctx.")
    return length


def by_length(windows: Iterable[Window], n_ahead: int = 64) -> Iterator[Window]:
    """Put windows of one length beside each other, looking some ahead, so that batches need no padding."""
    waiting: list[Window] = []
    for window in windows:
        waiting.append(window)
        if len(waiting) >= n_ahead:
            yield from sorted(waiting, key=lambda one: len(one.tokens))
            waiting = []
    yield from sorted(waiting, key=lambda one: len(one.tokens))
