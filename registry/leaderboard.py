"""Rank versions by a metric, on the data that most of them were measured on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from registry.errors import InvalidInput, InvalidName
from registry.refs import Ref, check_model_name
from registry.resolve import explain_miss
from registry.results import Results
from registry.search.run import Search, search_refs
from registry.stale import deciding, tell_stale
from registry.tables import models, validations, versions

_AT_ONCE = 400


@dataclass(frozen=True)
class Rank:
    """One version's place: `low` and `high` are its interval where the suite gave one; equal values share a rank.

    `stale` says why the value no longer stands for what would be measured now; None if it does.
    """

    rank: int
    ref: str
    value: float
    low: float | None
    high: float | None
    n_samples: int | None
    step: int | None
    dataset_digest: str | None
    measured_at: datetime
    stale: str | None = None


@dataclass(frozen=True)
class Leaderboard:
    """Versions from the best to the worst by `metric`; `direction` says which way is better.

    `elsewhere` were measured on other data or with other parameters, and their values say nothing beside these;
    `unmeasured` were not measured.
    """

    metric: str
    direction: str
    unit: str | None
    dataset_digest: str | None
    ranks: Results[Rank]
    elsewhere: Results[Rank]
    unmeasured: tuple[str, ...]


def rank_versions(connection: Connection, what: str, by: str, limit: int | None = None) -> Leaderboard:
    """Rank the versions of a model, or those that a search finds. Raises InvalidInput if none was measured."""
    is_model = connection.execute(select(models.c.id).where(models.c.name == what)).scalar() is not None
    if not is_model and _may_be_a_model(what):
        raise explain_miss(connection, what, Ref("newest", model=what))
    refs = search_refs(connection, Search(f"model = '{what}'" if is_model else what))
    metric = by.removeprefix("metric.")
    rows = _read_newest(connection, refs, metric)
    if not rows:
        raise InvalidInput(
            f"None of the {len(refs):,} versions has a value for {metric!r}.",
            hint="Measure them first: lensreg validate REF… --suite …",
        )
    suites = {row.suite for row in rows}
    if len(suites) > 1:
        listed = ", ".join(sorted(f"{suite}.{metric}" for suite in suites))
        raise InvalidInput(f"{metric} is measured by several suites.", hint=f"Say which: {listed}.")
    direction = next((row.direction for row in rows if row.direction), "lower")
    ((main, _),) = Counter(map(_name_conditions, rows)).most_common(1)
    ranked = _rank([row for row in rows if _name_conditions(row) == main], direction)
    elsewhere = _rank([row for row in rows if _name_conditions(row) != main], direction)
    measured = {_name(row) for row in rows}
    return Leaderboard(
        f"{rows[0].suite}.{rows[0].metric}",
        direction,
        rows[0].unit,
        main[0],
        Results(ranked[:limit], Rank),
        Results(elsewhere, Rank),
        tuple(ref for ref in refs if ref not in measured),
    )


def _name_conditions(row: Any) -> tuple[str | None, str]:
    """What two values have to have in common to be ranked with each other: the data, and what decides beside them."""
    return row.dataset_digest, json.dumps(deciding(row.parameters), sort_keys=True)


def _may_be_a_model(text: str) -> bool:
    """Whether a text is written as a model's name is, which no search can be."""
    try:
        check_model_name(text)
    except InvalidName:
        return False
    return True


def _read_newest(connection: Connection, refs: Sequence[str], metric: str) -> list[Any]:
    """Read the newest value of the metric of each version, if it has one; `metric` may have its suite before it."""
    suite, dot, name = metric.partition(".")
    named = validations.c.metric == metric
    if dot:
        named |= (validations.c.suite == suite) & (validations.c.metric == name)
    rows: list[Any] = []
    for start in range(0, len(refs), _AT_ONCE):
        wanted = [ref.rpartition("@v") for ref in refs[start : start + _AT_ONCE]]
        newest = (
            select(func.max(validations.c.id).label("id"))
            .select_from(validations.join(versions).join(models))
            .where(named, models.c.name.in_({name for name, _, _ in wanted}))
            .group_by(validations.c.version_id, validations.c.suite)
            .subquery()
        )
        query = (
            select(
                models.c.name.label("model"),
                versions.c.number,
                versions.c.step,
                versions.c.weights_digest.label("version_weights"),
                validations,
            )
            .select_from(newest.join(validations, validations.c.id == newest.c.id).join(versions).join(models))
            .where(validations.c.value.is_not(None))
        )
        asked = {(name, int(number)) for name, _, number in wanted}
        rows += [row for row in connection.execute(query) if (row.model, row.number) in asked]
    return rows


def _rank(rows: Sequence[Any], direction: str) -> list[Rank]:
    sign = -1 if direction == "higher" else 1
    ordered = sorted(rows, key=lambda row: (sign * row.value, row.model, row.number))
    ranks: list[Rank] = []
    for index, row in enumerate(ordered):
        same = ranks and ranks[-1].value == row.value
        ranks.append(
            Rank(
                ranks[-1].rank if same else index + 1,
                _name(row),
                row.value,
                row.details.get("low"),
                row.details.get("high"),
                row.n_samples,
                row.step,
                row.dataset_digest,
                row.created_at,
                tell_stale(row, row.version_weights),
            )
        )
    return ranks


def _name(row: Any) -> str:
    return f"{row.model}@v{row.number}"
