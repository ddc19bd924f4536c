"""What suites recorded of versions, as people get it: the newest run of each, and whether it is stale."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from registry.stale import tell_stale
from registry.tables import models, validations, versions
from registry.thresholds import FAILED

_AT_ONCE = 400


@dataclass(frozen=True)
class Recorded:
    """One recorded metric; `value` is None if it was not measured, or the run failed, which `message` then says.

    `low` and `high` are its interval where the suite gave one, `threshold` what it was held to, and `stale` says why it
    no longer stands for what would be measured now (None: it does, as far as records tell).
    """

    ref: str
    suite: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    unit: str | None
    direction: str | None
    n_samples: int | None
    bound: float | None
    threshold: str | None
    passed: bool | None
    stale: str | None
    message: str | None
    dtype: str | None
    device: str
    seed: int | None
    seconds: float | None
    dataset_digest: str | None
    suite_version: str | None
    parameters: Mapping[str, Any]
    run_id: str | None
    measured_at: datetime


def read_recorded(connection: Connection, version_ids: Sequence[int], *, all_runs: bool = False) -> list[Recorded]:
    """Read what was recorded of versions: the newest run of each suite with the same parameters, or all of them."""
    found: list[Recorded] = []
    for rows in read_by_version(connection, version_ids):
        chosen: Iterable[Any] = rows if all_runs else [row for run in find_newest_runs(rows) for row in run]
        found += [_describe(row) for row in chosen]
    return found


def read_by_version(connection: Connection, version_ids: Sequence[int] | None = None) -> Iterator[list[Any]]:
    """Give the rows of one version after another, oldest first, each with its `ref` and the version's weights digest.

    None are all versions that are not retired.
    """
    query = (
        select(
            models.c.name,
            versions.c.number,
            versions.c.weights_digest.label("version_weights"),
            versions.c.layout,
            validations,
        )
        .select_from(validations.join(versions).join(models))
        .order_by(versions.c.id, validations.c.id)
    )
    if version_ids is None:
        pages = [query.where(versions.c.retired_at.is_(None))]
    else:
        starts = range(0, len(version_ids), _AT_ONCE)
        pages = [query.where(versions.c.id.in_(version_ids[start : start + _AT_ONCE])) for start in starts]
    for page in pages:
        for _, rows in groupby(connection.execute(page), key=lambda row: row.version_id):
            yield list(rows)


def find_newest_runs(rows: Sequence[Any], *, that_measured: bool = False) -> list[list[Any]]:
    """Return the newest run of each suite with the same parameters, of one version's rows, which are oldest first.

    `that_measured` looks past runs that failed.
    """
    runs: dict[Any, list[Any]] = {}
    for row in rows:
        if that_measured and row.metric == FAILED:
            continue
        key = _name_group(row)
        run = runs.get(key)
        if run is None or _name_run(run[0]) != _name_run(row):
            runs.pop(key, None)  # so that the last one is the newest
            runs[key] = [row]
        else:
            run.append(row)
    return list(runs.values())


def name_version(row: Any) -> str:
    """Return `NAME@vN` of a row."""
    return f"{row.name}@v{row.number}"


def _name_run(row: Any) -> Any:
    """What tells a run from others; what registering measured has no run of its own."""
    return row.run_id or row.created_at


def _name_group(row: Any) -> Any:
    ignored = {"batch_size", "dtype", "device"}
    parameters = {name: value for name, value in (row.parameters or {}).items() if name not in ignored}
    return row.suite, row.dtype, row.device or "cpu", json.dumps(parameters, sort_keys=True)


def _describe(row: Any) -> Recorded:
    return Recorded(
        name_version(row),
        row.suite,
        row.metric,
        row.value,
        row.details.get("low"),
        row.details.get("high"),
        row.unit,
        row.direction,
        row.n_samples,
        row.bound,
        row.details.get("threshold"),
        row.passed,
        None if row.metric == FAILED else tell_stale(row, row.version_weights),
        row.details.get("message") if row.metric == FAILED else None,
        row.dtype,
        row.device or "cpu",
        row.seed,
        row.seconds,
        row.dataset_digest,
        row.suite_version,
        row.parameters or {},
        row.run_id,
        row.created_at,
    )
