"""What a suite measures: metrics with unit and direction, and whether they meet a threshold."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from registry.errors import InvalidInput

Direction = Literal["lower", "higher"]
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_THRESHOLD = re.compile(r"\s*([a-z][a-z0-9_.-]*)\s*(<=|>=|<|>)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Metric:
    """One figure: `value` None is unmeasured, never 0; `direction` says which way is better.

    `passed` is None where there is no threshold. `details` hold what belongs to the figure, an interval, say.
    """

    name: str
    value: float | None
    unit: str | None = None
    direction: Direction | None = None
    n_samples: int | None = None
    bound: float | None = None
    passed: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What one run of a suite gave; `dataset_digest` is the SHA-256 of what was read, None if nothing was.

    `suite` is the name to record it under, if not the suite's own.
    """

    metrics: Sequence[Metric]
    dataset_digest: str | None = None
    seed: int | None = None
    suite: str | None = None


@dataclass(frozen=True)
class Threshold:
    """A bound on a metric, as `loss < 3.2` says it; `metric` may be `suite.metric`."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}"

    def holds(self, value: float | None) -> bool:
        """Whether a value meets it; what was not measured, and NaN, do not."""
        return value is not None and not math.isnan(value) and bool(_COMPARE[self.comparison](value, self.bound))


def parse_threshold(text: str) -> Threshold:
    """Read `METRIC < NUMBER`, with <, <=, > or >=. Raises InvalidInput."""
    match = _THRESHOLD.fullmatch(text)
    try:
        return Threshold(match[1], match[2], float(match[3]))  # type: ignore[index]
    except (TypeError, ValueError):
        raise InvalidInput(
            f"{text!r} is no threshold.",
            hint="Write it as 'loss < 3.2', 'parity <= 1e-3' or 'accuracy.accuracy >= 0.5'.",
        ) from None


def judge(suite: str, metrics: Sequence[Metric], thresholds: Sequence[Threshold]) -> tuple[Metric, ...]:
    """Say which metrics pass the thresholds that concern them; the last bound is kept."""
    names = {one.name for one in metrics}
    return tuple(
        _judge(one, [each for each in thresholds if _concerns(each, suite, one.name, names)]) for one in metrics
    )


def _concerns(threshold: Threshold, suite: str, metric: str, names: Set[str]) -> bool:
    """Whether a threshold is about this metric; a suite's name is all of its metrics, if none of them has that name."""
    if threshold.metric == suite and suite not in names:
        return True
    return threshold.metric in (metric, f"{suite}.{metric}")


def _judge(metric: Metric, thresholds: Sequence[Threshold]) -> Metric:
    if not thresholds:
        return metric
    passed = metric.passed is not False and all(one.holds(metric.value) for one in thresholds)
    details = {**metric.details, "threshold": " and ".join(map(str, thresholds))}
    return replace(metric, bound=thresholds[-1].bound, passed=passed, details=details)
