"""Validate versions with suites, and ask for what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import InvalidInput
from registry.methods.comparing import Comparing
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

    from registry.leaderboard import Leaderboard
    from registry.requirements import Requirement
    from registry.validate import ValidationRun


class Validating(Comparing):
    """Methods that measure."""

    def validate(
        self,
        refs: str | Sequence[str],
        suite: str,
        *,
        data: str | Path | None = None,
        parameters: Mapping[str, Any] | None = None,
        require: Sequence[str] = (),
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        again: bool = False,
        workers: int | None = None,
        dask: str | None = None,
        executor: Executor | None = None,
        progress: Progress = no_progress,
        done: Callable[[ValidationRun], None] | None = None,
    ) -> list[ValidationRun]:
        """Run a suite on one version or several, record what it measures, and return it, in order.

        Args:
            refs: which versions.
            suite: `parity`, `structure`, `loss`, `accuracy`, `drift`, or one that a plugin brings.
            data: what it runs on: a .txt or .jsonl file, or a folder that `datasets` saved.
            parameters: the suite's others.
            require: thresholds, as `"loss < 3.2"`; a result says whether it met them.
            dtype: in which networks run; None leaves it to the suite.
            device: where they run.
            again: measure also what was measured already with the same suite, parameters and packages.
            workers: measure in so many processes of this machine; without it, one after the other in this one.
            dask: measure on the Dask cluster with this scheduler, an address or the path of its scheduler file.
            executor: measure in this executor of `concurrent.futures`.
            progress: is told how far it is.
            done: is called with each result as it comes.

        A suite that raises is recorded as failed, and the others go on. What is measured already is not measured again,
        so that a run that was interrupted goes on where it was. Refs mean what they mean now, wherever they are
        measured; docs/clusters.md says what workers need.

        Raises:
            InvalidInput: there is no such suite, parameter or dtype, or a threshold cannot be read.
            SourceNotFound: the data are not there; nothing is measured then.
            UnknownRef: one of the versions is not there; nothing is measured then.
            StoreNotOwned: the store that was opened has nothing of this registry; nothing is recorded then.
            WorkerMismatch: a worker has other code, or sees another registry, store or data.
            WorkerLost, ClusterUnavailable: workers ended, or cannot be had; what was recorded stays.
        """
        from registry.executors import Outcome, Place, Task, run_tasks
        from registry.load_options import name_dtype
        from registry.orders import carry_out, give_orders, refuse_unrecorded, report_failure
        from registry.worker import pin_version

        place = Place(workers, dask, executor)
        given = dict(parameters or {})
        if data is not None:
            given["data"] = str(Path(data).expanduser().absolute())
        named = [self._find(ref) for ref in ([refs] if isinstance(refs, str) else refs)]
        if not named:
            raise InvalidInput("No version was named.", hint="Name one or more.")
        self._refuse_older()
        versions = {one.ref: one for one in named}  # two refs may mean one version
        orders, found = give_orders(
            self,
            list(versions.values()),
            suite,
            given,
            require=require,
            dtype=name_dtype(dtype),
            device=device,
            again=again,
            is_sent=not place.is_here,
        )
        if done is not None:
            for run in found.values():
                done(run)

        def take(index: int, outcome: Outcome) -> None:
            order = orders[index]
            run = outcome.value if outcome.error is None else report_failure(order, outcome.error)
            found[order.ref] = run
            if done is not None:
                done(run)

        tasks = [Task(one.ref, (one,), (pin_version(versions[one.ref]),)) for one in orders]
        run_tasks(self, carry_out, tasks, place, progress, done=take)
        refuse_unrecorded(
            self.database, [one for one in orders if found[one.ref].is_new and found[one.ref].is_recorded]
        )
        return [found[one.ref] for one in named]

    def check_requirements(self, ref: str, require: Sequence[str] = (), *, fresh: bool = False) -> list[Requirement]:
        """Say whether a version meets thresholds by its newest measurements: those given, or those of an alias's gate.

        What was not measured does not meet them; nothing is measured here. What is stale counts as it was measured, and
        `stale` says so; with `fresh` it does not meet anything.
        """
        from registry.refs import parse_ref
        from registry.requirements import check_requirements, read_gate
        from registry.resolve import resolve_ref

        with self.database.read() as connection:
            asked = parse_ref(ref)
            texts = list(require)
            if not texts and asked.kind == "alias" and asked.model and asked.alias:
                texts = list(read_gate(connection, asked.model, asked.alias))
            return check_requirements(connection, resolve_ref(connection, ref).id, texts, fresh=fresh)

    def set_gate(self, alias: str, require: Sequence[str]) -> tuple[str, ...]:
        """Make `NAME@ALIAS` refuse versions that do not meet the thresholds; none take the gate away."""
        from registry.aliases import split_alias
        from registry.requirements import set_gate

        model, name = split_alias(alias)
        return self.database.change(lambda connection: set_gate(connection, model, name, require))

    def gate(self, alias: str) -> tuple[str, ...]:
        """Return the thresholds that `NAME@ALIAS` requires."""
        from registry.aliases import split_alias
        from registry.requirements import read_gate

        with self.database.read() as connection:
            return read_gate(connection, *split_alias(alias))

    def leaderboard(self, what: str, by: str, *, limit: int | None = None) -> Leaderboard:
        """Rank the versions of the model `what`, or those that the search `what` finds, by the metric `by`; best first.

        Only values that were measured on the same data are ranked with each other: those on the data that most of the
        versions were measured on. The others are listed apart.
        """
        from registry.leaderboard import rank_versions

        with self.database.read() as connection:
            return rank_versions(connection, what, by, limit)
