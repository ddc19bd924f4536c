"""What a version has to meet: thresholds on its newest measurements, asked for by hand, at load, or by an alias."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from registry.audit import append_event
from registry.errors import InvalidInput, RequirementsUnmet
from registry.refs import check_alias_name, check_model_name
from registry.stale import StaleMeasurement, is_of_other_weights, tell_stale, without_size
from registry.tables import gates, models, validations, versions
from registry.thresholds import FAILED, Threshold, parse_threshold


@dataclass(frozen=True)
class Requirement:
    """One threshold and what was found: `value` is that of the metric that is furthest from it, None if unmeasured.

    `stale` says why what was found no longer stands for what would be measured now; None if it does.
    """

    threshold: str
    metric: str | None
    value: float | None
    met: bool
    reason: str
    stale: str | None = None


@dataclass(frozen=True)
class _Newest:
    """The newest value of a metric; None if the suite failed since, asked for with the same `parameters`."""

    value: float | None
    stale: str | None
    parameters: Mapping[str, Any]


def check_requirements(
    connection: Connection, version_id: int, texts: Sequence[str], *, fresh: bool = False
) -> list[Requirement]:
    """Say of each threshold whether the version's newest measurements meet it; what was not measured does not.

    What is stale is what was measured, still: it counts, and is named stale; `fresh` says that it does not count.
    """
    newest = _read_newest(connection, version_id)
    return [_check(parse_threshold(text), newest, fresh) for text in texts]


def refuse_unmet(connection: Connection, version_id: int, ref: str, texts: Sequence[str], *, what: str) -> None:
    """Raise RequirementsUnmet if the version does not meet all thresholds; `what` says who asks.

    Warns with StaleMeasurement if that is decided by what is stale.
    """
    found = check_requirements(connection, version_id, texts)
    unmet = [one for one in found if not one.met]
    if unmet:
        listed = "; ".join(f"{one.threshold}: {one.reason}" for one in unmet)
        raise RequirementsUnmet(
            f"{ref} does not meet what {what} requires: {listed}.",
            requirements=found,
            hint=f"Measure what was not measured: lensreg validate {ref} --suite …",
        )
    for one in found:
        if one.stale is not None:
            warnings.warn(
                f"{ref} meets {one.threshold} by what is stale ({one.stale}). See: lensreg validate --stale {ref}",
                StaleMeasurement,
                stacklevel=2,
            )


def set_gate(connection: Connection, model: str, alias: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Make an alias refuse versions that do not meet the thresholds, from now on; no thresholds take the gate away.

    What the alias means now is not looked at. Setting what is set already changes nothing.
    """
    check_model_name(model)
    check_alias_name(alias)
    wanted = tuple(dict.fromkeys(str(parse_threshold(text)) for text in texts))
    if read_gate(connection, model, alias) == wanted:
        return wanted
    model_id = connection.execute(select(models.c.id).where(models.c.name == model)).scalar()
    if model_id is None:
        raise InvalidInput(f"There is no model {model}.", hint="See: lensreg ls")
    now = datetime.now(UTC)
    connection.execute(
        gates.update()
        .where(gates.c.model_id == model_id, gates.c.alias == alias, gates.c.removed_at.is_(None))
        .values(removed_at=now)
    )
    if wanted:
        connection.execute(
            gates.insert(),
            [{"model_id": model_id, "alias": alias, "requirement": text, "set_at": now} for text in wanted],
        )
    append_event(connection, "gate.set", model, {"alias": f"{model}@{alias}", "requirements": list(wanted)})
    return wanted


def read_gate(connection: Connection, model: str, alias: str) -> tuple[str, ...]:
    """Return the thresholds of an alias's gate, in order; none if it has no gate."""
    query = (
        select(gates.c.requirement)
        .join(models, models.c.id == gates.c.model_id)
        .where(models.c.name == model, gates.c.alias == alias, gates.c.removed_at.is_(None))
        .order_by(gates.c.id)
    )
    return tuple(connection.execute(query).scalars())


def _read_newest(connection: Connection, version_id: int) -> dict[tuple[str, str], _Newest]:
    """Return the newest value of each metric, by suite and name; a run that failed takes what it was to measure again.

    A failure on other data, a mistyped column say, takes nothing; what was measured of other weights is not of this
    version.
    """
    weights = connection.execute(select(versions.c.weights_digest).where(versions.c.id == version_id)).scalar()
    columns = ("suite", "metric", "value", "environment", "weights_digest", "parameters")
    rows = connection.execute(
        select(*(validations.c[name] for name in columns))
        .where(validations.c.version_id == version_id)
        .order_by(validations.c.id)
    )
    newest: dict[tuple[str, str], _Newest] = {}
    for row in rows:
        asked = without_size(row.parameters)
        if row.metric == FAILED:
            newest = {
                key: replace(one, value=None) if key[0] == row.suite and one.parameters == asked else one
                for key, one in newest.items()
            }
        elif not is_of_other_weights(row, weights):
            newest[row.suite, row.metric] = _Newest(row.value, tell_stale(row, weights), asked)
    return newest


def _check(threshold: Threshold, newest: dict[tuple[str, str], _Newest], fresh: bool) -> Requirement:
    suites: dict[str, set[str]] = {}
    for suite, metric in newest:
        suites.setdefault(suite, set()).add(metric)
    mine = [key for key in newest if threshold.concerns(*key, suites[key[0]])]
    text = str(threshold)
    if not mine:
        return Requirement(text, None, None, False, "it was not measured")
    for key in mine:
        value, stale = newest[key].value, newest[key].stale
        name = ".".join(key)
        if not threshold.holds(value):
            if value is None:
                return Requirement(text, name, None, False, f"the newest run of {key[0]} failed")
            return Requirement(text, name, value, False, _add_stale(f"{name} is {value:.6g}", stale), stale)
    # of several that hold, one that is stale is what people have to know of
    key = next((key for key in mine if newest[key].stale is not None), mine[0])
    value, stale = newest[key].value, newest[key].stale
    name = ".".join(key)
    return Requirement(text, name, value, not (fresh and stale), _add_stale(f"{name} is {value:.6g}", stale), stale)


def _add_stale(reason: str, stale: str | None) -> str:
    return reason if stale is None else f"{reason}, stale: {stale}"
