"""What gives a version back: as a network, as its files; and the derived files that make it quick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress
from registry.store.derived import DerivedFile
from registry.store.stamps import Verify

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from registry.fetch import ParityChoice
    from registry.versions import Version


class Loading(OpenedRegistry):
    """Methods that give versions back."""

    def fetch(
        self,
        ref: str,
        *,
        parity: ParityChoice | None = None,
        allow: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> Version:
        """Return the version that `ref` means, fetching, verifying and recording the bytes that `lazy` left elsewhere.

        Loading does it by itself. `parity` is the precision in which it is verified, as in `register`; `allow` may be
        `["unrelated-parent"]` for weights that do not come from the parent that was declared.

        Raises:
            UnrelatedParent: the weights do not come from a parent that was declared; it stays as it was.
            SourceUnreachable, AccessDenied: they cannot be had.
            MalformedArtifact: they are not the bytes whose digests were recorded.
            DatabaseReadOnly: the result cannot be recorded.
        """
        version = self._find(ref)
        if version.weights_digest is not None:
            return version
        from registry.fetch import fetch_version

        return fetch_version(self.database, self.store, version, parity, progress, allow)

    def load(
        self,
        ref: str,
        *,
        processed: bool = True,
        fold_ln: bool | None = None,
        center_writing_weights: bool | None = None,
        center_unembed: bool | None = None,
        fold_value_biases: bool | None = None,
        refactor_factored_attn_matrices: bool | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        n_devices: int = 1,
        verify: Verify = "changed",
        require: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> HookedTransformer:
        """Return the HookedTransformer that `ref` names, with its registered tokenizer.

        It is processed as `HookedTransformer.from_pretrained` does, except where that would change the function;
        `processed=False` leaves the weights as they were trained, and each flag can be given by itself. A processing
        flag that would change the function is left out with a warning. A version that was registered with its norms
        folded is given as it was registered.

        The first load writes the tensors as they are wanted to a derived file, and later ones map it: they take no
        memory of their own until they are written to, which never reaches the file. `verify` says when files are
        hashed: `"always"`, when they have `"changed"` on disk since this machine hashed them, or `"never"`, when only
        their sizes are checked. `require` are thresholds, `"loss < 3.2"`, which its newest measurements have to meet.

        Raises:
            RequirementsUnmet: they do not, or were not made.
            ProcessingConflict: raw weights are wanted of a version that was registered with its norms folded.
            UnknownRef, AmbiguousRef: with the candidates.
            VersionRetired: the version was taken out of use.
            ArtifactMissing, ArtifactCorrupt: the store no longer holds what was registered.
            ArchitectureMismatch: the stored config.json no longer means the registered architecture.
            HookedTransformerMissing: transformer-lens 4 is installed, which has none.
        """
        from registry.load import load_network
        from registry.load_options import make_options

        options = make_options(
            processed=processed,
            flags={
                "fold_ln": fold_ln,
                "center_writing_weights": center_writing_weights,
                "center_unembed": center_unembed,
                "fold_value_biases": fold_value_biases,
                "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
            },
            dtype=dtype,
            device=device,
            n_devices=n_devices,
            verify=verify,
        )
        version = self.fetch(ref, progress=progress)
        if require:
            self._refuse_unmet(version, require)
        return load_network(self.derived, version, options, progress)

    def _refuse_unmet(self, version: Version, require: Sequence[str]) -> None:
        from registry.requirements import refuse_unmet
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            version_id = resolve_ref(connection, version.ref).id
            refuse_unmet(connection, version_id, version.ref, require, what="load")

    def load_bridge(
        self,
        ref: str,
        *,
        compatibility: bool = False,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        verify: Verify = "changed",
        progress: Progress = no_progress,
    ) -> TransformerBridge:
        """Return a TransformerBridge of the same bytes: raw, or in compatibility mode, with weights processed.

        It is compared with the network it is made of before it is handed out.

        Raises:
            UnsupportedBridge: transformer-lens's bridge would compute something else.
            UnsupportedLayout: the version was registered as a HookedTransformer.
            And what `load` raises.
        """
        from registry.load import load_bridge_network
        from registry.load_options import read_place, read_verify

        kind, where = read_place(dtype, device)
        return load_bridge_network(
            self.store,
            self.fetch(ref, progress=progress),
            compatibility=compatibility,
            dtype=kind,
            device=where,
            verify=read_verify(verify),
            progress=progress,
        )

    def load_hf(
        self,
        ref: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        verify: Verify = "changed",
        progress: Progress = no_progress,
    ) -> PreTrainedModel:
        """Return the Hugging Face network, in eval mode; its config names no path.

        Raises:
            UnsupportedLayout: the version was registered as a HookedTransformer.
            And what `load` raises.
        """
        from registry.load import load_source_network
        from registry.load_options import read_place, read_verify

        kind, where = read_place(dtype, device)
        return load_source_network(
            self.store,
            self.fetch(ref, progress=progress),
            dtype=kind,
            device=where,
            verify=read_verify(verify),
            progress=progress,
        )

    def tokenizer(self, ref: str, *, verify: Verify = "changed") -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that was registered with a version, or None if there was none."""
        from registry.load import load_registered_tokenizer
        from registry.load_options import read_verify

        return load_registered_tokenizer(self.store, self._find(ref), verify=read_verify(verify))

    def path(self, ref: str, *, progress: Progress = no_progress) -> Path:
        """Return a folder that holds the version's files under their own names, for other tools to read.

        The files are links to the store's blobs; writing to them would damage the store. Those of a store that is
        elsewhere are downloaded first.
        """
        from registry.files import refuse_unfetched

        version = self.version(ref)
        refuse_unfetched(version)
        self.store.bring([(file.digest, file.size_bytes) for file in version.files], progress)
        for file in version.files:
            self.store.check(file.digest, file.size_bytes, read=False)
        return self.store.link_folder((file.name, file.digest) for file in version.files)

    def cached(self) -> list[DerivedFile]:
        """List the derived files that loading left in the store, the one used last first."""
        return self.derived.list_files()

    def plan_cache_pruning(self, max_bytes: int | None = None) -> list[DerivedFile]:
        """Return which derived files pruning would remove, which `remove_cached` does.

        They are those that no load here would use any more, and, of the others, the ones unused for longest that do not
        fit into `max_bytes` (None: the bound that loading keeps to).
        """
        from registry.converter import read_converter_version

        return self.derived.plan_pruning(read_converter_version(), max_bytes)

    def remove_cached(self, files: Sequence[DerivedFile]) -> int:
        """Remove derived files and return their bytes; loading makes again what it needs."""
        self.derived.remove(files)
        return sum(one.size_bytes for one in files)
