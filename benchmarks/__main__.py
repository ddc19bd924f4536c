"""Measure every subject, each in a process of its own, and write docs/benchmarks.md: `make bench`.

    python -m benchmarks [--quick] [--only SUBJECT …] [--without-rivals] [--memory-gb N] [--page FILE]

With `--only`, what was measured is printed and no page is written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.environments import find_rivals, make_environments
from benchmarks.machine import describe_machine, read_free_bytes
from benchmarks.page import Section, write_page
from benchmarks.plan import ROOT, Plan
from benchmarks.worker import fork_workers

SUBJECTS = {
    "loading-160m": "benchmarks.subjects.loading:measure_small",
    "loading-1.5b": "benchmarks.subjects.loading:measure_large",
    "registering": "benchmarks.subjects.registering:measure",
    "resolving": "benchmarks.subjects.resolving:measure",
    "commands": "benchmarks.subjects.commands:measure",
    "growth": "benchmarks.subjects.growth:measure",
}
PAGE = ROOT / "docs" / "benchmarks.md"
TIMEOUT_SECONDS = 900


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--only", nargs="*", choices=SUBJECTS, metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--without-rivals", action="store_true", help="install and run no other registry")
    parser.add_argument("--memory-gb", type=float, default=14, help="where to stop a way; 14 if left out")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write; pictures go to images/ beside it")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # for a subject's own process
    given = parser.parse_args()
    plan = Plan(
        quick=given.quick,
        rivals=not given.without_rivals,
        images=given.page.absolute().parent / "images",
        memory_bytes=int(min(given.memory_gb * 1e9, 0.85 * read_free_bytes())),
    )
    if given.into:
        plan = replace(plan, work=given.into.parent)
        if plan.quick:
            fork_workers()
        module, _, name = SUBJECTS[given.only[0]].partition(":")
        given.into.write_bytes(pickle.dumps(getattr(import_module(module), name)(plan)))
        return
    plan.folder.mkdir(exist_ok=True)
    if plan.rivals:
        make_environments(plan.folder)
    machine = describe_machine(find_rivals(plan.folder) if plan.rivals else {})
    sections = []
    for subject in given.only or SUBJECTS:
        sections.append(_measure(subject, plan, given.page))
        page = write_page(machine, sections, quick=plan.quick)
        if not given.only:
            given.page.write_text(page)  # what was measured is there, whatever becomes of the rest
    print(page if given.only else f"wrote {given.page}")


def _measure(subject: str, plan: Plan, page: Path) -> Section:
    """Measure one subject in a process of its own, so that a failure costs no more than its section."""
    command = f"python -m benchmarks --only {subject}"
    print(f"{subject} …", end=" ", flush=True)
    start = time.monotonic()
    with replace(plan, work=plan.folder).working_folder() as work:  # deleted whatever becomes of it
        into = work / "section"
        arguments = [
            sys.executable,
            "-m",
            "benchmarks",
            "--only",
            subject,
            "--into",
            str(into),
            "--page",
            str(page.absolute()),
        ]
        arguments += ["--memory-gb", f"{plan.memory_bytes / 1e9:.1f}"]
        arguments += ["--quick"] * plan.quick + ["--without-rivals"] * (not plan.rivals)
        log = plan.folder / f"{subject}.log"
        if not _run(arguments, log, into.parent):
            print(f"was stopped after {TIMEOUT_SECONDS} s")
            return Section(subject, command, [f"Not measured: stopped after {TIMEOUT_SECONDS} s."])
        took = f"{time.monotonic() - start:.0f} s"
        if not into.is_file():
            reason = log.read_text().strip().splitlines()[-1:] or ["it ended"]
            print(f"failed after {took}: {reason[0]}")
            return Section(subject, command, [f"Not measured: {reason[0].replace(str(ROOT), '…')}"])
        print(took)
        section: Section = pickle.loads(into.read_bytes())
        return section


def _run(arguments: list[str], log: Path, work: Path) -> bool:
    """Run a subject; False if it took too long, and then all that it started is ended with it."""
    with (
        log.open("w") as opened,
        subprocess.Popen(
            arguments, cwd=ROOT, env=_make_environment(work), stdout=opened, stderr=opened, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return True


def _make_environment(work: Path) -> dict[str, str]:
    """Keep everybody's settings out of it, and nobody reports anything home; what is measured is this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LENSREG_", "HF_", "MLFLOW_"))}
    silent = {"HF_HUB_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    ours = {"PYTHONPATH": str(ROOT), "LENSREG_HOME": str(work / "home"), "LENSREG_STAMPS": str(work / "stamps")}
    return kept | silent | ours | {"HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
