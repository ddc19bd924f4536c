"""Where work on many versions is done: here, in processes of this machine, on a Dask cluster, in anybody's executor."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import (
    ClusterUnavailable,
    InvalidInput,
    PackageMissing,
    RegistryError,
    WorkerError,
    WorkerLost,
    WorkerMismatch,
)
from registry.progress import Progress, no_progress
from registry.worker import Call, Pin, add_work, describe_registry, run_in_worker

if TYPE_CHECKING:
    from registry.methods.opened import OpenedRegistry

CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Place:
    """Where work is done: here, one after the other, if nothing is given.

    Or in `workers` processes of this machine, on the Dask cluster whose scheduler is at `dask`, an address or its
    scheduler file, or in `executor`.
    """

    workers: int | None = None
    dask: str | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.workers, self.dask, self.executor)) > 1:
            raise InvalidInput(
                "Workers, a Dask cluster and an executor exclude each other.",
                hint="Give one of workers, dask, executor.",
            )
        if self.workers is not None and not (type(self.workers) is int and self.workers >= 1):
            raise InvalidInput(f"{self.workers!r} is no number of workers.", hint="Give 1 or more.")

    @property
    def is_here(self) -> bool:
        """Whether there are no workers, and work is done in this process."""
        return self.workers is None and self.dask is None and self.executor is None


HERE = Place()


@dataclass(frozen=True)
class Task:
    """What is done for one thing, with the versions that it reads; `label` is what people know it by."""

    label: str
    arguments: tuple[Any, ...]
    pins: tuple[Pin, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a task: what its function returned, or what it raised."""

    value: Any = None
    error: RegistryError | None = None

    @property
    def is_failed(self) -> bool:
        """Whether it raised, or returned something that has an `error`, or `obstacles`."""
        returned = getattr(self.value, "error", None) is not None or bool(getattr(self.value, "obstacles", ()))
        return self.error is not None or returned


class Crew:
    """An executor that is open, and to which work on one registry is given."""

    def __init__(self, registry: OpenedRegistry, executor: Executor, *, is_own: bool) -> None:
        self._executor, self._kind = executor, type(registry)
        self._call: Call = describe_registry(registry, with_password=is_own)
        self._futures: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], task: Task) -> Future[Any]:
        """Have `function(registry, *task.arguments, progress)` done; a function that a module has under its name."""
        call = add_work(self._call, self._kind, function, task.arguments, task.pins)
        self._futures.append(self._executor.submit(run_in_worker, call))
        return self._futures[-1]

    def cancel(self) -> None:
        """Cancel what is not started."""
        for future in self._futures:
            future.cancel()


def run_tasks(
    registry: OpenedRegistry,
    function: Callable[..., Any],
    tasks: Sequence[Task],
    place: Place = HERE,
    progress: Progress = no_progress,
    *,
    stage: str = "versions",
    done: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Do `function(registry, *task.arguments, progress)` for every task and return what came of each, in their order.

    `done` is called with each outcome as it comes. What a task raises in a worker is its outcome, and the others go on;
    what it raises here is raised. When a process of our own pool is killed, what is left is given to a new pool, once:
    so tasks have to bear being done twice.

    Raises:
        WorkerMismatch: a worker has other code or sees something else; what is not started is not done.
        WorkerLost: workers ended before they were done.
        ClusterUnavailable: there is no cluster at the address.
    """
    tally = _Tally(tasks, progress, stage, done)
    if place.is_here:
        for index, task in enumerate(tasks):
            tally.add(index, Outcome(function(registry, *task.arguments, progress)))
        return tally.list_outcomes()
    try:
        _hand_out(registry, function, tally, place)
    except BrokenExecutor:
        if place.workers is None:
            raise _refuse_loss([tasks[index].label for index in tally.list_left()]) from None
        try:
            _hand_out(registry, function, tally, place)
        except BrokenExecutor:
            raise _refuse_loss([tasks[index].label for index in tally.list_left()]) from None
    return tally.list_outcomes()


class _Tally:
    """What has come of which task, and who is told."""

    def __init__(
        self, tasks: Sequence[Task], progress: Progress, stage: str, done: Callable[[int, Outcome], None] | None
    ) -> None:
        self.tasks, self.outcomes = tasks, dict[int, Outcome]()
        self._progress, self._stage, self._done = progress, stage, done
        self._show()

    def add(self, index: int, outcome: Outcome) -> None:
        if isinstance(outcome.error, WorkerMismatch):
            raise outcome.error
        self.outcomes[index] = outcome
        if self._done is not None:
            self._done(index, outcome)
        self._show()

    def _show(self) -> None:
        total = len(self.tasks)
        if total < 2:
            return
        self._progress(self._stage, len(self.outcomes), total)
        if n_failed := sum(one.is_failed for one in self.outcomes.values()):
            self._progress("failed", n_failed, total)

    def list_left(self) -> list[int]:
        return [index for index in range(len(self.tasks)) if index not in self.outcomes]

    def list_outcomes(self) -> list[Outcome]:
        return [self.outcomes[index] for index in range(len(self.tasks))]


def _hand_out(registry: OpenedRegistry, function: Callable[..., Any], tally: _Tally, place: Place) -> None:
    left = tally.list_left()
    if not left:
        return
    with open_crew(registry, place, len(left)) as crew:
        futures = {crew.submit(function, tally.tasks[index]): index for index in left}
        for future in as_completed(futures):
            index = futures[future]
            tally.add(index, read_outcome(future, tally.tasks[index].label))


@contextlib.contextmanager
def open_crew(registry: OpenedRegistry, place: Place, n_tasks: int) -> Iterator[Crew]:
    """Open the executor of a place. If the block raises, at Ctrl-C say, what is not started is cancelled.

    Processes of our own end then at once; on a cluster, and in an executor that was handed in, what runs runs on.
    """
    with _open_executor(place, n_tasks) as executor:
        crew = Crew(registry, executor, is_own=place.workers is not None)
        try:
            yield crew
        except BaseException:
            crew.cancel()
            raise


def read_outcome(future: Future[Any], label: str) -> Outcome:
    """Wait for a task and return what came of it. Raises BrokenExecutor, or WorkerLost if a cluster went away."""
    try:
        return Outcome(future.result())
    except RegistryError as error:
        return Outcome(error=error)
    except CancelledError:
        raise _refuse_loss([label]) from None
    except BrokenExecutor:
        raise
    except Exception as error:  # noqa: BLE001 (what the executor itself raises: Dask's KilledWorker, say)
        said = f"{label} was not done: {type(error).__name__}: {error}"
        return Outcome(error=WorkerError(said, hint="See the workers' own log."))


@contextlib.contextmanager
def _open_executor(place: Place, n_tasks: int) -> Iterator[Executor]:
    if place.executor is not None:
        yield place.executor
    elif place.dask is not None:
        with _connect_dask(place.dask) as executor:
            yield executor
    else:
        with _open_pool(max(1, min(place.workers or 1, n_tasks))) as executor:
            yield executor


@contextlib.contextmanager
def _open_pool(n_workers: int) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")  # torch does not bear being forked once it has run
    lifeline, end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(n_workers, context, _start_process, (lifeline, n_workers))
    try:
        yield executor
    except BaseException:
        end.close()  # the processes end, whatever they do
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        end.close()
        lifeline.close()


def _start_process(lifeline: Connection, n_workers: int) -> None:
    """Share the cores with the other processes, and end when the sender does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the sender decides
    threading.Thread(target=_end_with_sender, args=(lifeline,), daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // n_workers))


def _end_with_sender(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    os._exit(1)


@contextlib.contextmanager
def _connect_dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise PackageMissing(
            "distributed is not installed.",
            package="distributed",
            hint="Install it, here and where the workers run: pip install 'lens-registry[dask]'",
        ) from None
    where: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = Client(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise ClusterUnavailable(
            f"No Dask scheduler answers at {address}: {error}",
            hint="Give its address, as tcp://HOST:8786, or the path of its scheduler file.",
        ) from error
    with client:
        yield client.get_executor(pure=False)


def _refuse_loss(lost: Sequence[str]) -> WorkerLost:
    named = ", ".join(lost[:10]) + (f" and {len(lost) - 10:,} more" if len(lost) > 10 else "")
    return WorkerLost(
        f"Workers ended before they were done with {named}.",
        tasks=lost,
        hint="What was recorded stays, and repeating it does what is left. Memory that runs out is the usual reason: "
        "take fewer workers. In a script, what starts workers has to be under: if __name__ == '__main__'",
    )
