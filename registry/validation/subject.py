"""What a suite is given: one version, and its networks and tokenizer when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.progress import Progress, no_progress
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from registry.methods.comparing import Comparing
    from registry.pair import Pair


DTYPE = "float32"


@dataclass(frozen=True)
class Subject:
    """One version that is validated; networks come in `dtype` (None: the suite's own choice) on `device`."""

    registry: Comparing
    version: Version
    dtype: str | None = None
    device: str | None = None
    progress: Progress = no_progress

    def load(self, *, processed: bool = True) -> HookedTransformer:
        """Load the network, as `Registry.load` does."""
        return self.registry.load(self.version.ref, processed=processed, dtype=self.dtype or DTYPE, device=self.device)

    def load_source(self) -> PreTrainedModel:
        """Load the Hugging Face network that it was made of."""
        return self.registry.load_hf(self.version.ref, dtype=self.dtype or DTYPE, device=self.device)

    def load_bridge(self) -> TransformerBridge:
        """Load a TransformerBridge of it, with weights as they were trained."""
        return self.registry.load_bridge(self.version.ref, dtype=self.dtype or DTYPE, device=self.device)

    def load_pair(self, parent: str | None = None) -> Pair:
        """Load it with its parent, processed alike."""
        return self.registry.load_pair(self.version.ref, parent, dtype=self.dtype or DTYPE, device=self.device)

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Load the registered tokenizer, or None if there is none."""
        return self.registry.tokenizer(self.version.ref)
