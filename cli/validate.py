"""`lensreg validate`: run a suite of validations on versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options, workers_options

if TYPE_CHECKING:
    from registry.validate import ValidationRun


@click.command()
@ref_argument("refs", several=True, required=False)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    help="parity, structure, loss, accuracy, drift, lm-eval, or a plugin's; several may be given.",
)
@click.option(
    "--data", type=click.Path(exists=True), help="What to run on: .txt, .jsonl, or a folder that datasets saved."
)
@click.option(
    "--set",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the suite, such as max_tokens=10000.",
)
@click.option("--require", multiple=True, metavar="'METRIC < N'", help="A threshold, with <, <=, > or >=.")
@click.option("--dtype", help="In which the networks run; the suite's own choice without it.")
@click.option("--device", help="Where they run.")
@workers_options
@click.option("--again", is_flag=True, help="Measure also what was measured already.")
@click.option(
    "--stale",
    is_flag=True,
    help="Repeat what no longer stands, of the REFs, of all versions of a NAME, or of everything.",
)
@click.option("--dry-run", is_flag=True, help="With --stale: show what would be repeated.")
@output_option("table", "json", "csv")
@registry_options
@click.pass_context
def validate(
    ctx: click.Context,
    refs: tuple[str, ...],
    suites: tuple[str, ...],
    data: str | None,
    parameters: tuple[str, ...],
    require: tuple[str, ...],
    dtype: str | None,
    device: str | None,
    workers: int | None,
    dask: str | None,
    again: bool,
    stale: bool,
    dry_run: bool,
) -> None:
    """Run suites on the versions that the REFs mean, and record what they measure.

    What was measured already, with the same suite, parameters, data and packages, is not measured again: what was
    interrupted goes on when it is repeated. Exit code 3: something failed, or did not meet what is required.

    With --stale, what was measured of other data or with other releases of torch, transformers or transformer-lens is
    measured again, as it was asked for then; --data and --set take the place of what was recorded, and --suite keeps to
    some suites. Exit code 3 also says that something cannot be repeated here.
    """
    from cli.output import say
    from cli.progress import show_progress

    session: Session = ctx.obj
    given = dict(_split(text) for text in parameters)
    if stale:
        from cli.stale import repeat_stale

        if require or dtype or device or again:
            raise click.UsageError("--stale repeats as it was: without --require, --dtype, --device and --again.")
        replaced = {**given, **({"data": data} if data else {})}
        repeat_stale(ctx, refs, suites, replaced, dry_run=dry_run, workers=workers, dask=dask)
        return
    if dry_run:
        raise click.UsageError("--dry-run goes with --stale.")
    if not refs or not suites:
        raise click.UsageError("Name versions and at least one --suite, or --stale.")
    registry = session.open()
    if data:
        given["data"] = data
    runs = []
    with show_progress() as progress:
        for suite, mine in zip(suites, _share_out(suites, given), strict=True):
            runs += registry.validate(
                refs,
                suite,
                parameters=mine,
                require=require,
                dtype=dtype,
                device=device,
                again=again,
                workers=workers,
                dask=dask,
                progress=progress,
            )
    print_runs(runs, session.output)
    idle = [text for text in require if not _concerns_any(text, runs)]
    for text in idle:
        say(f"{text} concerns nothing that these suites measure", err=True)
    if idle or any(run.error or run.passed is False for run in runs):
        ctx.exit(3)


def _concerns_any(text: str, runs: Sequence[ValidationRun]) -> bool:
    """Whether a threshold is about anything that was measured, or was to be."""
    from registry.thresholds import parse_threshold

    threshold = parse_threshold(text)
    for run in runs:
        names = {one.name for one in run.metrics}
        if run.error is not None or any(threshold.concerns(run.suite, name, names) for name in names):
            return True
    return False


def _share_out(suites: Sequence[str], given: Mapping[str, str]) -> list[dict[str, str]]:
    """Give each suite the parameters that it takes; what none of them takes goes to all, to be refused."""
    from registry.validation.suites import list_parameters

    taken = [list_parameters(suite).keys() for suite in suites]
    unknown = given.keys() - set().union(*taken)
    return [{name: value for name, value in given.items() if name in mine | unknown} for mine in taken]


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text}: write NAME=VALUE.")
    return name.strip(), value.strip()


def print_runs(runs: list[ValidationRun], output: str) -> None:
    """Print what runs measured, a row for each metric."""
    from cli.measured import format_interval
    from cli.output import Column, print_rows, say

    rows = [_describe(run, metric) for run in runs for metric in run.metrics]
    if output == "table" and not rows:
        return
    if output != "table":
        print_rows(rows, [], output, "", "version")
        return
    for row in rows:
        value = row["value"]
        row["value"] = "not measured" if value is None else f"{value:.6g}"
        row["interval"] = format_interval(row["low"], row["high"])
        row["passed"] = {True: "yes", False: "no", None: ""}[row["passed"]]
        row["new"] = "" if row["new"] else "measured before"
    columns = [Column("version", "version"), Column("metric", "metric"), Column("value", "value", True)]
    columns += [Column("95 %", "interval"), Column("unit", "unit"), Column("n", "n_samples", True)]
    columns += [Column("passed", "passed"), Column("", "new")]
    print_rows(rows, columns, "table", "", "version")
    for run in runs:
        if run.error:
            say(f"{run.ref}: {run.suite} failed: {run.error}", err=True)


def _describe(run: ValidationRun, metric: Any) -> dict[str, Any]:
    return {
        "version": run.ref,
        "suite": run.suite,
        "metric": f"{run.suite}.{metric.name}",
        "value": metric.value,
        "unit": metric.unit,
        "direction": metric.direction,
        "low": metric.details.get("low"),
        "high": metric.details.get("high"),
        "n_samples": metric.n_samples,
        "bound": metric.bound,
        "passed": metric.passed,
        "dataset_digest": metric.dataset_digest or run.dataset_digest,
        "seconds": run.seconds,
        "new": run.is_new,
        "error": run.error,
    }
