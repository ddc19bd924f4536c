"""The object people hold: where the database and the store are, and every operation as a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.database import Database
from registry.progress import Progress, no_progress
from registry.schema import SCHEMA_REVISION, prepare_schema, read_revision, upgrade_schema
from registry.settings import read_settings
from registry.store import LocalStore
from registry.store.derived import DerivedFile, DerivedFiles
from registry.store.stamps import Stamps, Verify

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from registry.audit import ChainFault, Event
    from registry.check import Check
    from registry.fetch import ParityChoice
    from registry.lineage import Lineage
    from registry.register import Registration
    from registry.resolve import ResolvedRef
    from registry.versions import AliasSpan, ModelSummary, Version, VersionSummary


class Registry:
    """A registry of models: `Registry()` opens the one that $LENSREG_URL and $LENSREG_STORE, or the defaults, name.

    `url` is an SQLAlchemy URL or the path of a SQLite file; `store` a folder. A fresh database is set up on first use;
    one with another schema raises SchemaOutdated or SchemaTooNew.
    """

    def __init__(self, url: str | None = None, store: str | Path | None = None) -> None:
        settings = read_settings(url, store)
        self.store = LocalStore(settings.store, Stamps(settings.stamps))
        self.derived = DerivedFiles(self.store, settings.derived_bytes)
        self._unprepared = Database(settings.url)

    def __repr__(self) -> str:
        return f"Registry({str(self._unprepared)!r}, store={str(self.store)!r})"

    @cached_property
    def database(self) -> Database:
        """The database, once its schema has been checked."""
        prepare_schema(self._unprepared)
        return self._unprepared

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the schema to this code's version; return the revision before and after."""
        before, _ = read_revision(self._unprepared)
        upgrade_schema(self._unprepared)
        return before, SCHEMA_REVISION

    def status(self) -> dict[str, str | None]:
        """Say where the database and the store are, and which schema it has and needs."""
        schema, _ = read_revision(self._unprepared)
        return {
            "database": str(self._unprepared),
            "store": str(self.store),
            "schema": schema,
            "needed_schema": SCHEMA_REVISION,
        }

    def close(self) -> None:
        """Give the database's connections back."""
        self._unprepared.close()

    def register(
        self,
        name: str,
        source: str | Path,
        *,
        parent: str | Sequence[str] = (),
        relation: str | None = None,
        step: int | None = None,
        allow: Sequence[str] = (),
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
        parity: ParityChoice | None = None,
        weights: Literal["safetensors", "bin"] | None = None,
        config: str | Path | None = None,
        lazy: bool = False,
        link: bool = False,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Registration:
        """Register a checkpoint as the next version of the model `name`.

        It may be a Hugging Face folder, a GGUF file, a model on the Hub, a TransformerLens state dict, what
        `save_network` saved, or a PEFT adapter, which is merged into its one parent.

        Args:
            name: one or two segments, `name` or `org/name`.
            source: the folder or file, or a Hub id `ORG/NAME[@REVISION]`; it is copied, and never opened again. A path
                that exists wins over a Hub id of the same spelling; `hf://ORG/NAME` always means the Hub.
            parent: the ref, or refs, of what it was made from; their architecture must be the same.
            relation: what it is to its parents; `finetuned`, or `merged` if there are several.
            step: the training step, for `name@step-N`.
            allow: architecture fields that may differ from the parent's.
            note: a remark for people.
            tags: keys and values to search by.
            parity: in which precision the converted network is compared with the source, `"float64"` or `"float32"`
                (for what is too big), or `"skip"`; the family's own when left out.
            weights: which one counts where a folder holds both, `"safetensors"` or `"bin"`.
            config: the config file of a bare state dict.
            lazy: leave a Hub model's large files there until the first load.
            link: hard-link the files into the store instead of copying them.
            dry_run: do everything but write.
            progress: called with the stage and how far it is.

        Raises:
            ArchitectureMismatch: it computes something else than its parent, field by field.
            ParityFailure: the converted network does not compute what the source does.
            SourceError: it cannot be read or is not whole.
        """
        from registry.register import Request, register_version
        from registry.sources import SourceOptions

        parents = (parent,) if isinstance(parent, str) else tuple(parent)
        request = Request(
            name=name,
            source=str(source),
            parents=parents,
            relation=relation,
            step=step,
            allow=tuple(allow),
            note=note,
            tags=dict(tags or {}),
            parity=parity,
            source_options=SourceOptions(weights, Path(config) if config is not None else None, lazy),
            link=link,
            dry_run=dry_run,
        )
        return register_version(self.database, self.store, request, progress)

    def register_network(
        self,
        name: str,
        network: HookedTransformer,
        *,
        parent: str | Sequence[str] = (),
        relation: str | None = None,
        step: int | None = None,
        allow: Sequence[str] = (),
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
        parity: ParityChoice | None = None,
        dry_run: bool = False,
        progress: Progress = no_progress,
    ) -> Registration:
        """Register a HookedTransformer in memory, just trained say, as the next version of the model `name`.

        Its weights are kept as they are, raw or processed, with its config and its tokenizer; `load` gives the same
        network back. The arguments are those of `register`.

        Raises:
            ArchitectureMismatch: it computes something else than its parent, field by field.
            UnsupportedSource: it is more than config and weights: hooks, foreign modules, an adapter.
            SourceError: its config or its weights cannot be registered.
        """
        from registry.register import Request, register_version

        request = Request(
            name=name,
            source="HookedTransformer in memory",
            network=network,
            parents=(parent,) if isinstance(parent, str) else tuple(parent),
            relation=relation,
            step=step,
            allow=tuple(allow),
            note=note,
            tags=dict(tags or {}),
            parity=parity,
            dry_run=dry_run,
        )
        return register_version(self.database, self.store, request, progress)

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
        their sizes are checked.

        Raises:
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
        return load_network(self.derived, self.fetch(ref, progress=progress), options, progress)

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

    def fetch(self, ref: str, *, parity: ParityChoice | None = None, progress: Progress = no_progress) -> Version:
        """Return the version that `ref` means, fetching, verifying and recording the bytes that `lazy` left elsewhere.

        Loading does it by itself. `parity` is the precision in which it is verified, as in `register`.

        Raises:
            SourceUnreachable, AccessDenied: they cannot be had.
            MalformedArtifact: they are not the bytes whose digests were recorded.
            DatabaseReadOnly: the result cannot be recorded.
        """
        version = self._find(ref)
        if version.weights_digest is not None:
            return version
        from registry.fetch import fetch_version

        return fetch_version(self.database, self.store, version, parity, progress)

    def check(
        self,
        source: str | Path,
        *,
        parent: str | Sequence[str] = (),
        allow: Sequence[str] = (),
        weights: Literal["safetensors", "bin"] | None = None,
        config: str | Path | None = None,
    ) -> Check:
        """Say whether `source` would load, from its config and safetensors headers alone; nothing is registered.

        `fault` of what is returned is the refusal that `register` would give, or None. The database is opened only
        for `parent`. Raises what keeps it from being checked: SourceNotFound, SourceUnreachable, AccessDenied.
        """
        from registry.check import check_source
        from registry.sources import SourceOptions

        parents = (parent,) if isinstance(parent, str) else tuple(parent)
        options = SourceOptions(weights, Path(config) if config is not None else None, headers_only=True)
        database = self.database if parents else None
        return check_source(database, self.store, str(source), parents, tuple(allow), options)

    def _find(self, ref: str) -> Version:
        """Return the version that `ref` means, which must be in use."""
        from registry.query import read_version
        from registry.resolve import refuse_retired, resolve_ref

        with self.database.read() as connection:
            resolved = resolve_ref(connection, ref)
            refuse_retired(resolved)
            return read_version(connection, resolved.id)

    def resolve(self, ref: str) -> ResolvedRef:
        """Return which version `ref` means now."""
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            return resolve_ref(connection, ref)

    def version(self, ref: str) -> Version:
        """Return everything that is recorded of the version that `ref` means."""
        from registry.query import read_version
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            return read_version(connection, resolve_ref(connection, ref).id)

    def models(self) -> list[ModelSummary]:
        """List the models by name."""
        from registry.query import list_models

        with self.database.read() as connection:
            return list_models(connection)

    def history(self, name: str) -> list[VersionSummary]:
        """List all versions of a model, newest first, retired ones too."""
        from registry.query import list_history
        from registry.refs import check_model_name

        with self.database.read() as connection:
            return list_history(connection, check_model_name(name))

    def path(self, ref: str) -> Path:
        """Return a folder that holds the version's files under their own names, for other tools to read.

        The files are links to the store's blobs; writing to them would damage the store.
        """
        from registry.files import refuse_unfetched

        version = self.version(ref)
        refuse_unfetched(version)
        for file in version.files:
            self.store.check(file.digest, file.size_bytes, read=False)
        return self.store.link_folder((file.name, file.digest) for file in version.files)

    def lineage(self, ref: str, *, up: bool = True, down: bool = True) -> Lineage:
        """Return the ancestors and descendants of a version."""
        from registry.lineage import read_lineage
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            return read_lineage(connection, resolve_ref(connection, ref), up=up, down=down)

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

    def set_alias(self, alias: str, ref: str) -> AliasSpan:
        """Make `NAME@ALIAS` mean the version that `ref` means now."""
        from registry.aliases import set_alias

        with self.database.write() as connection:
            return set_alias(connection, alias, ref)

    def remove_alias(self, alias: str) -> AliasSpan:
        """Take the alias `NAME@ALIAS` away; its history stays."""
        from registry.aliases import remove_alias

        with self.database.write() as connection:
            return remove_alias(connection, alias)

    def aliases(self, name: str | None = None, *, history: bool = False, at: datetime | None = None) -> list[AliasSpan]:
        """List aliases, of all models or of `name`: as they stand, as they stood `at` an instant, or all ever."""
        from registry.aliases import list_aliases

        with self.database.read() as connection:
            return list_aliases(connection, name, history=history, at=at)

    def retire(self, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
        """Take a version out of use; nothing of it is deleted."""
        from registry.retire import retire_version

        with self.database.write() as connection:
            return retire_version(connection, ref, force=force, reason=reason)

    def restore(self, ref: str) -> ResolvedRef:
        """Put a retired version back to use."""
        from registry.retire import restore_version

        with self.database.write() as connection:
            return restore_version(connection, ref)

    def events(self, subject: str | None = None, limit: int | None = None) -> list[Event]:
        """Return the audit trail, newest first, of everything or of one model or version."""
        from registry.audit import read_events

        with self.database.read() as connection:
            return read_events(connection, subject, limit)

    def verify_events(self) -> ChainFault | None:
        """Check the chain of events and return its first fault, or None."""
        from registry.audit import verify_chain

        with self.database.read() as connection:
            return verify_chain(connection)
