"""The tokens that two versions are compared on: prompts, and windows of data, which have to mean the same in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from registry.compare.patterns import Spell
from registry.errors import InvalidInput
from registry.validation.data import Data
from registry.validation.windows import cut_windows

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

WINDOW = 256
"""How long windows of data are where nobody says: what is kept of attention patterns grows with its square."""


@dataclass(frozen=True)
class CompareOn:
    """What two versions are to be compared on.

    Args:
        prompts: texts, or lists of tokens.
        data: a .txt or .jsonl file, or a folder that `datasets` saved, of which `column` holds the texts.
        length: of the windows that texts of data are cut into, in tokens; None: 256, or the context if that is shorter.
        max_tokens: stop after so many tokens of data that are predicted.
    """

    prompts: Sequence[str | Sequence[int]] = ()
    data: str | Path | None = None
    column: str = "text"
    length: int | None = None
    max_tokens: int | None = None

    def __bool__(self) -> bool:
        return bool(self.prompts) or self.data is not None


@dataclass(frozen=True)
class ReadTokens:
    """The tokens of each prompt and window, `(n_positions,)`, the digest of the data, and what was left out."""

    prompts: tuple[torch.Tensor, ...]
    data_digest: str | None
    notes: tuple[str, ...]


def read_tokens(on: CompareOn, network: HookedTransformer, ref: str, n_shared: int, n_ctx: int) -> ReadTokens:
    """Read prompts and data with the tokenizer of `network`, which is the version `ref`.

    Windows of data that hold other tokens than the first `n_shared` are left out. Raises InvalidInput without a
    tokenizer, and where nothing is left; and what `Data` raises.
    """
    has_texts = on.data is not None or any(isinstance(prompt, str) for prompt in on.prompts)
    if has_texts and network.tokenizer is None:
        raise InvalidInput(
            f"{ref} was registered without a tokenizer, so it reads no texts.", hint="Give lists of token numbers."
        )
    if on.max_tokens is not None and on.max_tokens < 1:
        raise InvalidInput(f"max_tokens cannot be {on.max_tokens:,}.", hint="Give 1 or more.")
    prompts = [
        network.to_tokens(prompt, move_to_device=False)[0]
        if isinstance(prompt, str)
        else torch.tensor(list(prompt), dtype=torch.long)
        for prompt in on.prompts
    ]
    if on.data is None:
        return ReadTokens(tuple(prompts), None, ())
    data = Data(str(on.data))
    length = min(WINDOW, n_ctx) if on.length is None else on.length
    if length > n_ctx:
        raise InvalidInput(f"Windows of {length:,} tokens cannot be run.", hint=f"Give 2 to {n_ctx:,}, which is n_ctx.")
    found = cut_windows(network, data.read_texts(on.column), length=length, max_tokens=on.max_tokens)
    windows = [window.tokens for window in found]
    kept = [tokens for tokens in windows if int(tokens.max()) < n_shared]
    if not kept:
        raise InvalidInput(
            f"Every window of {on.data} holds tokens that only one of the two versions has.",
            hint="Shorter windows may hold none.",
        )
    left_out = len(windows) - len(kept)
    notes = (f"{left_out:,} windows of data hold tokens that only one has, and were left out.",) if left_out else ()
    return ReadTokens((*prompts, *kept), data.digest, notes)


def make_spell(decode: Callable[[Sequence[int]], str] | None) -> Spell:
    """Return what writes tokens one by one: as `decode` does, or as numbers without it."""
    if decode is None:
        return lambda tokens: [str(token) for token in tokens]
    return lambda tokens: [decode([token]) for token in tokens]
