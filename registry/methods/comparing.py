"""What changed between two versions, and the two as a matched pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import RegistryError, WorkerError
from registry.methods.asking import Asking
from registry.methods.loading import Loading
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from registry.compare_versions import Comparison
    from registry.pair import Pair


def compare_one(
    registry: Comparing, a: str, b: str, options: Mapping[str, Any], data_digest: str | None, progress: Progress
) -> Comparison:
    """Compare two versions, here or in a worker; what keeps it from being done is said in the result.

    `data_digest` is that of the data that the sender means, None if they are read where they are.
    """
    from registry.worker import refuse_other_data

    if data_digest is not None:
        refuse_other_data(options["data"], data_digest)
    try:
        return registry.compare(a, b, **options, progress=progress)
    except WorkerError:
        raise
    except RegistryError as error:
        return fail_comparison(registry, a, b, error)


def fail_comparison(registry: Comparing, a: str, b: str, error: RegistryError) -> Comparison:
    """Say why two versions could not be compared, with what is recorded of them."""
    from registry.compare_versions import Comparison

    return Comparison(a, b, registry.diff(a, b), obstacles=(error,))


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
        data: str | Path | None = None,
        column: str = "text",
        length: int | None = None,
        max_tokens: int | None = None,
        one_at_a_time: bool | None = None,
        processed: bool = True,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        progress: Progress = no_progress,
    ) -> Comparison:
        """Say what changed from version `a` to version `b`: in the records, in the weights, in what they compute.

        Where weights and behaviour were asked for and only one can be compared, `obstacles` say why the other cannot.

        Args:
            a: the ref of one version, usually the parent.
            b: that of the other.
            weights: compare tensor by tensor; `ranks` are what takes longest of it.
            prompts: texts, or lists of tokens, to run both on; neither these nor data, and behaviour is not compared.
            data: a .txt or .jsonl file, or a folder that `datasets` saved; `column` holds the texts.
            length: of the windows that these are cut into, in tokens; None: 256, or the context if that is shorter.
            max_tokens: stop after so many tokens of the data.
            one_at_a_time: hold only one network in memory, and what the first computed in temporary files; None: if
                that is less than a network, or there is no room for both. The numbers are the same.
            processed: whether both run processed, as `load` gives them.
            dtype: in which both run.
            device: where both run.

        Raises:
            ProcessingConflict: the two cannot be processed alike.
            VocabularyMismatch: their tokens mean different things, and there are prompts or data.
            HookedTransformerMissing: transformer-lens has none; records and weights can be compared all the same.
            InvalidInput: there is nothing to compare on, or a column or length is wrong.
            StorageFull: with one_at_a_time, what the first network computed has no room in temporary files.
        """
        from registry.compare_on import CompareOn
        from registry.compare_versions import compare_versions_on, compare_weights, compare_what_can_be
        from registry.load_options import make_options

        on = CompareOn(prompts, data, column, length, max_tokens)
        records = self.diff(a, b, progress=progress)
        attempts: dict[str, Callable[[], object]] = {}
        if weights or on:
            one, other = (self.fetch(ref, progress=progress) for ref in (a, b))
        if weights:
            attempts["weights"] = lambda: compare_weights(self.derived, one, other, ranks=ranks, progress=progress)
        if on:
            options = make_options(
                processed=processed, flags={}, dtype=dtype, device=device, n_devices=1, verify="changed"
            )
            attempts["behaviour"] = lambda: compare_versions_on(
                self.derived, one, other, on, options, one_at_a_time=one_at_a_time, progress=progress
            )
        return compare_what_can_be(records, attempts)

    def compare_many(
        self,
        base: str,
        refs: Sequence[str],
        *,
        weights: bool = False,
        ranks: bool = True,
        prompts: Sequence[str | Sequence[int]] = (),
        data: str | Path | None = None,
        column: str = "text",
        length: int | None = None,
        max_tokens: int | None = None,
        one_at_a_time: bool | None = None,
        processed: bool = True,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        workers: int | None = None,
        dask: str | None = None,
        executor: Executor | None = None,
        progress: Progress = no_progress,
        done: Callable[[Comparison], None] | None = None,
    ) -> list[Comparison]:
        """Compare each of `refs` with `base`, as `compare` does, and return the comparisons in the order of `refs`.

        Where one cannot be made, its `obstacles` say why, and the others go on. `workers`, `dask` and `executor` are as
        in `validate`; `done` is called with each comparison as it comes.

        Raises:
            UnknownRef: one of the versions is not there; nothing is compared then.
            WorkerMismatch, WorkerLost, ClusterUnavailable: as in `validate`.
        """
        from registry.executors import Outcome, Place, Task, run_tasks
        from registry.load_options import name_dtype
        from registry.worker import digest_data, pin_version

        place = Place(workers, dask, executor)
        data = None if data is None else str(Path(data).expanduser().absolute())
        digest = None if data is None or place.is_here else digest_data(data)
        first = self._find(base)
        others = [self._find(ref) for ref in refs]
        options = {"weights": weights, "ranks": ranks, "prompts": tuple(prompts), "processed": processed}
        options |= {"data": data, "column": column, "length": length, "max_tokens": max_tokens}
        options |= {"one_at_a_time": one_at_a_time, "dtype": name_dtype(dtype or "float32"), "device": device}
        found: dict[int, Comparison] = {}

        def take(index: int, outcome: Outcome) -> None:
            error = outcome.error
            found[index] = (
                outcome.value if error is None else fail_comparison(self, first.ref, others[index].ref, error)
            )
            if done is not None:
                done(found[index])

        tasks = [
            Task(one.ref, (first.ref, one.ref, options, digest), (pin_version(first), pin_version(one)))
            for one in others
        ]
        run_tasks(self, compare_one, tasks, place, progress, stage="comparisons", done=take)
        return [found[index] for index in range(len(others))]

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
