"""The object people hold: where the database and the store are, and every operation as a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.database import Database
from registry.errors import InvalidInput, SignatureInvalid, StorageError
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

    from registry.attest import Attestation
    from registry.audit import ChainFault, Event, Head
    from registry.check import Check
    from registry.diff import ChangedTensors, RecordedDiff
    from registry.fetch import ParityChoice
    from registry.identify import Identification
    from registry.lineage import Lineage
    from registry.register import Registration
    from registry.resolve import ResolvedRef
    from registry.results import Results, SearchResult
    from registry.retain import RetentionPlan
    from registry.runs import RunPlan, RunStep
    from registry.sql import SqlResult
    from registry.suite import SuiteAudit
    from registry.verify_store import Verification
    from registry.versions import AliasSpan, ModelSummary, Version, VersionSummary


Parents = str | Sequence[str] | Mapping[str, str | None]
"""One parent, several, or a mapping from each to its relation (None: the one that all others have)."""


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
        parent: Parents = (),
        absent_parents: Parents = (),
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
            parent: the ref, or refs, of what it was made from; their architecture must be the same. A mapping gives
                each its relation: `{"base": "finetuned", "teacher": "distilled"}`.
            absent_parents: parents that are not registered, as `ORG/NAME@REVISION` on the Hub, or with the digest of
                their weights, `ORG/NAME@REVISION#sha256:DIGEST`; joined when they are. One, several, or a mapping.
            relation: what it is to its parents; `finetuned`, or `merged` if there are several.
            step: the training step, for `name@step-N`.
            allow: architecture fields that may differ from the parent's; `unrelated-parent` for weights that do not
                come from it.
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
            UnrelatedParent: its weights do not come from its parent.
            ParityFailure: the converted network does not compute what the source does.
            SourceError: it cannot be read or is not whole.
        """
        from registry.register import Request, register_version
        from registry.sources import SourceOptions

        request = Request(
            name=name,
            source=str(source),
            parents=_list_parents(parent),
            relation=relation,
            relations=_list_relations(parent, absent_parents),
            absent_parents=_list_parents(absent_parents),
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

    def plan_run(self, name: str, folder: str | Path, *, parent: str | None = None) -> RunPlan:
        """Say what `register_run` would do: the run's checkpoints in order, and which of them are there already."""
        from registry.runs import plan_run

        return plan_run(self.database, name, Path(folder), parent)

    def register_run(
        self,
        plan: RunPlan,
        *,
        relation: str | None = None,
        allow: Sequence[str] = (),
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
        parity: ParityChoice | None = None,
        link: bool = False,
        progress: Progress = no_progress,
    ) -> Iterator[tuple[RunStep, Registration | None]]:
        """Register a run's checkpoints as steps of one model, each the child of the one before (`continued`).

        The first is the child of the plan's parent. Gives every step as it is done, with None for what was there
        already; it can be broken off and repeated. The other arguments are those of `register`, for every step.

        Raises:
            LineageConflict: a step is there with other weights.
        """
        from registry.register import Request
        from registry.runs import register_run

        base = Request(
            name=plan.name,
            source="",
            relation=relation,
            allow=tuple(allow),
            note=note,
            tags=dict(tags or {}),
            parity=parity,
            link=link,
        )
        return register_run(self.database, self.store, plan, base, progress)

    def audit_suite(self, suite: str | Path, *, progress: Progress = no_progress) -> SuiteAudit:
        """Compare the weights of all steps of a suite by their digests: duplicates, gaps, a final step that is another.

        `suite` is a registered model, a folder of `checkpoint-N`, or a model on the Hub with a branch for each step, of
        which nothing is fetched but lists of files. `hf://ORG/NAME` always means the Hub.
        """
        from registry.find_suite import find_suite

        return find_suite(self.database, str(suite), progress)

    def register_network(
        self,
        name: str,
        network: HookedTransformer,
        *,
        parent: Parents = (),
        absent_parents: Parents = (),
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
            parents=_list_parents(parent),
            relation=relation,
            relations=_list_relations(parent, absent_parents),
            absent_parents=_list_parents(absent_parents),
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

    def identify(
        self,
        source: str | Path,
        *,
        parent: str | Sequence[str] = (),
        weights: Literal["safetensors", "bin"] | None = None,
        config: str | Path | None = None,
        limit: int = 10,
        read: bool = False,
        progress: Progress = no_progress,
    ) -> Identification:
        """Say which registered versions a source is likely to come from, from samples of its weights; nearest first.

        Only versions whose matrices have the same names and shapes are compared, and which of two came from the other
        cannot be told. `parent` is what an adapter is merged into. `read` reads the weights of versions that were
        registered without being converted, and keeps their samples. Raises what `register` raises for the source.
        """
        from registry.identify import identify_source, sketch_missing
        from registry.sources import SourceOptions

        if read:
            sketch_missing(self.database, self.store, progress)
        parents = (parent,) if isinstance(parent, str) else tuple(parent)
        options = SourceOptions(weights, Path(config) if config is not None else None)
        return identify_source(self.database, self.store, str(source), parents, options, limit, progress)

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
        from registry.resolve import resolve_at_once

        return resolve_at_once(self.database, ref)

    def version(self, ref: str) -> Version:
        """Return everything that is recorded of the version that `ref` means."""
        from registry.query import read_version
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            return read_version(connection, resolve_ref(connection, ref).id)

    def models(self, *, limit: int | None = None, after: str | None = None) -> Results[ModelSummary]:
        """List the models by name: all, or a page of `limit` that follow the name `after`."""
        from registry.query import list_models
        from registry.results import Results
        from registry.versions import ModelSummary

        with self.database.read() as connection:
            return Results(list_models(connection, limit=limit, after=after), ModelSummary)

    def history(self, name: str, *, limit: int | None = None, before: int | None = None) -> Results[VersionSummary]:
        """List the versions of a model, newest first, retired ones too: all, or a page of `limit` `before` a number."""
        from registry.query import list_history
        from registry.refs import check_model_name
        from registry.results import Results
        from registry.versions import VersionSummary

        with self.database.read() as connection:
            return Results(list_history(connection, check_model_name(name), limit=limit, before=before), VersionSummary)

    def count_models(self) -> int:
        """Count the models."""
        from registry.query import count_models

        with self.database.ask() as connection:
            return count_models(connection)

    def count_versions(self, name: str) -> int:
        """Count the versions of a model, retired ones too."""
        from registry.query import count_versions

        with self.database.ask() as connection:
            return count_versions(connection, name)

    def search(
        self,
        expression: str = "",
        *,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        after: str | None = None,
        show: Sequence[str] = (),
    ) -> SearchResult:
        """Find versions: `reg.search("family = 'gpt2' and metric.loss < 3.2 and descends_from('gpt2-small')")`.

        docs/search.md has the language. Retired versions are left out unless the expression names `retired` or
        `retired_at`. An empty expression finds all.

        Args:
            expression: what must hold of a version.
            order_by: fields, each with `-` before it for descending: `"-metric.loss, step"`; what has no value comes
                last. Ties, and all without it, are newest first.
            limit: how many at most.
            after: the ref after which to go on: `after` of the page before.
            show: fields whose values are wanted in `values`, as those of `order_by` are.

        Raises:
            InvalidQuery: the expression cannot be read or cannot be meant; `column` is the place.
            UnknownRef: a function names a version that is not there.
        """
        from registry.search import Search, search_versions

        with self.database.read() as connection:
            return search_versions(connection, Search(expression, order_by, limit, after, show))

    def search_refs(
        self,
        expression: str = "",
        *,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        after: str | None = None,
    ) -> list[str]:
        """Find versions as `search` does, and return their refs only, which is quick for any number of them."""
        from registry.search import Search, search_refs

        with self.database.read() as connection:
            return search_refs(connection, Search(expression, order_by, limit, after))

    def sql(self, statement: str, *, timeout: float = 30, limit: int | None = None) -> SqlResult:
        """Run one SELECT over the views of docs/search.md; it can read and do nothing else.

        Args:
            statement: the database's own SQL.
            timeout: seconds that it may take.
            limit: how many rows at most; `is_cut` of the result says that there were more.

        Raises:
            InvalidSql: the database refuses it, or it is more than a query.
            QueryTimeout: it took longer.
        """
        from registry.sql import run_sql

        return run_sql(self.database, statement, timeout=timeout, limit=limit)

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

    def lineage(self, ref: str, *, up: bool = True, down: bool = True, depth: int | None = None) -> Lineage:
        """Return the lineage of a version, `depth` generations of it at most: ancestors, descendants, edges, ways."""
        from registry.errors import InvalidInput
        from registry.lineage import Lineage
        from registry.resolve import resolve_ref

        if depth is not None and not 1 <= depth < 2**31:
            raise InvalidInput(f"{depth} is no number of generations.", hint="Leave it out to have all of them.")
        with self.database.read() as connection:
            version = resolve_ref(connection, ref)
        return Lineage(self.database, version, up=up, down=down, depth=depth)

    def join_parent(self, ref: str, parent: str, *, declared: str | None = None, allow: Sequence[str] = ()) -> Version:
        """Say that an absent parent of the version `ref` means is the registered version `parent`; return the child.

        `declared` says which, as `ORG/NAME@REVISION`, if it has several; `allow` names architecture fields that may
        differ. What was declared by its commit or digest is joined by itself when it is registered.

        Raises:
            LineageConflict: the record shows that it is another one, or it came from `ref` itself.
            ArchitectureMismatch: it computes something else.
            UnknownRef: there is no such absent parent.
        """
        from registry.absent import join_by_hand
        from registry.query import read_version

        with self.database.write() as connection:
            child = join_by_hand(connection, ref, parent, declared, allow)
            return read_version(connection, child.id)

    def diff(self, a: str, b: str, *, read: bool = False, progress: Progress = no_progress) -> RecordedDiff:
        """Say what changed from one version to another, from what is recorded: facts, architecture, tensors.

        `read` reads the weights of versions that were registered before the digests of tensors were kept, and keeps
        them. Where tensors cannot be compared, `tensors` is None and `obstacle` says why.
        """
        from registry.diff import read_diff

        if read:
            self._digest_missing((a, b), progress)
        with self.database.read() as connection:
            return read_diff(connection, a, b)

    def changed_tensors(
        self, a: str, b: str, *, read: bool = False, progress: Progress = no_progress
    ) -> ChangedTensors:
        """Say which tensors are equal, changed, added or gone from one version to another, from their digests alone.

        Raises:
            TensorsUnknown: they are not recorded; `read` reads the weights once and records them.
            UnsupportedLayout: the two versions name their tensors differently.
        """
        from registry.diff import compare_tensors
        from registry.query import read_version
        from registry.resolve import resolve_ref

        if read:
            self._digest_missing((a, b), progress)
        with self.database.read() as connection:
            one, other = (read_version(connection, resolve_ref(connection, ref).id) for ref in (a, b))
            return compare_tensors(connection, one, other)

    def _digest_missing(self, refs: Sequence[str], progress: Progress) -> None:
        from registry.redigest import digest_missing

        for ref in refs:
            digest_missing(self.database, self.store, self.version(ref), progress)

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

    def aliases(
        self, name: str | None = None, *, history: bool = False, at: datetime | None = None
    ) -> Results[AliasSpan]:
        """List aliases, of all models or of `name`: as they stand, as they stood `at` an instant, or all ever."""
        from registry.aliases import list_aliases
        from registry.results import Results
        from registry.versions import AliasSpan

        with self.database.read() as connection:
            return Results(list_aliases(connection, name, history=history, at=at), AliasSpan)

    def retire(self, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
        """Take a version out of use; nothing of it is deleted."""
        from registry.retire import retire_version

        with self.database.write() as connection:
            return retire_version(connection, ref, force=force, reason=reason)

    def protect(self, name: str, *, protect: bool = True) -> None:
        """Protect a model, so that none of its versions can be retired; with `protect=False` no longer."""
        from registry.retire import protect_model

        with self.database.write() as connection:
            protect_model(connection, name, protect=protect)

    def plan_retention(
        self,
        name: str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: int | None = None,
        by: str | None = None,
    ) -> RetentionPlan:
        """Say which steps of a model would be kept and which retired; nothing is changed.

        Args:
            name: the model.
            keep_last: so many of the last steps.
            keep_every: the steps that are multiples of it.
            keep_best: so many of the best by the metric `by`.
            by: a metric, `"loss"` or `"suite.loss"`; the lowest are best, with `-` before it the highest.
        """
        from registry.retain import Retention, plan_retention

        with self.database.read() as connection:
            return plan_retention(connection, name, Retention(keep_last, keep_every, keep_best, by))

    def retain(self, plan: RetentionPlan) -> None:
        """Carry out a plan of `plan_retention`, in one transaction; nothing is deleted.

        Raises PlanOutdated if the model has changed since.
        """
        from registry.retain import carry_out

        with self.database.write() as connection:
            carry_out(connection, plan)

    def restore(self, ref: str) -> ResolvedRef:
        """Put a retired version back to use."""
        from registry.retire import restore_version

        with self.database.write() as connection:
            return restore_version(connection, ref)

    def events(
        self,
        subject: str | None = None,
        limit: int | None = None,
        *,
        before: int | None = None,
        action: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Results[Event]:
        """Return the audit trail, newest first, of everything or of one model or version: all, or a page of `limit`.

        `before` is the sequence of an event that all of the page came before. `actor` is `user@host`, or the user on
        any host; `since` is included, `until` is not.
        """
        from registry.audit import Event, EventFilters, read_events
        from registry.results import Results

        filters = EventFilters(action, actor, since, until)
        with self.database.read() as connection:
            return Results(read_events(connection, subject, limit, before=before, filters=filters), Event)

    def events_head(self) -> Head:
        """Return the digest that stands for the audit trail as it is now, to keep elsewhere."""
        from registry.audit import read_head

        with self.database.read() as connection:
            return read_head(connection)

    def attest(
        self,
        ref: str,
        *,
        sign: str | Path | None = None,
        password: str | None = None,
        folder: str | Path | None = None,
    ) -> Attestation:
        """Return the in-toto statement of a version; with `sign`, a private key in PEM, sign it over all its files.

        The signature is kept in the audit trail, and both are saved in `folder` if one is given.
        """
        from registry.attest import attest_version, record_attestation
        from registry.files import refuse_unfetched

        version = self.version(ref)
        refuse_unfetched(version)
        attestation = attest_version(self.store, version, None if sign is None else Path(sign), password)
        if folder is not None:
            attestation.save(Path(folder))
        if sign is not None:
            with self.database.write() as connection:
                record_attestation(connection, attestation)
        return attestation

    def verify_attestation(self, ref: str, public_key: str | Path, *, folder: str | Path | None = None) -> Attestation:
        """Check that a version was signed with the private half of `public_key`, and is still what was signed.

        The attestation is the one saved in `folder`, else any in the audit trail. Raises SignatureInvalid.
        """
        from registry.attest import read_attestations, read_saved_attestation, verify_any

        with self.database.read() as connection:
            version, found = read_attestations(connection, ref)
        if folder is not None:
            found = [read_saved_attestation(version, Path(folder))]
        return verify_any(self.store, version, found, Path(public_key))

    def verify_events(self, *, since: str | None = None) -> ChainFault | None:
        """Check the chain of events and return its first fault, or None.

        With `since`, a digest that `events_head` gave once, a trail that was cut or written anew is found too.
        """
        from registry.audit import verify_chain

        with self.database.read() as connection:
            return verify_chain(connection, since)

    def verify(
        self,
        *refs: str,
        read_data: bool | tuple[int, int] = False,
        key: str | Path | None = None,
        progress: Progress = no_progress,
    ) -> Verification:
        """Check that what was registered is still there: the versions that `refs` mean, or all, retired ones too.

        Every blob must be there in its size, the chain of events unbroken, and the rows what the events say. With
        `read_data` every byte is hashed as well; `(n, t)` reads the n-th of t parts, so that t runs read everything.
        With `key`, a public key in PEM, each of the `refs` must be signed with its private half (see `attest`).
        Nothing is written, and faults are returned, not raised.
        """
        from registry.verify_store import Fault, verify_store

        done = verify_store(self.database, self.store, refs, read_data, progress)
        if key is None:
            return done
        if not refs:
            raise InvalidInput("Signatures are checked of versions that are named.", hint="Name them: REF …")
        faults = []
        for ref in refs:
            try:
                self.verify_attestation(ref, key)
            except (SignatureInvalid, StorageError) as error:
                faults.append(Fault(error.code, ref, error.message, error.hint or "", (ref,), 1))
        return done.with_faults(faults)


def _list_parents(parents: Parents) -> tuple[str, ...]:
    return (parents,) if isinstance(parents, str) else tuple(parents)


def _list_relations(*given: Parents) -> dict[str, str | None]:
    return {ref: relation for one in given if isinstance(one, Mapping) for ref, relation in one.items()}
