"""What a version has to meet: thresholds on its newest measurements, asked for by hand, at load, or by an alias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from registry.audit import append_event
from registry.errors import InvalidInput, RequirementsUnmet
from registry.refs import check_alias_name, check_model_name
from registry.tables import gates, models, validations
from registry.thresholds import FAILED, Threshold, parse_threshold


@dataclass(frozen=True)
class Requirement:
    """One threshold and what was found: `value` is that of the metric that is furthest from it, None if unmeasured."""

    threshold: str
    metric: str | None
    value: float | None
    met: bool
    reason: str


def check_requirements(connection: Connection, version_id: int, texts: Sequence[str]) -> list[Requirement]:
    """Say of each threshold whether the version's newest measurements meet it; what was not measured does not."""
    newest = _read_newest(connection, version_id)
    return [_check(parse_threshold(text), newest) for text in texts]


def refuse_unmet(connection: Connection, version_id: int, ref: str, texts: Sequence[str], *, what: str) -> None:
    """Raise RequirementsUnmet if the version does not meet all thresholds; `what` says who asks."""
    found = check_requirements(connection, version_id, texts)
    unmet = [one for one in found if not one.met]
    if unmet:
        listed = "; ".join(f"{one.threshold}: {one.reason}" for one in unmet)
        raise RequirementsUnmet(
            f"{ref} does not meet what {what} requires: {listed}.",
            requirements=found,
            hint=f"Measure what was not measured: lensreg validate {ref} --suite …",
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


def _read_newest(connection: Connection, version_id: int) -> dict[tuple[str, str], float | None]:
    """Return the newest value of each metric, by suite and name; a suite whose newest run failed has none."""
    rows = connection.execute(
        select(validations.c.suite, validations.c.metric, validations.c.value)
        .where(validations.c.version_id == version_id)
        .order_by(validations.c.id)
    )
    newest: dict[tuple[str, str], float | None] = {}
    for row in rows:
        if row.metric == FAILED:
            newest = {key: None if key[0] == row.suite else value for key, value in newest.items()}
        else:
            newest[row.suite, row.metric] = row.value
    return newest


def _check(threshold: Threshold, newest: dict[tuple[str, str], float | None]) -> Requirement:
    suites: dict[str, set[str]] = {}
    for suite, metric in newest:
        suites.setdefault(suite, set()).add(metric)
    mine = [key for key in newest if threshold.concerns(*key, suites[key[0]])]
    text = str(threshold)
    if not mine:
        return Requirement(text, None, None, False, "it was not measured")
    for suite, metric in mine:
        value = newest[suite, metric]
        if not threshold.holds(value):
            reason = f"the newest run of {suite} failed" if value is None else f"{suite}.{metric} is {value:.6g}"
            return Requirement(text, f"{suite}.{metric}", value, False, reason)
    suite, metric = mine[0]
    value = newest[suite, metric]
    return Requirement(text, f"{suite}.{metric}", value, True, f"{suite}.{metric} is {value:.6g}")
