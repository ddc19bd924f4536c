"""Find which versions a run is, in the order of their steps, and what it set out from: rows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from registry.errors import InvalidInput
from registry.query import list_history, read_version
from registry.refs import parse_ref
from registry.resolve import refuse_retired, resolve_ref
from registry.versions import Version

N_NAMED = 10


@dataclass(frozen=True)
class Run:
    """The versions of a run by step, lowest first, and the one that they are compared with."""

    name: str
    steps: tuple[Version, ...]
    base: Version
    notes: tuple[str, ...] = ()


def find_run(connection: Connection, text: str, base: str | None = None) -> Run:
    """Find the run of a model, or the one that led to a ref: back from it for as long as training was continued.

    What it is compared with is `base`; or else the only parent of its first step, or that step itself. Retired versions
    are left out. Raises InvalidInput if there is no version with a step.
    """
    ref = parse_ref(text)
    resolved = resolve_ref(connection, text)
    if ref.kind == "newest" and ref.model is not None:
        steps, notes = _find_steps(connection, ref.model)
    else:
        refuse_retired(resolved)
        steps, notes = _walk_back(connection, read_version(connection, resolved.id))
    if not steps:
        raise InvalidInput(
            f"{text} has no version in use with a training step, so that there is nothing to follow.",
            hint="Register a run: lensreg add-run NAME FOLDER; or say the step: lensreg add NAME SOURCE --step N",
        )
    said: list[str] = []
    if base is not None:
        resolved = resolve_ref(connection, base)
        refuse_retired(resolved)
        start = read_version(connection, resolved.id)
    else:
        start, said = _find_base(connection, steps[0])
    if len(steps) == 1:
        said.append(f"{steps[0].ref} is the only step of the run.")
    return Run(text, tuple(steps), start, (*notes, *said))


def _find_steps(connection: Connection, model: str) -> tuple[list[Version], list[str]]:
    """Return the model's versions in use that have a step; the newest where several have the same."""
    history = list_history(connection, model)
    live = [one for one in reversed(history) if one.retired_at is None]
    newest = {one.step: one.ref for one in live if one.step is not None}
    notes = []
    for what, refs in (
        ("retired", [one.ref for one in reversed(history) if one.retired_at is not None]),
        ("without a step", [one.ref for one in live if one.step is None]),
        (
            "older ones of the same step",
            [one.ref for one in live if one.step is not None and one.ref != newest[one.step]],
        ),
    ):
        if refs:
            notes.append(f"Left out, {what}: {name_some(refs)}.")
    return [_read(connection, newest[step]) for step in sorted(newest)], notes


def _walk_back(connection: Connection, last: Version) -> tuple[list[Version], list[str]]:
    """Follow `continued` for as long as steps go down; a step that does not belongs to another run."""
    if last.step is None:
        return [], []
    found, current = [last], last
    retired: list[Version] = []
    while (before := _find_continued(connection, current)) is not None:
        current = before
        (found if current.retired_at is None else retired).append(current)
    notes = [f"Left out, retired: {name_some([one.ref for one in reversed(retired)])}."] if retired else []
    return found[::-1], notes


def _find_continued(connection: Connection, version: Version) -> Version | None:
    """Return the step that training was continued from, if it is a step of the same run."""
    refs = [parent.ref for parent in version.parents if parent.relation == "continued"]
    if len(refs) != 1 or version.step is None:
        return None
    parent = _read(connection, refs[0])
    return parent if parent.step is not None and parent.step < version.step else None


def _find_base(connection: Connection, first: Version) -> tuple[Version, list[str]]:
    """Return what the first step was made from, past retired steps of its own model, or that step itself."""
    current = first
    while len(current.parents) == 1:
        current = _read(connection, current.parents[0].ref)
        if current.retired_at is None:
            return current, []
        if current.model != first.model:
            return first, [f"{current.ref}, which the run set out from, was retired: compared with {first.ref}."]
    if current.parents:
        refs = [parent.ref for parent in current.parents]
        return first, [f"{current.ref} has several parents, {name_some(refs)}: compared with {first.ref}."]
    return first, [f"The run has no registered parent: compared with its first step, {first.ref}."]


def name_some(refs: Sequence[str]) -> str:
    """List the first few refs, and how many there are more."""
    more = f" and {len(refs) - N_NAMED:,} more" if len(refs) > N_NAMED else ""
    return ", ".join(refs[:N_NAMED]) + more


def _read(connection: Connection, ref: str) -> Version:
    return read_version(connection, resolve_ref(connection, ref).id)
