"""Print what was measured of versions as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.output import Column, format_instant, print_rows, say

if TYPE_CHECKING:
    from registry.recorded import Recorded


def print_measured(measured: Sequence[Recorded]) -> None:
    """Print the results of one version, a row for each metric; what failed says why below."""
    rows = [
        {
            "metric": f"{one.suite}.{one.metric}",
            "value": "not measured" if one.value is None else f"{one.value:.6g}",
            "interval": format_interval(one.low, one.high),
            "unit": one.unit,
            "n": one.n_samples,
            "passed": None if one.passed is None else one.passed,
            "held_to": one.threshold or (None if one.bound is None else f"bound {one.bound:.4g}"),
            "data": (one.dataset_digest or "")[:12],
            "in": one.dtype if one.device == "cpu" else f"{one.dtype} on {one.device}",
            "when": format_instant(one.measured_at),
            "stale": one.stale,
        }
        for one in measured
    ]
    columns = [Column("measured", "metric"), Column("value", "value", True), Column("95 %", "interval")]
    columns += [
        Column("unit", "unit"),
        Column("n", "n", True),
        Column("passed", "passed"),
        Column("held to", "held_to"),
    ]
    columns += [Column("data", "data"), Column("in", "in"), Column("when, UTC", "when"), Column("stale", "stale")]
    say("")
    print_rows(rows, columns, "table", "", "metric")
    for one in measured:
        if one.message:
            say(f"{one.suite} failed: {one.message}")
    if any(one.stale for one in measured):
        say(f"stale results no longer stand; measure them again: lensreg validate --stale {measured[0].ref}", err=True)


def format_interval(low: float | None, high: float | None) -> str:
    """Write an interval; nothing if a side of it is not known."""
    return "" if low is None or high is None else f"{low:.4g} … {high:.4g}"
