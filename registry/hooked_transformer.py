"""The HookedTransformer that is handed out: transformer-lens's, with texts read as the registered tokenizer reads them.

This is the one module that imports transformer_lens.HookedTransformer, which transformer-lens 4 no longer has.
"""

from __future__ import annotations

from importlib.metadata import version

from registry.errors import HookedTransformerMissing
from registry.texts import ReadsTexts

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


class RegisteredHookedTransformer(ReadsTexts, HookedTransformer):  # type: ignore[misc]
    """A HookedTransformer of a registered version."""
