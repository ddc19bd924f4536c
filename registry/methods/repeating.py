"""Ask for what was measured, and repeat what is stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from registry.methods.validating import Validating
from registry.progress import Progress, no_progress

if TYPE_CHECKING:
    from registry.recorded import Recorded
    from registry.repeat import StaleRun
    from registry.results import Results
    from registry.validate import ValidationRun


class Repeating(Validating):
    """Methods that look at what was measured, and measure it again."""

    def validations(self, refs: str | Sequence[str], *, all_runs: bool = False) -> Results[Recorded]:
        """Return what was measured of one version or several: the newest run of each suite, or all runs; oldest first.

        Runs with other parameters, in another dtype or on another device are not the same. `stale` of a result says
        why it no longer stands for what would be measured now, by what is recorded: weights and packages. The data are
        not opened; `find_stale` compares them.
        """
        from registry.recorded import Recorded, read_recorded
        from registry.resolve import resolve_ref
        from registry.results import Results

        with self.database.read() as connection:
            ids = [resolve_ref(connection, ref).id for ref in ([refs] if isinstance(refs, str) else refs)]
            return Results(read_recorded(connection, list(dict.fromkeys(ids)), all_runs=all_runs), Recorded)

    def find_stale(
        self,
        refs: str | Sequence[str] = (),
        *,
        suites: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> Results[StaleRun]:
        """Return the newest runs that are stale: of other weights, data, packages or another version of their suite.

        Args:
            refs: which versions; a model's bare name is all its versions, and none are all that are not retired.
            suites: keep to these.
            parameters: take the place of recorded ones where a suite has them; `data` only of what is no longer there.

        A run's data are read to compare their digest, if they are where they were; `obstacle` says why a run cannot be
        repeated here. What failed measured nothing, and is not stale.
        """
        from registry.repeat import StaleRun, find_stale, read_newest
        from registry.results import Results

        names = [refs] if isinstance(refs, str) else refs
        with self.database.read() as connection:
            runs = read_newest(connection, names)
        return Results(find_stale(runs, suites, parameters or {}), StaleRun)

    def repeat_stale(
        self,
        stale: Sequence[StaleRun],
        *,
        workers: int | None = None,
        dask: str | None = None,
        executor: Executor | None = None,
        progress: Progress = no_progress,
        done: Callable[[ValidationRun], None] | None = None,
    ) -> list[ValidationRun]:
        """Run again what `find_stale` found, each as it was asked for then; what has an obstacle is left out.

        Results are new rows. An interrupted repetition goes on where it was: what was repeated is stale no longer.
        `workers`, `dask` and `executor` are as in `validate`.
        """
        from registry.repeat import group_alike

        runs: list[ValidationRun] = []
        for suite, alike in group_alike(stale):
            first = alike[0]
            runs += self.validate(
                [one.ref for one in alike],
                suite,
                parameters=first.parameters,
                require=first.require,
                dtype=first.dtype,
                device=first.device,
                again=True,
                workers=workers,
                dask=dask,
                executor=executor,
                progress=progress,
                done=done,
            )
        return runs
