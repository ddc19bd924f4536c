"""`lensreg validate --stale`: what no longer stands is shown, and repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session

if TYPE_CHECKING:
    from registry.repeat import StaleRun


def repeat_stale(
    ctx: click.Context,
    refs: Sequence[str],
    suites: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    dry_run: bool,
    workers: int | None,
    dask: str | None,
) -> None:
    """Repeat what is stale, or with `dry_run` show it; exit with 3 if a run failed or cannot be repeated."""
    from cli.output import say
    from cli.progress import show_progress
    from cli.validate import print_runs

    session: Session = ctx.obj
    registry = session.open()
    found = registry.find_stale(refs, suites=suites, parameters=parameters)
    left = [one for one in found if one.obstacle is not None]
    if dry_run:
        _print(found, session.output)
    else:
        with show_progress() as progress:
            runs = registry.repeat_stale(found, workers=workers, dask=dask, progress=progress)
        print_runs(runs, session.output)
        for one in left:
            say(f"{one.ref}: {one.suite} is stale ({one.stale}) and cannot be repeated: {one.obstacle}", err=True)
        if session.output == "table" and not found:
            say("nothing is stale", err=True)
        if any(run.error or run.passed is False for run in runs):
            ctx.exit(3)
    if left:
        ctx.exit(3)


def _print(found: Sequence[StaleRun], output: str) -> None:
    from cli.output import Column, print_rows

    rows: list[dict[str, Any]] = [
        {**vars(one), "parameters": dict(one.parameters), "require": list(one.require)} for one in found
    ]
    if output == "table":
        for row in rows:
            row["on"] = row["parameters"].get("data") or row["parameters"].get("tasks") or ""
            row["repeat"] = "yes" if row["obstacle"] is None else f"no: {row['obstacle']}"
    columns = [Column("version", "ref"), Column("suite", "suite"), Column("on", "on")]
    columns += [Column("measured", "measured_at"), Column("stale", "stale"), Column("repeated", "repeat")]
    print_rows(rows, columns, output, "nothing is stale", "ref")
