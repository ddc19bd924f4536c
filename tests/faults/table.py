"""The table of what came of the scenarios, as text for a terminal and as Markdown for docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

from tests.faults.running import Row


def print_table(rows: Sequence[Row]) -> None:
    """Print a line for each scenario."""
    width = max((len(row.scenario.name) for row in rows), default=0)
    print(f"{'scenario':{width}}  fault     struck  breaches  seconds")
    for row in rows:
        struck, broken, notes = _describe(row)
        print(f"{row.scenario.name:{width}}  {row.scenario.fault:8}{struck:>8}{broken:>10}{row.seconds:9.1f}  {notes}")


def make_table(rows: Sequence[Row], seconds: float) -> str:
    """Return the table as Markdown, with how it came about."""
    lines = ["| scenario | fault | what is struck | struck | breaches | |", "|---|---|---|--:|--:|---|"]
    for row in rows:
        struck, broken, notes = _describe(row)
        one = row.scenario
        lines.append(
            f"| {one.name} | {one.fault} | {one.words} | {struck} | {broken} | {notes} |".replace("|  |", "| |")
        )
    machine = f"{os.cpu_count()} CPUs, {platform.system()} {platform.release().split('-')[0]}"
    said = f"The last run that was written down: `--seconds {seconds:.0f}`, {machine}."
    return "\n".join([said, "", *lines])


def _describe(row: Row) -> tuple[str, str, str]:
    """Say how often it struck, what was broken, and a remark."""
    if row.skipped:
        return "–", "–", f"skipped: {row.skipped}"
    if row.error:
        return "–", "–", "FAILED"
    n_broken = len(row.outcome.broken)
    if row.scenario.is_control:
        return f"{row.outcome.struck:,}", f"{n_broken:,} found" if n_broken else "BLIND", row.outcome.notes
    return f"{row.outcome.struck:,}", f"{n_broken:,}", row.outcome.notes
