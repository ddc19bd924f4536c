"""The HookedTransformer that is handed out: transformer-lens's, which reads texts as the registered tokenizer does.

This is the one module that imports transformer_lens.HookedTransformer, which transformer-lens 4 no longer has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from registry.errors import HookedTransformerMissing
from registry.texts import ReadsTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError as error:
    raise HookedTransformerMissing(
        f"transformer-lens {version('transformer-lens')} has no HookedTransformer; 4.0 took it away.",
        hint="Registry.load_bridge gives a TransformerBridge of the same bytes, and load_hf the Hugging Face network. "
        "Registering needs a HookedTransformer too, to measure parity (--parity skip leaves that out, and says so ever "
        'after). To have it: pip install "transformer-lens>=3.9,<4".',
    ) from error

__all__ = ["HookedTransformer", "HookedTransformerConfig", "RegisteredHookedTransformer"]

_ONE_THREAD = threading.RLock()


class RegisteredHookedTransformer(ReadsTexts, HookedTransformer):  # type: ignore[misc]
    """A HookedTransformer of a registered version."""

    _tokenizer: PreTrainedTokenizerBase | None = None
    _load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, read from its files when it is first asked for; None if there is none."""
        with _ONE_THREAD:
            if self._load_tokenizer is not None:
                self.tokenizer = self._load_tokenizer()
            return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer, self._load_tokenizer = tokenizer, None

    def postpone_tokenizer(self, load: Callable[[], PreTrainedTokenizerBase]) -> None:
        """Let `load` give the tokenizer when it is first asked for."""
        self._load_tokenizer = load

    def __getstate__(self) -> Any:
        """Copy and pickle the tokenizer itself: where the copy goes its files may not be."""
        _ = self.tokenizer
        return super().__getstate__()
