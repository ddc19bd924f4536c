"""Register a whole training run: its checkpoint folders in the order of their steps, each the child of the one before.

It can be interrupted and repeated: what is there already is compared, and skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from registry.database import Database
from registry.errors import (
    InvalidInput,
    MalformedArtifact,
    SourceNotFound,
    StorageError,
    UnknownRef,
    VersionRetired,
    WorkerLost,
    WorkerMismatch,
)
from registry.executors import Place, Task, open_crew, read_outcome
from registry.progress import Progress, no_progress
from registry.query import list_history, read_version
from registry.refs import check_model_name
from registry.register import register_version
from registry.registration import Registration, Request
from registry.resolve import resolve_ref
from registry.sources.adapter_files import is_adapter
from registry.sources.json_file import read_json_object
from registry.sources.trainer_state import TRAINER_STATE
from registry.store import LocalStore
from registry.versions import Version, VersionSummary
from registry.weights import digest_file
from registry.worker import pin_version

if TYPE_CHECKING:
    from registry.methods.opened import OpenedRegistry
    from registry.verify_ahead import VerifiedAhead

# what Hugging Face's Trainer names its checkpoints
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")


@dataclass(frozen=True)
class RunStep:
    """One checkpoint of a run: `version` is what is registered under its step already, if anything is."""

    step: int
    folder: Path
    version: str | None


@dataclass(frozen=True)
class RunPlan:
    """What registering a run would do: its steps in order, and the folders that are no checkpoints by their names."""

    name: str
    parent: str | None
    steps: tuple[RunStep, ...]
    ignored: tuple[str, ...]


def plan_run(database: Database, name: str, folder: Path, parent: str | None = None) -> RunPlan:
    """Find the checkpoints of a run, and which of their steps the model has already. Nothing is read but names.

    Raises SourceNotFound if there are none, and MalformedArtifact if a Trainer's state says another step than its name.
    """
    check_model_name(name)
    steps, ignored = find_checkpoints(folder)
    with database.read() as connection:
        try:
            taken = {one.step: one for one in _in_use(list_history(connection, name)) if one.step is not None}
        except (UnknownRef, VersionRetired):
            taken = {}
        if parent is not None:
            parent = resolve_ref(connection, parent).ref
    if parent is None and any(is_adapter(path) for path in steps.values()):
        raise InvalidInput(
            f"{folder} holds adapters, which need the network that they change.",
            hint="Name the registered base with --parent REF.",
        )
    there = {step: taken[step].ref if step in taken else None for step in steps}
    return RunPlan(name, parent, tuple(RunStep(step, path, there[step]) for step, path in steps.items()), ignored)


def register_run_with(
    registry: OpenedRegistry, plan: RunPlan, base: Request, place: Place, progress: Progress = no_progress
) -> Iterator[tuple[RunStep, Registration | None]]:
    """Do what `register_run` does, with the checkpoints verified ahead by workers, side by side.

    Each is registered here, in the order of the steps, once all before it are: so they are numbered in that order, and
    each is compared with the one before it. One that cannot be verified ahead, for whatever reason, is verified here.
    Raises WorkerMismatch if workers have other code, or see something else.
    """
    from registry.verify_ahead import verify_ahead

    database, store = registry.database, registry.store
    new = [one for one in plan.steps if one.version is None]
    if place.is_here or not new:
        yield from register_run(database, store, plan, base, progress)
        return
    parents = (plan.parent,) if plan.parent else ()
    pins = tuple(pin_version(_read(database, ref)) for ref in parents)
    with open_crew(registry, place, len(new)) as crew:
        ahead = {}
        for one in new:
            source = str(one.folder.absolute())
            request = replace(base, name=plan.name, source=source, step=one.step, parents=parents)
            ahead[one.step] = crew.submit(verify_ahead, Task(one.folder.name, (request,), pins))
        yield from register_run(database, store, plan, base, progress, ahead)


def register_run(
    database: Database,
    store: LocalStore,
    plan: RunPlan,
    base: Request,
    progress: Progress = no_progress,
    ahead: Mapping[int, Future[VerifiedAhead]] = MappingProxyType({}),
) -> Iterator[tuple[RunStep, Registration | None]]:
    """Register the steps that are not there yet, in order, and give each as it is done; None if it was skipped.

    `base` holds what is the same for all: tags, note, parity; `ahead` what is being verified already, by step. A step
    that fails ends the run with its error; those before it stay registered.

    Raises LineageConflict if a step is there with other weights.
    """
    previous: Version | None = None
    for number, one in enumerate(plan.steps):
        progress("steps", number, len(plan.steps))
        there = None if one.version is None else _read(database, one.version)
        if there is not None and _is_same(store, there, one.folder):
            previous = there
            yield one, None
            continue
        request = _make_request(plan, one, base, previous)
        done = register_version(database, store, request, progress, _wait_for(ahead.get(one.step), one))
        previous = done.version
        yield one, done if done.outcome == "registered" else None
    progress("steps", len(plan.steps), len(plan.steps))


def _wait_for(future: Future[VerifiedAhead] | None, one: RunStep) -> VerifiedAhead | None:
    """Return what a worker found; None if it is to be found here, where what was wrong is raised in its turn."""
    if future is None:
        return None
    try:
        outcome = read_outcome(future, one.folder.name)
    except (BrokenExecutor, WorkerLost):
        return None
    if isinstance(outcome.error, WorkerMismatch):
        raise outcome.error
    found: VerifiedAhead | None = outcome.value
    return found


def find_checkpoints(folder: Path) -> tuple[Mapping[int, Path], tuple[str, ...]]:
    """Return the checkpoint folders by step, in order, and the names of the other folders."""
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise SourceNotFound(
            f"{folder} cannot be read: {error.strerror}.", hint="Give the folder of a run.", path=str(folder)
        ) from error
    found: dict[int, Path] = {}
    ignored = []
    for path in folders:
        named = _CHECKPOINT.fullmatch(path.name)
        if named is None:
            ignored.append(path.name)
            continue
        step = int(named[1])
        if step in found:
            raise MalformedArtifact(
                f"{found[step].name} and {path.name} are the same step.", hint="Take one of them out of the folder."
            )
        _check_state(path, step)
        found[step] = path
    if not found:
        raise SourceNotFound(
            f"There are no folders checkpoint-N in {folder}.",
            hint="A single checkpoint is registered with: lensreg add NAME FOLDER",
            path=str(folder),
        )
    return dict(sorted(found.items())), tuple(ignored)


def _check_state(path: Path, step: int) -> None:
    """Compare the name with what Hugging Face's Trainer wrote, where it did."""
    if not (path / TRAINER_STATE).is_file():
        return
    said = read_json_object(path / TRAINER_STATE, constants=True).get("global_step")
    if said is not None and said != step:
        raise MalformedArtifact(
            f"{path.name} says in {TRAINER_STATE} that it is step {said!r}.",
            hint="Folders were renamed or copied over each other; give each the name of its step.",
        )


def _in_use(history: list[VersionSummary]) -> list[VersionSummary]:
    """Leave out retired versions; oldest first, so that the newest of a step counts."""
    return [one for one in reversed(history) if one.retired_at is None]


def _read(database: Database, ref: str) -> Version:
    with database.read() as connection:
        return read_version(connection, resolve_ref(connection, ref).id)


def _is_same(store: LocalStore, version: Version, folder: Path) -> bool:
    """Compare the files of weights, byte by byte through their digests; False may only mean that it was converted."""
    files = version.with_role("weights")
    paths = [folder / file.name for file in files]
    if not all(
        path.is_file() and path.stat().st_size == file.size_bytes for path, file in zip(paths, files, strict=True)
    ):
        return False
    try:
        for file in version.files:
            store.verify(file.digest, file.size_bytes)
    except StorageError:
        return False  # registering it again heals it
    return all(digest_file(path) == file.digest for path, file in zip(paths, files, strict=True))


def _make_request(plan: RunPlan, one: RunStep, base: Request, previous: Version | None) -> Request:
    request = replace(base, name=plan.name, source=str(one.folder), step=one.step, new_step=True)
    if is_adapter(one.folder):  # each is merged into the base anew
        return replace(request, parents=(plan.parent,) if plan.parent else ())
    if one.version is not None:  # it has its parents
        return request
    if previous is not None:
        return replace(request, parents=(previous.ref,), relation="continued")
    return replace(
        request, parents=(plan.parent,) if plan.parent else (), relation=base.relation if plan.parent else None
    )
