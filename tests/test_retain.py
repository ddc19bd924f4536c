"""Retention: rules that keep, reasons that keep in any case, plans that are carried out exactly, protected models."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, select

from registry import Registry
from registry.errors import InvalidInput, PlanOutdated, UnknownRef, VersionInUse
from registry.tables import validations, versions
from tests.records import record

STEPS = (100, 200, 300, 400, 1000, 1100)


@pytest.fixture
def run(any_registry: Registry) -> Registry:
    """Six steps, each the child of the one before; then one version without a step."""
    for step in STEPS:
        parents = [] if step == STEPS[0] else ["run"]
        record(any_registry, "run", step=step, parents=parents)
    record(any_registry, "run")
    return any_registry


def _measure(registry: Registry, metric: str, *values: float | None, suite: str = "eval") -> None:
    """Record a value for each version of the run; `...` is none at all."""
    with registry.database.write() as connection:
        ids = connection.execute(select(versions.c.id).order_by(versions.c.id)).scalars()
        for version_id, value in zip(ids, values, strict=False):
            row = {"version_id": version_id, "suite": suite, "metric": metric, "value": value}
            row |= {"details": {}, "environment": {}, "created_at": datetime.now(UTC)}
            connection.execute(insert(validations), row)


def _kept(registry: Registry, **rules: object) -> dict[str, str]:
    plan = registry.plan_retention("run", **rules)  # type: ignore[arg-type]
    assert set(plan.kept) | set(plan.retired) == {f"run@v{number}" for number in range(1, 8)}
    return {ref.removeprefix("run@"): ", ".join(why) for ref, why in plan.kept.items()}


def test_each_rule_keeps_and_all_together_do(run: Registry) -> None:
    assert _kept(run, keep_last=2) == {"v5": "last 2", "v6": "last 2", "v7": "no step"}
    assert _kept(run, keep_every=200) == {"v2": "every 200", "v4": "every 200", "v5": "every 200", "v7": "no step"}
    _measure(run, "loss", 3.0, 1.0, 2.0, None, 1.0, float("inf"))
    best = _kept(run, keep_best=2, by="loss")
    assert list(best) == ["v2", "v5", "v7"]
    assert list(_kept(run, keep_best=1, by="metric.loss")) == ["v5", "v7"], "of equal ones the later"
    assert list(_kept(run, keep_best=2, by="-eval.loss")) == ["v1", "v6", "v7"]
    assert list(_kept(run, keep_best=1, by="loss", keep_last=1, keep_every=1000)) == ["v5", "v6", "v7"]


def test_the_newest_value_of_a_metric_counts(run: Registry) -> None:
    _measure(run, "loss", 3.0, 1.0, 2.0)
    _measure(run, "loss", 0.5, 1.0, 2.0)
    assert list(_kept(run, keep_best=1, by="loss")) == ["v1", "v7"]
    _measure(run, "loss", None)
    assert list(_kept(run, keep_best=1, by="loss")) == ["v2", "v7"], "unmeasured since"


def test_aliases_and_other_models_keep_what_they_need(run: Registry) -> None:
    run.set_alias("run@best", "run@v1")
    record(run, "other", parents=["run@v3"])
    record(run, "gone", parents=["run@v2"])
    run.retire("gone")
    assert _kept(run, keep_last=1) == {
        "v1": "alias best",
        "v3": "parent of another model",
        "v6": "last 1",
        "v7": "no step",
    }


def test_a_plan_is_carried_out_exactly_or_not_at_all(run: Registry) -> None:
    plan = run.plan_retention("run", keep_last=2)
    assert plan.retired == ("run@v1", "run@v2", "run@v3", "run@v4")
    assert all(one.retired_at is None for one in run.history("run")), "a plan changes nothing"
    for change in (lambda: run.set_alias("run@best", "run@v1"), lambda: record(run, "run", step=1200)):
        change()
        with pytest.raises(PlanOutdated):
            run.retain(plan)
    assert all(one.retired_at is None for one in run.history("run"))
    run.retain(run.plan_retention("run", keep_last=2))
    assert [one.number for one in run.history("run") if one.retired_at] == [5, 4, 3, 2]
    assert run.events()[0].details["reason"] == "retention"
    assert run.verify_events() is None
    assert run.plan_retention("run", keep_last=2).retired == ()
    run.restore("run@v2")
    assert run.plan_retention("run", keep_last=2).retired == ("run@v2",)


def test_a_protected_model_keeps_everything(run: Registry) -> None:
    plan = run.plan_retention("run", keep_last=1)
    run.protect("run")
    run.protect("run")
    uses: list[Callable[[], object]] = [
        lambda: run.plan_retention("run", keep_last=1),
        lambda: run.retain(plan),
        lambda: run.retire("run@v7"),
        lambda: run.retire("run@v7", force=True),
    ]
    for use in uses:
        with pytest.raises(VersionInUse, match="protected"):
            use()
    run.protect("run", protect=False)
    run.retire("run@v7")
    actions = [event.action for event in run.events() if event.action.startswith("model.")]
    assert actions == ["model.unprotected", "model.protected"]
    with pytest.raises(UnknownRef):
        run.protect("nobody")


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"keep_last": 0},
        {"keep_every": -1},
        {"keep_best": 2},
        {"by": "loss"},
        {"keep_last": True},
        {"keep_last": 2**50},
    ],
)
def test_rules_that_cannot_be_meant_are_refused(run: Registry, rules: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        run.plan_retention("run", **rules)  # type: ignore[arg-type]


def test_a_metric_that_nobody_measured_retires_nothing(run: Registry) -> None:
    with pytest.raises(InvalidInput, match="No version of run has a value"):
        run.plan_retention("run", keep_best=1, by="nonsense")
