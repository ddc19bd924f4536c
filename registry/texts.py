"""From texts to tokens: those that the registered tokenizer gives, and never cut to the context without a word.

transformer-lens writes BOS into the text before it is tokenized, which changes what follows in tokenizers that treat
the beginning of a text by itself; it asks for a PAD token even where there is nothing to pad; and it cuts in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from registry.errors import UnusableTokenizer


class TextCut(UserWarning):
    """A text has more tokens than the network's context, and the rest was left out."""


class ReadsTexts:
    """The `to_tokens` of every network that is loaded, HookedTransformer or bridge."""

    tokenizer: Any
    cfg: Any

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: Any = None,
        padding_side: Any = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> torch.Tensor:
        """Return the tokens of one text or several, (n_texts, n_tokens), as the registered tokenizer gives them.

        `prepend_bos` and `padding_side` are the config's and the tokenizer's own unless they are given. A text that is
        longer than the context is cut, with a TextCut warning; `truncate=False` leaves it whole.

        Raises UnusableTokenizer without a tokenizer, and for want of a BOS or PAD token where one is needed.
        """
        if self.tokenizer is None:
            raise UnusableTokenizer(
                "This version was registered without a tokenizer.",
                hint="Give it token ids, or register the checkpoint again with the tokenizer's files beside it.",
            )
        texts = [input] if isinstance(input, str) else list(input)
        # transformer-lens marks "as the config says" by an object of its own
        wanted = prepend_bos if isinstance(prepend_bos, bool) else self.cfg.default_prepend_bos
        if wanted and self.tokenizer.bos_token_id is None:
            raise UnusableTokenizer("BOS was asked for, and the tokenizer has none.", hint="Leave out prepend_bos.")
        to_add = [self.tokenizer.bos_token_id] if wanted and not self.cfg.tokenizer_prepends_bos else []
        n_to_remove = 1 if self.cfg.tokenizer_prepends_bos and not wanted else 0
        length = self.cfg.n_ctx - len(to_add) + n_to_remove if truncate else None
        rows = [to_add + row[n_to_remove:] for row in _tokenize(self.tokenizer, texts, length)]
        side = padding_side if padding_side in ("left", "right") else self.tokenizer.padding_side
        tokens = torch.tensor(_pad(self.tokenizer, rows, side), dtype=torch.long)
        return tokens.to(self.cfg.device) if move_to_device else tokens


def _tokenize(tokenizer: Any, texts: list[str], length: int | None) -> list[list[int]]:
    """Tokenize texts, cut to `length`, and say so if that leaves something out."""
    rows: list[list[int]] = tokenizer(texts, truncation=length is not None, max_length=length, verbose=False)[
        "input_ids"
    ]
    for text, row in zip(texts, rows, strict=True):
        if length is None or len(row) < length:
            continue
        n_tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if n_tokens > len(row):
            warnings.warn(
                f"A text has {n_tokens:,} tokens, and {len(row):,} fit into the context; the rest was left out.",
                TextCut,
                stacklevel=3,
            )
    return rows


def _pad(tokenizer: Any, rows: Sequence[list[int]], side: str) -> list[list[int]]:
    longest = max(map(len, rows), default=0)
    if tokenizer.pad_token_id is None and any(len(row) < longest for row in rows):
        raise UnusableTokenizer(
            "The texts have different numbers of tokens, and the tokenizer has no token to pad with.",
            hint="Give them one at a time, or choose one: network.tokenizer.pad_token = …",
        )
    padding = [[tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    return [row + pad if side == "right" else pad + row for row, pad in zip(rows, padding, strict=True)]
