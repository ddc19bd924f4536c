"""Find the recorded runs that are stale, and what is needed to repeat each of them as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from registry.errors import RegistryError
from registry.recorded import find_newest_runs, name_version, read_by_version
from registry.refs import parse_ref
from registry.resolve import resolve_ref
from registry.stale import tell_stale
from registry.tables import models, validations, versions
from registry.validation.suites import Suite, list_parameters, make_suite, name_suite, settle_suite

_CHANGED = "the data changed"


@dataclass(frozen=True)
class StaleRun:
    """A run that no longer stands, as it was asked for; `stale` says why, `obstacle` why it cannot be repeated here.

    `suite` is what it was recorded as and `suite_name` what to run, `require` the thresholds it was held to.
    """

    ref: str
    suite: str
    suite_name: str | None
    stale: str
    obstacle: str | None
    parameters: Mapping[str, Any]
    require: tuple[str, ...]
    dtype: str | None
    device: str | None
    dataset_digest: str | None
    run_id: str | None
    measured_at: datetime


def choose_versions(connection: Connection, names: Sequence[str]) -> list[int] | None:
    """Return the ids of the versions that refs mean, where a model's bare name is all of them; None if none is given.

    Those that were never measured, and retired ones of a model, are left out.
    """
    if not names:
        return None
    found: dict[int, None] = {}
    for name in names:
        ref = resolve_ref(connection, name)
        if parse_ref(name).kind != "newest":
            found[ref.id] = None
            continue
        query = (
            select(versions.c.id)
            .join(models)
            .where(models.c.name == ref.model, versions.c.retired_at.is_(None))
            .where(versions.c.id.in_(select(validations.c.version_id)))
            .order_by(versions.c.id)
        )
        found |= dict.fromkeys(connection.execute(query).scalars())
    return list(found)


def read_newest(connection: Connection, names: Sequence[str]) -> list[list[Any]]:
    """Read the newest runs that measured something, of the versions that `names` mean (none: of all)."""
    versions_rows = read_by_version(connection, choose_versions(connection, names))
    return [run for rows in versions_rows for run in find_newest_runs(rows, that_measured=True)]


def find_stale(runs: Iterable[Sequence[Any]], suites: Sequence[str], given: Mapping[str, Any]) -> list[StaleRun]:
    """Return those of the runs that are stale; their data are read, if they are where they were.

    `suites` keeps to some, and `given` takes the place of recorded parameters.
    """
    found = []
    for run in runs:
        name = name_suite(run[0].suite)
        if suites and not {run[0].suite, name} & {*suites}:
            continue
        one = _look_at(run, name, given)
        if one is not None:
            found.append(one)
    return found


def group_alike(stale: Iterable[StaleRun]) -> list[tuple[str, list[StaleRun]]]:
    """Return the suites to run again, each with runs that were asked for alike; what has an obstacle is left out."""
    groups: dict[str, tuple[str, list[StaleRun]]] = {}
    for one in stale:
        if one.obstacle is None and one.suite_name is not None:
            asked = (one.suite_name, dict(one.parameters), one.require, one.dtype, one.device)
            key = json.dumps(asked, sort_keys=True, default=str)
            groups.setdefault(key, (one.suite_name, []))[1].append(one)
    return list(groups.values())


def _look_at(run: Sequence[Any], name: str | None, given: Mapping[str, Any]) -> StaleRun | None:
    """Say what is stale about a run, if anything is."""
    row = run[0]
    stale = tell_stale(row, row.version_weights)
    parameters = {key: value for key, value in (row.parameters or {}).items() if key not in ("dtype", "device")}
    obstacle, changed = None, None
    try:
        if name is None:
            raise _Obstacle(f"there is no suite {row.suite}: install the package that brings it")
        parameters = _take_over(name, parameters, given)
        suite = settle_suite(make_suite(name, parameters), lambda ref: ref)
        changed = _compare(row, suite)
        if changed == _CHANGED and parameters.get("data") != (row.parameters or {}).get("data"):
            raise _Obstacle(f"{parameters['data']} holds other data")
    except _Obstacle as reason:
        obstacle = str(reason)
    except RegistryError as error:
        obstacle = error.message
    reasons = [one for one in (stale, changed) if one]
    if not reasons:
        return None
    asked = row.parameters or {"dtype": row.dtype, "device": row.device}  # registering had no parameters
    return StaleRun(
        name_version(row),
        row.suite,
        name,
        "; ".join(reasons),
        obstacle or _miss_device(asked.get("device")),
        parameters,
        _read_thresholds(run),
        asked.get("dtype"),
        asked.get("device"),
        row.details.get("data", {}).get("digest", row.dataset_digest),
        row.run_id,
        row.created_at,
    )


class _Obstacle(Exception):
    """Why a run cannot be repeated."""


def _take_over(name: str, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters to repeat a run with; code is not run because a record names it.

    Data that are given are for the runs whose own are no longer where they were.
    """
    fields = list_parameters(name)
    for key, field in fields.items():
        if field.metadata.get("runs_code") and parameters.get(key) is not None and key not in given:
            raise _Obstacle(f"it may run code from {parameters[key]}: say so with --set {key}={parameters[key]}")
    moved = {
        key: value
        for key, value in given.items()
        if key in fields
        and not (key == "data" and fields[key].metadata.get("path") and Path(parameters["data"]).exists())
    }
    return {**parameters, **moved}


def _compare(row: Any, suite: Suite) -> str | None:
    """Say what differs from what was measured beside weights and packages: the suite, or the data."""
    if row.suite_version is not None and row.suite_version != suite.version:
        return f"suite {suite.name} {row.suite_version} → {suite.version}"
    digest_data = getattr(suite, "digest_data", None)
    extent = row.details.get("data")
    if digest_data is None or extent is None or digest_data(extent) == extent["digest"]:
        return None
    return _CHANGED


def _read_thresholds(run: Sequence[Any]) -> tuple[str, ...]:
    said = [row.details["threshold"] for row in run if "threshold" in row.details]
    return tuple(dict.fromkeys(text for one in said for text in one.split(" and ")))


def _miss_device(device: str | None) -> str | None:
    kind = (device or "cpu").partition(":")[0]
    if kind == "cpu":
        return None
    import torch

    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, False)
    return None if is_there else f"there is no device {device} here"
