"""Which metrics were recorded along a run: values that can be set beside each other, and which of them are stale."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry.errors import InvalidInput
from registry.refs import find_similar
from registry.stale import tell_stale
from registry.thresholds import FAILED
from registry.trajectory.find_run import name_some
from registry.trajectory.results import TracedMetric
from registry.versions import Measurement, Version

# they say whether a version is in order, and nothing of its course
_NOT_OF_COURSE = ("parity", "structure")


@dataclass(frozen=True)
class MetricCourse:
    """One metric along a run: values by ref, None for what is no finite number, and the refs of stale ones."""

    metric: TracedMetric
    values: Mapping[str, float | None]
    stale: frozenset[str]
    notes: tuple[str, ...] = ()


def follow_metrics(versions: Sequence[Version], asked: Sequence[str]) -> list[MetricCourse]:
    """Return the course of the metrics that are asked for, or else of all but those of parity and structure.

    Of several results on the same data the newest counts. Raises InvalidInput for a metric that no version has.
    """
    recorded: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for version in versions:
        for one in version.validations:
            if one.metric != FAILED:
                recorded[f"{one.suite}.{one.metric}"][version.ref].append(one)
    digests = {version.ref: version.weights_digest for version in versions}
    return [_follow(name, recorded[name], digests) for name in choose_metrics(recorded, asked)]


def choose_metrics(known: Iterable[str], asked: Sequence[str]) -> list[str]:
    """Return the full names, `suite.metric`, of what is asked for: a full name, a metric's, or a whole suite's."""
    names = list(known)
    if not asked:
        return [name for name in names if not name.startswith(_NOT_OF_COURSE)]
    return list(dict.fromkeys(name for text in asked for name in _choose(names, text.removeprefix("metric."))))


def _choose(known: Sequence[str], text: str) -> list[str]:
    if text in known:
        return [text]
    of_metric = [name for name in known if name.partition(".")[2] == text]
    if len(of_metric) > 1:
        raise InvalidInput(f"{text} is measured by several suites.", hint=f"Say which: {', '.join(of_metric)}.")
    found = of_metric or [name for name in known if name.partition(".")[0] == text]
    if found:
        return found
    similar = find_similar(text, [*known, *(name.partition(".")[2] for name in known)])
    if similar:
        hint = f"Did you mean {' or '.join(similar)}?"
    elif known:
        hint = f"There are {name_some(sorted(known))}."
    else:
        hint = "Measure it first: lensreg validate REF… --suite …"
    raise InvalidInput(f"No step of the run has a value for {text!r}.", hint=hint)


def _follow(name: str, by_ref: Mapping[str, Sequence[Measurement]], digests: Mapping[str, str | None]) -> MetricCourse:
    ((main, _),) = Counter(
        data for rows in by_ref.values() for data in {one.dataset_digest for one in rows}
    ).most_common(1)
    comparable = {ref: [one for one in rows if one.dataset_digest == main] for ref, rows in by_ref.items()}
    newest = {ref: rows[-1] for ref, rows in comparable.items() if rows}
    elsewhere = [ref for ref, rows in comparable.items() if not rows]
    one = next(iter(newest.values()))
    return MetricCourse(
        TracedMetric(name, one.unit, one.direction, main),
        {ref: row.value for ref, row in newest.items()},
        frozenset(ref for ref, row in newest.items() if tell_stale(row, digests[ref]) is not None),
        (f"{name} was measured on other data, and left out: {name_some(elsewhere)}.",) if elsewhere else (),
    )
