"""What changed between two versions, and the two as a matched pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from registry.methods.asking import Asking
from registry.methods.loading import Loading
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from registry.compare_versions import Comparison
    from registry.pair import Pair


class Comparing(Asking, Loading):
    """Methods that compare."""

    def compare(
        self,
        a: str,
        b: str,
        *,
        weights: bool = False,
        ranks: bool = True,
        prompts: Sequence[str | Sequence[int]] = (),
        processed: bool = True,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        progress: Progress = no_progress,
    ) -> Comparison:
        """Say what changed from version `a` to version `b`: in the records, in the weights, in what they compute.

        Args:
            a: the ref of one version, usually the parent.
            b: that of the other.
            weights: compare tensor by tensor; `ranks` are what takes longest of it.
            prompts: texts, or lists of tokens, to run both on; none, and behaviour is not compared.
            processed: whether both run processed, as `load` gives them.
            dtype: in which both run.
            device: where both run.

        Raises:
            ProcessingConflict: the two cannot be processed alike.
            VocabularyMismatch: their tokens mean different things, and there are prompts.
        """
        from registry.compare_versions import Comparison, compare_versions_on, compare_weights
        from registry.load_options import make_options

        records = self.diff(a, b, progress=progress)
        one, other = (self.fetch(ref, progress=progress) for ref in (a, b)) if weights or prompts else (None, None)
        if one is None or other is None:
            return Comparison(records.a, records.b, records)
        options = make_options(processed=processed, flags={}, dtype=dtype, device=device, n_devices=1, verify="changed")
        return Comparison(
            records.a,
            records.b,
            records,
            compare_weights(self.derived, one, other, ranks=ranks, progress=progress) if weights else None,
            compare_versions_on(self.derived, one, other, prompts, options, progress) if prompts else None,
        )

    def load_pair(
        self,
        ref: str,
        parent: str | None = None,
        *,
        processed: bool = True,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        progress: Progress = no_progress,
    ) -> Pair:
        """Return a version and its parent as HookedTransformers that can be compared: processed alike, in one dtype.

        `parent` is the ref of any version; without it, the only registered parent is taken. Tensors that are equal are
        mapped from one file; each network stays free to write to its own.

        Raises:
            ProcessingConflict: the two cannot be processed alike.
            VocabularyMismatch: their tokens mean different things.
        """
        from registry.load_options import make_options
        from registry.pair import choose_parent, load_pair

        child = self.fetch(ref, progress=progress)
        options = make_options(processed=processed, flags={}, dtype=dtype, device=device, n_devices=1, verify="changed")
        other = self.fetch(parent or choose_parent(child), progress=progress)
        return load_pair(self.derived, child, other, options, progress)
