"""What brings versions in: registering, whole runs, fetching, and looking at a source beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from registry.methods.opened import OpenedRegistry
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from registry.check import Check
    from registry.fetch import ParityChoice
    from registry.identify import Identification
    from registry.registration import Registration
    from registry.runs import RunPlan, RunStep


Parents = str | Sequence[str] | Mapping[str, str | None]
"""One parent, several, or a mapping from each to its relation (None: the one that all others have)."""


class Adding(OpenedRegistry):
    """Methods that bring versions in."""

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
        strict: bool = False,
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
            strict: refuse what brings code along or asks for some (`UnsafeArtifact`), as $LENSREG_POLICY=strict does
                for all; otherwise it is pointed out, and never run.
            dry_run: do everything but write.
            progress: called with the stage and how far it is.

        Raises:
            ArchitectureMismatch: it computes something else than its parent, field by field.
            UnrelatedParent: its weights do not come from its parent.
            ParityFailure: the converted network does not compute what the source does.
            SourceError: it cannot be read or is not whole.
        """
        from registry.register import register_version
        from registry.registration import Request
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
            source_options=SourceOptions(
                weights, Path(config) if config is not None else None, lazy, strict=strict or self._is_strict
            ),
            link=link,
            dry_run=dry_run,
        )
        self._refuse_older()
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
        strict: bool = False,
        workers: int | None = None,
        dask: str | None = None,
        executor: Executor | None = None,
        progress: Progress = no_progress,
    ) -> Iterator[tuple[RunStep, Registration | None]]:
        """Register a run's checkpoints as steps of one model, each the child of the one before (`continued`).

        The first is the child of the plan's parent. Gives every step as it is done, with None for what was there
        already; it can be broken off and repeated. With `workers`, `dask` or `executor`, as in `validate`, checkpoints
        are verified there side by side, and registered here in order. The other arguments are those of `register`, for
        every step.

        Raises:
            LineageConflict: a step is there with other weights.
            WorkerMismatch: a worker has other code, or sees another registry, store or folder.
        """
        from registry.executors import Place
        from registry.registration import Request
        from registry.runs import register_run_with
        from registry.sources import SourceOptions

        base = Request(
            name=plan.name,
            source="",
            relation=relation,
            allow=tuple(allow),
            note=note,
            tags=dict(tags or {}),
            parity=parity,
            source_options=SourceOptions(strict=strict or self._is_strict),
            link=link,
        )
        self._refuse_older()
        return register_run_with(self, plan, base, Place(workers, dask, executor), progress)

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
        from registry.register import register_version
        from registry.registration import Request

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
        self._refuse_older()
        return register_version(self.database, self.store, request, progress)

    def check(
        self,
        source: str | Path,
        *,
        parent: str | Sequence[str] = (),
        allow: Sequence[str] = (),
        weights: Literal["safetensors", "bin"] | None = None,
        config: str | Path | None = None,
        strict: bool = False,
    ) -> Check:
        """Say whether `source` would load, from its config and safetensors headers alone; nothing is registered.

        `fault` of what is returned is the refusal that `register` would give, or None. The database is opened only
        for `parent`. Raises what keeps it from being checked: SourceNotFound, SourceUnreachable, AccessDenied.
        """
        from registry.check import check_source
        from registry.sources import SourceOptions

        parents = (parent,) if isinstance(parent, str) else tuple(parent)
        options = SourceOptions(
            weights,
            Path(config) if config is not None else None,
            headers_only=True,
            strict=strict or self._is_strict,
        )
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


def _list_parents(parents: Parents) -> tuple[str, ...]:
    return (parents,) if isinstance(parents, str) else tuple(parents)


def _list_relations(*given: Parents) -> dict[str, str | None]:
    return {ref: relation for one in given if isinstance(one, Mapping) for ref, relation in one.items()}
