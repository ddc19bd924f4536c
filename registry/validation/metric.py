"""What a suite measures: metrics with unit and direction, and whether they meet a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from registry.thresholds import Threshold

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One figure: `value` None is unmeasured, never 0; `direction` says which way is better.

    `passed` is None where there is no threshold. `details` hold what belongs to the figure, an interval, say.
    `dataset_digest` is that of its own data, if not the run's.
    """

    name: str
    value: float | None
    unit: str | None = None
    direction: Direction | None = None
    n_samples: int | None = None
    bound: float | None = None
    passed: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    dataset_digest: str | None = None


@dataclass(frozen=True)
class Measured:
    """What one run of a suite gave; `dataset_digest` is the SHA-256 of what was read, None if nothing was.

    `suite` is the name to record it under, if not the suite's own, and `dtype` what it ran in, if the suite chose it.
    `extent` says how far the data were read, for `digest_data`; `packages` are those that the figures depend on beside
    torch, transformers and transformer-lens.
    """

    metrics: Sequence[Metric]
    dataset_digest: str | None = None
    seed: int | None = None
    suite: str | None = None
    dtype: str | None = None
    extent: Mapping[str, Any] | None = None
    packages: Sequence[str] = ()


def judge(suite: str, metrics: Sequence[Metric], thresholds: Sequence[Threshold]) -> tuple[Metric, ...]:
    """Say which metrics pass the thresholds that concern them; the last bound is kept."""
    names = {one.name for one in metrics}
    return tuple(_judge(one, [each for each in thresholds if each.concerns(suite, one.name, names)]) for one in metrics)


def _judge(metric: Metric, thresholds: Sequence[Threshold]) -> Metric:
    if not thresholds:
        return metric
    passed = metric.passed is not False and all(one.holds(metric.value) for one in thresholds)
    details = {**metric.details, "threshold": " and ".join(map(str, thresholds))}
    if metric.passed is not None:
        details["own"] = {"bound": metric.bound, "passed": metric.passed}
    return replace(metric, bound=thresholds[-1].bound, passed=passed, details=details)
