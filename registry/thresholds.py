"""Thresholds on metrics, as `loss < 3.2` says them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Set
from dataclasses import dataclass

from registry.errors import InvalidInput

FAILED = "failed"
"""The metric of a run that raised: it has no value, did not pass, and says why."""

_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_THRESHOLD = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9_.-]*)\s*(<=|>=|<|>)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Threshold:
    """A bound on a metric; `metric` may be `suite.metric`, or a suite for all that it measures."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}"

    def concerns(self, suite: str, metric: str, names: Set[str]) -> bool:
        """Whether it is about this metric; a suite's name is all of its `names`, if none of them has that name."""
        if self.metric == suite and suite not in names:
            return True
        return self.metric in (metric, f"{suite}.{metric}")

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
