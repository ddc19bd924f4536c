"""`lensreg validate`: run a suite of validations on versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options, workers_options

if TYPE_CHECKING:
    from registry.validate import ValidationRun


@click.command()
@ref_argument("refs", several=True)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    required=True,
    metavar="NAME",
    help="parity, structure, loss, accuracy, drift, or a plugin's; several may be given.",
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
) -> None:
    """Run suites on the versions that the REFs mean, and record what they measure.

    What was measured already, with the same suite, parameters, data and packages, is not measured again: what was
    interrupted goes on when it is repeated. Exit code 3: something failed, or did not meet what is required.
    """
    from cli.progress import show_progress

    session: Session = ctx.obj
    registry = session.open()
    given = dict(_split(text) for text in parameters)
    runs = []
    with show_progress() as progress:
        for suite in suites:
            runs += registry.validate(
                refs,
                suite,
                data=data if suite not in ("parity", "structure") else None,
                parameters=given,
                require=require,
                dtype=dtype,
                device=device,
                again=again,
                workers=workers,
                dask=dask,
                progress=progress,
            )
    _print(runs, session.output)
    if any(run.error or run.passed is False for run in runs):
        ctx.exit(3)


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text}: write NAME=VALUE.")
    return name.strip(), value.strip()


def _print(runs: list[ValidationRun], output: str) -> None:
    from cli.output import Column, print_rows, say

    rows = [_describe(run, metric) for run in runs for metric in run.metrics]
    if output != "table":
        print_rows(rows, [Column(key, key) for key in rows[0]], output, "", "version")
        return
    for row in rows:
        value, low, high = row["value"], row["low"], row["high"]
        row["value"] = "not measured" if value is None else f"{value:.6g}"
        row["interval"] = "" if low is None or high is None else f"{low:.4g} … {high:.4g}"
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
        "dataset_digest": run.dataset_digest,
        "seconds": run.seconds,
        "new": run.is_new,
        "error": run.error,
    }
