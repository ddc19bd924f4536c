"""Retention: which steps of a run to keep, as a plan that is shown first, then carried out exactly or not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from registry.errors import InvalidInput, PlanOutdated
from registry.query import list_history
from registry.refs import check_model_name, check_text
from registry.resolve import resolve_ref
from registry.retire import mark_retired, refuse_protected
from registry.tables import models, validations, version_parents, versions
from registry.versions import VersionSummary


@dataclass(frozen=True)
class Retention:
    """What to keep of a model: all rules that are given, together; what none of them keeps is retired.

    `by` is a metric, `loss` or `suite.loss`, of which the lowest are best; with `-` before it the highest.
    """

    keep_last: int | None = None
    keep_every: int | None = None
    keep_best: int | None = None
    by: str | None = None


@dataclass(frozen=True)
class RetentionPlan:
    """What would be kept, for which reasons, and what would be retired; oldest first."""

    model: str
    rules: Retention
    kept: Mapping[str, tuple[str, ...]]
    retired: tuple[str, ...]


def plan_retention(connection: Connection, model: str, rules: Retention) -> RetentionPlan:
    """Say what of a model would be kept and retired.

    Kept in any case are versions that an alias names, that have no training step, or that a version of another model
    was made from. Raises VersionInUse for a protected model, and InvalidInput for rules that cannot be meant.
    """
    _check_rules(rules)
    check_model_name(model)
    history = [one for one in reversed(list_history(connection, model)) if one.retired_at is None]
    refuse_protected(connection, model)
    steps = [one for one in history if one.step is not None]
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in history:
        if one.step is None:
            reasons[one.ref].append("no step")
        if one.aliases:
            reasons[one.ref].append(f"alias {', '.join(one.aliases)}")
        if rules.keep_every and one.step is not None and one.step % rules.keep_every == 0:
            reasons[one.ref].append(f"every {rules.keep_every:,}")
    for ref in _find_parents_of_others(connection, model):
        reasons[ref].append("parent of another model")
    by_step = sorted(steps, key=lambda one: (one.step or 0, one.number))
    for one in by_step[len(by_step) - rules.keep_last :] if rules.keep_last else []:
        reasons[one.ref].append(f"last {rules.keep_last}")
    if rules.keep_best and rules.by:
        for one in _find_best(connection, model, steps, rules.by)[: rules.keep_best]:
            reasons[one.ref].append(f"best {rules.keep_best} by {rules.by}")
    kept = {one.ref: tuple(reasons[one.ref]) for one in history if one.ref in reasons}
    return RetentionPlan(model, rules, kept, tuple(one.ref for one in history if one.ref not in reasons))


def carry_out(connection: Connection, plan: RetentionPlan) -> None:
    """Retire what the plan says, within the caller's write transaction; nothing is deleted.

    Raises PlanOutdated if the same rules would give another plan by now.
    """
    if plan_retention(connection, plan.model, plan.rules) != plan:
        raise PlanOutdated(
            f"{plan.model} has changed since the plan was made; nothing was retired.",
            hint="Look at the new plan first.",
        )
    for ref in plan.retired:
        mark_retired(connection, resolve_ref(connection, ref), {"reason": "retention", "rules": vars(plan.rules)})


def _check_rules(rules: Retention) -> None:
    counts = {"keep_last": rules.keep_last, "keep_every": rules.keep_every, "keep_best": rules.keep_best}
    given = {name: value for name, value in counts.items() if value is not None}
    if not given:
        raise InvalidInput("Nothing says what to keep.", hint="Give keep_last, keep_every or keep_best.")
    for name, value in given.items():
        if type(value) is not int or not 1 <= value < 2**40:
            raise InvalidInput(f"{name} = {value!r} is no number of versions or steps.", hint="It is at least 1.")
    if (rules.keep_best is None) != (rules.by is None):
        raise InvalidInput("keep_best needs to know which metric is meant.", hint="Give both: keep_best=3, by='loss'.")
    check_text(rules.by or "", "metric")


def _find_parents_of_others(connection: Connection, model: str) -> list[str]:
    """Return the versions of the model that a version of another model, not retired, was made from."""
    child, parent = versions.alias("child"), versions.alias("parent")
    rows = connection.execute(
        select(parent.c.number)
        .distinct()
        .select_from(
            models.join(parent, parent.c.model_id == models.c.id)
            .join(version_parents, version_parents.c.parent_id == parent.c.id)
            .join(child, child.c.id == version_parents.c.version_id)
        )
        .where(models.c.name == model, child.c.model_id != parent.c.model_id, child.c.retired_at.is_(None))
    ).scalars()
    return [f"{model}@v{number}" for number in rows]


def _find_best(connection: Connection, model: str, steps: Sequence[VersionSummary], by: str) -> list[VersionSummary]:
    """Order the versions that were measured, best first; of equal ones the later step is better."""
    highest, metric = by.startswith("-"), by.removeprefix("-").removeprefix("metric.")
    values = _read_newest_values(connection, model, metric)
    measured = [one for one in steps if values.get(one.number) is not None]
    if not measured:
        raise InvalidInput(
            f"No version of {model} has a value for the metric {metric!r}.",
            hint="Without it nobody can say which are best; validate them first.",
        )
    sign = -1 if highest else 1
    return sorted(measured, key=lambda one: (sign * values[one.number], -(one.step or 0), -one.number))


def _read_newest_values(connection: Connection, model: str, metric: str) -> dict[int, float]:
    """Return the newest value of a metric, by the version's number; the metric's name may have its suite before it."""
    named = [validations.c.metric == metric]
    suite, dot, name = metric.partition(".")
    if dot:
        named.append((validations.c.suite == suite) & (validations.c.metric == name))
    of_model = select(versions.c.id).join(models).where(models.c.name == model)
    newest = (
        select(func.max(validations.c.id).label("id"))
        .where(validations.c.version_id.in_(of_model), named[0] if len(named) == 1 else named[0] | named[1])
        .group_by(validations.c.version_id)
        .subquery()
    )
    rows = connection.execute(
        select(versions.c.number, validations.c.value).select_from(
            newest.join(validations, validations.c.id == newest.c.id).join(versions)
        )
    )
    return {row.number: row.value for row in rows if row.value is not None}
